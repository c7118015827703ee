"""From a checked spec and the facts of this host to what C executes."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING

import attrs
from attrs import field, frozen

from pycontain._cgroups import view
from pycontain._images.sealed import first_id_of
from pycontain._kernel import hostpath
from pycontain._kernel.native import SECURITY
from pycontain._kernel.plan import NO_FD, MountAttr, Op, OpFlag, Plan, PlanFlag, Source, request
from pycontain._model.mounts import Bind, Tmpfs, VolumeMount
from pycontain._model.names import search_domains
from pycontain._rootfs import host, layout
from pycontain._runtime.declared import made_directories
from pycontain._runtime.network import HOST, JOINED, LINKED, NONE
from pycontain._security import counters, policy
from pycontain._state.owner import STORE_BLOCK
from pycontain.errors import PathError, UnsupportedError

if TYPE_CHECKING:
    from pycontain._objects.image import Image
    from pycontain._runtime.session import Session
    from pycontain._runtime.spec import ContainerSpec

NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x80,
    0x20000,
    0x2000000,
    0x4000000,
    0x8000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_SCRATCH_MOST = 256 << 20
_ROOT_PLANS = 256
_BULK_MOST = 64 << 10
"""Bytes of a plan that go in one message with the script of its cgroups in any case."""
_SOURCES_MOST = 200
_RESOLVER_MOST = 65536
_RLIMIT_NPROC, _RLIMIT_DATA = "nproc", "data"
_SERVER = re.compile(r"\s*nameserver\s+\S")


_NAME = "\x02" * 12
_GROUP = "\x03" * 32
"""The place of the name of the container's cgroups, which may have been made for another name."""
_BLOCK = "0 1111111111 65536\n"


@frozen
class CgroupEntry:
    """A start's cgroup descriptors: after `skipped` others, a v2 directory if `unified`, then v1 files."""

    unified: bool = False
    tasks: int = 0
    skipped: int = 0


