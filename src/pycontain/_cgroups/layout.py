"""Detection of the cgroup hierarchies of this host and of the directories this process may use."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from attrs import field, frozen

from pycontain._cgroups.translate import SOCKETS
from pycontain._kernel import native

BASE = "pycontain"
V1_CONTROLLERS = ("memory", "pids", "cpu", "cpuacct", "cpuset", "blkio", "hugetlb")
V2_CONTROLLERS = ("memory", "pids", "cpu", "cpuset", "io", "hugetlb")
_ESCAPE = re.compile(r"\\([0-7]{3})")


@frozen(kw_only=True)
class CgroupLayout:
    """The directories below which this process may make cgroups.

    Attributes:
        unified: The directory in the v2 hierarchy, or None.
        controllers: The controllers of v2 that groups below it can have.
        legacy: `{v1 controller: directory}`.
        delegate: The v2 mount has the option nsdelegate: cgroup namespaces are boundaries.
        counts_sockets: The memory controller of v1 can count socket buffers; v2 always does.
    """

    unified: str | None = None
    controllers: frozenset[str] = frozenset()
    legacy: dict[str, str] = field(factory=dict)
    delegate: bool = False
    counts_sockets: bool = False

    @property
    def name(self) -> str:
        """The kind of layout: 'v2', 'hybrid', 'v1' or 'none'."""
        if self.unified is None:
            return "v1" if self.legacy else "none"
        return "hybrid" if self.legacy else "v2"

    def has(self, controller: str) -> bool:
        """Return True if a controller, by its v2 name, exists here in v1 or v2."""
        return controller in self.controllers or {"io": "blkio"}.get(controller, controller) in self.legacy


@frozen
class Mount:
    """A line of /proc/self/mountinfo (proc_pid_mountinfo(5))."""

    root: str
    point: str
    kind: str
    options: tuple[str, ...]


def parse_mounts(lines: Iterable[str]) -> list[Mount]:
    """Parse lines of /proc/self/mountinfo; malformed lines are skipped."""
    mounts = []
    for line in lines:
        left, dash, right = line.partition(" - ")
        fields, rest = left.split(" "), right.split(" ")
        if not dash or len(fields) < 6 or len(rest) < 3:
            continue
        options = tuple(rest[2].strip().split(",")) + tuple(fields[5].split(","))
        mounts.append(Mount(_unescape(fields[3]), _unescape(fields[4]), rest[0], options))
    return mounts


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def own_groups(lines: Iterable[str]) -> dict[str, str]:
    """Parse lines of /proc/self/cgroup to `{controller: path}`, with the v2 path under ''."""
    groups = {}
    for line in lines:
        _, names, path = line.rstrip("\n").split(":", 2)
        for name in names.split(","):
            groups[name] = path
    return groups


def detect() -> CgroupLayout:
    """Find the hierarchies from the mounts and this process's own groups; no group is made."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        mounts = parse_mounts(lines)
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as lines:
        own = own_groups(lines)
    legacy = {}
    unified, delegate = None, False
    for mount in mounts:
        if mount.kind == "cgroup":
            for controller in set(mount.options) & set(V1_CONTROLLERS):
                base = _base(mount, own.get(controller, "/"))
                if base is not None:
                    legacy[controller] = base
        elif mount.kind == "cgroup2" and unified is None:
            unified = _base(mount, own.get("", "/"))
            delegate = "nsdelegate" in mount.options
    if unified is None and os.geteuid() == 0:
        unified = _mounted_aside()
    controllers = _enable(unified) if unified else frozenset()
    sockets = "memory" in legacy and os.path.exists(f"{legacy['memory']}/{SOCKETS}")
    return CgroupLayout(
        unified=unified, controllers=controllers, legacy=legacy, delegate=delegate, counts_sockets=sockets
    )


def _mounted_aside() -> str | None:
    """Return the v2 hierarchy by a detached mount: the kernel has it even where it is not mounted."""
    fd = native.lib.pcx_clone_mount(b"cgroup2")
    return f"/proc/self/fd/{fd}" if fd >= 0 else None


def _base(mount: Mount, own: str) -> str | None:
    """Return the highest directory above this process's group in which this user may make groups."""
    if os.geteuid() == 0 and os.access(mount.point, os.W_OK):
        return mount.point
    relative = os.path.relpath(own, mount.root)
    if relative.startswith(".."):
        return None
    at, found = mount.point, None
    for part in ["", *relative.split("/")]:
        at = os.path.normpath(os.path.join(at, part))
        if os.access(at, os.W_OK) and os.access(os.path.join(at, "cgroup.procs"), os.W_OK):
            found = at
            break
    return found


def _enable(directory: str) -> frozenset[str]:
    """Enable a directory's controllers for its children; return those that the children have."""
    control = os.path.join(directory, "cgroup.subtree_control")
    # cgroups(7), "no internal processes": with processes in it, a group other than the root enables none.
    if os.path.exists(os.path.join(directory, "cgroup.type")) and read_words(f"{directory}/cgroup.procs"):
        return frozenset(read_words(control) & set(V2_CONTROLLERS))
    for name in read_words(os.path.join(directory, "cgroup.controllers")) & set(V2_CONTROLLERS):
        try:
            write(control, f"+{name}")
        except OSError:
            continue  # the controller is not delegated, or other processes are in this group
    return frozenset(read_words(control) & set(V2_CONTROLLERS))


def read_words(path: str) -> set[str]:
    """Return the words of a file, an empty set if it cannot be read."""
    try:
        with open(path, encoding="ascii") as file:
            return set(file.read().split())
    except OSError:
        return set()


def write(path: str, text: str) -> None:
    """Write text by a single write(2), as cgroup files need it.  Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
