"""What a pidfd tells of the process behind it (pidfd_open(2))."""

from __future__ import annotations

import select

_LONGEST_POLL = 2_000_000
"""Seconds: poll(2) takes an int of milliseconds."""


def wait_dead(pidfd: int, timeout: float | None = None) -> bool:
    """Wait for the end of the process behind pidfd; False at the timeout (seconds)."""
    if pidfd < 0:
        return True
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else min(timeout, _LONGEST_POLL) * 1000))


def pid_of(pidfd: int) -> int:
    """The process behind a pidfd, -1 where it is gone (proc_pid_fdinfo(5))."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as info:
        return next(int(line.split()[1]) for line in info if line.startswith("Pid:"))
