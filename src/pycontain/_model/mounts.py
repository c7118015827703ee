"""What may be mounted into a container."""

from __future__ import annotations

import os

from attrs import converters, field, frozen

from pycontain._model.sizes import parse_size


def _path(value: str | os.PathLike[str]) -> str:
    path = os.fspath(value)
    if "\0" in path or not path:
        raise ValueError(f"not a path: {path!r}")
    return os.path.abspath(path)


@frozen
class Bind:
    """A file or directory of the host, shown at the same content inside.

    path: on the host; a relative one counts from the current directory.
    read_only: writes inside fail with EROFS.
    idmap: show the owner's ids inside as they are on the host (0 inside is 0 on disk).
    """

    path: str = field(converter=_path)
    read_only: bool = field(default=False, kw_only=True)
    idmap: bool = field(default=False, kw_only=True)


@frozen
class Tmpfs:
    """A file system in memory, charged to the container; size in bytes, mode in octal."""

    size: int | None = field(default=None, converter=converters.optional(parse_size))
    mode: int = field(default=0o1777, kw_only=True)
