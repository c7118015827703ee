"""The leaf of one exec: where its processes are counted, and by which they are ended."""

from __future__ import annotations

import contextlib
import os

from attrs import define, field, frozen

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
    """Directories and open files of one exec's cgroups.

    directory: the v2 group, or None without one.  legacy: v1 controller to directory.
    """

    directory: str | None
    legacy: dict[str, str]
    killed: bool = False
    fd: int = -1
    tasks: tuple[int, ...] = ()
    _files: dict[str, int] = field(factory=dict, init=False)
    _base: dict[str, int] = field(factory=dict, init=False)

    @classmethod
    def open(cls, directory: str | None, legacy: dict[str, str]) -> Leaf:
        """Open what starting, counting and killing need.  Raises OSError and closes what was opened."""
        leaf = cls(directory, legacy)
        try:
            leaf._open()
        except BaseException:
            leaf.close()
            raise
        return leaf

    def _open(self) -> None:
        write, read = os.O_WRONLY | os.O_CLOEXEC, os.O_RDONLY | os.O_CLOEXEC
        if self.directory is not None:
            self.fd = os.open(self.directory, _DIRECTORY)
            self._files["kill"] = os.open("cgroup.kill", write, dir_fd=self.fd)
            self._files["events"] = os.open("cgroup.events", read, dir_fd=self.fd)
            self._files["cpu"] = os.open("cpu.stat", read, dir_fd=self.fd)
            self._optional("oom", "memory.events", read)
            self._optional("peak", "memory.peak", os.O_RDWR | os.O_CLOEXEC)
            self._optional("pids", "pids.events", read)
            self._optional("processes", "pids.peak", read)
            self._optional("io", "io.stat", read)
        self.tasks = tuple(os.open(f"{path}/tasks", write) for path in self.legacy.values())
        memory = self.legacy.get("memory")
        if memory is not None:
            self._files["oom1"] = os.open(f"{memory}/memory.oom_control", read)
            self._files["peak1"] = os.open(f"{memory}/memory.max_usage_in_bytes", os.O_RDWR | os.O_CLOEXEC)
        if "pids" in self.legacy:
            self._files["pids"] = os.open(f"{self.legacy['pids']}/pids.events", read)

    def _optional(self, key: str, name: str, flags: int) -> None:
        for attempt in (flags, os.O_RDONLY | os.O_CLOEXEC):
            try:
                self._files[key] = os.open(name, attempt, dir_fd=self.fd)
            except FileNotFoundError:
                return
            except PermissionError:
                continue
            return

    def _read(self, key: str) -> bytes | None:
        fd = self._files.get(key)
        if fd is None:
            return None
        try:
            return os.pread(fd, 4096, 0)
        except OSError:
            return None

    def _number(self, key: str, field: bytes | None = None) -> int | None:
        text = self._read(key)
        if text is None:
            return None
        return keyed(text, field) if field is not None else int(text)

    def _totals(self) -> dict[str, int | None]:
        cpu = self._read("cpu")
        oom = "oom" if "oom" in self._files else "oom1"
        return {
            "oom": self._number(oom, b"oom_kill"),
            "pids": self._number("pids", b"max"),
            "user": keyed(cpu, b"user_usec") if cpu else None,
            "system": keyed(cpu, b"system_usec") if cpu else None,
            "read": self._io(b"rbytes="),
            "written": self._io(b"wbytes="),
        }

    def _io(self, key: bytes) -> int | None:
        text = self._read("io")
        if text is None:
            return None
        return sum(int(word[len(key) :]) for word in text.split() if word.startswith(key))

    def counters(self) -> Counters:
        """What was counted since `reset`, or since the leaf was made."""
        now = self._totals()
        since = {
            key: None if value is None else value - (self._base.get(key) or 0) for key, value in now.items()
        }
        user, system = since["user"], since["system"]
        peak = self._number("peak" if "peak" in self._files else "peak1")
        return Counters(
            memory_peak=peak,
            oom_kills=since["oom"],
            pids_refused=since["pids"],
            cpu_user=None if user is None else user / 1e6,
            cpu_system=None if system is None else system / 1e6,
            processes=self._number("processes"),
            read_bytes=since["read"],
            written_bytes=since["written"],
        )

    def reset(self) -> bool:
        """Make the leaf as good as new for the next exec; False where it cannot be."""
        # The kernel remembers a kill: what is born by CLONE_INTO_CGROUP into such a group dies at once.
        if self.killed or not self.empty or "processes" in self._files:
            return False
        try:
            for key in ("peak", "peak1"):
                if key in self._files:
                    os.write(self._files[key], b"0")
        except OSError:
            return False
        usage = self._number("peak" if "peak" in self._files else "peak1")
        if usage is not None and usage > _REUSABLE_BELOW:
            return False
        self._base = {key: value for key, value in self._totals().items() if value is not None}
        return True

    @property
    def empty(self) -> bool:
        """Does no process live here?"""
        text = self._read("events")
        return text is not None and b"populated 0" in text

    @property
    def killable(self) -> bool:
        """Can this leaf end its processes by itself?"""
        return "kill" in self._files

    def kill(self, timeout: float = 10.0) -> bool:
        """Kill every process here and wait for the last one; False when the wait timed out."""
        self.killed = True
        os.write(self._files["kill"], b"1")
        return self.wait_empty(timeout)

    def wait_empty(self, timeout: float) -> bool:
        """Wait until no process lives here; False at the timeout (seconds)."""
        while True:
            result = native.lib.pcx_wait_unpopulated(self._files["events"], int(timeout * 1000))
            if result == -4:
                continue
            return bool(result == 0)

    def close(self) -> None:
        """Close the files; the directories stay."""
        for fd in (*self._files.values(), *self.tasks, *((self.fd,) if self.fd >= 0 else ())):
            os.close(fd)
        self._files, self.tasks, self.fd = {}, (), -1

    def remove(self) -> bool:
        """Close and remove the directories; False while processes live in one."""
        self.close()
        return all([remove_group(path) for path in (*self.legacy.values(), *filter(None, (self.directory,)))])


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
