"""Queries that come by TCP: connections, and where in their bytes each query ends."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pycontain._networks.serving import ClientState

MOST_CONNECTIONS = 32
_MOST_PENDING = 64
"""Queries of one connection on their way, before more of it is read."""
_MOST_UNREAD = 1 << 17
"""Bytes that wait for who asks and does not read, before more of it is read."""
_MOST_AT_ONCE = 32
"""Accepted before others have their turn."""

Reply = Callable[[bytes], None]


class Listener:
    """Accepts one client's connections."""

    def __init__(self, state: ClientState, tcp: socket.socket) -> None:
        self._state, self._socket = state, tcp
        self._closed = self._watched = False
        self.listen()

    @property
    def payer(self) -> ClientState:
        """The client that connects."""
        return self._state

    def listen(self) -> None:
        """From now on, unless its client rests."""
        if not self._closed and not self._watched and not self._state.is_resting:
            self._state.loop.selector.register(self._socket, selectors.EVENT_READ, self)
            self._watched = True

    def rest(self) -> None:
        """Accept nothing until `listen`; the kernel keeps as many as the backlog has."""
        self._state.loop.paused.drop(self)
        self._unwatch()

    def ready(self, mask: int) -> None:
        """Accept; those above the bounds are closed at once."""
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
        """Rest a little."""
        if not self._closed:
            self._unwatch()
            self._state.loop.paused.set(self)

    def close(self) -> None:
        """Accept no more."""
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
    """Queries one after the other, each with its length in 2 bytes; answers in the order they come."""

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
        """The client that asks."""
        return self._state

    def rest(self) -> None:
        """Read nothing until `go_on`."""
        self._watch()

    def ready(self, mask: int) -> None:
        """Send, receive, answer."""
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
        """As if it had never been."""
        self.close()

    def close(self) -> None:
        """What is still on its way for it is answered to nobody."""
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
        """Answer what has come, as far as there is room for answers."""
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
        """For what can be done next; close it where that is nothing."""
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
