"""Features of this kernel and this user, detected once per process."""

from __future__ import annotations

import functools
import os
import resource

from attrs import frozen

from pycontain._kernel import native

_CAP_SYS_ADMIN = 21
_CAP_SYS_RESOURCE = 24


@frozen(kw_only=True)
class Features:
    """privileged: CAP_SYS_ADMIN in the first user namespace.  landlock: its ABI, 0 without."""

    privileged: bool
    landlock: int
    time_namespace: bool


@functools.cache
def features() -> Features:
    """The facts that a start is compiled against."""
    return Features(
        privileged=os.geteuid() == 0 and _holds(_CAP_SYS_ADMIN),
        landlock=max(0, native.lib.pcx_landlock_abi()),
        time_namespace=os.path.exists("/proc/self/ns/time"),
    )


def kept_rlimits() -> list[str]:
    """Resources whose hard limit a launcher keeps from this process: only CAP_SYS_RESOURCE raises one."""
    if _holds(_CAP_SYS_RESOURCE):
        return []
    names = ("as", "cpu", "data", "fsize", "rss", "stack")
    return [name for name in names if _hard(name) != resource.RLIM_INFINITY]


def _hard(name: str) -> int:
    return resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))[1]


def _holds(capability: int) -> bool:
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> capability & 1)
    return False