@frozen(eq=False)
class RootPlan:
    """A plan of which only host name, ids and fds are open: made once for containers that are alike.

    ops, sources as (path, how), the image's `layers` first, security: as the plan has them, for errors and
    reports.  bulk: about how many bytes a plan takes.  shares: it has volumes.  joins: another container's
    network namespace.
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
        """Return True where plan and script go in one message: a script names fds by one byte."""
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
        group: str = _GROUP,
    ) -> bytes:
        """Return the plan of one container; with `precloned`, for a pre-cloned child.

        join: the fd, by index, of the process whose network namespace it shares.  group: the name of its
        cgroups.
        """
        if command or not self.privileged or len(spec.hostname) != len(_NAME) or join is not None:
            return self._encode(spec, spec.hostname, block, entry, command, precloned, join, group)
        ready = self._encoded.get((entry, precloned))
        if ready is None:
            ready = self._encoded[entry, precloned] = self._encode(spec, _NAME, None, entry, b"", precloned)
        name, ids = spec.hostname.encode(), f"0 {block} 65536\n".encode()
        ready = ready.replace(_GROUP.encode(), group.encode())
        return ready.replace(_NAME.encode(), name).replace(_BLOCK.encode(), ids)

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
        group: str = _GROUP,
    ) -> bytes:
        """fds in the order sent: control, exit, container's directory, sources, skipped, group's, streams."""
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
            joins=() if join is None else ((join, NEWNET),),
            command=command,
            counters=self.counters,
        ).encode()


def _filled(data: bytes, hostname: str, group: str) -> bytes:
    return data.replace(_NAME.encode(), hostname.encode()).replace(_GROUP.encode(), group.encode())


def described(path: str, source: Source) -> Source:
    """Return a source that the launcher opens by its path and refuses unless it is what is there now."""
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


def known_root_plan(session: Session, spec: ContainerSpec) -> RootPlan | None:
    """Return the root plan of containers with this specification if one was started before."""
    try:
        return session.root_plans.get(_key(spec))
    except TypeError:  # limits with mappings
        return None


def root_plan_of(session: Session, spec: ContainerSpec) -> RootPlan:
    """Return the root plan of containers with this specification.  Raises UnsupportedError."""
    found = known_root_plan(session, spec)
    if found is None:
        found = compile_root(session, spec)
        if len(session.root_plans) >= _ROOT_PLANS:
            session.root_plans.clear()
        with contextlib.suppress(TypeError):
            session.root_plans[_key(spec)] = found
    return found


def _key(spec: ContainerSpec) -> tuple[object, ...]:
    return (
        spec.image,
        spec.security,
        spec.limits,
        spec.asked,
        spec.shm_size,
        spec.read_only,
        spec.init,
        tuple(spec.mounts.items()),
        tuple(spec.rlimits.items()),
        tuple(spec.sysctls.items()),
        spec.network_spec.kind,
        spec.network_spec.other,
        spec.network_spec.names.hosts,
        _resolver(spec),
        made_directories(spec),
    )


def _resolver(spec: ContainerSpec) -> bytes:
    """resolv.conf(5): the name service, with this host's search domains where the network leads outside.

    Where the namespace is the host's, it is the host's, but for the options that were given.
    """
    network_spec = spec.network_spec
    names = network_spec.names
    if network_spec.of_host and not names.servers and names.search is None:
        return _of_host()
    if network_spec.of_host:
        hosts = _of_host()
        lines = hosts.decode("utf-8", "replace").splitlines()
        own = [line.split()[1] for line in lines if _SERVER.match(line)]
        return names.resolv_conf(names.servers or own, search_domains(hosts))
    if names.search is None and not network_spec.searches:
        return layout.RESOLV_CONF
    search = () if names.search is not None else search_domains(_of_host())
    return layout.RESOLV_CONF + names.resolv_conf((), search)


def _of_host() -> bytes:
    try:
        with open("/etc/resolv.conf", "rb") as file:
            return file.read(_RESOLVER_MOST)
    except OSError:
        return b""


def compile_root(session: Session, spec: ContainerSpec) -> RootPlan:
    """Compile everything but fds and ids.  Raises UnsupportedError."""
    idmap = session.features.privileged
    sources = layer_sources(spec.image, idmap=idmap)
    trees = []
    recursive = 0 if session.features.privileged else int(OpFlag.RECURSIVE)
    for path, place in spec.image.trees:
        # Not through the id map: of the host's own files a guest's root is nobody's owner, so that what only
        # root may read stays unread, and no lease of theirs keeps a program of the host waiting.
        source = attrs.evolve(layout.layer_source(idmap=False), flags=recursive)
        layered = os.path.isdir(path)
        target = place.lstrip("/")
        trees.append(
            layout.MountSpec(target=target, source=len(sources), is_file=not layered, layered=layered)
        )
        sources.append((path, source))
        if layered:
            sources.append((host.empty_directory(spec.image.directories[-1]), source))
    mounts = []
    for place, what in spec.mounts.items():
        if isinstance(what, Tmpfs):
            mounts.append(layout.MountSpec(target=place.lstrip("/"), tmpfs=what))
            continue
        if isinstance(what, VolumeMount):
            mounts.append(layout.MountSpec(target=place.lstrip("/"), source=len(sources)))
            sources.append((what.path, _volume_source(session, what)))
            continue
        is_file = not os.path.isdir(what.path)
        mounts.append(layout.MountSpec(target=place.lstrip("/"), source=len(sources), is_file=is_file))
        sources.append((what.path, _bind_source(what, idmap)))
    held = session.enforceable(spec.limits, spec.asked, spec.security.optional)
    memory = spec.limits.memory or _SCRATCH_MOST * 2
    ops = layout.compose(
        layers=len(spec.image.directories),
        first_layer=0,
        trees=trees,
        mounts=mounts,
        hostname=_NAME,
        read_only=spec.read_only,
        scratch_size=max(65536, min(_SCRATCH_MOST, memory // 2)),
        masked=spec.security.masked_paths,
        readonly=spec.security.readonly_paths,
        groups=view.groups(session.cgroups, held, _GROUP) if session.cgroups.usable else (),
        directories=made_directories(spec),
        resolv=_resolver(spec),
        own_name=spec.network_spec.kind in (NONE, HOST),
        hosts=spec.network_spec.names.hosts,
        shm_size=spec.shm_size,
        sysctls=spec.sysctls,
    )
    security = _encode_security(session, spec)
    flags = PlanFlag.LOOPBACK if spec.network_spec.kind in (NONE, LINKED) else PlanFlag(0)
    if not session.features.privileged and not session.sub_ids:
        flags |= PlanFlag.DENY_SETGROUPS
    return RootPlan(
        ops=tuple(ops),
        sources=tuple(sources),
        security=security,
        security_request=request(SECURITY, security),
        flags=int(flags),
        layers=len(spec.image.directories),
        bulk=sum(96 + len(op.data) + len(op.target) for op in ops) + 80 * len(sources) + len(security),
        seccomp=spec.security.seccomp is not None,
        landlock=session.features.landlock if spec.security.landlock else 0,
        namespaces=namespaces(session, spec),
        privileged=session.features.privileged,
        init=spec.init,
        shares=any(isinstance(what, VolumeMount) for what in spec.mounts.values()),
        joins=spec.network_spec.kind == JOINED,
        binds=any(isinstance(what, Bind) for what in spec.mounts.values()),
        id_map=_plain_map(session),
        live=session.owner.live,
        counters="" if session.features.privileged else counters.shares(spec.security.seccomp),
    )


def layer_sources(image: Image, *, idmap: bool, block: int | None = None) -> list[tuple[str, Source]]:
    """The layers and how they are mounted; those in the ids of the container's own `block` as they are."""
    found = []
    for at, path in enumerate(image.directories):
        first_id = first_id_of(image.sealed[at]) if at < len(image.sealed) else 0
        source = layout.layer_source(idmap and (first_id == 0 or first_id != block))
        if first_id:
            # Of anybody else's ids nothing could be read: rather fail than show it.
            source = attrs.evolve(source, first_id=first_id, flags=source.flags & ~int(OpFlag.IDMAP_OPTIONAL))
        elif image.manifest is None and not image.trees:
            source = attrs.evolve(source, bind=True)  # a directory of the caller's, used in place
        found.append((path, source))
    return found


