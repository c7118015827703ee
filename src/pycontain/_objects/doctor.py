"""What this host can do for containers, what it lacks, why, and the one command that would change it."""

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
    """One thing that containers want of a host.

    ok: it is there.  detail: what was seen, or what is missing.  command: what would change it.
    """

    name: str
    ok: bool
    detail: str
    command: str | None = None

    def __str__(self) -> str:
        remedy = f": {self.command}" if self.command else ""
        return f"{self.name}: {self.detail}{remedy}"


def examine(engine: Engine) -> list[Check]:
    """Look at everything; starts a container to see that it works."""
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
        yield Check("networks that lead outside", not missing, missing or "pasta or slirp4netns is there")
        return
    foreign, docker = chains_that_drop(manager.netns.rules)
    told = f"other rules drop what they do not know: {', '.join(foreign)}" if foreign else "nobody else drops"
    command = "sudo iptables -I DOCKER-USER -i pyc-+ -j ACCEPT" if foreign and docker else None
    yield Check("forwarding for networks", not foreign, told, command)


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
        detail = "none is delegated to this user: no limit can be set, nothing is counted"
        yield Check("cgroups", False, detail, command)
        return
    yield Check("cgroups", True, f"the layout is {layout.name}")
    for controller, (new, old) in _LIMITS.items():
        if controller in layout.controllers:
            yield Check(f"cgroup {controller}", True, f"{new} (v2)")
        elif layout.has(controller):
            yield Check(f"cgroup {controller}", True, f"{old} (v1)")
        else:
            yield Check(f"cgroup {controller}", False, f"not to be had here: no {new}", command)
    kills = session.cgroups.kills
    without = (
        "no cgroup v2 tree that this user may write: no pausing, and trees of processes are found in /proc"
    )
    detail = "ends and freezes whole trees" if kills else without
    yield Check("cgroup v2", kills, detail, None if kills else command)
    if session.cgroups.keeps_out:
        yield Check("cgroup namespace", False, "v2 is mounted with nsdelegate: containers share the host's")


def _kernel(session: Session) -> Iterator[Check]:
    found = session.features
    if not found.landlock:
        yield Check("Landlock", False, "not in this kernel, or not in its lsm= list: one wall less")
    else:
        scopes = found.landlock >= _SCOPES_FROM
        detail = f"ABI {found.landlock}{'' if scopes else ', which scopes no signals and abstract sockets'}"
        yield Check("Landlock", scopes, detail)
    detail = (
        "private" if found.time_namespace else "not in this kernel: boot time and uptime of the host show"
    )
    yield Check("time namespace", found.time_namespace, detail)


def _ids(session: Session) -> Iterator[Check]:
    if session.features.privileged:
        yield Check("ids", True, "65536 of its own for each container")
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
    detail = "a plain user's mounts are not shown through another map: `Bind(idmap=True)` is refused"
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
