"""N04, N08: spoofing between neighbours, and leaks of connect cycles."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from pycontain import (
    Conflict,
    Container,
    Endpoint,
    Engine,
    Image,
    Network,
    PycontainError,
    Security,
    UnsupportedError,
)
from pycontain._networks.wire import links
from tests.kernel.networks import _network_manager, _nothing_is_left, net, outside, root_only
from tests.support.inside import echo, open_in, reach, resolve

__all__ = ["_network_manager", "_nothing_is_left", "net", "outside"]

_RAW = Security.SANDBOX.evolve(capabilities={"NET_RAW"}, no_new_privs=True)


def _mac(container: Container) -> bytes:
    assert container.address is not None
    return b"\x02\x50" + socket.inet_aton(container.address)


def _arp(own: bytes, claimed: str, target: str, to: bytes = b"\xff" * 6) -> bytes:
    """Return an ARP reply: `claimed` is at `own`."""
    head = to + own + b"\x08\x06" + b"\0\1\x08\0\6\4\0\2"
    return head + own + socket.inet_aton(claimed) + to + socket.inet_aton(target)


def _neighbour(container: Container, address: str) -> bytes | None:
    """Return the MAC of an address in a container's neighbour table."""
    table = container.exec(["cat", "/proc/net/arp"], check=True).stdout
    for line in table.splitlines():
        fields = line.split()
        if fields[0] == address:
            return bytes.fromhex(fields[3].replace(":", ""))
    return None


def _send(container: Container, frame: bytes) -> None:
    with open_in(container, socket.SOCK_RAW, socket.AF_PACKET) as raw:
        raw.bind(("eth0", 0x0003))
        raw.send(frame)


def _is_fooled(net: Network, security: Security) -> bool:
    """Return whether a neighbour resolves the victim's address to the attacker."""
    with (
        Container(network=net, security=security) as attacker,
        Container(network=net) as victim,
        Container(network=net) as asking,
        echo(victim),
    ):
        assert victim.address is not None
        assert asking.address is not None
        assert reach(asking, victim.address) == asking.address
        assert _neighbour(asking, victim.address) == _mac(victim)
        # An entry is not changed within a second of its last confirmation (arp(7), locktime).
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            for to in (b"\xff" * 6, _mac(asking)):
                _send(attacker, _arp(_mac(attacker), victim.address, asking.address, to))
            if _neighbour(asking, victim.address) != _mac(victim):
                return True
        assert reach(asking, victim.address) == asking.address
        return False


@pytest.mark.case("N04")
def test_no_spoofing(engine: Engine, net: Network) -> None:
    root_only(engine)
    assert not _is_fooled(net, _RAW)


@pytest.mark.control("N04")
def test_without_the_guard_a_neighbour_is_fooled(engine: Engine, net: Network) -> None:
    """Containers without raw sockets are not guarded; here the test opens the socket."""
    root_only(engine)
    assert _is_fooled(net, Security.SANDBOX)


_TRY = """
import ctypes, fcntl, socket, struct, sys
did = []
for family, kind, protocol in ((17, 3, 0x300), (17, 2, 0x300), (2, 3, 1), (2, 3, 255), (10, 3, 58), (10, 3, 255)):
    try:
        socket.socket(family, kind, protocol).close()
        did.append((family, kind, protocol))
    except OSError:
        pass
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for request, data in (
    (0x8924, b"eth0".ljust(16, b"\\0") + struct.pack("=H6s", 1, b"\\2\\1\\1\\1\\1\\1") + b"\\0" * 8),
    (0x8916, b"eth0".ljust(16, b"\\0") + struct.pack("=HH4s", 2, 0, b"\\x0a\\1\\1\\1") + b"\\0" * 8),
    (0x8914, b"eth0".ljust(16, b"\\0") + struct.pack("=h", 0x1143) + b"\\0" * 14),
):
    try:
        fcntl.ioctl(one, request, data)
        did.append(request)
    except OSError:
        pass
route = socket.socket(16, 3, 0)
route.bind((0, 0))
body = struct.pack("=BBHiII", 0, 0, 0, 2, 0, 1)
route.send(struct.pack("=IHHII", 16 + len(body), 16, 5, 1, 0) + body)
if struct.unpack_from("=i", route.recv(4096), 16)[0] == 0:
    did.append("netlink")
for path in ("ipv4/ip_forward", "ipv6/conf/all/accept_ra", "ipv4/conf/all/arp_accept"):
    try:
        open("/proc/sys/net/" + path, "w").write("1")
        did.append(path)
    except OSError:
        pass
print(did)
"""


