"""Forwarding of queries to nameservers.

Every attempt has its own connected socket with a random source port and its own random id, so that an
attacker who cannot see the query must guess both to forge an answer (RFC 5452).
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import frozen

from pycontain._networks.dns.answers import HEADER, Query, answers, not_able
from pycontain._networks.dns.deadlines import Deadlines

if TYPE_CHECKING:
    from pycontain._networks.dns.loop import Payer

PATIENCE = 2.0
"""Seconds until the query goes to the next server."""
TRIES = 3
_MOST_SERVERS = 3
_PORT = 53
_MOST_AT_ONCE = 8
"""Datagrams read in one turn, for fairness between clients."""

OpenSocket = Callable[[int, int], socket.socket]
"""Opens a socket of a family and type in a network namespace that reaches the nameservers."""


@frozen
class Server:
    """Address of a nameserver."""

    family: int
    address: Any

    @classmethod
    def parse(cls, text: str) -> Server | None:
        """Parse an address of resolv.conf(5), such as `fe80::1%eth0`; None if it is invalid."""
        try:
            flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
            found = socket.getaddrinfo(text, _PORT, type=socket.SOCK_DGRAM, flags=flags)
        except (OSError, UnicodeError):
            return None
        return cls(found[0][0], found[0][4])


class Servers:
    """Nameservers of a resolv.conf file, read again when the file changes."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: tuple[int, ...] | None = None
        self._servers: tuple[Server, ...] = ()

    def now(self) -> tuple[Server, ...]:
        """Return the current nameservers; none if the file is missing or names none."""
        try:
            status = os.stat(self._path)
            # The file is often replaced by one with the same modification time.
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
    """Forwarded queries of all clients; not thread-safe."""

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
        """Send queries that timed out to their next server."""
        for forward in self.deadlines.due():
            forward.go_on()

    def forget(self) -> None:
        """Close the sockets in a forked child, which shares the selector with its parent."""
        for attempt in list(self.attempts):
            attempt.socket.close()
        self.attempts.clear()


class Forward:
    """One forwarded query.

    Args:
        forwarder: Owner of the sockets and timeouts.
        query: The query.
        stream: Whether to use TCP.
        done: Called once, with the answer as received, or with None.
        payer: The client that is charged for the work.
        servers: Nameservers instead of those of resolv.conf.
    """

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
        """Send the query to the next server, or give up."""
        while self._left and self._done is not None:
            server = self._left.pop(0)
            try:
                attempt = self._attempts.get(server)
                if attempt is None:
                    self._attempts[server] = (_Stream if self._stream else _Datagram)(self, server)
                else:
                    attempt.again()
            except Exception as error:  # noqa: BLE001  open_socket is supplied by the caller
                self.forwarder.note(error)
                continue
            self.forwarder.deadlines.set(self)
            return
        self.give_up()

    def answered(self, answer: bytes) -> None:
        """Handle an answer; after a failure such as SERVFAIL the next server is tried."""
        if self._left and not_able(answer):
            self._poor = answer
            self.go_on()
        else:
            self._end(answer)

    def lost(self, attempt: _Attempt) -> None:
        """Handle a failed attempt."""
        attempt.close()
        self._attempts = {server: one for server, one in self._attempts.items() if one is not attempt}
        if self._left or not self._attempts:
            self.go_on()

    def give_up(self) -> None:
        """Finish with the best answer so far, or None."""
        self._end(self._poor)

    def cancel(self) -> None:
        """Close the sockets without a call of `done`."""
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
    """One query to one server, non-blocking."""

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
        """Return the client, which is charged for the work."""
        return self.forward.payer

    @property
    def wire(self) -> bytes:
        return self.ident + self.forward.query.wire[2:]

    def close(self) -> None:
        try:
            self.forward.forwarder.selector.unregister(self.socket)
        except (KeyError, ValueError):
            pass  # it was not registered yet, or is closed
        self.socket.close()
        self.forward.forwarder.attempts.discard(self)

    def fail(self) -> None:
        self.forward.lost(self)

    def again(self) -> None:
        """Send the query again, if the transport can lose it."""

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
                self.forward.answered(answer)
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
                self.forward.answered(answer)
                return
        elif came and (len(self._in) < 2 or length >= HEADER):
            return
        self.fail()