def _encode_security(session: Session, spec: ContainerSpec) -> bytes:
    held = session.enforceable(spec.limits, spec.asked, spec.security.optional)
    fallback = dict(spec.rlimits)
    named = {*spec.rlimits, *spec.security.rlimits}
    # Where no cgroup counts processes, the user namespace's own RLIMIT_NPROC does (user_namespaces(7)).
    if held.pids is None and spec.limits.pids is not None and _RLIMIT_NPROC not in named:
        fallback[_RLIMIT_NPROC] = spec.limits.pids
    if (
        held.memory is None
        and "memory" in spec.asked
        and spec.limits.memory is not None
        and _RLIMIT_DATA not in named
    ):
        fallback[_RLIMIT_DATA] = spec.limits.memory
    return policy.encode(
        spec.security,
        fallback,
        landlock_abi=session.features.landlock,
        supervise=not session.cgroups.kills,
        by_agent=spec.init,
    )


def _attributes(read_only: bool, noexec: bool) -> MountAttr:
    attributes = MountAttr.NOSUID | MountAttr.NODEV
    if read_only:
        attributes |= MountAttr.RDONLY
    return attributes | MountAttr.NOEXEC if noexec else attributes


def _bind_source(bind: Bind, privileged: bool) -> Source:
    attributes = _attributes(bind.read_only, bind.noexec)
    if bind.nosymfollow:
        attributes |= MountAttr.NOSYMFOLLOW
    # A directory without what is mounted in it would take writes that the host never sees.
    flags = OpFlag.RECURSIVE
    if bind.propagation == "slave":
        flags |= OpFlag.SLAVE
    if bind.idmap is None and privileged:
        flags |= OpFlag.IDMAP | OpFlag.IDMAP_OPTIONAL
    elif bind.idmap:
        if not privileged:
            raise UnsupportedError("idmap for a plain user", hint="leave it out: your files are yours inside")
        flags |= OpFlag.IDMAP
    return Source(flags=int(flags), attributes=int(attributes), bind=True)


def _volume_source(session: Session, volume: VolumeMount) -> Source:
    """Owners inside are owners on the disk, whatever container has it."""
    attributes = _attributes(volume.read_only, volume.noexec)
    flags = OpFlag.IDMAP if session.features.privileged else OpFlag(0)
    first_id = STORE_BLOCK if session.features.privileged else 0
    return Source(flags=int(flags), attributes=int(attributes), first_id=first_id, image=volume.image)


def namespaces(session: Session, spec: ContainerSpec) -> int:
    """The CLONE_NEW* flags of a start."""
    wanted = NEWUSER | NEWNS | NEWPID | NEWIPC | NEWUTS | NEWCGROUP
    if session.cgroups.keeps_out:
        wanted &= ~NEWCGROUP
    if spec.network_spec.kind not in (HOST, JOINED):
        wanted |= NEWNET
    if session.features.time_namespace:
        wanted |= NEWTIME
    elif "time" not in spec.security.optional:
        raise UnsupportedError("time namespaces", hint="name 'time' in Security.optional to go without")
    return wanted


def _plain_map(session: Session) -> str:
    """The id map below the launcher's own user namespace."""
    if session.sub_ids:
        # One extent per extent of the parent's map: the kernel takes none that spans two.
        return f"0 0 1\n1 1 {session.sub_ids - 1}\n"
    return "0 0 1\n"