@pytest.mark.case("N04")
def test_sandbox_has_no_raw_sockets_and_interface_changes(net: Network) -> None:
    with Container(network=net) as one:
        assert one.exec(["python3", "-c", _TRY], check=True).stdout == "[]\n"


@pytest.mark.control("N04")
def test_net_capabilities_allow_raw_sockets_and_interface_changes(net: Network) -> None:
    strong = Security.SANDBOX.evolve(capabilities={"NET_RAW", "NET_ADMIN"}, seccomp=None)
    try:
        one = Container(network=net, security=strong).start()
    except UnsupportedError as refused:
        pytest.skip(f"{refused.hint}")
    with one:
        assert len(one.exec(["python3", "-c", _TRY], check=True).stdout.split(",")) > 5


@pytest.mark.case("N04")
@pytest.mark.control("N04")
def test_router_advertisements_change_nothing(engine: Engine) -> None:
    """The bridge drops them and guests ignore them.  Control: a guest that accepts them."""
    root_only(engine)
    with (
        Network("pyc-six", internal=True, ipv6=True) as six,
        Container(network=six, security=_RAW) as attacker,
        Container(network=six) as victim,
    ):
        link = six.inspect()["link"]
        assert Path(f"/proc/sys/net/ipv6/conf/{link}/accept_ra").read_text() == "0\n"
        assert victim.exec(["cat", "/proc/sys/net/ipv6/conf/eth0/accept_ra"], check=True).stdout == "0\n"
        frame = _advertisement(_mac(attacker))
        with open_in(victim, socket.SOCK_RAW, socket.AF_PACKET) as sniffer:
            sniffer.bind(("eth0", 0x86DD))
            sniffer.settimeout(0.5)
            _send(attacker, frame)
            assert not _captures(sniffer, b"\x86\0")
            with Container(network=six) as unguarded:
                _send(unguarded, _advertisement(_mac(unguarded)))
                assert _captures(sniffer, b"\x86\0")


