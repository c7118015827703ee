"""Mounts of a container: binds, tmpfs and volumes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

from attrs import field, frozen

from pycontain._model.arguments import check_path
from pycontain._model.sizes import parse_size, shown
from pycontain.errors import LimitError


def _path(value: str | os.PathLike[str]) -> str:
    return os.path.abspath(check_path("the path of a Bind", value))


def _flag(*allowed: bool | None) -> Callable[[Any, Any, object], None]:
    def check(_: object, attribute: Any, value: object) -> None:
        if not any(value is one for one in allowed):
            names = " or ".join(map(str, allowed))
            raise TypeError(f"{attribute.name} must be {names}, got {shown(value)}")

    return check


def _tmpfs_size(value: int | str | None) -> int | None:
    if value is None:
        return None
    size = parse_size(value)
    if size == 0:
        raise LimitError(
            f"the size of a tmpfs must be at least 1 byte, got {shown(value)}",
            hint="leave the size out for no limit",
        )
    return size


def _mode(_: object, __: object, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"mode must be an int such as 0o1777, got {shown(value)}")
    if not 0 <= value <= 0o7777:
        raise ValueError(f"mode must be between 0 and 0o7777, got {shown(value)}")


def _propagation(_: object, __: object, value: object) -> None:
    if value not in ("private", "slave"):
        raise ValueError(f"propagation must be 'private' or 'slave', got {shown(value)}")


@frozen
class Bind:
    """A file or directory of the host that is visible in the container.

    File systems that are mounted below the path on the host are visible too, with the same flags.
    Set-user-ID bits and device nodes have no effect, whatever the flags.  The existence of the path is
    checked when a container is created.

    Attributes:
        path: A path on the host; a relative one is resolved against the current directory.
        read_only: Writes in the container fail with EROFS.
        idmap: Ownership of the files in the container.  True maps ids through the container's id map: id 0 on
            the host is id 0 inside and vice versa; the start fails if the kernel or the file system cannot do
            that.  False maps no ids: files of ids that are unmapped inside belong to the overflow user.
            None, the default, maps the ids of the caller's files if the engine runs as root and the host
            supports it.
        propagation: 'private', or 'slave' for a directory in which later mounts of the host appear in the
            container (mount_namespaces(7)).  Mounts of the container never appear on the host.
        noexec: Programs cannot be executed from the mount.
        nosymfollow: Symbolic links in the mount are not followed.

    Raises:
        ValueError: The path or the propagation is malformed.
        TypeError: The path or a flag has the wrong type.
    """

    path: str = field(converter=_path)
    read_only: bool = field(default=False, validator=_flag(True, False))
    idmap: bool | None = field(default=None, kw_only=True, validator=_flag(True, False, None))
    propagation: Literal["private", "slave"] = field(default="private", kw_only=True, validator=_propagation)
    noexec: bool = field(default=False, kw_only=True, validator=_flag(True, False))
    nosymfollow: bool = field(default=False, kw_only=True, validator=_flag(True, False))


@frozen
class Tmpfs:
    """A file system in memory, private to the container and charged to its memory limit.

    Attributes:
        size: Maximum size in bytes, or text such as '64M'; None for half of the machine's memory.
        mode: Permissions of the root directory.
        noexec: Programs cannot be executed from the mount.

    Raises:
        LimitError: The size is malformed or 0.
        ValueError: The mode is out of range.
        TypeError: The mode or the flag has the wrong type.
    """

    size: int | None = field(default=None, converter=_tmpfs_size)
    mode: int = field(default=0o1777, kw_only=True, validator=_mode)
    noexec: bool = field(default=False, kw_only=True, validator=_flag(True, False))


@frozen(kw_only=True)
class VolumeMount:
    """A volume and its mount flags, as `Volume.mounted` returns them.

    Attributes:
        name: Name of the volume.
        path: Path on the host, of a directory or of a file system image.
        image: Whether the path is a file system image.
        read_only: Writes in the container fail with EROFS.
        noexec: Programs cannot be executed from the mount.
    """

    name: str
    path: str
    image: bool = False
    read_only: bool = False
    noexec: bool = False
