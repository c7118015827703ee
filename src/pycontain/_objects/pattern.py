"""Glob patterns for container paths."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pycontain._objects.purepath import pure_path
from pycontain.errors import PathError

if TYPE_CHECKING:
    from pycontain._objects.path import ContainerPath

_MAGIC = re.compile(r"[*?\[]")


def matching(top: ContainerPath, pattern: str) -> Iterator[ContainerPath]:
    """Iterate over the paths below `top` that match a relative pattern, each once.

    Raises:
        ValueError: The pattern is malformed.
    """
    pure = pure_path(pattern)
    if not pattern or pure.is_absolute():
        raise ValueError(f"pattern must be relative and not empty, got {pattern!r}")
    if any("**" in part and part != "**" for part in pure.parts):
        raise ValueError(f"'**' must be a whole part of the pattern, got {pattern!r}")
    return _once(top, pure.parts)


def _once(top: ContainerPath, parts: tuple[str, ...]) -> Iterator[ContainerPath]:
    seen: set[ContainerPath] = set()
    for path in _below(top, parts):
        if path not in seen:
            seen.add(path)
            yield path


def _below(top: ContainerPath, parts: tuple[str, ...]) -> Iterator[ContainerPath]:
    # No recursion: a guest can nest directories deeper than the recursion limit.
    left = [(top, parts)]
    while left:
        path, parts = left.pop()
        if not parts:
            yield path
        else:
            left.extend(reversed(_step(path, parts[0], parts[1:])))


def _step(
    path: ContainerPath, part: str, rest: tuple[str, ...]
) -> list[tuple[ContainerPath, tuple[str, ...]]]:
    """Return the paths that match the first part of a pattern, each with the parts that follow it."""
    if part == "**":
        below = [(path / name, (part, *rest)) for name, is_directory in _read(path) if is_directory]
        return [(path, rest), *below]
    if _MAGIC.search(part):
        names = [name for name, _ in _read(path) if fnmatch.fnmatchcase(name, part)]
        return [(path / name, rest) for name in names if not rest or _is_there(path / name, directory=True)]
    return [(path / part, rest)] if _is_there(path / part) else []


def _is_there(path: ContainerPath, *, directory: bool = False) -> bool:
    """Return whether the path exists; False if it cannot be checked, as for one that is too long."""
    try:
        return path.is_dir() if directory else path.exists()
    except PathError:
        return False


def _read(top: ContainerPath) -> list[tuple[str, bool]]:
    """Return the entries of a directory, or none if it cannot be read."""
    try:
        return list(top._entries())
    except PathError:
        return []
