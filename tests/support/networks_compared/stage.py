"""The environment of every case: an outside host, running containers, and words for outcomes."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import dns.message
import dns.rcode
import dns.rrset
from attrs import frozen

from tests.support.networks_compared import probe
from tests.support.networks_compared.probe import PORT
from tests.support.networks_compared.sides import Guest, On, Ports, Refused, Side
from tests.support.world import World

HOST_PORT = 7001
"""The port of a service on the host."""
METADATA = "169.254.169.254"
SUBNET6 = "fd00:7079:63::/64"
OUTSIDE_NAME, OUTSIDE_ADDRESS = "pyc.example", "203.0.113.7"


class Stage:
    """Networks red, blue and inner; one and two are on red, three is on blue, four and five are on the
    default network, six and seven on inner, lone on none.  All of them answer at PORT, outside too.
    """

    def __init__(self, side: Side, world: World) -> None:
        self.side, self.world = side, world
        self.host = os.getpid()
        self._labels = {
            "127.0.0.1": "loopback",
            "::1": "loopback",
            world.host: "host",
            world.address: "outside",
            OUTSIDE_ADDRESS: "the outside's answer",
        }
        self._first: dict[str, str] = {}
        self._left = contextlib.ExitStack()
        enter = self._left.enter_context
        enter(probe.echo(world.pid, port=PORT))
        enter(probe.echo(self.host, port=HOST_PORT))
        enter(_nameserver(world))
        enter(self.network("red"))
        enter(self.network("blue"))
        enter(self.network("inner", internal=True))
        self.one = enter(self.guest("one", On("red", aliases=("uno",))))
        self.two = enter(self.guest("two", On("red", aliases=("both",))))
        self.three = enter(self.guest("three", On("blue", aliases=("tres",))))
        self.four = enter(self.guest("four", "bridge"))
        self.five = enter(self.guest("five", "bridge"))
        self.six = enter(self.guest("six", "inner"))
        self.seven = enter(self.guest("seven", "inner"))
        self.lone = enter(self.guest("lone", "none"))

    def close(self) -> None:
        """Remove the remaining containers and networks."""
        self._left.close()

    @contextlib.contextmanager
    def network(
        self, name: str, *, subnet: str | None = None, subnet6: str | None = None, internal: bool = False
    ) -> Iterator[None]:
        """Provide a network for a while."""
        self.side.network(name, subnet=subnet, subnet6=subnet6, internal=internal)
        try:
            self._labels[self.side.gateway(name)] = f"gateway of {name}"
            yield
        finally:
            self.side.remove_network(name)

    @contextlib.contextmanager
    def guest(
        self, name: str, *places: On | str, ports: Ports | None = None, hostname: str | None = None
    ) -> Iterator[Guest]:
        """Provide a container that answers at PORT if it has its own network namespace."""
        guest = self.side.start(name, places, ports or {}, hostname)
        try:
            self._first[guest.id] = places[0].network if isinstance(places[0], On) else places[0]
            self.learn(guest)
            shares = isinstance(places[0], str) and places[0].startswith(("host", "container:"))
            with contextlib.nullcontext() if shares else probe.echo(guest.pid):
                yield guest
        finally:
            self.side.remove(guest)

    @contextlib.contextmanager
    def connected(
        self, network: str, guest: Guest, aliases: Sequence[str] = (), address: str | None = None
    ) -> Iterator[None]:
        """Connect to one more network for a while."""
        self.side.connect(network, guest, aliases, address)
        try:
            self.learn(guest)
            yield
        finally:
            self.side.disconnect(network, guest)

    def run(self, guest: Guest, *command: str) -> str:
        """Run a program inside and return its output."""
        return self.side.run(guest, *command)[1]

    def learn(self, guest: Guest) -> None:
        """Record the addresses of a container for `who`."""
        for network, address in self.side.addresses(guest).items():
            first = self._first.setdefault(guest.id, network) == network
            self._labels[address] = guest.name if first else f"{guest.name} on {network}"

    def address(self, guest: Guest, network: str | None = None) -> str:
        """Return the address on a network, by default on the only one."""
        found = self.side.addresses(guest)
        return found[network] if network else next(iter(found.values()))

    def who(self, address: str) -> str:
        """Return one word for an address."""
        return self._labels.get(address, address)

    def reach(self, source: Guest | int, target: Guest | str, port: int = PORT) -> str:
        """Return the peer or the error by TCP and UDP, once if they are the same."""
        with ThreadPoolExecutor(2) as both:
            one, other = (both.submit(kind, source, target, port) for kind in (self.tcp, self.udp))
        tcp, udp = one.result(), other.result()
        return tcp if tcp == udp else f"TCP {tcp}, UDP {udp}"

    def tcp(self, source: Guest | int, target: Guest | str, port: int = PORT) -> str:
        return self._reach(source, target, port, udp=False)

    def udp(self, source: Guest | int, target: Guest | str, port: int = PORT) -> str:
        return self._reach(source, target, port, udp=True)

    def _reach(self, source: Guest | int, target: Guest | str, port: int, *, udp: bool) -> str:
        pid = source if isinstance(source, int) else source.pid
        address = target if isinstance(target, str) else self.address(target)
        seen = probe.reach(pid, address, port, udp=udp)
        words = (probe.NO_ANSWER, probe.REFUSED, probe.UNREACHABLE)
        return seen if seen in words else f"seen as {self.who(seen)}"

    def resolve(self, guest: Guest, name: str, database: str = "ahostsv4") -> str:
        """Resolve a name by the C library inside and return the sorted addresses."""
        code, said = self.side.run(guest, "getent", database, name)
        if code:
            return "not found"
        return ", ".join(sorted({self.who(line.split()[0]) for line in said.splitlines()}))

    def refusal(self, act: Callable[[], object]) -> str:
        """Return whether the engine refuses the action."""
        try:
            act()
        except Refused:
            return "refused"
        return "done"

    def refuses_to_start(self, *places: On | str, ports: Ports | None = None) -> str:
        """Return whether the engine refuses to start such a container."""

        def start() -> None:
            with self.guest("odd", *places, ports=ports):
                pass

        return self.refusal(start)


@contextlib.contextmanager
def _nameserver(world: World) -> Iterator[None]:
    """Provide a name server outside that knows one name."""
    server = probe.socket_in(world.pid, socket.SOCK_DGRAM)
    server.bind(("", 53))

    def serve() -> None:
        while True:
            wire, sender = server.recvfrom(65535)
            if not wire:
                return
            asked = dns.message.from_wire(wire)
            answer = dns.message.make_response(asked, recursion_available=True)
            if asked.question[0].name.to_text(omit_final_dot=True) != OUTSIDE_NAME:
                answer.set_rcode(dns.rcode.NXDOMAIN)
            elif asked.question[0].rdtype == dns.rdatatype.A:
                answer.answer = [dns.rrset.from_text(f"{OUTSIDE_NAME}.", 60, "IN", "A", OUTSIDE_ADDRESS)]
            server.sendto(answer.to_wire(), sender)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        with probe.socket_in(world.pid, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", (world.address, 53))
        thread.join()
        server.close()


@frozen
class Case:
    """Register a row.  docker: Docker's result where it differs on purpose, and the reason."""

    section: str
    title: str
    function: Callable[[Stage], str]
    outcome: str
    docker: str | None = None
    why: str = ""


class Section:
    """Cases under a heading, in the order in which they are written."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.cases: list[Case] = []

    def case(
        self, title: str, outcome: str, *, docker: str | None = None, why: str = ""
    ) -> Callable[[Callable[[Stage], str]], Callable[[Stage], str]]:
        """Return a decorator for a function of a stage that returns an outcome."""
        assert (docker is None) == (not why), title

        def keep(function: Callable[[Stage], str]) -> Callable[[Stage], str]:
            self.cases.append(Case(self.title, title, function, outcome, docker, why))
            return function

        return keep


def together(parts: Sequence[str]) -> str:
    """Return one word if all are the same."""
    return parts[0] if len(set(parts)) == 1 else "; ".join(parts)
