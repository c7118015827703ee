"""Report of the isolation of a live container, and of what this host lacks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from attrs import asdict, frozen

from pycontain._kernel.features import kept_rlimits
from pycontain._kernel.namespaces import Namespace

if TYPE_CHECKING:
    from pycontain._runtime.running import Running

_NAMES = (
    (Namespace.MOUNT, "mount"),
    (Namespace.PID, "pid"),
    (Namespace.NET, "net"),
    (Namespace.IPC, "ipc"),
    (Namespace.UTS, "uts"),
    (Namespace.USER, "user"),
    (Namespace.CGROUP, "cgroup"),
    (Namespace.TIME, "time"),
)


@frozen(kw_only=True)
class Isolation:
    """The controls that are in force for a container.

    Attributes:
        namespaces: Names of its private namespaces.
        identity: 'block' for a block of ids of its own, 'sub-ids', or 'single' for one id.
        cgroups: 'v2', 'hybrid', 'v1' or 'none'.
        limits: Limits that the kernel enforces, by name.
        capabilities: Names of the capabilities that its processes may have.
        no_new_privs: Whether execve(2) cannot grant privileges.
        seccomp: Whether a system call filter is loaded.
        restrict_suid_sgid: Whether no process can set the set-user-ID or set-group-ID bit of a file.
        landlock: The Landlock ABI in use, or 0.
        read_only: Whether the root file system is read-only.
        network: The network option.
        missing: Controls that this host does not have.
    """

    namespaces: tuple[str, ...]
    identity: str
    cgroups: str
    limits: dict[str, object]
    capabilities: tuple[str, ...]
    no_new_privs: bool
    seccomp: bool
    restrict_suid_sgid: bool
    landlock: int
    read_only: bool
    network: str
    missing: tuple[str, ...]


def isolation_of(running: Running) -> Isolation:
    """Return the report of a live container."""
    session, spec = running.session, running.spec
    flags = running.root_plan.namespaces
    held = session.enforceable(spec.limits, spec.asked, spec.security.optional)
    missing = []
    if session.cgroups.keeps_out:
        missing.append("cgroup namespace")
    if not session.features.privileged and not session.sub_ids and set(os.getgroups()) - {os.getegid()}:
        missing.append("loss of the caller's supplementary groups")
    if not session.features.time_namespace:
        missing.append("time namespace")
    if spec.security.landlock and not running.root_plan.landlock:
        missing.append("landlock")
    for name in ("memory", "pids"):
        if getattr(held, name) is None and getattr(spec.limits, name) is not None:
            missing.append(f"{name} limit")
    missing += [f"{name} rlimit of its own" for name in kept_rlimits()]
    identity = "block" if running.block is not None else "sub-ids" if session.sub_ids else "single"
    limits = {name: value for name, value in asdict(held, recurse=False).items() if value is not None}
    if spec.disk is not None:
        limits["disk"] = spec.disk
    return Isolation(
        namespaces=tuple(name for kind, name in _NAMES if flags & kind),
        identity=identity,
        cgroups=session.cgroups.layout.name,
        limits=limits,
        capabilities=tuple(sorted(spec.security.capabilities)),
        no_new_privs=spec.security.no_new_privs,
        seccomp=running.root_plan.seccomp,
        restrict_suid_sgid=running.root_plan.seccomp and spec.security.restrict_suid_sgid,
        landlock=running.root_plan.landlock,
        read_only=spec.read_only,
        network=spec.network,
        missing=tuple(missing),
    )
