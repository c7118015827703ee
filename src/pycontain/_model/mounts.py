"""What may be mounted into a container."""

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
    """A file or directory of the host, shown with the same content inside.

    path: on the host; a relative one counts from the current directory of the moment.
    read_only: writes inside fail with EROFS.
    idmap: whose the files are inside.  True shows them through the container's id map: what belongs
    to 0 on the host belongs to 0 inside, and what root inside makes belongs to 0 on the host; the
    start fails where the kernel or the file system cannot.  False shows them plain: ids that are not
    mapped inside are nobody's there.  None, the default: as root, show the caller's files through
    the container's id map; where there is none, plain.
    propagation: 'private', or 'slave' for a directory whose later mounts on the host show inside too
    (mount_namespaces(7)); what is mounted inside never shows outside.
    noexec: no program can be started from it.  nosymfollow: no symbolic link in it is followed.

    File systems that are mounted below the path on the host show inside too, with the same flags.  No
    set-user-ID file and no device node of it has an effect, whatever the flags.

    Raises TypeError and ValueError for what is no path and no flag.  Whether the path exists is
    checked when a container is made.
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

    size: bytes that it holds at most, or text such as '64M'; None for half of the machine's memory.
    mode: of its root, such as 0o1777.  noexec: no program can be started from it.

    Raises LimitError for a size that is none, ValueError and TypeError for such a mode.
    """

    size: int | None = field(default=None, converter=_tmpfs_size)
    mode: int = field(default=0o1777, kw_only=True, validator=_mode)
    noexec: bool = field(default=False, kw_only=True, validator=_flag(True, False))


@frozen(kw_only=True)
class VolumeMount:
    """A volume as a container has it; `Volume.mounted` makes one.

    name: the volume's.  path: on the host, a directory or the image of a file system.
    """

    name: str
    path: str
    image: bool = False
    read_only: bool = False
    noexec: bool = False
