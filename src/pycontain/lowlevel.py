"""The pieces beneath containers, for those who build something else from them.

A program is started in namespaces of its own by the launcher, from a plan that the caller writes;
`setns`, `unshare` and `pivot_root` act on the calling thread or process as the system calls do.
Nothing here decides anything: what a plan leaves out is not done.  For containers take
`pycontain.Container`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import IntFlag

from attrs import frozen

from pycontain._kernel import native
from pycontain._kernel.hostpath import BENEATH, NO_MAGICLINKS, openat2
from pycontain._kernel.launcher import Launcher
from pycontain._kernel.plan import (
    NO_FD,
    ExecFlag,
    MountAttr,
    Op,
    OpFlag,
    OpKind,
    Plan,
    PlanFlag,
    SecurityFlag,
    Source,
    encode_exec,
    encode_security,
    request,
)
from pycontain.errors import StartError

__all__ = [
    "NO_FD",
    "ExecFlag",
    "Launcher",
    "MountAttr",
    "Namespace",
    "Op",
    "OpFlag",
    "OpKind",
    "Plan",
    "PlanFlag",
    "SecurityFlag",
    "Source",
    "Spawned",
    "encode_exec",
    "encode_security",
    "open_beneath",
    "pivot_root",
    "setns",
    "spawn",
    "steps",
    "unshare",
]


class Namespace(IntFlag):
    """Kinds of namespaces, by the numbers of clone(2)."""

    TIME = 0x80
    MOUNT = 0x20000
    CGROUP = 0x2000000
    UTS = 0x4000000
    IPC = 0x8000000
    USER = 0x10000000
    PID = 0x20000000
    NET = 0x40000000


@frozen
class Spawned:
    """A started process: its number as the launcher sees it, and a pidfd, the caller's to close."""

    pid: int
    pidfd: int


def steps() -> list[str]:
    """Every control of a start and an exec, by the name that StartError.step has."""
    return native.steps()


def spawn(launcher: Launcher, plan: Plan, fds: Sequence[int]) -> Spawned:
    """Let the launcher start what the plan says; `fds` are those that the plan's indexes mean.

    Returns when the child is born and has its ids and mounts to build with; what it says of the
    rest comes on the control socket that the plan names.  Raises StartError with the step that
    failed, ValueError for a plan with NUL bytes in its strings, OSError.
    """
    message = plan.encode()
    if len(message) > native.MAX_INLINE:
        memory = native.sealed("pycontain-plan", message)
        try:
            header = request(native.SPAWN, flags=native.IN_MEMFD, size=len(message))
            native.send(launcher.socket, header, [memory, *fds])
        finally:
            os.close(memory)
    else:
        native.send(launcher.socket, request(native.SPAWN, message), list(fds))
    record = native.receive_uninterrupted(launcher.socket)
    if record is None:
        raise StartError("the launcher has exited", step="launcher")
    if record.kind != native.STARTED:
        raise StartError("the launcher could not start the plan", step=record.step_name, errno=record.errno)
    return Spawned(record.value, record.fd)


def setns(fd: int, kind: Namespace | int = 0) -> None:
    """Move the calling thread into the namespace that `fd` shows (setns(2)); 0 takes any kind.

    A user namespace takes only a process with one thread.  Raises OSError.
    """
    native.checked(native.lib.pcx_setns(fd, int(kind)), "setns")


def unshare(kinds: Namespace | int) -> None:
    """Give the calling thread namespaces of its own (unshare(2)).  Raises OSError."""
    native.checked(native.lib.pcx_unshare(int(kinds)), "unshare")


def pivot_root(new_root: str | os.PathLike[str]) -> None:
    """Make `new_root`, a mount point, the root of this mount namespace and let go of the old one.

    The old root is detached (pivot_root(2), "pivot_root(".", ".")").  Raises OSError.
    """
    native.checked(native.lib.pcx_pivot_root(os.fsencode(new_root)), "pivot_root")


def open_beneath(directory: int, path: str, flags: int = os.O_RDONLY) -> int:
    """Open `path` below the directory fd and nowhere else: a link that leads out is refused (openat2(2)).

    Returns an fd, close-on-exec.  Raises OSError; EXDEV for a way out, ELOOP for a magic link.
    """
    resolve = BENEATH | NO_MAGICLINKS
    return openat2(directory, path, flags, resolve)
