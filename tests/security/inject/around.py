"""Leak detection: compare the processes, fds, mounts and files of an engine between runs."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycontain._kernel.pidfd import pid_of
from tests.security.inject.model import Unable

if TYPE_CHECKING:
    from pycontain import Engine


def _kinds_of_fds(pid: int | str) -> collections.Counter[str]:
    found: collections.Counter[str] = collections.Counter()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found[re.sub(r"[0-9a-f]{8,}|\d+", "N", os.readlink(f"/proc/{pid}/fd/{name}"))] += 1
    return found


def _children(pid: int) -> set[int]:
    try:
        return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except (FileNotFoundError, ProcessLookupError):
        return set()


class Around:
    """A view of the resources of an engine and its process between two runs."""

    def __init__(self, engine: Engine, top: Path, tracer: int) -> None:
        self._engine = engine
        self._top = top
        self._tracer = tracer
        self._litter: list[Callable[[], object]] = []
        self._before = self._at_rest()

    def _at_rest(self) -> dict[str, Any]:
        """Return the state after pending cleanup."""
        deadline = time.monotonic() + 1.0
        while (state := self._state())["processes"] and time.monotonic() < deadline:
            time.sleep(0.01)
        return state

    def _state(self) -> dict[str, Any]:
        self._reap()
        engine = self._engine
        helper = engine._session.cleanup._helper
        fds = _kinds_of_fds("self")
        helpers = [*engine._session.launchers._all, *([helper] if helper is not None else [])]
        fds["socket:[N]"] -= len(helpers)
        fds["anon_inode:[pidfd]"] -= len(helpers)
        fds.subtract(_links(engine._session.cgroups.held))
        children = engine._session.launchers.precloned()
        waiting = {child.group.name for child in children}
        ids = {(child.block - 0x58000000) // 65536 for child in children}
        programs = {pid_of(one.pidfd) for one in helpers}
        state: dict[str, Any] = {
            "fds": {kind: count for kind, count in fds.items() if count},
            "cgroups": sorted(path for path in _groups(engine) if not waiting & {*path.split("/")}),
            "directories": os.listdir(engine._session.owner.live),
            "mounts": [line for line in _mounts("self") if str(self._top) in line],
            "ids": sorted(engine._session.owner.blocks._used - ids),
            "cleanup": list(engine._session.cleanup.errors),
            "live": sorted(engine._session.registry._running),
            "processes": sorted(_names(self._strangers(programs))),
        }
        alive = [pid for one in engine._session.launchers._free if (pid := pid_of(one.pidfd)) > 0]
        for pid in alive[-1:]:
            state["launcher's fds"] = dict(_kinds_of_fds(pid))
            state["launcher's mounts"] = len(_mounts(pid))
        return state

    def _strangers(self, programs: set[int]) -> set[int]:
        """Return processes other than helpers and the tracer."""
        found = _children(os.getpid()) - programs - {self._tracer}
        return found.union(*map(_children, programs))

    def _reap(self) -> None:
        """Reap adopted processes, launchers among them."""
        for pid in _children(os.getpid()) - {self._tracer}:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def leaks(self) -> list[str]:
        """Return resources that did not exist before the first run, after a short wait for cleanup."""
        deadline = time.monotonic() + 1.0
        while True:
            try:
                now, before = self._state(), self._before
            except OSError as error:  # a launcher that died just now
                now, before = {"launcher": str(error)}, {"launcher": ""}
            more = [f"{key}: {before[key]} -> {now[key]}" for key in now if now[key] != before[key]]
            if not more or time.monotonic() > deadline:
                return more
            time.sleep(0.01)

    def leave(self, what: str) -> None:
        """Leave something behind, as the control of `leaks`."""
        if what == "directory":
            path = os.path.join(self._engine._session.owner.live, "pyc-litter")
        elif what == "cgroup":
            bases = sorted(_bases(self._engine))
            if not bases:
                raise Unable("no cgroup that this user may make groups in")
            path = os.path.join(bases[0], "pyc-litter")
        elif what == "fd":
            fd = os.open("/dev/null", os.O_RDONLY)
            self._litter.append(lambda: os.close(fd))
            return
        else:
            sleeper = os.fork()
            if sleeper == 0:
                os.execvp("sleep", ["sleep", "20"])
            self._litter += [lambda: os.waitpid(sleeper, 0), lambda: os.kill(sleeper, signal.SIGKILL)]
            return
        os.mkdir(path)
        self._litter.append(lambda: os.rmdir(path))

    def clear(self) -> None:
        """Remove the control's leftovers."""
        while self._litter:
            self._litter.pop()()


def _links(fds: Sequence[int]) -> collections.Counter[str]:
    paths = (os.readlink(f"/proc/self/fd/{fd}") for fd in fds)
    return collections.Counter(re.sub(r"[0-9a-f]{8,}|\d+", "N", path) for path in paths)


def _bases(engine: Engine) -> set[str]:
    bases = {
        f"{path}/pycontain/{engine._session.owner.name}"
        for path in engine._session.cgroups.layout.legacy.values()
    }
    if engine._session.cgroups.unified:
        bases.add(engine._session.cgroups.unified)
    return {base for base in bases if os.path.isdir(base)}


def _groups(engine: Engine) -> Iterator[str]:
    for base in _bases(engine):
        for directory, names, _ in os.walk(base):
            yield from (os.path.join(directory, name) for name in names)


def _mounts(pid: int | str) -> list[str]:
    return Path(f"/proc/{pid}/mountinfo").read_text().splitlines()


def _names(pids: set[int]) -> Iterator[str]:
    for pid in pids:
        with contextlib.suppress(OSError):
            yield Path(f"/proc/{pid}/comm").read_text().strip()
