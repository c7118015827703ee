"""From a checked spec and the facts of this host to what C executes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from attrs import frozen

from pycontain._kernel.plan import MountAttr, Op, OpFlag, PlanFlag, Source
from pycontain._model.mounts import Bind, Tmpfs
from pycontain._rootfs import layout

if TYPE_CHECKING:
    from pycontain._engine import Engine
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


@frozen
class Compiled:
    """The parts of a plan that do not depend on fds: ops, sources as (path, template), security."""

    ops: tuple[Op, ...]
    sources: tuple[tuple[str, Source], ...]
    security: bytes
    flags: int
    seccomp: bool
    landlock: int


def compile_root(engine: Engine, spec: ContainerSpec) -> Compiled:
    """Compile everything but fds and ids.  Raises UnsupportedError."""
    idmap = engine.features.privileged
    sources = [(path, layout.layer_source(0, idmap)) for path in spec.image.layers]
    trees = []
    recursive = 0 if engine.features.privileged else int(OpFlag.RECURSIVE)
    for path, place in spec.image.trees:
        template = layout.layer_source(0, idmap)
        template = Source(flags=template.flags | recursive, attributes=template.attributes)
        trees.append(layout.MountSpec(target=place.lstrip("/"), source=len(sources)))
        sources.append((path, template))
    mounts = []
    for place, what in spec.mounts.items():
        if isinstance(what, Tmpfs):
            mounts.append(layout.MountSpec(target=place.lstrip("/"), tmpfs=what))
            continue
        is_file = not os.path.isdir(what.path)
        mounts.append(layout.MountSpec(target=place.lstrip("/"), source=len(sources), is_file=is_file))
        sources.append((what.path, _bind_source(what, recursive)))
    memory = spec.limits.memory or _SCRATCH_MOST * 2
    ops = layout.compose(
        layers=len(spec.image.layers),
        first_layer=0,
        trees=trees,
        mounts=mounts,
        hostname=spec.hostname,
        read_only=spec.read_only,
        disk=spec.disk,
        scratch_size=max(65536, min(_SCRATCH_MOST, memory // 2)),
        masked=spec.security.masked_paths,
        readonly=spec.security.readonly_paths,
    )
    abi = engine.features.landlock
    security = engine.encode_security(spec.security, spec.rlimits, spec.asked, spec.limits)
    flags = PlanFlag.LOOPBACK if spec.network == "none" else PlanFlag(0)
    if not engine.features.privileged and not engine.sub_ids:
        flags |= PlanFlag.DENY_SETGROUPS
    return Compiled(
        tuple(ops),
        tuple(sources),
        security,
        int(flags),
        spec.security.seccomp is not None,
        abi if spec.security.landlock else 0,
    )


def _bind_source(bind: Bind, recursive: int) -> Source:
    attributes = MountAttr.NOSUID | MountAttr.NODEV
    if bind.read_only:
        attributes |= MountAttr.RDONLY
    flags = recursive | (int(OpFlag.IDMAP) if bind.idmap else 0)
    return Source(flags=flags, attributes=int(attributes))


def namespaces(engine: Engine, spec: ContainerSpec) -> int:
    """The CLONE_NEW* flags of a start."""
    wanted = NEWUSER | NEWNS | NEWPID | NEWIPC | NEWUTS | NEWCGROUP
    if spec.network == "none":
        wanted |= NEWNET
    if engine.features.time_namespace:
        wanted |= NEWTIME
    return wanted


def identity_map(engine: Engine, block: int | None) -> str:
    """The id map: a block of the host's ids as root, those of the launcher's own namespace otherwise."""
    if block is not None:
        return f"0 {block} 65536\n"
    if engine.sub_ids:
        # One extent per extent of the parent's map: the kernel takes none that spans two.
        return f"0 0 1\n1 1 {engine.sub_ids - 1}\n"
    return "0 0 1\n"
