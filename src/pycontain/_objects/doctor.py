"""Checks of this host: supported features, missing ones, and the commands that enable them."""

from __future__ import annotations

import getpass
import os
import resource
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

from attrs import frozen

from pycontain._cgroups.refusals import DELEGATE
from pycontain.errors import PycontainError

if TYPE_CHECKING:
    from pycontain._objects.engine import Engine
    from pycontain._runtime.session import Session

_LIMITS = {
    "memory": ("memory, swap, memory_high", "memory, swap"),
    "pids": ("pids", "pids"),
    "cpu": ("cpus, cpu_weight", "cpus, cpu_weight"),
    "cpuset": ("cpuset_cpus, cpuset_mems", "cpuset_cpus, cpuset_mems"),
    "io": ("io_max, io_weight", "io_max"),
    "hugetlb": ("hugetlb", "hugetlb"),
}
"""Controllers, and the fields of CgroupLimits that they hold on v2 and on v1."""

_APPARMOR = "kernel.apparmor_restrict_unprivileged_userns"
_SWITCHES = (
    ("user.max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
    ("kernel.unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    (_APPARMOR, "1", f"sysctl -w {_APPARMOR}=0"),
)
_FEW_DESCRIPTORS = 1024
_FEW_KEYS = 100
_SCOPES_FROM = 6


@frozen
class Check:
    """Result of one check.

    Attributes:
        name: Name of the feature.
        ok: Whether the host supports it.
        detail: Observed state, or the missing part.
        command: A command that enables the feature, or ''.
    """

    name: str
    ok: bool
    detail: str
    command: str | None = None

    def __str__(self) -> str:
        remedy = f": {self.command}" if self.command else ""
        return f"{self.name}: {self.detail}{remedy}"


def examine(engine: Engine) -> list[Check]:
    """Run all checks; starts a container."""
    session = engine._session
    checks = [*_switches(session), *_start(engine), *_cgroups(session), *_kernel(session)]
    checks += [*_ids(session), *_networks(session), *_store(session), *_bounds()]
    return checks


def _switches(session: Session) -> Iterator[Check]:
    for name, bad, command in _SWITCHES:
        try:
            with open(f"/proc/sys/{name.replace('.', '/')}", encoding="ascii") as file:
                value = file.read().strip()
        except OSError:
            continue
        if session.features.privileged and "unprivileged" in name:
            continue
        yield Check(name, value != bad, f"is {value}", f"sudo {command}" if value == bad else None)


def _networks(session: Session) -> Iterator[Check]:
    from pycontain._networks.foreign_rules import chains_that_drop
    from pycontain._networks.rootless_uplink import problems

    try:
        manager = session.network_manager
    except (PycontainError, OSError) as error:
        yield Check("networks", False, str(error))
        return
    yield Check("networks", True, f"rules are in the table {manager.firewall.table}")
    if not session.features.privileged:
        missing = problems()
        yield Check("outbound networks", not missing, missing or "pasta or slirp4netns is installed")
        return
    foreign, docker = chains_that_drop(manager.netns.rules)
    detail = (
        f"other rules drop forwarded packets: {', '.join(foreign)}"
        if foreign
        else "no other rules drop packets"
    )
    command = "sudo iptables -I DOCKER-USER -i pyc-+ -j ACCEPT" if foreign and docker else None
    yield Check("forwarding for networks", not foreign, detail, command)


def _start(engine: Engine) -> Iterator[Check]:
    from pycontain._objects.container import Container

    try:
        with Container(engine=engine) as container:
            milliseconds = container.timings["total"] * 1e3
            missing = container.isolation.missing
    except (PycontainError, OSError) as error:
        yield Check("a container", False, f"does not start: {error}")
        return
    lacks = f", without {', '.join(missing)}" if missing else ""
    yield Check("a container", True, f"starts in {milliseconds:.1f} ms{lacks}")


def _cgroups(session: Session) -> Iterator[Check]:
    layout = session.cgroups.layout
    command = None if session.features.privileged else DELEGATE
    if layout.name == "none":
        detail = "none is delegated to this user, so no limit is enforced and no usage counted"
        yield Check("cgroups", False, detail, command)
        return
    yield Check("cgroups", True, f"the layout is {layout.name}")
    for controller, (new, old) in _LIMITS.items():
        if controller in layout.controllers:
            yield Check(f"cgroup {controller}", True, f"{new} (v2)")
        elif layout.has(controller):
            yield Check(f"cgroup {controller}", True, f"{old} (v1)")
        else:
            yield Check(f"cgroup {controller}", False, f"not available: no {new}", command)
    kills = session.cgroups.kills
    without = "no cgroup v2 tree that this user may write, so containers cannot be paused"
    detail = "kills and freezes process trees" if kills else without
    yield Check("cgroup v2", kills, detail, None if kills else command)
    if session.cgroups.keeps_out:
        yield Check("cgroup namespace", False, "shared with the host, because v2 is mounted with nsdelegate")


def _kernel(session: Session) -> Iterator[Check]:
    found = session.features
    if not found.landlock:
        yield Check(
            "Landlock",
            False,
            "missing in this kernel or its lsm= list, so containers lack this layer of isolation",
        )
    else:
        scopes = found.landlock >= _SCOPES_FROM
        detail = (
            f"ABI {found.landlock}{'' if scopes else ', without scopes for signals and abstract sockets'}"
        )
        yield Check("Landlock", scopes, detail)
    detail = "private" if found.time_namespace else "missing in this kernel, so guests see the host's uptime"
    yield Check("time namespace", found.time_namespace, detail)


def _ids(session: Session) -> Iterator[Check]:
    if session.features.privileged:
        yield Check("ids", True, "each container has a block of 65536 ids")
        return
    if session.sub_ids:
        detail = f"{session.sub_ids} inside; the sub-ids are shared by this user's containers"
        yield Check("ids", True, detail)
    elif not (shutil.which("newuidmap") and shutil.which("newgidmap")):
        detail = "no newuidmap and newgidmap: containers have the one id 0"
        yield Check("ids", False, detail, "sudo apt-get install uidmap")
    else:
        name = getpass.getuser()
        command = f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}"
        detail = "no ranges in /etc/subuid and /etc/subgid: containers have the one id 0"
        yield Check("ids", False, detail, command)
    detail = "rootless mounts cannot be idmapped: `Bind(idmap=True)` is refused"
    yield Check("idmapped mounts", False, detail)


def _store(session: Session) -> Iterator[Check]:
    free = os.statvfs(session.roots.data)
    size = free.f_bavail * free.f_frsize
    detail = f"{session.roots.data} has {size >> 20} MB and {free.f_favail} inodes free"
    yield Check("store", size > 64 << 20 and free.f_favail != 0, detail)


def _bounds() -> Iterator[Check]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    enough = hard == resource.RLIM_INFINITY or hard > _FEW_DESCRIPTORS
    detail = f"the hard limit is {hard}" + ("" if enough else ": few containers at a time")
    yield Check("descriptors", enough, detail, None if enough else "ulimit -Hn 65536")
    if os.geteuid() == 0:
        return
    try:
        with open("/proc/sys/kernel/keys/maxkeys", encoding="ascii") as file:
            keys = int(file.read())
    except (OSError, ValueError):
        return
    command = None if keys > _FEW_KEYS else "sudo sysctl -w kernel.keys.maxkeys=2000"
    yield Check(
        "keyrings", keys > _FEW_KEYS, f"this user may have {keys} keys, and each container has one", command
    )
