"""Facts about the process behind a pidfd (pidfd_open(2))."""

from __future__ import annotations

import fcntl
import struct
import time

from pycontain._kernel.waiting import is_ready

_INFO = struct.Struct("=QQ11Ii")
"""struct pidfd_info: a mask, a cgroup, ids, the wait status (linux/pidfd.h)."""

_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11
_INFO_EXIT = 1 << 3
_REAPED_WITHIN = 100
"""Milliseconds: the status is there once the parent has reaped the process."""


def wait_dead(pidfd: int, timeout: float | None = None) -> bool:
    """Wait for the end of the process behind pidfd; False at the timeout (seconds)."""
    return pidfd < 0 or is_ready(pidfd, timeout)


def pid_of(pidfd: int) -> int:
    """Return the process behind a pidfd, -1 if it is gone (proc_pid_fdinfo(5))."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as info:
        return next(int(line.split()[1]) for line in info if line.startswith("Pid:"))


def exit_status(pidfd: int) -> int | None:
    """Return the wait status of an ended process; None before Linux 6.15, or when it is not reaped soon."""
    for _ in range(_REAPED_WITHIN):
        info = bytearray(_INFO.pack(_INFO_EXIT, *(0,) * 13))
        try:
            fcntl.ioctl(pidfd, _GET_INFO, info)
        except OSError:
            return None
        mask, *_, status = _INFO.unpack(info)
        if mask & _INFO_EXIT:
            return int(status)
        time.sleep(0.001)
    return None
