"""Operations on networks, one verb at a time, compared with docker-py where it has the same verb."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import Absent, Case, Summary, interleave, repeated, row
from pycontain import Container, Image, Network

_LOOKUPS = 200
_PORT = 80
_SIDES = ("pycontain", "docker-py")


def _turns(do: Callable[[], object], undo: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Return samples of both verbs; each undo follows its do."""
    one, other = repeated(do), repeated(undo)
    return one(1, 0), other(1, 0)


class _Pair:
    """Two cases that are one after the other: what does, and what undoes."""

    def __init__(self, name: str, do: Callable[[], object], undo: Callable[[], object]) -> None:
        self.name, self._do, self._undo = name, do, undo
        self.undone: list[float] = []

    def sample(self, count: int, pause: float) -> list[float]:
        """Return the seconds of `do`, and record those of `undo`."""
        del pause
        done = []
        for _ in range(count):
            one, other = _turns(self._do, self._undo)
            done += one
            self.undone += other
        return done


def _judged(does: str, undoes: str, pairs: list[_Pair], rounds: int) -> list[dict[str, object]]:
    found = interleave([Case(one.name, one.sample) for one in pairs], rounds, 5, 0)
    ends = [Summary(one.name, one.undone) for one in pairs]
    return [_beside(does, found), _beside(undoes, ends)]


def _beside(job: str, found: list[Summary]) -> dict[str, object]:
    """Return a row; a case without a peer is compared with itself."""
    return row(job, found[0], found[-1], None)


class _Held:
    """The result of the last call."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self.what: Any = None

    def make(self) -> None:
        self.what = self._make()

    def remove(self) -> None:
        self.what.remove()


def _creation(client: Any, rounds: int) -> list[dict[str, object]]:
    names = (f"pyc-verb{at}" for at in itertools.count())
    held = [_Held(lambda: Network(next(names)))]
    if client is not None:
        held.append(_Held(lambda: client.networks.create(next(names))))
    pairs = [_Pair(name, one.make, one.remove) for name, one in zip(_SIDES, held, strict=False)]
    return _judged("Network()", "Network.remove()", pairs, rounds)


def _connection(image: Image, client: Any, rounds: int) -> list[dict[str, object]]:
    with Network("pyc-one") as one, Network("pyc-two") as two, Container(image, network=one) as container:
        pairs = [_Pair(_SIDES[0], lambda: two.connect(container), lambda: two.disconnect(container))]
        if client is None:
            return _judged("connect", "disconnect", pairs, rounds)
        with _docker_container(client, "pyc-one") as other, _docker_network(client, "pyc-two") as second:
            pairs.append(
                _Pair(_SIDES[1], lambda: second.connect(other.id), lambda: second.disconnect(other.id))
            )
            return _judged("connect", "disconnect", pairs, rounds)


@contextlib.contextmanager
def _docker_network(client: Any, name: str) -> Iterator[Any]:
    network = client.networks.create(name)
    try:
        yield network
    finally:
        network.remove()


@contextlib.contextmanager
def _docker_container(client: Any, network: str) -> Iterator[Any]:
    with _docker_network(client, network):
        container = client.containers.run(
            "pycbench", ["/meet", "serve", str(_PORT)], network=network, name="pyc-looked", detach=True
        )
        try:
            yield container
        finally:
            container.remove(force=True)


def _lookups(text: str) -> list[float]:
    return [int(line) / 1e9 for line in text.splitlines()]


def _names(image: Image, client: Any, rounds: int) -> list[dict[str, object]]:
    """Measure the look-up of a name from inside; both engines answer at 127.0.0.11."""
    with Network("pyc-names") as net, Container(image, name="pyc-looked", network=net) as container:
        command = ["/meet", "lookup", "pyc-looked", str(_LOOKUPS)]
        cases = [Case(_SIDES[0], lambda count, pause: _lookups(str(container.exec(command).stdout)))]
        if client is None:
            return [_beside("look-up of a name", interleave(cases, rounds, 1, 0))]
        with _docker_container(client, "pyc-names") as other:
            cases.append(
                Case(_SIDES[1], lambda count, pause: _lookups(other.exec_run(command).output.decode()))
            )
            return [_beside("look-up of a name", interleave(cases, rounds, 1, 0))]


def _publishing(image: Image, client: Any, rounds: int) -> list[dict[str, object]]:
    """Measure a start with a port against one without, by pycontain and docker-py."""
    with Network("pyc-ports") as net:

        def start(ports: dict[str | int, int | None]) -> Callable[[], None]:
            def once() -> None:
                with Container(image, network=net, ports=ports) as container:
                    container.exec(["/true"])

            once()
            return once

        cases = [
            Case("with a port", repeated(start({_PORT: None}))),
            Case("without", repeated(start({}))),
        ]
        if client is not None:
            run = client.containers.run
            cases.append(
                Case(
                    "docker-py, with a port",
                    repeated(lambda: run("pycbench", "/true", remove=True, ports={f"{_PORT}/tcp": None})),
                )
            )
        found = interleave(cases, rounds, 5, 0)
    return [row("start with a port", found[0], other, None) for other in found[1:]]


def verbs(top: Path, client: Any, quick: bool) -> list[dict[str, object]]:
    """Measure all verbs."""
    rounds = 2 if quick else 6
    image = Image.from_rootfs(top / "root")
    peer = None if isinstance(client, Absent) else client
    return [
        *_creation(peer, rounds),
        *_connection(image, peer, rounds),
        *_names(image, peer, rounds),
        *_publishing(image, peer, rounds),
    ]
