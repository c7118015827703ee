"""Event loop of the name service: it answers or forwards each query, within bounds per client.

Only the selector blocks, and no input of a client may end the thread.
"""

from __future__ import annotations

import functools
import resource
import selectors
import socket
import time
from collections import deque
from typing import Any, Protocol

from pycontain._networks.dns import answers, budget
from pycontain._networks.dns.deadlines import Deadlines
from pycontain._networks.dns.streams import Connection, Listener, Reply
from pycontain._networks.dns.upstream import Forward, Forwarder, OpenSocket, Server, Servers
from pycontain._networks.dns.zone import Client

MOST_FORWARDS = 256
"""Forwarded queries of one client; a further one makes the oldest fail."""
IDLE = 10.0
"""Seconds after which a connection without query or answer is closed."""
_PAUSE = 0.5
"""Seconds without accept() after it failed, since the listener stays readable."""
_MOST_AT_ONCE = 8
"""Datagrams of one client read in one turn, for fairness between clients."""
_MOST_TURNS = 4096
_MOST_KNOWN = 256
"""Parsed queries and rendered answers that are cached for one client."""
_KEPT = 1232
"""Bytes of the largest answer that is cached."""
_SHARE = 4
"""Connections may use this fraction (1/4) of the process's fds, and forwarded queries as many."""


Ready = list[tuple[selectors.SelectorKey, int]]


class Source(Protocol):
    """Socket that the selector watches.

    Attributes:
        payer: Client that is charged for the processor time.
    """

    @property
    def payer(self) -> Payer | None: ...

    def ready(self, mask: int) -> None:
        """Handle the events of a socket."""

    def fail(self) -> None:
        """Recover from an unexpected exception in `ready`."""


class Payer(Protocol):
    """Client with a budget of processor time."""

    def begin(self) -> None:
        """Start to measure the processor time of the client."""

    def settle(self) -> None:
        """Charge the processor time since `begin` or the last `settle`."""


class Loop:
    """State of the loop; callers hold the lock of the service, which is free while the selector waits."""

    def __init__(self, open_socket: OpenSocket, resolv_conf: str, errors: deque[str]) -> None:
        self.selector = selectors.DefaultSelector()
        self.forwarder = Forwarder(self.selector, open_socket, Servers(resolv_conf), self.note)
        self.idle: Deadlines[Connection] = Deadlines(IDLE)
        self.paused: Deadlines[Listener] = Deadlines(_PAUSE)
        self.resting: dict[ClientState, float] = {}
        self.errors = errors
        self._states: dict[Client, ClientState] = {}
        self._share = max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE, 1)

    def turn(self, ready: Ready) -> float | None:
        """Handle events and expired timeouts.

        Sockets that were closed after the selector returned ignore their events.

        Args:
            ready: Events of the selector.

        Returns:
            Seconds until the next timeout, or None.
        """
        for key, mask in ready:
            self._do(key.data, mask)
        self.forwarder.expire()
        for connection in self.idle.due():
            connection.close()
        for listener in self.paused.due():
            listener.listen()
        now = time.monotonic()
        for state in [state for state, until in self.resting.items() if until <= now]:
            state.go_on()
        waits = [one.ahead() for one in (self.forwarder.deadlines, self.idle, self.paused)]
        waits += [max(until - now, 0) for until in self.resting.values()]
        return min((one for one in waits if one is not None), default=None)

    def share(self, state: ClientState) -> float:
        """Return the part of a processor for a client, beside the others that have spent their budgets."""
        return budget.SHARE / (len(self.resting) + (state not in self.resting))

    def admit(self, client: Client, udp: socket.socket, tcp: socket.socket) -> None:
        """Start to serve a client.

        Raises:
            OSError: A socket cannot be watched; nothing has changed.
        """
        try:
            self._states[client] = ClientState(self, client, udp, tcp)
        except BaseException:
            self.unwatch(udp, tcp)
            self._states.pop(client, None)
            raise

    def unwatch(self, *sockets: socket.socket) -> None:
        """Stop watching sockets; no-op for those that are not watched."""
        for one in sockets:
            try:
                self.selector.unregister(one)
            except (KeyError, ValueError):
                pass

    def dismiss(self, client: Client) -> None:
        """Stop serving a client and close its sockets."""
        state = self._states.get(client)
        if state is not None:
            state.close()
            self._states.pop(client, None)  # last, so that a child forked meanwhile finds the open sockets

    def close(self) -> None:
        """Stop serving all clients and close the selector."""
        for client in list(self._states):
            self.dismiss(client)
        self.selector.close()

    def forget(self) -> None:
        """Close the fds in a forked child, which shares the selector with its parent."""
        for state in list(self._states.values()):
            for connection in list(state.connections):
                connection.socket.close()
        self.forwarder.forget()
        self.selector.close()

    def has_room(self) -> bool:
        """Return whether one more connection is within the bound."""
        return sum(len(state.connections) for state in self._states.values()) < self._share

    def make_room(self) -> None:
        """Drop a query of the client with the most, if one more forwarded query exceeds the bound."""
        if len(self.forwarder.attempts) >= self._share:
            max(self._states.values(), key=lambda state: len(state.forwards)).drop_oldest()

    def note(self, error: Exception) -> None:
        """Record an internal error, which no caller can receive."""
        self.errors.append(f"{type(error).__name__}: {error}")

    def _do(self, source: Source, mask: int) -> None:
        payer = source.payer
        if payer is not None:
            payer.begin()
        try:
            source.ready(mask)
        except Exception as error:  # noqa: BLE001  input of one client must not end the service
            self.note(error)
            source.fail()
        if payer is not None:
            payer.settle()


