"""Copies of trees between host and container, by two confined processes with a pipe between them."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

from pycontain._kernel import native
from pycontain._kernel.launcher import Launcher
from pycontain._kernel.packer import Packer
from pycontain._kernel.unpacker import Report, Unpacker, User

_OUTPUT: int = native.lib.PC_UNPACK_OUTPUT
"""The problem of a packer whose unpacker stopped; the unpacker reports the cause."""


@frozen(kw_only=True)
class CopySpec:
    """A copy of one directory to another, in either direction.

    Attributes:
        source: The directory to copy from.
        target: The directory to copy into.
        size: Most bytes to copy.
        entries: Most entries to copy.
        content: Copy the content of the source, without an entry for the source itself.
        landlock: The Landlock ABI of the kernel.
        no_set_id: Set no set-id bits and no capabilities in the container.
        open_directories: On the host, let the caller use and remove directories, whatever their mode is.
    """

    source: int
    target: int
    size: int
    entries: int
    content: bool
    landlock: int
    no_set_id: bool = False
    open_directories: bool = False


def into(
    spec: CopySpec, host: Callable[[], Launcher], pidfd: int, owner: tuple[int, int], user: User
) -> Report:
    """Copy a tree of the host into a container.

    Args:
        spec: The directories and limits.
        host: Starts a launcher with this user's rights.
        pidfd: A process of the container.
        owner: The uid and gid, inside, of the copied files.
        user: The user of the container who writes.

    Returns:
        The result of the side that failed first, or of the unpacking.

    Raises:
        ConnectionResetError: One of the processes died.
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
    """Copy a tree of a container to the host, with this user as the owner; see `into`."""
    unpacker = Unpacker(
        host,
        spec.target,
        owners=False,
        tree=True,
        no_special_files=True,
        open_directories=spec.open_directories,
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
        if packed.problem is not None and packed.code != _OUTPUT:
            return packed
        unpacked = unpacker.report()
        return unpacked if unpacked.problem is not None else unpacker.finish([])
    finally:
        # While they work they do not read their sockets, and a guest's tree may be endless.
        for one in (packer, unpacker):
            if one is not None:
                one.kill()