def _advertisement(own: bytes) -> bytes:
    """Return a router advertisement to all, with a prefix."""
    source, all_nodes = socket.inet_pton(10, "fe80::99"), socket.inet_pton(10, "ff02::1")
    prefix = b"\3\4\x40\xc0" + b"\0\0\x0e\x10" * 2 + b"\0" * 4 + socket.inet_pton(10, "2001:db8:bad::")
    body = bytearray(b"\x86\0\0\0\x40\0\x0e\x10" + b"\0" * 8 + prefix)
    pseudo = source + all_nodes + len(body).to_bytes(4, "big") + b"\0\0\0\x3a" + bytes(body)
    total = sum(int.from_bytes(pseudo[at : at + 2], "big") for at in range(0, len(pseudo), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    body[2:4] = (0xFFFF - total).to_bytes(2, "big")
    head = (
        b"\x33\x33\0\0\0\1" + own + b"\x86\xdd" + b"\x60\0\0\0" + len(body).to_bytes(2, "big") + b"\x3a\xff"
    )
    return head + source + all_nodes + bytes(body)


def _captures(raw: socket.socket, kind: bytes) -> bool:
    with contextlib.suppress(TimeoutError):
        while True:
            if raw.recv(2048)[54:56] == kind:
                return True
    return False


@pytest.mark.case("N04")
@pytest.mark.control("N04")
def test_unicast_of_others_is_not_captured(engine: Engine, net: Network) -> None:
    """Control: broadcasts are captured."""
    root_only(engine)
    with (
        Container(network=net, security=_RAW) as attacker,
        Container(network=net) as one,
        Container(network=net) as two,
        echo(two),
    ):
        assert two.address is not None
        assert reach(one, two.address) == one.address
        with open_in(attacker, socket.SOCK_RAW, socket.AF_PACKET) as raw:
            raw.setsockopt(
                263, 1, b"\2\0\0\0\1\0\0\0" + b"\0" * 8
            )  # PACKET_MR_PROMISC on the second interface
            raw.bind(("eth0", 0x0003))
            raw.settimeout(0.3)
            assert reach(one, two.address) == one.address
            _send(one, _arp(_mac(one), one.address or "", "10.255.255.254"))
            kinds = set()
            with contextlib.suppress(TimeoutError):
                while True:
                    frame = raw.recv(2048)
                    kinds.add(frame[12:14] if frame[6:12] in (_mac(one), _mac(two)) else b"")
        assert b"\x08\x06" in kinds
        assert b"\x08\x00" not in kinds


# N08 ------------------------------------------------------------------------------------------------------

_ROUNDS = 60


def _state(engine: Engine) -> dict[str, object]:
    """Return the objects that connect cycles could leak."""
    manager = engine._session.network_manager
    engine._session.warm.discard()
    engine.settle()
    elements = {name: len(manager.firewall.elements(name)) for name in manager.firewall.sets}
    seen = links.seen_links(manager.netns.route.ask(links.every_link()))
    return {
        "links": [
            link.name for link in seen if link.name.startswith(links.prefix(engine._session.owner.name))
        ],
        "elements": elements,
        "fds": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "networks": list(manager.bridges),
        "subnets": manager.subnets.held,
        "relay": len(os.listdir(f"/proc/{manager.relay().pid}/fd")) if os.geteuid() == 0 else 0,
    }


def _settled(engine: Engine, wanted: dict[str, object]) -> dict[str, object]:
    """Wait until the state is as before: the kernel removes namespaces and interfaces asynchronously."""
    deadline = time.monotonic() + 20
    while (found := _state(engine)) != wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _grown(engine: Engine, before: dict[str, object]) -> dict[str, object]:
    """Return what is there in addition, after a wait: watches and elements that had a timeout may be gone."""
    deadline = time.monotonic() + 20
    while found := {name: one for name, one in _state(engine).items() if _is_more(one, before[name])}:
        if time.monotonic() > deadline:
            return found
        time.sleep(0.05)
    return {}


def _is_more(now: object, before: object) -> bool:
    if isinstance(now, dict) and isinstance(before, dict):
        return any(_is_more(number, before[name]) for name, number in now.items())
    if isinstance(now, int) and isinstance(before, int):
        return now > before
    return now != before


def _cycle(at: int, network: Network) -> None:
    """Run one round of connects and disconnects, some of which fail."""
    with Network("pyc-round", internal=True) as inner, Container(network=[network, inner]) as one:
        if at % 3 == 0:
            with Container(network=inner) as other:
                assert resolve(other, one.name) == {one.addresses["pyc-round"]}
                network.connect(other)
                inner.disconnect(other)
            with pytest.raises(Conflict):
                inner.remove()
        if at % 5 == 0:
            refused = Container(network=Endpoint(inner, address=one.addresses["pyc-round"]))
            with pytest.raises(Conflict):
                refused.start()
            refused.remove()
        if at % 7 == 0:
            with pytest.raises(PycontainError), Container(Image.host(), ["/nowhere"], network=inner) as none:
                none.wait()


@pytest.mark.case("N08")
@pytest.mark.parametrize("rounds", [_ROUNDS, pytest.param(500, marks=pytest.mark.full)])
def test_cycles_leave_nothing(engine: Engine, net: Network, rounds: int) -> None:
    for at in range(22):  # each kind of round once, so that lazily made objects exist
        _cycle(at, net)
    before = _settled(engine, {**_state(engine), "links": [net.inspect()["link"]]})
    for at in range(rounds):
        _cycle(at, net)
    assert not _grown(engine, before)


@pytest.mark.case("N08")
def test_published_ports_leave_nothing(engine: Engine, outside: Network) -> None:
    def once(taken: int | None) -> int:
        with Container(network=outside, ports={80: None, "81/udp": None, 82: ("127.0.0.1", None)}) as one:
            if taken is not None:
                refused = Container(network=outside, ports={80: None, 81: one.port(80)})
                with pytest.raises(Conflict):
                    refused.start()
                refused.remove()
            return one.port(80)

    once(once(None))
    before = _settled(engine, {**_state(engine), "links": [outside.inspect()["link"]]})
    for _ in range(20):
        once(once(None))
    assert not _grown(engine, before)


@pytest.mark.control("N08")
def test_leak_would_be_detected(engine: Engine, net: Network) -> None:
    before = _state(engine)
    left = Container(network=net).start()
    try:
        found = _state(engine)
        assert {name for name in before if found[name] != before[name]} >= {"links", "fds"}
    finally:
        left.remove()
