"""Kinds of namespaces."""

from __future__ import annotations

from enum import IntFlag


class Namespace(IntFlag):
    """Kinds of namespaces, with the flag values of clone(2)."""

    TIME = 0x80
    MOUNT = 0x20000
    CGROUP = 0x2000000
    UTS = 0x4000000
    IPC = 0x8000000
    USER = 0x10000000
    PID = 0x20000000
    NET = 0x40000000
