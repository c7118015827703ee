"""L10: the caller's time, by questions to the name service."""

from __future__ import annotations

import socket
from pathlib import Path

import dns.message
import pytest

from pycontain import Container, Engine, Network
from pycontain._networks import serving
from pycontain._networks.attached import RESOLVER
from tests.kernel.networks import _fabric, _nothing_is_left, net
from tests.support.inside import open_in, resolve

__all__ = ["_fabric", "_nothing_is_left", "net"]

_SILENCE = 0.5
_MOST = 100


def _answered(container: Container, name: str, kind: int, wanted: int) -> int:
    """How many of questions that are asked without a pause are answered before there is silence."""
    wire = dns.message.make_query(name, "A").to_wire()
    stream = kind == socket.SOCK_STREAM
    if stream:
        wire = len(wire).to_bytes(2, "big") + wire
    with open_in(container, kind) as mine:
        mine.settimeout(_SILENCE)
        mine.connect((RESOLVER, 53))
        for _ in range(wanted):
            mine.sendall(wire)
        count, data = 0, b""
        try:
            while count < wanted:
                came = mine.recv(65535)
                if not stream:
                    count += 1
                    continue
                data += came
                while len(data) >= 2 and len(data) >= (size := 2 + int.from_bytes(data[:2], "big")):
                    data, count = data[size:], count + 1
        except TimeoutError:
            pass
        return count


@pytest.mark.case("L10")
@pytest.mark.control("L10")
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_who_asks_too_much_waits(
    engine: Engine, kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the end of the window, which here never comes; others do not.  Without the bound: the control."""
    monkeypatch.setattr(serving, "WINDOW", 3600.0)
    monkeypatch.setattr(serving, "MOST_IN_WINDOW", _MOST)
    with (
        Engine(tmp_path) as own,
        Network("pyc-own", internal=True, engine=own) as network,
        Container(network=network, engine=own) as one,
        Container(network=network, engine=own, name="pyc-other") as other,
    ):
        assert _answered(one, "pyc-other", kind, 2 * _MOST) == _MOST
        assert resolve(other, "pyc-other") == {other.address}
        monkeypatch.setattr(serving, "MOST_IN_WINDOW", 1 << 30)
        assert _answered(other, "pyc-other", kind, 2 * _MOST) == 2 * _MOST


@pytest.mark.case("L10")
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_whoever_waits_is_answered_then(net: Network, kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MOST_IN_WINDOW", _MOST)
    with Container(network=net, name="pyc-other") as one:
        assert _answered(one, "pyc-other", kind, 150) == 150
