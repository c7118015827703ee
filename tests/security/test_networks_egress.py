"""N03: ways around an Egress, and past its end."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from pycontain import Container, Egress, Engine, LimitError, StateError
from pycontain._kernel.netlink import NetlinkError
from pycontain._model.targets import target_of
from pycontain._networks.egress import EgressPolicy
from pycontain._networks.firewall import MOST_REFUSED_PER_CONTAINER, Firewall
from pycontain._networks.learned import (
    MOST,
    MOST_NAMES_PER_CONTAINER,
    MOST_PER_ANSWER,
    MOST_PER_CONTAINER,
)
from pycontain._networks.rootless_uplink import problems
from pycontain._networks.wire import nft
from tests.kernel.networks import _network_manager, _nothing_is_left, root_only, world
from tests.support.inside import PORT, ask, echo, is_cut_off, open_in, reach
from tests.support.world import World

__all__ = ["_network_manager", "_nothing_is_left", "world"]

_PUSH = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 7001))
print(flush=True)
peer = s.recvfrom(64)[1]
for line in sys.stdin:
    s.sendto(line.encode(), peer)
    print(flush=True)
"""


@contextlib.contextmanager
def _pushing(world: World) -> Iterator[subprocess.Popen[str]]:
    """Run an outside host that sends unrequested packets to the first sender."""
    command = [*world.enter, "python3", "-c", _PUSH]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def _push(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{text}\n")
    process.stdin.flush()
    process.stdout.readline()


@pytest.mark.xdist_group("world")
@pytest.mark.case("N03")
@pytest.mark.control("N03")
def test_revoked_target_is_unreachable(world: World) -> None:
    """Control: it arrives until then, and while another target is revoked."""
    target = f"{world.address}:7001/udp"
    with (
        _pushing(world) as outside,
        Egress.allow(target, "203.0.113.0/24") as egress,
        Container(network=egress) as one,
        open_in(one, socket.SOCK_DGRAM) as mine,
    ):
        mine.settimeout(5)
        mine.connect((world.address, 7001))
        mine.send(b"hello")
        _push(outside, "first")
        assert mine.recv(64) == b"first\n"
        egress.revoke("203.0.113.0/24")
        mine.send(b"still here")
        _push(outside, "second")
        assert mine.recv(64) == b"second\n"
        egress.revoke(target)
        _push(outside, "third")
        mine.settimeout(0.5)
        with pytest.raises(OSError, match=r"\S"):
            mine.recv(64)


@pytest.mark.xdist_group("world")
@pytest.mark.case("N03")
def test_revoke_cuts_established_connections(world: World) -> None:
    target = f"{world.address}:{PORT}/tcp"
    with (
        world.serve(),
        Egress.allow(target) as egress,
        Container(network=egress) as one,
        open_in(one, socket.SOCK_STREAM) as mine,
    ):
        mine.settimeout(5)
        mine.connect((world.address, PORT))
        egress.revoke(target)
        with pytest.raises(OSError, match=r"\S"):
            ask(mine, 1.0)


@pytest.mark.xdist_group("world")
@pytest.mark.case("N03")
@pytest.mark.control("N03")
def test_other_protocols_and_fragments_do_not_get_out(world: World) -> None:
    """Control: they pass where the whole address is allowed."""
    with Egress.allow(f"{world.address}:{PORT}/tcp") as egress, Container(network=egress) as one:
        assert [_sent(world, one, protocol, size) for protocol, size in _WAYS] == [False] * len(_WAYS)
        egress.permit(world.address)
        assert [_sent(world, one, protocol, size) for protocol, size in _WAYS] == [True] * len(_WAYS)


_WAYS = ((17, 16), (17, 9000), (1, 16), (132, 16), (47, 16), (136, 16), (253, 16))
"""IP protocols by number: UDP whole and in fragments, ICMP, SCTP, GRE, UDP-Lite, experimental."""


def _sent(world: World, container: Container, protocol: int, size: int) -> bool:
    """Return whether a packet of this protocol from a raw socket of the container gets out."""
    code = (
        "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_RAW, int(sys.argv[1]));"
        "s.settimeout(0.5); print(flush=True)\n"
        "try:\n while True:\n"
        "  if s.recv(65535).endswith(b'pyc-way'): print('came'); break\n"
        "except TimeoutError: print('not')"
    )
    with (
        subprocess.Popen(
            [*world.enter, "python3", "-c", code, str(protocol)], stdout=subprocess.PIPE, text=True
        ) as listener,
        open_in(container, socket.SOCK_RAW, socket.AF_INET, protocol) as raw,
    ):
        assert listener.stdout is not None
        listener.stdout.readline()
        head = {17: b"\x1b\x59\x1b\x5a" + (8 + size).to_bytes(2, "big") + b"\0\0", 1: b"\x08\0\0\0\0\0\0\0"}
        with contextlib.suppress(OSError):
            body = b"x" * (size - 7) + b"pyc-way"
            raw.sendto(
                _with_sum(protocol, head.get(protocol, b"\x1b\x59\x1b\x58") + body), (world.address, 0)
            )
        return listener.stdout.read().strip() == "came"


def _with_sum(protocol: int, packet: bytes) -> bytes:
    """Return an ICMP packet with its checksum, without which conntrack ignores it."""
    if protocol != 1:
        return packet
    padded = packet + b"\0" * (len(packet) % 2)
    total = sum(int.from_bytes(padded[at : at + 2], "big") for at in range(0, len(padded), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return packet[:2] + (0xFFFF - total).to_bytes(2, "big") + packet[4:]


@pytest.mark.xdist_group("world")
@pytest.mark.case("N03", "N07")
def test_containers_of_one_egress_do_not_meet(world: World) -> None:
    with (
        Egress.allow("0.0.0.0/0") as egress,
        Container(network=egress) as one,
        Container(network=egress) as other,
        echo(other),
        world.serve(),
    ):
        assert other.address is not None
        assert reach(one, world.address) == world.host
        assert is_cut_off(one, other.address)
        assert reach(other, other.address) is not None


@pytest.mark.parametrize("name", [r"x\.example.org", r"evil\046example.org", r"a\\.example.org"])
def test_dot_inside_a_label_is_no_domain_border(name: str) -> None:
    assert not target_of("*.example.org").names(name)
    assert target_of("*.example.org").names("x.example.org")


_SAID = {
    "93.184.216.34": True, "10.1.2.3": False, "192.168.1.1": False, "172.16.0.1": False, "100.64.0.1": False,
    "127.0.0.1": False, "0.0.0.0": False, "169.254.169.254": False, "224.0.0.1": False, "255.255.255.255": False,
    "240.0.0.1": False, "192.0.0.192": False, "168.63.129.16": False, "::1": False, "::ffff:8.8.8.8": False, "2606:4700::1111": False,
}  # fmt: skip
"""Addresses that the owner of an allowed name says it has, and whether that lets them be reached."""


@pytest.mark.case("N03")
@pytest.mark.control("N03")
def test_names_resolve_only_to_public_addresses(engine: Engine) -> None:
    """Control: the address stays reachable if a range contains it."""
    with _egress(engine, "example.org:443/tcp", "*.rebound.org") as (egress, policy):
        for name in ("example.org", "a.rebound.org"):
            assert policy.learned(name, list(_SAID), 2**31 - 1) == ["93.184.216.34"]
        elements = {key for _, key in policy._learned}
        assert len(elements) == 2
        assert all(nft.address("93.184.216.34") in key for key in elements)
        egress.permit("10.0.0.0/8", "0.0.0.0/0")
        assert "10.1.2.3" in policy.learned("example.org", list(_SAID), 1)
        assert "169.254.169.254" not in policy.learned("example.org", list(_SAID), 1)
        egress.permit("169.254.169.254")
        assert "169.254.169.254" in policy.learned("example.org", list(_SAID), 1)


@pytest.mark.xdist_group("world")
@pytest.mark.case("N03")
@pytest.mark.control("N03")
@pytest.mark.parametrize(
    ("target", "let"),
    [
        ("example.org", True),
        (f"example.org:{PORT}", True),
        ("example.org/tcp", True),
        (f"example.org:{PORT}/tcp", True),
        ("example.org/udp", False),
        (f"example.org:{PORT}/udp", False),
        (f"example.org:{PORT + 1}", False),
    ],
)
def test_name_permits_only_its_port_and_protocol(
    engine: Engine, world: World, target: str, let: bool
) -> None:
    """Controls: allowed targets are reached, and no other host is."""
    root_only(engine)
    with (
        world.serve(),
        world.known_as("93.184.216.34"),
        _egress(engine, target) as (egress, policy),
        Container(network=egress) as one,
    ):
        assert is_cut_off(one, "93.184.216.34")
        assert policy.learned("example.org", ["93.184.216.34"], 60) == ["93.184.216.34"]
        assert (reach(one, "93.184.216.34") is not None) is let
        egress.revoke(target)
        assert is_cut_off(one, "93.184.216.34")


@pytest.mark.case("N03")
def test_permitted_addresses_of_a_name_expire(engine: Engine) -> None:
    with _egress(engine, "example.org") as (_, policy):
        policy.learned("example.org", ["93.184.216.34"], 2**31 - 1)
        assert all(one.until < time.monotonic() + 90000 for one in policy._learned._held.values())


@pytest.mark.xdist_group("world")
@pytest.mark.case("A12")
@pytest.mark.control("A12")
def test_failed_revocation_cuts_off_everything(
    engine: Engine, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: both targets are reached before, and the remaining one after a successful revoke."""
    kept, revoked = f"{world.address}/32", "example.org"
    with (
        world.serve(),
        _egress(engine, kept, revoked) as (egress, policy),
        Container(network=egress) as one,
    ):
        policy.learned(revoked, ["93.184.216.34"], 1)
        assert reach(one, world.address) == world.host
        with monkeypatch.context() as patch:
            patch.setattr(Firewall, "do", _refused)
            with pytest.raises(StateError, match="all of its traffic is blocked") as raised:
                egress.revoke(revoked)
            assert "call revoke() again" in str(raised.value)
        assert egress.targets == [kept, revoked]
        assert policy.is_cut
        assert not policy.allows(revoked)
        assert is_cut_off(one, world.address)
        egress.revoke(revoked)
        assert egress.targets == [kept]
        assert len(policy._learned) == 0
        assert reach(one, world.address) == world.host


@pytest.mark.case("A12")
@pytest.mark.control("A12")
def test_revoke_and_close_with_as_many_addresses_as_there_may_be(engine: Engine) -> None:
    """Control: the kernel has the elements before."""
    with _egress(engine, "*.example.org:443") as (egress, policy):
        for at in range(2 * MOST // MOST_PER_ANSWER // 2):
            found = [f"93.{at % 200 + 1}.{k // 200}.{k % 200 + 1}" for k in range(MOST_PER_ANSWER)]
            policy.learned(f"n{at}.example.org", found, 3600, f"container-{at % 8}")
        assert (
            len(policy._learned) == MOST == len(engine._session.network_manager.firewall.elements("learned"))
        )
        egress.revoke("*.example.org:443")
        assert engine._session.network_manager.firewall.elements("learned") == []
        egress.permit("*.example.org:443")
        for at in range(MOST // MOST_PER_ANSWER // 2):
            found = [f"93.{at % 200 + 1}.{k // 200}.{k % 200 + 1}" for k in range(MOST_PER_ANSWER)]
            policy.learned(f"n{at}.example.org", found, 3600, f"container-{at % 8}")
        assert len(engine._session.network_manager.firewall.elements("learned")) == MOST


@pytest.mark.case("A12")
def test_ranges_by_the_thousand_are_replaced_at_once(engine: Engine) -> None:
    ranges = [f"10.{at // 250}.{at % 250}.0/24:443" for at in range(2000)]
    with _egress(engine, *ranges) as (egress, policy):
        egress.revoke(*ranges[:1000])
        assert len(policy.targets) == 1000
        assert policy.learned("x.example.org", ["10.0.1.1"], 60) == []
        egress.permit("x.example.org")
        assert policy.learned("x.example.org", ["10.0.1.1", "10.7.1.1"], 60) == ["10.7.1.1"]
        with pytest.raises(LimitError, match="at most 4096 targets"):
            egress.permit(*(f"n{at}.example.org" for at in range(4096)))


@pytest.mark.case("A12")
def test_batches_larger_than_the_send_buffer(engine: Engine) -> None:
    """Rootless, net.core.wmem_max may be too small: the error then names the size."""
    firewall = engine._session.network_manager.firewall
    host = firewall.sets["host"]
    elements = [nft.Element(nft.address(f"198.18.{at // 250}.{at % 250}")) for at in range(5000)]
    with open("/proc/sys/net/core/wmem_max") as file:
        fits = engine._session.features.privileged or int(file.read()) > 1 << 20
    with contextlib.nullcontext() if fits else pytest.raises(NetlinkError, match="batch of"):
        firewall.do([host.put(one) for one in elements])
    firewall.do_in_parts(host.put_all(elements))
    assert len(firewall.elements("host")) >= 5000
    firewall.do_in_parts(host.take_all(elements))
    assert len(firewall.elements("host")) < 5000


@pytest.mark.case("A12")
def test_oldest_addresses_of_a_container_make_room(engine: Engine) -> None:
    with _egress(engine, "*.example.org") as (_, policy):
        policy.learned("other.example.org", ["8.8.8.8"], 60, "other")
        for at in range(MOST_PER_CONTAINER // MOST_PER_ANSWER + 1):
            found = [f"93.{at + 1}.{k // 200}.{k % 200 + 1}" for k in range(MOST_PER_ANSWER + 1)]
            learned = policy.learned(f"n{at}.example.org", found, 60, "greedy")
            assert learned == found[:MOST_PER_ANSWER]
        assert len(policy._learned) == MOST_PER_CONTAINER + 1
        held = {key for _, key in policy._learned}
        name = nft.interface(engine._session.network_manager.bridges[policy._network.name].link)
        assert nft.key(name, nft.address("8.8.8.8")) in held
        assert nft.key(name, nft.address("93.1.0.1")) not in held
        for at in range(2 * MOST_NAMES_PER_CONTAINER):
            policy.refused(f"n{at}.example.net", "greedy")
        policy.refused("example.net", "other")
        assert len(policy._refused.items()) == MOST_NAMES_PER_CONTAINER + 1


@pytest.mark.xdist_group("world")
@pytest.mark.case("A12")
def test_a_scan_by_one_container_leaves_room_for_refused_addresses_of_others(world: World) -> None:
    with Egress.allow("203.0.113.0/24") as egress, Container(network=egress) as one:
        with open_in(one, socket.SOCK_DGRAM) as scan:
            for port in range(1, MOST_REFUSED_PER_CONTAINER + 200):
                with contextlib.suppress(OSError):
                    scan.sendto(b"x", (world.address, port))
        kept = [found for found in egress.refused if found.target == world.address]
        assert MOST_REFUSED_PER_CONTAINER <= len(kept) < MOST_REFUSED_PER_CONTAINER + 20
        with open_in(one, socket.SOCK_DGRAM) as again, contextlib.suppress(OSError):
            again.sendto(b"x", (world.address, 1))
        assert next(found.count for found in egress.refused if found.port == 1) == 2
        with Container(network=egress) as other, open_in(other, socket.SOCK_DGRAM) as mine:
            with contextlib.suppress(OSError):
                mine.sendto(b"x", (world.address, 60000))
            assert any(found.port == 60000 for found in egress.refused)


def _refused(*_: object) -> None:
    raise OSError("refused")


@contextlib.contextmanager
def _egress(engine: Engine, *targets: str) -> Iterator[tuple[Egress, EgressPolicy]]:
    """Return an egress network and the policy of its name service."""
    if not engine._session.features.privileged and problems():
        pytest.skip("no way out for this user")
    with Egress.allow(*targets) as egress:
        policy = egress.bridge_of(engine).policy
        assert isinstance(policy, EgressPolicy)
        yield egress, policy
