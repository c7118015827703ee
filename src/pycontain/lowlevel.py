"""Building blocks of containers: namespaces, mounts and processes from an explicit plan.

The launcher starts a program in new namespaces, from a plan that the caller writes.  `setns`, `unshare`
and `pivot_root` act on the calling thread or process, as the system calls do.  A plan has no defaults:
a step that it does not contain is not performed.  Use `pycontain.Container` for containers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from attrs import frozen

from pycontain._kernel import native, protocol
from pycontain._kernel.hostpath import BENEATH, NO_MAGICLINKS, openat2
from pycontain._kernel.launcher import Launcher
from pycontain._kernel.namespaces import Namespace
from pycontain._kernel.plan import Op, Plan, Source, encode_exec, encode_security, request
from pycontain._kernel.protocol import (
    IN_MEMFD,
    MAX_INLINE,
    NO_FD,
    ExecFlag,
    MountAttr,
    OpFlag,
    OpKind,
    PlanFlag,
    RecordKind,
    RequestKind,
    SecurityFlag,
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


@frozen
class Spawned:
    """A started process.

    Attributes:
        pid: The process id in the pid namespace of the launcher.
        pidfd: A pidfd, which the caller closes.
    """

    pid: int
    pidfd: int


def steps() -> list[str]:
    """Return the names of all steps of a start or an exec, as StartError.step has them."""
    return protocol.steps()


def spawn(launcher: Launcher, plan: Plan, fds: Sequence[int]) -> Spawned:
    """Start the process that a plan describes.

    Returns once the child exists and has its ids and mounts.  Later records of the child arrive on the
    control socket that the plan names.

    Args:
        launcher: The launcher that starts the process.
        plan: The plan.
        fds: The descriptors to which the indexes in the plan refer.

    Raises:
        StartError: A step failed; the error has its name.
        ValueError: A string of the plan contains a NUL byte.
        OSError: The launcher cannot be reached.
    """
    message = plan.encode()
    if len(message) > MAX_INLINE:
        memory = native.sealed("pycontain-plan", message)
        try:
            header = request(RequestKind.SPAWN, flags=IN_MEMFD, size=len(message))
            native.send(launcher.socket, header, [memory, *fds])
        finally:
            os.close(memory)
    else:
        native.send(launcher.socket, request(RequestKind.SPAWN, message), list(fds))
    record = native.receive_uninterrupted(launcher.socket)
    if record is None:
        raise StartError("the launcher has exited", step="launcher")
    if record.kind != RecordKind.STARTED:
        raise StartError("the launcher could not start the plan", step=record.step_name, errno=record.errno)
    return Spawned(record.value, record.fd)


def setns(fd: int, kind: Namespace | int = 0) -> None:
    """Move the calling thread into the namespace that `fd` refers to (setns(2)).

    Args:
        fd: A descriptor of a namespace.
        kind: The kind of namespace that `fd` must refer to; 0 accepts every kind.

    Raises:
        OSError: The kernel refused the call; for a user namespace, also when the process has several threads.
    """
    native.checked(native.lib.pcx_setns(fd, int(kind)), "setns")


def unshare(kinds: Namespace | int) -> None:
    """Move the calling thread into new namespaces (unshare(2)).

    Raises:
        OSError: The kernel refused the call.
    """
    native.checked(native.lib.pcx_unshare(int(kinds)), "unshare")


def pivot_root(new_root: str | os.PathLike[str]) -> None:
    """Make a mount point the root of this mount namespace and detach the old root (pivot_root(2)).

    Args:
        new_root: The mount point.

    Raises:
        OSError: The kernel refused the call.
    """
    native.checked(native.lib.pcx_pivot_root(os.fsencode(new_root)), "pivot_root")


def open_beneath(directory: int, path: str, flags: int = os.O_RDONLY) -> int:
    """Open a path below a directory; symbolic links cannot lead out of it (openat2(2)).

    Args:
        directory: A descriptor of the directory.
        path: A path relative to it.
        flags: Flags of open(2).

    Returns:
        A descriptor with close-on-exec set.

    Raises:
        OSError: The kernel refused the call, with EXDEV for a path that leaves the directory and ELOOP for a
            magic link.
    """
    resolve = BENEATH | NO_MAGICLINKS
    return openat2(directory, path, flags, resolve)
