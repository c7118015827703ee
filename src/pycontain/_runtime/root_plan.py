"""Root plan: a plan without host name, ids and descriptors, shared by containers that are alike."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import attrs
from attrs import field, frozen

from pycontain._kernel import hostpath
from pycontain._kernel.namespaces import Namespace
from pycontain._kernel.plan import Op, Plan, Source
from pycontain._kernel.protocol import NO_FD, PlanFlag
from pycontain.errors import PathError

if TYPE_CHECKING:
    from pycontain._runtime.spec import ContainerSpec

_BULK_MOST = 64 << 10
"""Bytes of a plan that always fit in one message together with the script of its cgroups."""
_SOURCES_MOST = 200
"""Sources of a plan whose descriptors a script can name, by one byte each."""
NAME = "\x02" * 12
"""Placeholder of the host name."""
GROUP = "\x03" * 32
"""Placeholder of the name of the cgroups, which differs from the container's if a warm one was taken."""
_BLOCK = "0 1111111111 65536\n"
"""Placeholder of the id map."""


@frozen
class CgroupEntry:
    """A start's cgroup descriptors: after `skipped` others, a v2 directory if `unified`, then v1 files."""

    unified: bool = False
    tasks: int = 0
    skipped: int = 0


@frozen(eq=False)
class RootPlan:
    """A plan without host name, ids and descriptors, made once for containers that are alike.

    Attributes:
        ops: Operations that build the root file system.
        sources: (path, mount) of each source, the layers of the image first.
        security: The security buffer.
        security_request: The message that sends it to the agent.
        flags: Flags of `PlanFlag`.
        layers: The number of sources that are layers.
        bulk: Approximate number of bytes of a plan.
        seccomp: Whether a system call filter is loaded.
        landlock: The Landlock ABI in use, or 0.
        namespaces: Flags of clone(2).
        privileged: Whether the engine runs as root.
        init: Whether PID 1 is the agent.
        shares: Whether it has volumes.
        joins: Whether it uses the network namespace of another container.
        binds: Whether it has bind mounts.
        id_map: The id map of a rootless container.
        live: Directory of the owner, with one directory for each container.
        counters: Offsets of the counters of a rootless filter.
    """

    ops: tuple[Op, ...]
    sources: tuple[tuple[str, Source], ...]
    security: bytes
    security_request: bytes
    flags: int
    layers: int
    bulk: int
    seccomp: bool
    landlock: int
    namespaces: int
    privileged: bool
    init: bool
    shares: bool
    joins: bool
    binds: bool
    id_map: str
    live: str
    counters: str = ""
    _encoded: dict[tuple[object, ...], bytes] = field(factory=dict, init=False)

    @property
    def fits_one_message(self) -> bool:
        """Return whether plan and script fit in one message."""
        return self.bulk <= _BULK_MOST and len(self.sources) <= _SOURCES_MOST

    def fill(
        self,
        spec: ContainerSpec,
        block: int | None,
        entry: CgroupEntry,
        command: bytes = b"",
        *,
        precloned: bool = False,
        join: int | None = None,
        group: str = GROUP,
    ) -> bytes:
        """Return the plan of one container.

        Args:
            spec: The container.
            block: Its block of user ids, None rootless.
            entry: Its cgroup descriptors.
            command: Exec buffer of a command that is PID 1.
            precloned: Whether a pre-cloned child becomes the container.
            join: Index of the pidfd whose network namespace it shares.
            group: Name of its cgroups.
        """
        if command or not self.privileged or len(spec.hostname) != len(NAME) or join is not None:
            return self._encode(spec, spec.hostname, block, entry, command, precloned, join, group)
        ready = self._encoded.get((entry, precloned))
        if ready is None:
            ready = self._encoded[entry, precloned] = self._encode(spec, NAME, None, entry, b"", precloned)
        name, ids = spec.hostname.encode(), f"0 {block} 65536\n".encode()
        ready = ready.replace(GROUP.encode(), group.encode())
        return ready.replace(NAME.encode(), name).replace(_BLOCK.encode(), ids)

    def precloned_plan(self, block: int, entry: CgroupEntry) -> bytes:
        """Return the plan of a pre-cloned child, which waits for a container with this root plan."""
        key = ("precloned", entry)
        ready = self._encoded.get(key)
        if ready is None:
            ready = self._encoded[key] = Plan(
                control_fd=0,
                cgroup_fd=entry.skipped if entry.unified else NO_FD,
                tasks_fd=entry.skipped + entry.unified,
                tasks=entry.tasks,
                namespaces=self.namespaces,
                ops=(),
                sources=(),
                security=self.security,
                flags=self.flags,
                uid_map=_BLOCK,
                gid_map=_BLOCK,
            ).encode()
        return ready.replace(_BLOCK.encode(), f"0 {block} 65536\n".encode())

    def _encode(
        self,
        spec: ContainerSpec,
        hostname: str,
        block: int | None,
        entry: CgroupEntry,
        command: bytes,
        precloned: bool,
        join: int | None = None,
        group: str = GROUP,
    ) -> bytes:
        """Encode a plan of one container.

        Descriptors have this order: control, exit, directory, sources, skipped, cgroup, streams.
        """
        first = 1 if self.init else 2
        sources = [(os.path.join(self.live, spec.id), Source()), *self.sources]
        places = [
            attrs.evolve(source, fd=first + at) if self.privileged else described(path, source)
            for at, (path, source) in enumerate(sources)
        ]
        groups = first + (len(sources) if self.privileged else 0) + entry.skipped
        id_map = self.id_map
        if self.privileged:
            id_map = _BLOCK if block is None else f"0 {block} 65536\n"
        files = [attrs.evolve(op, data=_filled(op.data, hostname, group)) for op in self.ops]
        return Plan(
            control_fd=0,
            exit_fd=NO_FD if self.init else 1,
            cgroup_fd=groups if entry.unified else NO_FD,
            tasks_fd=groups + entry.unified,
            tasks=entry.tasks,
            namespaces=self.namespaces,
            ops=files,
            sources=places[1:],
            store=places[0],
            security=self.security,
            flags=self.flags
            | (PlanFlag.COMMAND_IS_INIT if command else 0)
            | (PlanFlag.SPARE if precloned else 0),
            uid_map=id_map,
            gid_map=id_map,
            hostname=hostname,
            joins=() if join is None else ((join, int(Namespace.NET)),),
            command=command,
            counters=self.counters,
        ).encode()


def _filled(data: bytes, hostname: str, group: str) -> bytes:
    return data.replace(NAME.encode(), hostname.encode()).replace(GROUP.encode(), group.encode())


def described(path: str, source: Source) -> Source:
    """Return a source that the launcher opens by its path, and refuses unless it is the same file as now.

    Raises:
        PathError: The path cannot be opened.
    """
    try:
        found = _seen_at(path, by_rule=source.bind)
    except PathError:
        raise
    except OSError as error:
        raise PathError(f"cannot open {path}: {error.strerror}", path=path, errno=error.errno or 0) from error
    device = os.major(found.st_dev) << 32 | os.minor(found.st_dev)
    return attrs.evolve(source, path=path, device=device, inode=found.st_ino)


def _seen_at(path: str, *, by_rule: bool) -> os.stat_result:
    if not by_rule:
        return os.stat(path)
    fd = hostpath.open_path(path, os.O_PATH)
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)
