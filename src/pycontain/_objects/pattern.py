"""Patterns over the paths of a container: what glob finds."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pycontain._objects.naming import pure_path
from pycontain.errors import PathError

if TYPE_CHECKING:
    from pycontain._objects.path import ContainerPath

_MAGIC = re.compile(r"[*?\[]")


def matching(top: ContainerPath, pattern: str) -> Iterator[ContainerPath]:
    """What fits a relative pattern below `top`, each once.  Raises ValueError for a malformed one."""
    pure = pure_path(pattern)
    if not pattern or pure.is_absolute():
        raise ValueError(f"a pattern is relative and not empty, not {pattern!r}")
    if any("**" in part and part != "**" for part in pure.parts):
        raise ValueError(f"'**' stands for whole directories: {pattern!r}")
    return _once(top, pure.parts)


def _once(top: ContainerPath, parts: tuple[str, ...]) -> Iterator[ContainerPath]:
    seen: set[ContainerPath] = set()
    for path in _below(top, parts):
        if path not in seen:
            seen.add(path)
            yield path


def _below(top: ContainerPath, parts: tuple[str, ...]) -> Iterator[ContainerPath]:
    if not parts:
        yield top
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _below(top, rest)
        for name, is_directory in _read(top):
            if is_directory:
                yield from _below(top / name, parts)
    elif _MAGIC.search(part):
        for name, _ in _read(top):
            if fnmatch.fnmatchcase(name, part) and (not rest or (top / name).is_dir()):
                yield from _below(top / name, rest)
    elif (top / part).exists():
        yield from _below(top / part, rest)


def _read(top: ContainerPath) -> list[tuple[str, bool]]:
    """What a directory holds; nothing where it is none, or gone."""
    try:
        return list(top._entries())
    except PathError:
        return []