class ClientState:
    """State of one client: its sockets, open queries, caches and budget."""

    def __init__(self, loop: Loop, client: Client, udp: socket.socket, tcp: socket.socket) -> None:
        self.loop, self.client, self.udp = loop, client, udp
        self.connections: set[Connection] = set()
        self.forwards: dict[Forward, None] = {}
        self.is_resting = self._closed = False
        self.listener = Listener(self, tcp)
        self._servers = tuple(one for one in map(Server.parse, client.servers) if one is not None)
        self._budget, self._begun = budget.Budget(), 0.0
        self._turns: dict[tuple[str, int], int] = {}
        self._parsed: dict[tuple[bytes, bool], answers.Query] = {}
        self._rendered: dict[answers.Shape, bytes] = {}
        loop.selector.register(udp, selectors.EVENT_READ, self)

    @property
    def payer(self) -> ClientState:
        """Return the client itself, which is charged for its datagrams."""
        return self

    def ready(self, mask: int) -> None:
        """Receive and answer datagrams."""
        for _ in range(_MOST_AT_ONCE):
            if self.is_resting:
                return
            try:
                wire, address = self.udp.recvfrom(answers.MOST_QUERY + 1)
            except OSError:
                return  # no datagram is left, or the socket is closed
            self.answer(wire, functools.partial(self._send, address), stream=False)

    def fail(self) -> None:
        """Ignore an exception, for the next datagram is independent."""

    def answer(self, wire: bytes, reply: Reply, *, stream: bool) -> bool:
        """Answer a query now or later; return False if it gets no answer."""
        try:
            return self._answer(wire, reply, stream=stream)
        finally:
            self.settle()

    def _answer(self, wire: bytes, reply: Reply, *, stream: bool) -> bool:
        query = self._parse(wire, stream=stream)
        if query is None:
            return False
        if isinstance(query, bytes):
            reply(query)
            return True
        reply = functools.partial(_identified, wire[:2], reply)
        try:
            answer = self._known(query) or self._denied(query)
        except Exception as error:  # noqa: BLE001  the policy is supplied by the caller
            self.loop.note(error)
            answer = answers.failed(query)
        if answer is None:
            self._forward(query, reply, stream=stream)
        else:
            reply(answer)
        return True

    def _parse(self, wire: bytes, *, stream: bool) -> answers.Query | bytes | None:
        """Parse a query, or return a cached one that differs only in its id."""
        key = wire[2:], stream
        query: answers.Query | bytes | None = self._parsed.get(key)
        if query is None:
            query = answers.parse(wire, stream=stream)
            if isinstance(query, answers.Query):
                if len(self._parsed) >= _MOST_KNOWN:
                    self._parsed.clear()
                self._parsed[key] = query
        return query

    def _known(self, query: answers.Query) -> bytes | None:
        shape = answers.shape(self.client, query, self._turn)
        if shape is None:
            return answers.known_otherwise(self.client, query)
        answer = self._rendered.get(shape)
        if answer is None:
            answer = answers.rendered(query, shape)
            if len(answer) <= _KEPT:
                if len(self._rendered) >= _MOST_KNOWN:
                    self._rendered.clear()
                self._rendered[shape] = answer
        return answer

    def begin(self) -> None:
        """Start to measure the processor time of the client."""
        self._begun = time.thread_time()

    def settle(self) -> None:
        """Charge the time since `begin`, and stop reading while the budget is overdrawn.

        Meanwhile the kernel drops datagrams when the receive buffer is full, and connections wait.
        """
        now = time.thread_time()
        wait = self._budget.spend(now - self._begun, self.loop.share(self))
        self._begun = now
        if not wait or self._closed:
            return
        self.loop.resting[self] = time.monotonic() + wait
        if not self.is_resting:
            self.is_resting = True
            self.loop.unwatch(self.udp)
            self.listener.rest()
            for connection in list(self.connections):
                connection.rest()

    def go_on(self) -> None:
        """Resume reading."""
        self.begin()
        self.loop.resting.pop(self, None)
        self.is_resting = False
        self.loop.selector.register(self.udp, selectors.EVENT_READ, self)
        self.listener.listen()
        for connection in list(self.connections):
            connection.go_on()
            if self.is_resting:
                return

    def drop_oldest(self) -> None:
        """Fail the oldest forwarded query."""
        for forward in self.forwards:
            forward.give_up()
            break

    def close(self) -> None:
        """Close all sockets and cancel all queries.  Idempotent, and can be repeated after an interrupt."""
        self._closed = True
        for forward in list(self.forwards):
            forward.cancel()
        self.forwards.clear()
        for connection in list(self.connections):
            connection.close()
        self.listener.close()
        self.loop.resting.pop(self, None)
        self.loop.unwatch(self.udp)
        self.udp.close()

    def _turn(self, query: answers.Query) -> int:
        """Return the count of a name and type, so that alternating A and AAAA queries both rotate."""
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
            except Exception as error:  # noqa: BLE001  malformed answers, exceptions of a policy
                self.loop.note(error)
                answer = answers.failed(query)
            reply(answer)

        if len(self.forwards) >= MOST_FORWARDS:
            self.drop_oldest()
        self.loop.make_room()
        forward = Forward(
            self.loop.forwarder, query, stream=stream, done=done, payer=self, servers=self._servers
        )
        self.forwards[forward] = None
        forward.go_on()

    def _send(self, address: Any, reply: bytes) -> None:
        try:
            self.udp.sendto(reply, address)
        except OSError:
            pass  # like a lost datagram: the client sends the query again


def _identified(ident: bytes, reply: Reply, answer: bytes) -> None:
    """Reply with the id of this query; the cached one may have another id."""
    reply(ident + answer[2:])
