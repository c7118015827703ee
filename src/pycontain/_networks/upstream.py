"""Ask the host's nameservers what no network knows.

Every try has a socket of its own, connected, on a port that the kernel chose, and an id of its own: what
comes from elsewhere, or answers something else, was not asked for.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import frozen

from pycontain._networks.answers import HEADER, Query, answers, not_able
from pycontain._networks.deadlines import Deadlines

if TYPE_CHECKING:
    from pycontain._networks.serving import Payer

PATIENCE = 2.0
"""Seconds until the next server is asked."""
TRIES = 3
_MOST_SERVERS = 3
_PORT = 53
_MOST_AT_ONCE = 8
"""Datagrams read before others have their turn."""

OpenSocket = Callable[[int, int], socket.socket]
"""Makes a socket of this family and type, where the nameservers can be reached."""


@frozen
class Server:
    """Where a nameserver is."""

    family: int
    address: Any

    @classmethod
    def parse(cls, text: str) -> Server | None:
        """An address as resolv.conf(5) has it, `fe80::1%eth0` too; None where it is none."""
        try:
            flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
            found = socket.getaddrinfo(text, _PORT, type=socket.SOCK_DGRAM, flags=flags)
        except (OSError, UnicodeError):
            return None
        return cls(found[0][0], found[0][4])


class Servers:
    """The nameservers of a resolv.conf, read again when it has changed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: tuple[int, ...] | None = None
        self._servers: tuple[Server, ...] = ()

    def now(self) -> tuple[Server, ...]:
        """None without the file, or without one in it."""
        try:
            status = os.stat(self._path)
            # It is often replaced by another, which may have the time of the old one.
            seen = (status.st_mtime_ns, status.st_ino, status.st_size)
            if seen != self._seen:
                self._servers, self._seen = self._read(), seen
        except OSError:
            self._servers, self._seen = (), None
        return self._servers

    def _read(self) -> tuple[Server, ...]:
        with open(self._path, encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file]
        texts = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
        return tuple(one for one in map(Server.parse, texts) if one is not None)[:_MOST_SERVERS]


class Forwarder:
    """What is on its way to nameservers; of one thread."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        open_socket: OpenSocket,
        servers: Servers,
        note: Callable[[Exception], None],
    ) -> None:
        self.selector, self.open_socket, self.servers, self.note = selector, open_socket, servers, note
        self.deadlines: Deadlines[Forward] = Deadlines(PATIENCE)
        self.attempts: set[_Attempt] = set()

    def expire(self) -> None:
        """Ask the next server where one took too long."""
        for forward in self.deadlines.due():
            forward.go_on()

    def forget(self) -> None:
        """Close the sockets alone: for a forked child, whose selector is still its parent's."""
        for attempt in list(self.attempts):
            attempt.socket.close()
        self.attempts.clear()


class Forward:
    """One query on its way.  done: called once, with the answer as it came, or with None."""

    def __init__(
        self,
        forwarder: Forwarder,
        query: Query,
        *,
        stream: bool,
        done: Callable[[bytes | None], None],
        payer: Payer | None = None,
        servers: tuple[Server, ...] = (),
    ) -> None:
        self.forwarder, self.query, self.payer = forwarder, query, payer
        self._stream = stream
        self._done: Callable[[bytes | None], None] | None = done
        servers = servers or forwarder.servers.now()
        self._left = [servers[at % len(servers)] for at in range(TRIES)] if servers else []
        self._attempts: dict[Server, _Attempt] = {}
        self._poor: bytes | None = None

    def go_on(self) -> None:
        """Ask the next server, or give up."""
        while self._left and self._done is not None:
            server = self._left.pop(0)
            try:
                attempt = self._attempts.get(server)
                if attempt is None:
                    self._attempts[server] = (_Stream if self._stream else _Datagram)(self, server)
                else:
                    attempt.again()
            except Exception as error:  # noqa: BLE001  what opens sockets is not ours
                self.forwarder.note(error)
                continue
            self.forwarder.deadlines.set(self)
            return
        self.give_up()

    def heard(self, answer: bytes) -> None:
        """A server has answered; one that is not able to does not keep another from being asked."""
        if self._left and not_able(answer):
            self._poor = answer
            self.go_on()
        else:
            self._end(answer)

    def lost(self, attempt: _Attempt) -> None:
        """A server is not there."""
        attempt.close()
        self._attempts = {server: one for server, one in self._attempts.items() if one is not attempt}
        if self._left or not self._attempts:
            self.go_on()

    def give_up(self) -> None:
        """Tell what there is."""
        self._end(self._poor)

    def cancel(self) -> None:
        """Close its sockets and tell nobody."""
        self._done = None
        self.forwarder.deadlines.drop(self)
        for attempt in self._attempts.values():
            attempt.close()
        self._attempts.clear()

    def _end(self, answer: bytes | None) -> None:
        done = self._done
        self.cancel()
        if done is not None:
            done(answer)


