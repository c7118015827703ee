"""A tree from one side of a container's wall to the other: two confined processes and a pipe between them."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

from pycontain._kernel.launcher import Launcher
from pycontain._kernel.packer import Packer
from pycontain._kernel.unpacker import Report, Unpacker, User

_OUTPUT_PROBLEM = "the archive cannot be written"
"""What a packer says whose unpacker stopped, and knows why."""


@frozen(kw_only=True)
class CopySpec:
    """What both directions have in common: fds of the two directories, and how much may come.

    size, entries: bytes and number.  content: what is in the one directory comes into the other.
    no_set_id: files get no set-id bits and no capabilities inside.
    """

    source: int
    target: int
    size: int
    entries: int
    content: bool
    landlock: int
    no_set_id: bool = False


def into(
    spec: CopySpec, host: Callable[[], Launcher], pidfd: int, owner: tuple[int, int], user: User
) -> Report:
    """A tree of the host into a container, that of the process behind pidfd, for this owner inside.

    host: makes a launcher of this user's.  Raises ConnectionResetError where a process died.
    """
    unpacker = Unpacker(
        _joining,
        spec.target,
        owners=True,
        tree=True,
        no_set_id=spec.no_set_id,
        landlock=spec.landlock,
        size=spec.size,
        entries=spec.entries,
        join=pidfd,
        user=user,
    )
    return _carry(
        unpacker,
        lambda stream: Packer(
            host,
            spec.source,
            owner=owner,
            content=spec.content,
            no_kernel=True,
            landlock=spec.landlock,
            stream=stream,
        ),
    )


def out_of(spec: CopySpec, host: Callable[[], Launcher], pidfd: int) -> Report:
    """A tree of a container to the host, as this user's.  As `into`."""
    unpacker = Unpacker(
        host,
        spec.target,
        owners=False,
        tree=True,
        no_special_files=True,
        landlock=spec.landlock,
        size=spec.size,
        entries=spec.entries,
    )
    return _carry(
        unpacker,
        lambda stream: Packer(
            _joining,
            spec.source,
            content=spec.content,
            no_kernel=True,
            landlock=spec.landlock,
            stream=stream,
            join=pidfd,
        ),
    )


def _joining() -> Launcher:
    return Launcher(files=True)


def _carry(unpacker: Unpacker, pack: Callable[[int], Packer]) -> Report:
    packer = None
    try:
        packer = pack(unpacker.stream)
        unpacker.end_stream()
        packed = packer.report()
        if packed.problem is not None and packed.problem != _OUTPUT_PROBLEM:
            return packed
        unpacked = unpacker.report()
        return unpacked if unpacked.problem is not None else unpacker.finish([])
    finally:
        # Neither hears of an end while it works, and a guest's tree may have none.
        for one in (packer, unpacker):
            if one is not None:
                one.kill()
