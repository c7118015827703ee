"""Compilation of a container spec, by the features of this host, to a root plan."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING

import attrs

from pycontain._cgroups import view
from pycontain._images.snapshot_layers import first_id_of
from pycontain._kernel.namespaces import Namespace
from pycontain._kernel.plan import Op, Source, request
from pycontain._kernel.protocol import MountAttr, OpFlag, PlanFlag, RequestKind
from pycontain._model.mounts import Bind, Tmpfs, VolumeMount
from pycontain._model.names import search_domains
from pycontain._rootfs import host, layout
from pycontain._runtime.declared import made_directories
from pycontain._runtime.network import HOST, JOINED, LINKED, NONE
from pycontain._runtime.root_plan import GROUP, NAME, RootPlan
from pycontain._security import counters, policy
from pycontain._state.owner import STORE_BLOCK
from pycontain.errors import UnsupportedError

if TYPE_CHECKING:
    from pycontain._images.image import LocalImage
    from pycontain._runtime.session import Session
    from pycontain._runtime.spec import ContainerSpec

_SCRATCH_MOST = 256 << 20
"""Bytes of a scratch tmpfs."""
_ROOT_PLANS = 256
"""Root plans that are kept."""
_RESOLVER_MOST = 65536
"""Bytes of the host's resolv.conf that are read."""
_RLIMIT_NPROC, _RLIMIT_DATA = "nproc", "data"
_SERVER = re.compile(r"\s*nameserver\s+\S")


def known_root_plan(session: Session, spec: ContainerSpec) -> RootPlan | None:
    """Return the root plan of containers with this specification if one was started before."""
    try:
        return session.root_plans.get(_key(spec))
    except TypeError:  # limits with mappings
        return None


def root_plan_of(session: Session, spec: ContainerSpec) -> RootPlan:
    """Return the root plan of containers with this specification, compiled on first use.

    Raises:
        UnsupportedError: This host lacks a control that the spec asks for.
    """
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
    """Return resolv.conf(5) of a container.

    It names the name service of its networks, with the host's search domains if they reach outside.  In the
    host's network namespace it is the host's file with the options of the container.
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
    """Compile a spec to a root plan.

    Raises:
        UnsupportedError: This host lacks a control that the spec asks for.
    """
    sources = layer_sources(spec.image, idmap=session.features.privileged)
    ops = _operations(session, spec, _trees(session, spec, sources), _mounts(session, spec, sources))
    security = _encode_security(session, spec)
    flags = PlanFlag.LOOPBACK if spec.network_spec.kind in (NONE, LINKED) else PlanFlag(0)
    if not session.features.privileged and not session.sub_ids:
        flags |= PlanFlag.DENY_SETGROUPS
    return RootPlan(
        ops=tuple(ops),
        sources=tuple(sources),
        security=security,
        security_request=request(RequestKind.SECURITY, security),
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
        id_map=_rootless_map(session),
        live=session.owner.live,
        counters="" if session.features.privileged else counters.shares(spec.security.seccomp),
    )


def _trees(
    session: Session, spec: ContainerSpec, sources: list[tuple[str, Source]]
) -> list[layout.MountSpec]:
    """Return the mounts of the image's trees, and append their sources."""
    trees = []
    recursive = 0 if session.features.privileged else int(OpFlag.RECURSIVE)
    for path, place in spec.image.trees:
        # Without an id map no file of the host belongs to the guest's root, which can neither read files that
        # only root may read, nor take leases that keep programs of the host waiting.
        source = attrs.evolve(layout.layer_source(idmap=False), flags=recursive)
        layered = os.path.isdir(path)
        target = place.lstrip("/")
        trees.append(
            layout.MountSpec(target=target, source=len(sources), is_file=not layered, layered=layered)
        )
        sources.append((path, source))
        if layered:
            sources.append((host.empty_directory(spec.image.directories[-1]), source))
    return trees


def _mounts(
    session: Session, spec: ContainerSpec, sources: list[tuple[str, Source]]
) -> list[layout.MountSpec]:
    """Return the mounts that the caller asked for, and append their sources."""
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
        sources.append((what.path, _bind_source(what, session.features.privileged)))
    return mounts


