"""Places that a configuration names and no layer holds: the working directory and declared volumes."""

from __future__ import annotations

import errno
import functools
import os
import stat
from typing import TYPE_CHECKING

from pycontain._kernel import native
from pycontain._kernel.hostpath import BENEATH_WITHOUT_LINKS
from pycontain._model.user import split_user
from pycontain._rootfs.layout import DirectorySpec
from pycontain._runtime.users import MOST_READ, find_entry

if TYPE_CHECKING:
    from pycontain._runtime.spec import ContainerSpec

_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def made_directories(spec: ContainerSpec) -> tuple[DirectorySpec, ...]:
    """Return the directories that a start makes where they are missing.

    The working directory belongs to the container's user, a declared volume to root until the image's
    layers say otherwise, by which it is there.
    """
    layers = spec.image.directories
    found = [
        DirectorySpec(path=place)
        for place in spec.image.volumes
        if place not in spec.mounts and not _holds(layers, place)
    ]
    if spec.workdir not in ("/", *spec.mounts) and not _holds(layers, spec.workdir):
        uid, gid = _ids(layers, spec.user)
        found.append(DirectorySpec(path=spec.workdir, uid=uid, gid=gid))
    return tuple(found)


def _open(layer: str, path: str, flags: int) -> int:
    top = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        encoded = path.lstrip("/").encode("utf-8", "surrogateescape")
        return int(native.lib.pcx_openat2(top, encoded, flags, BENEATH_WITHOUT_LINKS, 0))
    finally:
        os.close(top)


@functools.lru_cache(maxsize=256)
def _holds(layers: tuple[str, ...], place: str) -> bool:
    """Return whether the uppermost layer that has this path has a directory there, reached by no link."""
    for layer in layers:
        fd = _open(layer, place, os.O_PATH | os.O_CLOEXEC)
        if fd >= 0:
            try:
                return stat.S_ISDIR(os.fstat(fd).st_mode)
            finally:
                os.close(fd)
        if fd != -errno.ENOENT:
            return False
    return False


@functools.lru_cache(maxsize=256)
def _ids(layers: tuple[str, ...], user: str) -> tuple[int, int]:
    """Return the ids of the image's user; 0 for a name that its passwd lacks."""
    name, group = split_user(user) if user else ("0", "")
    number = int(name) if name.isascii() and name.isdigit() else None
    entry = find_entry(_table(layers, "etc/passwd"), name, number, 7)
    uid = number if entry is None else int(entry[2])
    gid = 0 if entry is None else int(entry[3])
    if group:
        numeric = int(group) if group.isascii() and group.isdigit() else None
        line = find_entry(_table(layers, "etc/group"), group, numeric, 4)
        gid = numeric if numeric is not None else gid if line is None else int(line[2])
    return uid or 0, gid


def _table(layers: tuple[str, ...], path: str) -> list[list[str]]:
    """Return the lines of passwd or group in the uppermost layer that has it as a regular, bounded file."""
    for layer in layers:
        fd = _open(layer, path, _FILE)
        if fd == -errno.ENOENT:
            continue
        if fd < 0:
            return []
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_READ:
                return []
            text = os.read(fd, MOST_READ)
        except OSError:
            return []
        finally:
            os.close(fd)
        return [line.split(":") for line in text.decode("utf-8", "replace").splitlines()]
    return []
