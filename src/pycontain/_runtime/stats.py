"""Resource usage of a live container."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from pycontain._cgroups.exec_cgroup import keyed
from pycontain.errors import UnsupportedError

if TYPE_CHECKING:
    from pycontain._runtime.running import Running


@frozen(kw_only=True)
class Stats:
    """Resource usage of a container; None for what this host does not count.

    Attributes:
        memory: Bytes in use.
        memory_peak: The most bytes that were in use.
        memory_limit: The limit in bytes.
        cpu_user: Seconds of processor time in programs.
        cpu_system: Seconds of processor time in the kernel.
        processes: The number of processes and threads.
    """

    memory: int | None
    memory_peak: int | None
    memory_limit: int | None
    cpu_user: float | None
    cpu_system: float | None
    processes: int | None


def stats_of(running: Running) -> Stats:
    """Read the kernel's counters of a container.

    Raises:
        UnsupportedError: No cgroup counts the container.
    """
    if running.group is None:
        raise UnsupportedError("stats", hint="no cgroup of this user counts the container")
    paths = running.group.paths()
    unified = paths.get("unified", "")
    memory = paths.get("memory")
    cpu = _read(f"{unified}/cpu.stat") if unified else None
    user = keyed(cpu, b"user_usec") if cpu else None
    system = keyed(cpu, b"system_usec") if cpu else None
    return Stats(
        memory=_number(f"{memory}/memory.usage_in_bytes" if memory else f"{unified}/memory.current"),
        memory_peak=_number(f"{memory}/memory.max_usage_in_bytes" if memory else f"{unified}/memory.peak"),
        memory_limit=running.spec.limits.memory,
        cpu_user=None if user is None else user / 1e6,
        cpu_system=None if system is None else system / 1e6,
        processes=_number(f"{paths.get('pids', unified)}/pids.current"),
    )


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def _number(path: str) -> int | None:
    text = _read(path)
    return int(text) if text and text.strip().isdigit() else None
