"""The thread's side of the name service: whose query it is, who answers it, and bounds for each client.

Nothing here waits but the selector, and nothing that a client sends ends the thread.
"""

from __future__ import annotations

import functools
import resource
import selectors
import socket
from collections import deque
from typing import Any, Protocol

from pycontain._networks import answers
from pycontain._networks.deadlines import Deadlines
from pycontain._networks.streams import Connection, Listener, Reply
from pycontain._networks.upstream import Forward, Forwarder, OpenSocket, Servers
from pycontain._networks.zone import Client

MOST_FORWARDS = 256
"""Queries of one client on their way; one more, and the oldest fails."""
IDLE = 10.0
"""Seconds of a connection without query or answer."""
_PAUSE = 0.5
"""Seconds in which nobody is accepted who could not be: the listener stays ready, and would be for ever."""
WINDOW, MOST_IN_WINDOW = 0.25, 500
"""Seconds, and queries of one client in them before it waits for the next: the time is not the guest's."""
_MOST_AT_ONCE = 32
"""Of a client's datagrams before others have their turn."""
_MOST_TURNS = 4096
_SHARE = 4
"""A part of the process's fds so small may be of connections, and as small a part of forwarded queries."""


Ready = list[tuple[selectors.SelectorKey, int]]


class Source(Protocol):
    """What the selector watches."""

    def ready(self, mask: int) -> None:
        """Something can be done."""

    def fail(self) -> None:
        """It went wrong in a way that nobody thought of."""


class Loop:
    """Answers in turns; whoever calls has the service's lock, and has it not while it waits for the next."""

    def __init__(self, open_socket: OpenSocket, resolv_conf: str, errors: deque[str]) -> None:
        self.selector = selectors.DefaultSelector()
        self.forwarder = Forwarder(self.selector, open_socket, Servers(resolv_conf), self.note)
        self.idle: Deadlines[Connection] = Deadlines(IDLE)
        self.paused: Deadlines[Listener] = Deadlines(_PAUSE)
        self.windows: Deadlines[Seat] = Deadlines(WINDOW)
        self.errors = errors
        self._seats: dict[Client, Seat] = {}
        self._share = max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE, 1)

    def turn(self, ready: Ready) -> float | None:
        """Do what is ready; seconds until there is more to do.

        What was closed since it was waited for takes it for nothing.
        """
        for key, mask in ready:
            self._do(key.data, mask)
        self.forwarder.expire()
        for connection in self.idle.due():
            connection.close()
        for listener in self.paused.due():
            listener.listen()
        for seat in self.windows.due():
            seat.renew()
        waits = [one.ahead() for one in (self.forwarder.deadlines, self.idle, self.paused, self.windows)]
        return min((one for one in waits if one is not None), default=None)

    def admit(self, client: Client, udp: socket.socket, tcp: socket.socket) -> None:
        """Answer a client.  Raises OSError; it is as before then."""
        try:
            self._seats[client] = Seat(self, client, udp, tcp)
        except BaseException:
            self.unwatch(udp, tcp)
            self._seats.pop(client, None)
            raise

    def unwatch(self, *sockets: socket.socket) -> None:
        """Nothing happens where one is not watched."""
        for one in sockets:
            try:
                self.selector.unregister(one)
            except (KeyError, ValueError):
                pass

    def dismiss(self, client: Client) -> None:
        """Answer it no longer, and close its sockets."""
        seat = self._seats.get(client)
        if seat is not None:
            seat.close()
            self._seats.pop(client, None)  # not before: a child forked meanwhile has to find what is open

    def close(self) -> None:
        """Dismiss everybody."""
        for client in list(self._seats):
            self.dismiss(client)
        self.selector.close()

    def forget(self) -> None:
        """Close fds alone: the selector that a forked child has is its parent's too."""
        for seat in list(self._seats.values()):
            for connection in list(seat.connections):
                connection.socket.close()
        self.forwarder.forget()
        self.selector.close()

    def has_room(self) -> bool:
        """For one more connection."""
        return sum(len(seat.connections) for seat in self._seats.values()) < self._share

    def make_room(self) -> None:
        """For one more forwarded query, at the cost of who has the most."""
        if len(self.forwarder.attempts) >= self._share:
            max(self._seats.values(), key=lambda seat: len(seat.forwards)).drop_oldest()

    def note(self, error: Exception) -> None:
        """Keep what nobody can be told."""
        self.errors.append(f"{type(error).__name__}: {error}")

    def _do(self, source: Source, mask: int) -> None:
        try:
            source.ready(mask)
        except Exception as error:  # noqa: BLE001  one client's bytes must not end the service of others
            self.note(error)
            source.fail()


