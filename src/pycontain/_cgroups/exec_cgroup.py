"""The cgroup of one exec: it counts the processes of the exec and can kill them."""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import time
from collections.abc import Iterable

from attrs import define, field, frozen

from pycontain._cgroups.layout import write
from pycontain._kernel import files, native

_REUSABLE_BELOW = 1 << 20
"""Most bytes of page cache, charged by the last exec, with which an exec cgroup is used again."""


@frozen
class Counters:
    """The kernel's counters of an exec cgroup since its exec began; None where nothing counts.

    refused_above: forks that the container's own limit refused, where the kernel counts those in its group.
    """

    memory_peak: int | None = None
    oom_kills: int | None = None
    pids_refused: int | None = None
    refused_above: int | None = None
    cpu_user: float | None = None
    cpu_system: float | None = None
    processes: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None


@frozen
class Meter:
    """The statistics to read for an exec cgroup.

    Attributes:
        numbers: `{name: (index of the file, key in it)}`.
        script: The operations that read the files.
    """

    numbers: dict[str, tuple[int, bytes]]
    script: bytes

    @classmethod
    def of(cls, *wanted: tuple[str, str, bytes]) -> Meter:
        """Make a meter of (name, path, key) tuples; with an empty key the file is one number."""
        paths = tuple(dict.fromkeys(path for _, path, _ in wanted))
        numbers = {name: (paths.index(path), key) for name, path, key in wanted}
        return cls(numbers, b"".join(files.read(path) for path in paths))

    def take(self, texts: list[bytes]) -> dict[str, int]:
        """Return the numbers found in the texts of the files."""
        found = {}
        for name, (place, key) in self.numbers.items():
            text = texts[place]
            value = sum_of(text, key) if key.endswith(b"=") else keyed(text, key) if key else number(text)
            if value is not None:
                found[name] = value
        return found


def keyed(text: bytes, key: bytes) -> int | None:
    """Return the number after `key` in a flat keyed file, None without such a line."""
    at = text.find(b"\n" + key + b" ")
    at = at + 1 if at >= 0 else 0 if text.startswith(key + b" ") else -1
    if at < 0:
        return None
    return int(text[at + len(key) + 1 :].split(None, 1)[0])


def number(text: bytes) -> int | None:
    """Return the number that is the content of a file, None if it is something else."""
    return int(text) if text.strip().isdigit() else None


def sum_of(text: bytes, key: bytes) -> int:
    """Return the sum of all values of `key`, as in io.stat, which has a line per device."""
    return sum(int(word[len(key) :]) for word in text.split() if word.startswith(key))


_LAUNCHERS_END = 2.0
"""Seconds to wait for launchers, which are in the owner's groups, to end."""


