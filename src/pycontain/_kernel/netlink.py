"""netlink(7): messages in batches, and what the kernel says to each.

Small on purpose: a container's links are on the way of its start, where a general library takes longer to
load than a hundred containers to be linked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence

from attrs import evolve, frozen

ROUTE, NETFILTER = 0, 12
"""Protocols of netlink(7)."""

REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
REPLACE, EXCL, CREATE, APPEND = 0x100, 0x200, 0x400, 0x800
_NESTED = 0x8000
_ERROR, _DONE = 2, 3
_HEADER, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=HH")
_SOL_NETLINK, _EXT_ACK, _STRICT = 270, 11, 12
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_OVERHEAD = 32
"""Bytes of the send buffer that netlink_sendmsg() keeps for itself."""
_BUFFER = 4 << 20
_SMALL = 1 << 15
"""Bytes of a batch that every send buffer holds, so that most sockets are never asked for theirs."""
_AT_ONCE = 1 << 16
"""Bytes of one recv(2): the kernel sends no more than 32 KiB together, and malloc(3) maps no pages for it."""
_INTERRUPTED, _CAPPED, _TLVS = 0x10, 0x100, 0x200
_TEXT = 1
_PATIENCE = 30
"""Seconds to wait for an answer, in case one was lost."""
_ATTEMPTS, _PAUSE = 100, 0.001
"""Attempts of a dump that changes interrupt, and seconds by which the pauses between them grow."""


class NetlinkError(OSError):
    """A refusal by the kernel.  at: index of the message in its batch."""

    def __init__(self, number: int, text: str, at: int) -> None:
        super().__init__(number, f"{os.strerror(number)}{f': {text}' if text else ''}")
        self.at = at


@frozen
class Answer:
    """One message of the kernel."""

    kind: int
    body: bytes


def attribute(kind: int, payload: bytes | int | str) -> bytes:
    """Return a padded attribute; a number has 32 bits in host order, text ends in a NUL."""
    if isinstance(payload, int):
        payload = struct.pack("=I", payload)
    elif isinstance(payload, str):
        payload = payload.encode() + b"\0"
    size = 4 + len(payload)
    return _ATTRIBUTE.pack(size, kind) + payload + b"\0" * (-size % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Return an attribute that contains attributes."""
    return attribute(kind | _NESTED, b"".join(attributes))


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield every attribute in data: its kind without flags, and its payload."""
    at = 0
    while at + 4 <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < 4:
            return
        yield kind & 0x3FFF, data[at + 4 : at + size]
        at += (size + 3) & ~3


@frozen
class Message:
    """One request: its number, flags beside NLM_F_REQUEST, and what follows the header."""

    kind: int
    body: bytes
    flags: int = 0


class Netlink:
    """A socket to one of the kernel's families, for every thread of the process.

    fd: a socket that was made in another network namespace, taken over.
    """

    def __init__(self, protocol: int, fd: int = -1) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._socket = (
            socket.socket(fileno=fd) if fd >= 0 else socket.socket(socket.AF_NETLINK, kind, protocol)
        )
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", _PATIENCE, 0))
        for level, option, value in (
            (socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER),
            (_SOL_NETLINK, _EXT_ACK, 1),
            (_SOL_NETLINK, _STRICT, 1),
        ):
            with contextlib.suppress(OSError):
                self._socket.setsockopt(level, option, value)
        self._number = 0
        self._room = _SMALL
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close it; with it goes what it owns."""
        self._socket.close()

    def detach(self) -> int:
        """Return the fd, which the caller owns from now on."""
        return self._socket.detach()

    def do(self, messages: Sequence[Message]) -> None:
        """Execute the messages in order, in one system call.

        Raises NetlinkError of the first that was refused; the kernel tries those after it as well.
        """
        if not messages:
            return
        with self._lock:
            first, batch = self._pack(_acknowledged(messages))
            self._send(batch)
            numbers = range(first, first + len(messages))
            self._receive_acks(numbers, {numbers[-1]})

    def do_at_once(self, messages: Sequence[Message]) -> None:
        """Execute all messages or none, as a transaction of nfnetlink.  Raises NetlinkError."""
        if not messages:
            return
        begin = Message(0x10, struct.pack("=BBH", 0, 0, socket.htons(10)))
        end = Message(0x11, begin.body)
        with self._lock:
            first, batch = self._pack(_acknowledged(messages), begin, end)
            self._send(batch)
            numbers = range(first, first + len(messages))
            self._receive_acks(numbers, {numbers[-1]}, (numbers.start - 1, numbers.stop))

    def ask(self, message: Message) -> list[Answer]:
        """Return the kernel's answers to a request or a dump.  Raises NetlinkError."""
        dump = message.flags & DUMP == DUMP
        with self._lock:
            for attempt in range(_ATTEMPTS):
                first, batch = self._pack([message])
                self._send(batch)
                answers = self._collect(first, dump)
                if answers is not None:
                    return answers
                time.sleep(min(attempt, 20) * _PAUSE)
        raise NetlinkError(errno.EINTR, "what was asked for changes too fast", 0)

    def _send(self, batch: bytes) -> None:
        """Send one batch, with a larger buffer where it needs one.  Raises NetlinkError.

        The kernel refuses a batch above the send buffer as EMSGSIZE. Only root exceeds net.core.wmem_max.
        """
        if len(batch) > self._room:
            for option in (_SO_SNDBUFFORCE, socket.SO_SNDBUF):
                with contextlib.suppress(OSError):
                    self._socket.setsockopt(socket.SOL_SOCKET, option, len(batch))
                    break
            self._room = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - _OVERHEAD
        try:
            self._socket.send(batch)
        except OSError as error:
            text = f"a batch of {len(batch)} bytes" if error.errno == errno.EMSGSIZE else ""
            raise NetlinkError(error.errno or errno.EIO, text, 0) from error

    def _pack(self, messages: Sequence[Message], *around: Message) -> tuple[int, bytes]:
        parts = []
        if around:
            parts.append(self._one(around[0]))
        first = self._number + 1
        parts += [self._one(message) for message in messages]
        if around:
            parts.append(self._one(around[1]))
        return first, b"".join(parts)

    def _one(self, message: Message) -> bytes:
        self._number = (self._number + 1) & 0xFFFFFFFF
        size = 16 + len(message.body)
        return _HEADER.pack(size, message.kind, REQUEST | message.flags, self._number, 0) + message.body

    def _receive_acks(self, numbers: range, waiting: set[int], frame: tuple[int, ...] = ()) -> None:
        """Receive until each awaited message is acknowledged or refused.

        frame: numbers of the begin and the end of a transaction.  Answers that an interrupted caller left
        unread have lower numbers and are skipped.
        """
        refused: NetlinkError | None = None
        while waiting:
            for kind, number, flags, body in self._receive():
                if kind != _ERROR or (number not in numbers and number not in frame):
                    continue
                failure = _failure(body, flags, number - numbers.start)
                if failure is not None and number in frame:
                    raise failure
                if failure is not None and (refused is None or failure.at < refused.at):
                    refused = failure
                waiting.discard(number)
        if refused is not None:
            raise refused

    def _collect(self, number: int, dump: bool) -> list[Answer] | None:
        """None where the dump was interrupted by a change."""
        answers: list[Answer] = []
        interrupted = False
        while True:
            for kind, seen, flags, body in self._receive():
                if seen != number:
                    continue
                interrupted = interrupted or bool(flags & _INTERRUPTED)
                if kind == _DONE:
                    return None if interrupted else answers
                if kind == _ERROR:
                    failure = _failure(body, flags, 0)
                    if failure is not None:
                        raise failure
                    return answers
                answers.append(Answer(kind, body))
                if not dump:
                    return answers

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        try:
            data = self._socket.recv(_AT_ONCE)
        except BlockingIOError:
            raise NetlinkError(errno.ETIMEDOUT, "the kernel does not answer", 0) from None
        except OSError as error:
            raise NetlinkError(error.errno or errno.EIO, "", 0) from error
        at = 0
        while at + 16 <= len(data):
            size, kind, flags, number, _ = _HEADER.unpack_from(data, at)
            if size < 16:
                return
            yield kind, number, flags, data[at + 16 : at + size]
            at += (size + 3) & ~3


def _acknowledged(messages: Sequence[Message]) -> list[Message]:
    """Request an acknowledgement of the last message only.

    The kernel reports refusals of the others in any case, and earlier.  Acknowledgements of all would
    overflow the socket buffer of an unprivileged user.
    """
    *others, last = messages
    return [*others, evolve(last, flags=last.flags | ACK)]


def _failure(body: bytes, flags: int, at: int) -> NetlinkError | None:
    """Return the error of an error message; None for an acknowledgement."""
    if len(body) < 4:
        return NetlinkError(errno.EBADMSG, "the kernel's answer is cut off", at)
    number = struct.unpack_from("=i", body)[0]
    if number == 0:
        return None
    text = ""
    if flags & _TLVS and len(body) >= 8:
        # The failed request comes first, or only its header.
        request = 16 if flags & _CAPPED else struct.unpack_from("=I", body, 4)[0]
        for kind, payload in attributes(body[4 + ((request + 3) & ~3) :]):
            if kind == _TEXT:
                text = payload.rstrip(b"\0").decode("utf-8", "replace")
    return NetlinkError(-number, text, at)
