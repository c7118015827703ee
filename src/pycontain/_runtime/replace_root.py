"""Replacement of a running container's root: its upper directory becomes a layer, and it gets an empty one.

A child of the launcher joins the container's user and mount namespaces while the agent is the only process
there.  Mounts of the old root are moved to the new one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import attrs

from pycontain._kernel import native
from pycontain._kernel.namespaces import Namespace
from pycontain._kernel.plan import Op, Plan, Source, request
from pycontain._kernel.protocol import OpFlag, OpKind, RecordKind, RequestKind
from pycontain._runtime.compile import layer_sources
from pycontain._runtime.launch import mount_of
from pycontain._runtime.root_plan import described
from pycontain.errors import StartError

if TYPE_CHECKING:
    from pycontain._images.image import LocalImage
    from pycontain._runtime.running import Running

SEAL = "seal"
"""Step that makes the old root read-only; it fails with EBUSY while a writable descriptor of it is open."""
_MADE = (OpKind.UPPER, OpKind.FILE, OpKind.OWN_DIRECTORY, OpKind.OVERLAY, OpKind.SYSCTL)
_GUARDED = 2 | 4  # nosuid, nodev


def replace_root(running: Running, image: LocalImage) -> None:
    """Give a container a root of an image's layers and an empty upper directory.

    The file system of the old root is read-only afterwards, for every descriptor and through every mount.

    Args:
        running: The container, whose agent has no other process.
        image: The image, whose topmost layer is what the container has written so far.

    Raises:
        StartError: A step failed; the container has its old root.
    """
    privileged = running.session.features.privileged
    store = os.path.join(running.session.owner.live, running.spec.id)
    layers = layer_sources(image, idmap=privileged, block=running.block)
    sources = [(store, Source()), *layers]
    ours, theirs = native.pair()
    fds = [theirs, running.pidfd]
    opened: list[int] = []
    try:
        places = []
        for path, source in sources:
            if privileged:
                opened.append(mount_of(path, source))
                places.append(attrs.evolve(source, fd=len(fds) + len(opened) - 1))
            else:
                places.append(described(path, source))
        plan = _plan(running, places)
        with (
            running.session.launchers_for(running.spec.network_spec).borrow() as launcher,
            launcher.receiving,
        ):
            launcher.receive_unanswered()
            native.send(
                launcher.socket, request(RequestKind.REPLACE_ROOT, plan, value=running.pid), [*fds, *opened]
            )
            os.close(theirs)
            theirs = -1
            reply = native.receive_uninterrupted(launcher.socket)
            result = native.receive_uninterrupted(ours)
    finally:
        for fd in (ours, theirs, *opened):
            if fd >= 0:
                os.close(fd)
    _check(running, reply, result, [path for path, _ in sources[1:]])
    running.upper += 1
    running.drop_file_server()  # it has the old root open


def _plan(running: Running, places: list[Source]) -> bytes:
    root_plan = running.root_plan
    ops = [
        Op(OpKind.UPPER, mode=running.upper + 1),
        Op(OpKind.OVERLAY, source=0, count=len(places) - 1, attributes=_GUARDED),
    ]
    for op in root_plan.ops:
        if op.kind == OpKind.SEAL:
            ops.append(op)
        elif op.kind not in _MADE or (op.kind == OpKind.OVERLAY and op.target):
            guarded = op.kind in (OpKind.MASK, OpKind.READONLY)
            flags = op.flags & (OpFlag.NOFOLLOW | OpFlag.IS_FILE) | (OpFlag.NOFOLLOW if guarded else 0)
            ops.append(Op(OpKind.MOVE, op.target, flags=int(flags)))
    return Plan(
        control_fd=0,
        exit_fd=1,
        namespaces=int(Namespace.USER),
        ops=ops,
        sources=places[1:],
        store=places[0],
        security=root_plan.security,
        flags=root_plan.flags,
        uid_map=f"0 {running.block} 65536\n" if running.block is not None else root_plan.id_map,
    ).encode()


def _check(
    running: Running, reply: native.Record | None, result: native.Record | None, layers: list[str]
) -> None:
    if result is not None and result.kind == RecordKind.READY and reply is not None and not reply.errno:
        return
    record = result if result is not None and result.kind == RecordKind.FAILED else reply
    name = running.spec.name
    if record is None:
        raise StartError(f"the root of {name} could not be replaced: its launcher died", step="launcher")
    path = layers[record.op] if record.kind == RecordKind.FAILED and 0 <= record.op < len(layers) else None
    raise StartError(
        f"the root of {name} could not be replaced",
        step=record.step_name,
        errno=record.errno,
        path=path,
    )