class _Attempt:
    """One query at one server, without waiting for it."""

    kind = socket.SOCK_DGRAM

    def __init__(self, forward: Forward, server: Server) -> None:
        self.forward = forward
        self.ident = secrets.token_bytes(2)
        self.socket = forward.forwarder.open_socket(server.family, self.kind)
        forward.forwarder.attempts.add(self)
        try:
            self.socket.setblocking(False)
            self._begin(server)
        except BaseException:
            self.close()
            raise

    @property
    def payer(self) -> Payer | None:
        """The client that asked."""
        return self.forward.payer

    @property
    def wire(self) -> bytes:
        return self.ident + self.forward.query.wire[2:]

    def close(self) -> None:
        try:
            self.forward.forwarder.selector.unregister(self.socket)
        except (KeyError, ValueError):
            pass  # it never came so far, or is closed
        self.socket.close()
        self.forward.forwarder.attempts.discard(self)

    def fail(self) -> None:
        self.forward.lost(self)

    def again(self) -> None:
        """It took too long: remind the server, where reminders do anything."""

    def _begin(self, server: Server) -> None:
        raise NotImplementedError

    def _watch(self, events: int) -> None:
        self.forward.forwarder.selector.register(self.socket, events, self)


class _Datagram(_Attempt):
    def _begin(self, server: Server) -> None:
        self.socket.connect(server.address)
        self.socket.send(self.wire)
        self._watch(selectors.EVENT_READ)

    def again(self) -> None:
        self.socket.send(self.wire)

    def ready(self, mask: int) -> None:
        for _ in range(_MOST_AT_ONCE):
            try:
                answer = self.socket.recv(65535)
            except BlockingIOError:
                return
            except OSError:
                self.fail()
                return
            if answers(self.forward.query, self.ident, answer):
                self.forward.heard(answer)
                return


class _Stream(_Attempt):
    kind = socket.SOCK_STREAM

    def _begin(self, server: Server) -> None:
        self._out = len(self.wire).to_bytes(2, "big") + self.wire
        self._in = bytearray()
        try:
            self.socket.connect(server.address)
        except BlockingIOError:
            pass
        self._watch(selectors.EVENT_WRITE)

    def ready(self, mask: int) -> None:
        try:
            if mask & selectors.EVENT_WRITE:
                self._send()
            else:
                self._receive()
        except BlockingIOError:
            pass
        except OSError:
            self.fail()

    def _send(self) -> None:
        self._out = self._out[self.socket.send(self._out) :]
        if not self._out:
            self.forward.forwarder.selector.modify(self.socket, selectors.EVENT_READ, self)

    def _receive(self) -> None:
        came = self.socket.recv(65537)
        self._in += came
        length = int.from_bytes(self._in[:2], "big")
        if len(self._in) >= 2 + length and length >= HEADER:
            answer = bytes(self._in[2 : 2 + length])
            if answers(self.forward.query, self.ident, answer):
                self.forward.heard(answer)
                return
        elif came and (len(self._in) < 2 or length >= HEADER):
            return
        self.fail()
