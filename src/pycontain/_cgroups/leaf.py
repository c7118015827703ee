"""The leaf of one exec: where its processes are counted, and by which they are ended."""

from __future__ import annotations

import contextlib
import os

from attrs import define, field, frozen

from pycontain._cgroups.detect import write
from pycontain._kernel import native

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_REUSABLE_BELOW = 1 << 20
"""Bytes that a leaf may still be charged with when the next exec gets it: page cache of the last one."""


@frozen
class Counters:
    """What the kernel counted in a leaf since the exec began; None where nothing counts it."""

    memory_peak: int | None = None
    oom_kills: int | None = None
    pids_refused: int | None = None
    cpu_user: float | None = None
    cpu_system: float | None = None
    processes: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None


def keyed(text: bytes, key: bytes) -> int | None:
    """The number behind `key` in a flat keyed file."""
    start = text.find(key + b" ")
    if start < 0 or (start > 0 and text[start - 1] != 10):
        return None
    return int(text[start + len(key) + 1 :].split(None, 1)[0])


@define
class Leaf:
    """One exec's cgroups; nothing of them is held open while no exec begins or ends.

    directory: the v2 group, or None without one.  controllers: those that v2 has there.
    legacy: v1 controller to directory.
    """

    directory: str | None
    controllers: frozenset[str]
    legacy: dict[str, str]
    killed: bool = False
    _now: dict[str, int] = field(factory=dict, init=False)
    _base: dict[str, int] = field(factory=dict, init=False)
    _peak: int | None = field(default=None, init=False)

    def open(self) -> list[int]:
        """The v2 directory to be born in, if there is one, and the v1 `tasks` files to enter by."""
        opened: list[int] = []
        try:
            if self.directory is not None:
                opened.append(os.open(self.directory, _DIRECTORY))
            for path in self.legacy.values():
                opened.append(os.open(f"{path}/tasks", os.O_WRONLY | os.O_CLOEXEC))
        except BaseException:
            for fd in opened:
                os.close(fd)
            raise
        return opened

    def _read_memory(self) -> None:
        now = self._now
        if "memory" in self.legacy:
            directory = self.legacy["memory"]
            _take(now, "oom", read(f"{directory}/memory.oom_control"), b"oom_kill")
            self._peak = _number(read(f"{directory}/memory.max_usage_in_bytes"))
        elif "memory" in self.controllers:
            _take(now, "oom", read(f"{self.directory}/memory.events"), b"oom_kill")
            self._peak = _number(read(f"{self.directory}/memory.peak"))

    def _read_all(self) -> None:
        now = self._now
        if self.directory is not None:
            cpu = read(f"{self.directory}/cpu.stat")
            _take(now, "user", cpu, b"user_usec")
            _take(now, "system", cpu, b"system_usec")
        self._read_memory()
        pids = self.legacy.get("pids") or (self.directory if "pids" in self.controllers else None)
        if pids is not None:
            _take(now, "pids", read(f"{pids}/pids.events"), b"max")
            _take(now, "processes", read(f"{pids}/pids.peak"), b"")
        if "io" in self.controllers:
            io = read(f"{self.directory}/io.stat")
            now["read"], now["written"] = _sum_of(io, b"rbytes="), _sum_of(io, b"wbytes=")

    def counters(self) -> Counters:
        """What was counted since `reset`, or since the leaf was made."""
        self._read_all()
        base = self._base
        since = {key: value - base.get(key, 0) for key, value in self._now.items()}
        user, system = since.get("user"), since.get("system")
        return Counters(
            memory_peak=self._peak,
            oom_kills=since.get("oom"),
            pids_refused=since.get("pids"),
            cpu_user=None if user is None else user / 1e6,
            cpu_system=None if system is None else system / 1e6,
            processes=self._now.get("processes"),
            read_bytes=since.get("read"),
            written_bytes=since.get("written"),
        )

    def reset(self) -> bool:
        """Make the leaf as good as new for the next exec, after `counters`; False where it cannot be."""
        # The kernel remembers a kill: what is born by CLONE_INTO_CGROUP into such a group dies at once.
        # The peaks of v2 cannot be set back.
        if self.killed or self.controllers or "pids" in self.legacy or not self.empty:
            return False
        memory = self.legacy.get("memory")
        if memory is not None:
            if (self._peak or 0) > _REUSABLE_BELOW:
                usage = _number(read(f"{memory}/memory.usage_in_bytes"))
                if usage is None or usage > _REUSABLE_BELOW:
                    return False
            write(f"{memory}/memory.max_usage_in_bytes", "0")
        self._base = dict(self._now)
        return True

    @property
    def empty(self) -> bool:
        """Does no process live here?"""
        text = read(f"{self.directory}/cgroup.events")
        return text is not None and b"populated 0" in text

    @property
    def killable(self) -> bool:
        """Can this leaf end its processes by itself?"""
        return self.directory is not None

    def kill(self, timeout: float = 10.0) -> bool:
        """Kill every process here and wait for the last one; False when the wait timed out (seconds)."""
        self.killed = True
        write(f"{self.directory}/cgroup.kill", "1")
        return wait_empty(f"{self.directory}", timeout)

    def remove(self) -> bool:
        """Remove the directories; False while processes live in one."""
        return all([remove_group(path) for path in (*self.legacy.values(), *filter(None, (self.directory,)))])


def wait_empty(directory: str, timeout: float) -> bool:
    """Wait until no process lives in a v2 group; False at the timeout (seconds)."""
    events = os.open(f"{directory}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while True:
            result = native.lib.pcx_wait_unpopulated(events, int(timeout * 1000))
            if result != -4:
                return bool(result == 0)
    finally:
        os.close(events)


def read(path: str) -> bytes | None:
    """The first 4096 bytes of a file, None where it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, 4096)
    except OSError:
        return None
    finally:
        os.close(fd)


def _number(text: bytes | None) -> int | None:
    return int(text) if text is not None and text.strip().isdigit() else None


def _take(into: dict[str, int], key: str, text: bytes | None, name: bytes) -> None:
    value = None if text is None else keyed(text, name) if name else _number(text)
    if value is not None:
        into[key] = value


def _sum_of(text: bytes | None, key: bytes) -> int:
    return sum(int(word[len(key) :]) for word in (text or b"").split() if word.startswith(key))


def remove_group(path: str) -> bool:
    """rmdir of one cgroup; False while something lives in it."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def remove_subtree(path: str) -> bool:
    """rmdir of a cgroup and of every group below it, deepest first."""
    with contextlib.suppress(FileNotFoundError):
        for entry in list(os.scandir(path)):
            if entry.is_dir(follow_symlinks=False):
                remove_subtree(entry.path)
    return remove_group(path)
