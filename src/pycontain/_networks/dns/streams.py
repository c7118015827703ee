"""DNS over TCP: listeners, connections and message framing."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pycontain._networks.dns.loop import ClientState

MOST_CONNECTIONS = 32
_MOST_PENDING = 64
"""Unanswered queries of one connection, above which it is not read."""
_MOST_UNREAD = 1 << 17
"""Unsent bytes of one connection, above which it is not read."""
_MOST_AT_ONCE = 32
"""Connections accepted in one turn, for fairness between clients."""

Reply = Callable[[bytes], None]


class Listener:
    """Listening socket of one client."""

    def __init__(self, state: ClientState, tcp: socket.socket) -> None:
        self._state, self._socket = state, tcp
        self._closed = self._watched = False
        self.listen()

    @property
    def payer(self) -> ClientState:
        """Return the client, which is charged for the work."""
        return self._state

    def listen(self) -> None:
        """Watch the socket, unless the client is over its budget."""
        if not self._closed and not self._watched and not self._state.is_resting:
            self._state.loop.selector.register(self._socket, selectors.EVENT_READ, self)
            self._watched = True

    def rest(self) -> None:
        """Stop accepting until `listen`; the kernel queues connections up to the backlog."""
        self._state.loop.paused.drop(self)
        self._unwatch()

    def ready(self, mask: int) -> None:
        """Accept connections and close those above the bounds."""
        for _ in range(_MOST_AT_ONCE):
            try:
                connected, _ = self._socket.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError:
                self.fail()
                return
            if len(self._state.connections) < MOST_CONNECTIONS and self._state.loop.has_room():
                Connection(self._state, connected)
            else:
                connected.close()

    def fail(self) -> None:
        """Stop accepting for a short time."""
        if not self._closed:
            self._unwatch()
            self._state.loop.paused.set(self)

    def close(self) -> None:
        """Close the socket.  Idempotent."""
        self._closed = True
        self._state.loop.paused.drop(self)
        self._unwatch()
        self._socket.close()

    def _unwatch(self) -> None:
        self._watched = False
        try:
            self._state.loop.selector.unregister(self._socket)
        except (KeyError, ValueError):
            pass


class Connection:
    """Connection with length-prefixed queries; answers are sent in the order in which they are ready."""

    def __init__(self, state: ClientState, connected: socket.socket) -> None:
        self._state, self.socket = state, connected
        self._in, self._out = bytearray(), bytearray()
        self._pending = 0
        self._ended = self._closed = False
        self._mask = 0
        state.connections.add(self)
        connected.setblocking(False)
        state.loop.idle.set(self)
        self._watch()

    @property
    def payer(self) -> ClientState:
        """Return the client, which is charged for the work."""
        return self._state

    def rest(self) -> None:
        """Stop reading until `go_on`."""
        self._watch()

    def ready(self, mask: int) -> None:
        """Send and receive what the socket allows, and answer queries."""
        try:
            if mask & selectors.EVENT_WRITE:
                del self._out[: self.socket.send(self._out)]
            if mask & selectors.EVENT_READ:
                came = self.socket.recv(1 << 14)
                self._ended = not came
                self._in += came
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self.go_on()

    def fail(self) -> None:
        """Close the connection after an internal error."""
        self.close()

    def close(self) -> None:
        """Close the connection; answers to its open queries are dropped."""
        if self._closed:
            return
        self._closed = True
        self._state.loop.idle.drop(self)
        if self._mask:
            self._state.loop.selector.unregister(self.socket)
        self.socket.close()
        self._state.connections.discard(self)

    @property
    def _is_full(self) -> bool:
        full = self._pending >= _MOST_PENDING or len(self._out) >= _MOST_UNREAD
        return full or self._state.is_resting

    def go_on(self) -> None:
        """Answer received queries within the bounds."""
        while not self._closed and not self._is_full and len(self._in) >= 2:
            length = int.from_bytes(self._in[:2], "big")
            if len(self._in) < 2 + length:
                break
            wire = bytes(self._in[2 : 2 + length])
            del self._in[: 2 + length]
            self._pending += 1
            self._state.loop.idle.set(self)
            if not self._state.answer(wire, self._reply, stream=True):
                self._pending -= 1
        self._watch()

    def _reply(self, answer: bytes) -> None:
        if self._closed:
            return
        self._pending -= 1
        self._out += len(answer).to_bytes(2, "big") + answer
        self._state.loop.idle.set(self)
        self._watch()

    def _watch(self) -> None:
        """Update the events that are watched; close the connection if nothing is left to do."""
        if self._closed:
            return
        if self._ended and not self._pending and not self._out:
            self.close()
            return
        reads = not self._ended and not self._is_full
        mask = (selectors.EVENT_READ if reads else 0) | (selectors.EVENT_WRITE if self._out else 0)
        selector = self._state.loop.selector
        if self._mask and mask:
            selector.modify(self.socket, mask, self)
        elif mask:
            selector.register(self.socket, mask, self)
        elif self._mask:
            selector.unregister(self.socket)
        self._mask = mask
