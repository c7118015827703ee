"""A rootless container's share of the objects that the kernel counts per user (user.max_* of sysctl)."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

from pycontain._security import profiles

if TYPE_CHECKING:
    from pycontain._security.seccomp import Filter

_DIRECTORY = "/proc/sys/user"
_SHARE = 8
"""The part of the user's own limit that one container gets: an eighth."""

_INOTIFY = ("max_inotify_instances", "max_inotify_watches")
_REFUSED = (
    "max_cgroup_namespaces",
    "max_fanotify_groups",
    "max_fanotify_marks",
    "max_ipc_namespaces",
    "max_mnt_namespaces",
    "max_net_namespaces",
    "max_pid_namespaces",
    "max_time_namespaces",
    "max_user_namespaces",
    "max_uts_namespaces",
)
"""Counters of calls that SANDBOX_FILTER refuses; each write costs time, so only other filters get them."""


def shares(filter_: Filter | None) -> str:
    """Return the limits to write inside a rootless container's user namespace.

    Root does not need them: the kernel counts its containers under ids of their own.

    Args:
        filter_: the container's system call filter.

    Returns:
        Lines of file name and number, as `pc_plan.counters` has them; empty where /proc/sys is read-only,
        as inside another container.
    """
    names = _INOTIFY if filter_ is profiles.SANDBOX_FILTER else (*_INOTIFY, *_REFUSED)
    return _lines(names)


@functools.lru_cache(maxsize=2)
def _lines(names: tuple[str, ...]) -> str:
    try:
        if os.statvfs(_DIRECTORY).f_flag & os.ST_RDONLY:
            return ""
    except OSError:
        return ""
    return "".join(f"{name} {limit}\n" for name in names if (limit := _share(name)) is not None)


def _share(name: str) -> int | None:
    try:
        with open(f"{_DIRECTORY}/{name}", encoding="ascii") as file:
            return max(1, int(file.read()) // _SHARE)
    except FileNotFoundError:
        return None  # a counter that this kernel does not have
