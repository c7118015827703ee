"""Listings of directory trees, for comparison."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

IGNORED_ATTRIBUTES = ("security.selinux", "user.overlay.", "trusted.overlay.")


def _attributes(path: str) -> tuple[tuple[str, bytes], ...]:
    found = []
    for name in sorted(os.listxattr(path, follow_symlinks=False)):
        if not name.startswith(IGNORED_ATTRIBUTES):
            found.append((name, os.getxattr(path, name, follow_symlinks=False)))
    return tuple(found)


def _content(path: str, found: os.stat_result) -> object:
    if stat.S_ISLNK(found.st_mode):
        return os.readlink(path)
    if stat.S_ISREG(found.st_mode):
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
        return found.st_rdev
    return None


def listing(top: str | Path, *, owners: bool = True, times: bool = True) -> dict[str, Any]:
    """Return path to type and mode, owner, time, attributes, content, and the first name of the same file."""
    result: dict[str, Any] = {}
    first: dict[tuple[int, int], str] = {}
    paths = [str(top)]
    for directory, names, files in os.walk(top):
        paths += [os.path.join(directory, name) for name in (*names, *files)]
    for path in sorted(paths):
        found = os.lstat(path)
        name = os.path.relpath(path, top)
        same = (
            first.setdefault((found.st_dev, found.st_ino), name) if not stat.S_ISDIR(found.st_mode) else name
        )
        result[name] = (
            oct(found.st_mode),
            (found.st_uid, found.st_gid) if owners else None,
            found.st_mtime_ns if times else None,
            _attributes(path),
            _content(path, found),
            same,
        )
    return result


def difference(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return paths that are not the same in both."""
    return {
        name: (one.get(name), other.get(name))
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    }
