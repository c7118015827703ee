"""The thread's side of the name service: whose query it is, who answers it, and bounds for each client.

Nothing here waits but the selector, and nothing that a client sends ends the thread.
"""

from __future__ import annotations

import functools
import resource
import selectors
import socket
import time
from collections import deque
from typing import Any, Protocol

from pycontain._networks import answers, budget
from pycontain._networks.deadlines import Deadlines
from pycontain._networks.streams import Connection, Listener, Reply
from pycontain._networks.upstream import Forward, Forwarder, OpenSocket, Server, Servers
from pycontain._networks.zone import Client

MOST_FORWARDS = 256
"""Queries of one client on their way; one more, and the oldest fails."""
IDLE = 10.0
"""Seconds of a connection without query or answer."""
_PAUSE = 0.5
"""Seconds in which nobody is accepted who could not be: the listener stays ready, and would be for ever."""
_MOST_AT_ONCE = 8
"""Of a client's datagrams before others have their turn."""
_MOST_TURNS = 4096
_MOST_KNOWN = 256
"""Queries of one client that are parsed once, and answers that are rendered once."""
_KEPT = 1232
"""Bytes of the largest answer that is kept."""
_SHARE = 4
"""A part of the process's fds so small may be of connections, and as small a part of forwarded queries."""


Ready = list[tuple[selectors.SelectorKey, int]]


class Source(Protocol):
    """A socket that the selector watches.

    payer: the client that the processor time is charged to.
    """

    @property
    def payer(self) -> Payer | None: ...

    def ready(self, mask: int) -> None:
        """Something can be done."""

    def fail(self) -> None:
        """It went wrong in a way that nobody thought of."""


class Payer(Protocol):
    """A client with a budget."""

    def begin(self) -> None:
        """Note that from now on the thread works for it."""

    def settle(self) -> None:
        """Charge the processor time since `begin` or the last `settle`."""


class Loop:
    """Answers in turns; whoever calls has the service's lock, and has it not while it waits for the next."""

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
        """Answer a client.  Raises OSError; it is as before then."""
        try:
            self._states[client] = ClientState(self, client, udp, tcp)
        except BaseException:
            self.unwatch(udp, tcp)
            self._states.pop(client, None)
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
        state = self._states.get(client)
        if state is not None:
            state.close()
            self._states.pop(client, None)  # not before: a child forked meanwhile has to find what is open

    def close(self) -> None:
        """Dismiss everybody."""
        for client in list(self._states):
            self.dismiss(client)
        self.selector.close()

    def forget(self) -> None:
        """Close fds alone: the selector that a forked child has is its parent's too."""
        for state in list(self._states.values()):
            for connection in list(state.connections):
                connection.socket.close()
        self.forwarder.forget()
        self.selector.close()

    def has_room(self) -> bool:
        """For one more connection."""
        return sum(len(state.connections) for state in self._states.values()) < self._share

    def make_room(self) -> None:
        """For one more forwarded query, at the cost of who has the most."""
        if len(self.forwarder.attempts) >= self._share:
            max(self._states.values(), key=lambda state: len(state.forwards)).drop_oldest()

    def note(self, error: Exception) -> None:
        """Keep what nobody can be told."""
        self.errors.append(f"{type(error).__name__}: {error}")

    def _do(self, source: Source, mask: int) -> None:
        payer = source.payer
        if payer is not None:
            payer.begin()
        try:
            source.ready(mask)
        except Exception as error:  # noqa: BLE001  one client's bytes must not end the service of others
            self.note(error)
            source.fail()
        if payer is not None:
            payer.settle()


class ClientState:
    """One client: its sockets and what it waits for."""

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
        """It pays for its own datagrams."""
        return self

    def ready(self, mask: int) -> None:
        """Answer datagrams."""
        for _ in range(_MOST_AT_ONCE):
            if self.is_resting:
                return
            try:
                wire, address = self.udp.recvfrom(answers.MOST_QUERY + 1)
            except OSError:
                return  # none is left, or it is closed
            self.answer(wire, functools.partial(self._send, address), stream=False)

    def fail(self) -> None:
        """The next datagram is another."""

    def answer(self, wire: bytes, reply: Reply, *, stream: bool) -> bool:
        """Answer now or later; whether it does at all."""
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
        except Exception as error:  # noqa: BLE001  a policy is not ours
            self.loop.note(error)
            answer = answers.failed(query)
        if answer is None:
            self._forward(query, reply, stream=stream)
        else:
            reply(answer)
        return True

    def _parse(self, wire: bytes, *, stream: bool) -> answers.Query | bytes | None:
        """Parse a query, or find one that differs in its id only: programs ask for the same names."""
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
        """Note that from now on the thread works for it."""
        self._begun = time.thread_time()

    def settle(self) -> None:
        """Charge the time since then, and read nothing more of it while its budget is overdrawn.

        Its datagrams are dropped by the kernel then, at the sender's expense, and its connections wait.
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
        """Read from it again."""
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
        """Let the oldest of its forwarded queries fail."""
        for forward in self.forwards:
            forward.give_up()
            break

    def close(self) -> None:
        """Its sockets, and all that was of them.  Idempotent, also where an interrupt ended it half-way."""
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
        forward = Forward(
            self.loop.forwarder, query, stream=stream, done=done, payer=self, servers=self._servers
        )
        self.forwards[forward] = None
        forward.go_on()

    def _send(self, address: Any, reply: bytes) -> None:
        try:
            self.udp.sendto(reply, address)
        except OSError:
            pass  # a datagram may be lost: the client asks again


def _identified(ident: bytes, reply: Reply, answer: bytes) -> None:
    """Reply with the id of this query, for the parsed one may have come with another."""
    reply(ident + answer[2:])