def _operations(
    session: Session, spec: ContainerSpec, trees: list[layout.MountSpec], mounts: list[layout.MountSpec]
) -> list[Op]:
    """Return the operations that build the root file system."""
    held = session.enforceable(spec.limits, spec.asked, spec.security.optional)
    memory = spec.limits.memory or _SCRATCH_MOST * 2
    return layout.compose(
        layers=len(spec.image.directories),
        first_layer=0,
        trees=trees,
        mounts=mounts,
        hostname=NAME,
        read_only=spec.read_only,
        scratch_size=max(65536, min(_SCRATCH_MOST, memory // 2)),
        masked=spec.security.masked_paths,
        readonly=spec.security.readonly_paths,
        groups=view.groups(session.cgroups, held, GROUP) if session.cgroups.usable else (),
        # Layers of snapshots say what became of these directories.
        owned=host.OWN_DIRECTORIES if spec.image.trees and not spec.image.sealed else (),
        directories=made_directories(spec),
        resolv=_resolver(spec),
        own_name=spec.network_spec.kind in (NONE, HOST),
        hosts=spec.network_spec.names.hosts,
        shm_size=spec.shm_size,
        sysctls=spec.sysctls,
    )


def layer_sources(image: LocalImage, *, idmap: bool, block: int | None = None) -> list[tuple[str, Source]]:
    """Return path and mount of each layer of an image.

    Args:
        image: The image.
        idmap: Whether layers are mounted with an id map.
        block: The block of the container, whose own snapshot layers need no id map.
    """
    found = []
    for at, path in enumerate(image.directories):
        first_id = first_id_of(image.sealed[at]) if at < len(image.sealed) else 0
        source = layout.layer_source(idmap and (first_id == 0 or first_id != block))
        if first_id:
            # Without an id map the files would belong to unmapped ids, so the mount must fail instead.
            source = attrs.evolve(source, first_id=first_id, flags=source.flags & ~int(OpFlag.IDMAP_OPTIONAL))
        elif image.manifest is None and not image.trees:
            source = attrs.evolve(source, bind=True)  # a directory of the caller, in place
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
    # Without the mounts in it, a write below one would go to the covered directory on the host.
    flags = OpFlag.RECURSIVE
    if bind.propagation == "slave":
        flags |= OpFlag.SLAVE
    if bind.idmap is None and privileged:
        flags |= OpFlag.IDMAP | OpFlag.IDMAP_OPTIONAL
    elif bind.idmap:
        if not privileged:
            raise UnsupportedError(
                "idmap in a rootless engine", hint="leave it out: the caller's files belong to root inside"
            )
        flags |= OpFlag.IDMAP
    return Source(flags=int(flags), attributes=int(attributes), bind=True)


def _volume_source(session: Session, volume: VolumeMount) -> Source:
    """Return the mount of a volume: ids on disk are those inside, in every container."""
    attributes = _attributes(volume.read_only, volume.noexec)
    flags = OpFlag.IDMAP if session.features.privileged else OpFlag(0)
    first_id = STORE_BLOCK if session.features.privileged else 0
    return Source(flags=int(flags), attributes=int(attributes), first_id=first_id, image=volume.image)


def namespaces(session: Session, spec: ContainerSpec) -> int:
    """Return the flags of clone(2) for the namespaces of a container.

    Raises:
        UnsupportedError: The kernel has no time namespaces, and the spec insists on one.
    """
    wanted = Namespace.USER | Namespace.MOUNT | Namespace.PID | Namespace.IPC | Namespace.UTS
    if not session.cgroups.keeps_out:
        wanted |= Namespace.CGROUP
    if spec.network_spec.kind not in (HOST, JOINED):
        wanted |= Namespace.NET
    if session.features.time_namespace:
        wanted |= Namespace.TIME
    elif "time" not in spec.security.optional:
        raise UnsupportedError("time namespaces", hint="add 'time' to Security.optional to start without")
    return int(wanted)


def _rootless_map(session: Session) -> str:
    """Return the id map of a rootless container, below the launcher's user namespace."""
    if session.sub_ids:
        # One extent for each one of the parent's map, because none may span two of them.
        return f"0 0 1\n1 1 {session.sub_ids - 1}\n"
    return "0 0 1\n"