@define(eq=False)
class ExecCgroup:
    """The cgroups of one exec.  Their files are open only while an exec begins or ends.

    Attributes:
        directory: The v2 group, or None without one.
        controllers: The controllers of v2 that it has.
        legacy: `{v1 controller: directory}`.
        above: The pids.events of the container's group, which counts refused forks of all execs.
        killed: It was killed, so it cannot be used again.
        concurrent: Another exec ran in the container since this one began.
        idle: Its exec waits and does not count as concurrent.
        limited: It has limits of its own.
    """

    directory: str | None
    controllers: frozenset[str]
    legacy: dict[str, str]
    above: str | None
    killed: bool = False
    concurrent: bool = False
    idle: bool = False
    limited: bool = False
    _meter: Meter = field(init=False)
    _entry_script: bytes = field(init=False)
    _now: dict[str, int] = field(factory=dict, init=False)
    _base: dict[str, int] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        entry = [files.open_directory(self.directory)] if self.directory is not None else []
        entry += [files.open_to_write(f"{path}/tasks") for path in self.legacy.values()]
        if self.above is not None:
            entry.append(files.read(self.above))
        self._entry_script = b"".join(entry)
        self._meter = self._make_meter()

    def moved(self, old: str, new: str) -> ExecCgroup:
        """Return a copy for the group `new`, of a plan that was made for the group `old`."""
        twin = copy.copy(self)
        twin.directory = self.directory.replace(old, new) if self.directory is not None else None
        twin.legacy = {one: path.replace(old, new) for one, path in self.legacy.items()}
        twin.above = self.above.replace(old, new) if self.above is not None else None
        twin._entry_script = self._entry_script.replace(old.encode(), new.encode())
        script = self._meter.script.replace(old.encode(), new.encode())
        twin._meter = Meter(self._meter.numbers, script)
        twin._now, twin._base = {}, {}
        return twin

    def _make_meter(self) -> Meter:
        wanted = []
        own, memory = self.directory, self.legacy.get("memory")
        if own is not None:
            wanted += [
                ("populated", f"{own}/cgroup.events", b"populated"),
                ("user", f"{own}/cpu.stat", b"user_usec"),
                ("system", f"{own}/cpu.stat", b"system_usec"),
            ]
        if memory is not None:
            wanted += [
                ("oom", f"{memory}/memory.oom_control", b"oom_kill"),
                ("peak", f"{memory}/memory.max_usage_in_bytes", b""),
            ]
        elif "memory" in self.controllers:
            wanted += [("oom", f"{own}/memory.events", b"oom_kill"), ("peak", f"{own}/memory.peak", b"")]
        pids = self.legacy.get("pids") or (own if "pids" in self.controllers else None)
        if pids is not None:
            wanted += [("pids", f"{pids}/pids.events", b"max"), ("processes", f"{pids}/pids.peak", b"")]
        if self.above is not None:
            wanted.append(("above", self.above, b"max"))
        if "io" in self.controllers:
            wanted += [("read", f"{own}/io.stat", b"rbytes="), ("written", f"{own}/io.stat", b"wbytes=")]
        return Meter.of(*wanted)

    def open(self) -> list[int]:
        """Open the v2 directory, to clone a process into, if there is one, and the v1 `tasks` files."""
        done = files.run(self._entry_script)
        if self.above is not None and (refused := keyed(done.texts[0], b"max")) is not None:
            self._base["above"] = refused
        return done.fds

    def open_own(self) -> list[int]:
        """Open the files by which a running process moves itself here, one per hierarchy."""
        procs = [f"{self.directory}/cgroup.procs"] if self.directory is not None else []
        paths = (*procs, *(f"{path}/tasks" for path in self.legacy.values()))
        return files.run(b"".join(files.open_to_write(path) for path in paths)).fds

    def begin_anew(self) -> bool:
        """Start to count for a process that entered before; False if the group is empty."""
        self._now = self._meter.take(files.run(self._meter.script).texts)
        self._base = dict(self._now)
        return self.populated

    @property
    def occupied(self) -> bool:
        """True if processes are here now.  Only for a v2 group."""
        return keyed(files.run(files.read(f"{self.directory}/cgroup.events")).texts[0], b"populated") != 0

    def counters(self) -> Counters:
        """Read the counters since `reset`, or since the exec cgroup was made."""
        now = self._now = self._meter.take(files.run(self._meter.script).texts)
        base = self._base
        since = {key: value - base.get(key, 0) for key, value in now.items()}
        user, system = since.get("user"), since.get("system")
        return Counters(
            memory_peak=now.get("peak"),
            oom_kills=since.get("oom"),
            pids_refused=since.get("pids"),
            refused_above=since.get("above"),
            cpu_user=None if user is None else user / 1e6,
            cpu_system=None if system is None else system / 1e6,
            processes=now.get("processes"),
            read_bytes=since.get("read"),
            written_bytes=since.get("written"),
        )

    @property
    def populated(self) -> bool:
        """True if processes were here when the counters were last read."""
        return self._now.get("populated") != 0

    def reset(self) -> bool:
        """Prepare the exec cgroup for another exec, after `counters`; False if that is not possible."""
        # The kernel remembers a kill: a process cloned into such a group (CLONE_INTO_CGROUP) dies at once.
        # Peaks of v2 cannot be reset, and limits of one command must not hold for the next.
        if self.killed or self.limited or self._peaks or self.populated:
            return False
        memory = self.legacy.get("memory")
        if memory is not None:
            script = files.write(f"{memory}/memory.max_usage_in_bytes", "0")
            big = self._now.get("peak", 0) > _REUSABLE_BELOW
            try:
                done = files.run(script + (files.read(f"{memory}/memory.usage_in_bytes") if big else b""))
            except files.Failed:
                return False  # its container has ended
            if big and (not done.texts[0] or int(done.texts[0]) > _REUSABLE_BELOW):
                return False
        self._base = dict(self._now)
        return True

    @property
    def _peaks(self) -> bool:
        return bool(self.controllers & {"memory", "pids"}) or "pids" in self.legacy

    @property
    def killable(self) -> bool:
        """True if the kernel can kill all processes of this exec cgroup at once (cgroup.kill)."""
        return self.directory is not None

    def kill(self, timeout: float = 10.0) -> bool:
        """Kill every process here and wait until all are gone.

        Args:
            timeout: Seconds.

        Returns:
            False if processes are left at the timeout.
        """
        self.killed = True
        write(f"{self.directory}/cgroup.kill", "1")
        return wait_empty(f"{self.directory}", timeout)

    def remove(self) -> bool:
        """Remove the directories; False if processes are left in one."""
        return all([remove_group(path) for path in (*self.legacy.values(), *filter(None, (self.directory,)))])


def wait_empty(directory: str, timeout: float) -> bool:
    """Wait until a v2 group has no process; False at the timeout (seconds)."""
    events = os.open(f"{directory}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while True:
            result = native.lib.pcx_wait_unpopulated(events, int(timeout * 1000))
            if result != -errno.EINTR:
                return bool(result == 0)
    finally:
        os.close(events)


def remove_group(path: str) -> bool:
    """Remove one cgroup; False if it has processes or groups in it."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def remove_groups(paths: Iterable[str]) -> bool:
    """Remove cgroups, inner ones first; False if one has processes for longer than two seconds.

    Launchers are in groups of their owner and end shortly after their sockets are closed.
    """
    until = time.monotonic() + _LAUNCHERS_END
    for path in sorted(paths, reverse=True):
        while not (done := remove_group(path)):
            if time.monotonic() > until:
                return done
            time.sleep(0.001)
    return True


def remove_subtree(path: str) -> bool:
    """Remove a cgroup and every group below it, deepest first; False if one has processes."""
    with contextlib.suppress(FileNotFoundError):
        for entry in list(os.scandir(path)):
            if entry.is_dir(follow_symlinks=False):
                remove_subtree(entry.path)
    return remove_group(path)
