"""N04 on IPv6: neighbour spoofing by a container that may use raw sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from pycontain import Container, Engine, Network, Security
from pycontain._networks.antispoof import link_local
from tests.kernel.networks import _network_manager, _nothing_is_left, root_only
from tests.support.inside import echo, open_in, reach

__all__ = ["_network_manager", "_nothing_is_left"]

_RAW = Security.SANDBOX.evolve(capabilities={"NET_RAW"})
_SOLICITATION, _NEIGHBOUR = b"\x87", b"\x88"
_OPTIONS = b"\x3a\0\1\4\0\0\0\0"
"""A header of destination options, in front of ICMPv6."""


@pytest.fixture
def six(engine: Engine) -> Iterator[Network]:
    root_only(engine)
    with Network("pyc-six", internal=True, ipv6=True) as one:
        yield one


def _mac(container: Container) -> bytes:
    assert container.address is not None
    return b"\x02\x50" + socket.inet_aton(container.address)


def _address(network: Network, container: Container) -> bytes:
    shown = network.inspect()["containers"][container.id]["address6"]  # type: ignore[index]
    return socket.inet_pton(socket.AF_INET6, shown)


def _message(kind: bytes, own: bytes, source: bytes, target: bytes, to: bytes, options: bytes) -> bytes:
    """Return an NDP message in its frame: `target` is at `own`."""
    flags, about = (b"\x60\0\0\0", b"\2\1") if kind == _NEIGHBOUR else (bytes(4), b"\1\1")
    body = kind + b"\0\0\0" + flags + target + about + own
    pseudo = source + to + len(body).to_bytes(4, "big") + b"\0\0\0\x3a" + body
    total = sum(int.from_bytes(pseudo[at : at + 2], "big") for at in range(0, len(pseudo), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    body = body[:2] + (0xFFFF - total).to_bytes(2, "big") + body[4:]
    first = b"\x3c" if options else b"\x3a"
    head = b"\x60\0\0\0" + len(options + body).to_bytes(2, "big") + first + b"\xff" + source + to
    return own + b"\x86\xdd" + head + options + body


def _frames(six: Network, attacker: Container, victim: Container, asking: Container) -> dict[str, bytes]:
    """Return every message by which the attacker claims the victim's address."""
    own, taken, to = _mac(attacker), _address(six, victim), _address(six, asking)
    here, there = _address(six, attacker), link_local(own)
    front = _mac(asking)
    return {
        "advertisement": front + _message(_NEIGHBOUR, own, here, taken, to, b""),
        "from its link-local address": front + _message(_NEIGHBOUR, own, there, taken, to, b""),
        "behind options": front + _message(_NEIGHBOUR, own, here, taken, to, _OPTIONS),
        "from the victim": front + _message(_NEIGHBOUR, own, taken, taken, to, b""),
        "solicitation": front + _message(_SOLICITATION, own, taken, to, to, b""),
        "to all": b"\x33\x33\0\0\0\1"
        + _message(_NEIGHBOUR, own, here, taken, socket.inet_pton(10, "ff02::1"), b""),
    }


def _fooled(six: Network, security: Security) -> set[str]:
    """Return the spoofing messages by which the victim's address resolves to the attacker."""
    found = set()
    with (
        Container(network=six, security=security) as attacker,
        Container(network=six) as victim,
        Container(network=six) as asking,
        echo(victim, socket.AF_INET6),
        open_in(attacker, socket.SOCK_RAW, socket.AF_PACKET) as raw,
        open_in(asking, socket.SOCK_RAW, socket.AF_PACKET) as sniffer,
    ):
        raw.bind(("eth0", 0x86DD))
        address, attackers = (
            socket.inet_ntop(socket.AF_INET6, _address(six, one)) for one in (victim, attacker)
        )
        for name, frame in _frames(six, attacker, victim, asking).items():
            assert reach(asking, address, patience=3.0) is not None, name
            raw.send(frame)
            _pass_one(raw, sniffer, frame, _mac(asking))
            shown = asking.exec(["ip", "-6", "neigh", "show", "to", address], check=True).stdout
            if _mac(attacker).hex(":") in shown:
                found.add(name)
                _correct(victim, asking, six)
        assert reach(attacker, address) == attackers  # its own traffic is let through
    return found


def _pass_one(raw: socket.socket, sniffer: socket.socket, frame: bytes, to: bytes) -> None:
    """Send an unfiltered frame and wait for it: earlier frames have then arrived as well."""
    mark = to + frame[6:14] + b"\x60\0\0\0\0\5\x11\xff" + _own(frame) + b"\xff" * 16 + b"pyc-m"
    sniffer.bind(("eth0", 0x0003))
    sniffer.settimeout(5)
    raw.send(mark)
    while not sniffer.recv(2048).endswith(b"pyc-m"):
        pass


def _own(frame: bytes) -> bytes:
    return link_local(frame[6:12])


def _correct(victim: Container, asking: Container, six: Network) -> None:
    """Let the victim announce its address."""
    taken, to = _address(six, victim), _address(six, asking)
    with open_in(victim, socket.SOCK_RAW, socket.AF_PACKET) as raw:
        raw.bind(("eth0", 0x86DD))
        raw.send(_mac(asking) + _message(_NEIGHBOUR, _mac(victim), taken, taken, to, b""))


@pytest.mark.case("N04")
def test_no_spoofing_on_ipv6(six: Network) -> None:
    assert _fooled(six, _RAW) == set()


@pytest.mark.control("N04")
def test_frames_that_nothing_guards_do_fool(six: Network) -> None:
    """The test itself sends the frames, from an unguarded container without raw sockets."""
    assert _fooled(six, Security.SANDBOX) >= {
        "advertisement",
        "from its link-local address",
        "behind options",
        "from the victim",
    }