class Seat:
    """One client: its sockets and what it waits for."""

    def __init__(self, loop: Loop, client: Client, udp: socket.socket, tcp: socket.socket) -> None:
        self.loop, self.client, self.udp = loop, client, udp
        self.connections: set[Connection] = set()
        self.forwards: dict[Forward, None] = {}
        self.listener = Listener(self, tcp)
        self.is_spent = False
        self._asked = 0
        self._turns: dict[tuple[str, int], int] = {}
        loop.selector.register(udp, selectors.EVENT_READ, self)

    def ready(self, mask: int) -> None:
        """Answer datagrams."""
        for _ in range(_MOST_AT_ONCE):
            if self.is_spent:
                return
            try:
                wire, address = self.udp.recvfrom(65535)
            except OSError:
                return  # none is left, or it is closed
            self.answer(wire, functools.partial(self._send, address), stream=False)

    def fail(self) -> None:
        """The next datagram is another."""

    def answer(self, wire: bytes, reply: Reply, *, stream: bool) -> bool:
        """Answer now or later; whether it does at all."""
        self._spend()
        query = answers.parse(wire, stream=stream)
        if query is None:
            return False
        if isinstance(query, bytes):
            reply(query)
            return True
        try:
            answer = answers.known(self.client, query, self._turn) or self._denied(query)
        except Exception as error:  # noqa: BLE001  a policy is not ours
            self.loop.note(error)
            answer = answers.failed(query)
        if answer is None:
            self._forward(query, reply, stream=stream)
        else:
            reply(answer)
        return True

    def _spend(self) -> None:
        if self._asked == 0:
            self.loop.windows.set(self)
        self._asked += 1
        if self._asked == MOST_IN_WINDOW:
            self.is_spent = True
            self.loop.selector.unregister(self.udp)

    def renew(self) -> None:
        """A window has ended: go on where too much was asked in it."""
        self._asked = 0
        if self.is_spent:
            self.is_spent = False
            self.loop.selector.register(self.udp, selectors.EVENT_READ, self)
            for connection in list(self.connections):
                connection.go_on()

    def drop_oldest(self) -> None:
        """Let the oldest of its forwarded queries fail."""
        for forward in self.forwards:
            forward.give_up()
            break

    def close(self) -> None:
        """Its sockets, and all that was of them.  Idempotent, also where an interrupt ended it half-way."""
        for forward in list(self.forwards):
            forward.cancel()
        self.forwards.clear()
        for connection in list(self.connections):
            connection.close()
        self.listener.close()
        self.loop.windows.drop(self)
        self.loop.unwatch(self.udp)
        self.udp.close()

    def _turn(self, query: answers.Query) -> int:
        """Counts by name and type: who asks for A and AAAA by turns would else get each from the same end."""
        if len(self._turns) >= _MOST_TURNS:
            self._turns.clear()
        key = query.name, query.rdtype
        self._turns[key] = self._turns.get(key, -1) + 1
        return self._turns[key]

    def _denied(self, query: answers.Query) -> bytes | None:
        client, policy = self.client, self.client.policy
        if not client.upstream:
            return answers.refused(query)
        if policy is not None and not policy.allows(query.name):
            policy.refused(query.name)
            return answers.refused(query)
        return None

    def _forward(self, query: answers.Query, reply: Reply, *, stream: bool) -> None:
        policy = self.client.policy

        def done(wire: bytes | None) -> None:
            self.forwards.pop(forward, None)
            try:
                answer = answers.failed(query) if wire is None else answers.handed_on(query, wire, policy)
            except Exception as error:  # noqa: BLE001  what servers and policies make of it
                self.loop.note(error)
                answer = answers.failed(query)
            reply(answer)

        if len(self.forwards) >= MOST_FORWARDS:
            self.drop_oldest()
        self.loop.make_room()
        forward = Forward(self.loop.forwarder, query, stream=stream, done=done)
        self.forwards[forward] = None
        forward.go_on()

    def _send(self, address: Any, reply: bytes) -> None:
        try:
            self.udp.sendto(reply, address)
        except OSError:
            pass  # a datagram may be lost: the client asks again
