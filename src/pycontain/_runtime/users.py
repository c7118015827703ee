"""Who runs a command: names looked up in the image's own passwd and group, read with care."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from attrs import frozen

from pycontain._kernel import native
from pycontain._kernel.plan import request
from pycontain._model.user import LAST_ID, is_number, split_user
from pycontain.errors import NotFound, PathError, StateError

if TYPE_CHECKING:
    from pycontain._runtime.running import Running

MOST_READ = 1 << 20
"""Bytes of passwd or group that are read: CVE-2026-47262 and its kin came from reading all of it."""


@frozen
class Identity:
    """uid, gid and supplementary groups inside, and the home directory."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/root"


ROOT = Identity()


def open_inside(running: Running, path: str, flags: int) -> int:
    """An fd of a path inside, opened by the agent beneath its root.  Raises PathError."""
    control = running.hold()
    ours, theirs = native.pair()
    try:
        try:
            message = request(native.OPEN, path.encode("utf-8", "surrogateescape") + b"\0", value=flags)
            native.send(control, message, [theirs])
        finally:
            os.close(theirs)
            running.let_go()
        record = native.receive_uninterrupted(ours)
    finally:
        os.close(ours)
    if record is None:
        raise StateError("the container ended")
    if record.errno:
        raise PathError(f"cannot open {path}: {os.strerror(record.errno)}", path=path, errno=record.errno)
    return record.fd


def _lines(running: Running, path: str) -> Iterator[list[str]]:
    """Yield the fields of each line of a file of the image; no lines where it cannot be opened.

    They are split one by one: a megabyte of newlines would take ninety as lists.
    """
    for line in _text(running, path).splitlines():
        yield line.split(":")


def _text(running: Running, path: str) -> str:
    try:
        fd = open_inside(running, path, os.O_RDONLY)
    except PathError:
        return ""
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_READ:
            raise PathError(f"{path} of the image is no regular file of at most {MOST_READ} bytes", path=path)
        text = b""
        while len(text) <= MOST_READ and (chunk := os.read(fd, MOST_READ + 1 - len(text))):
            text += chunk
    except OSError as error:  # a link of the image may lead to anything below its root
        raise PathError(
            f"cannot read {path} of the image: {error.strerror}", path=path, errno=error.errno or 0
        ) from error
    finally:
        os.close(fd)
    if len(text) > MOST_READ:
        raise PathError(f"{path} of the image grew while it was read", path=path)
    return text.decode("utf-8", "replace")


def _number(text: str) -> int | None:
    return int(text) if is_number(text) else None


def resolve(running: Running, user: str) -> Identity:
    """Who 'name', 'uid', 'name:group' or 'uid:gid' is, as docker reads it, but that digits are never a name.

    Raises NotFound for a name that the image does not know, ValueError for text that is none of these.
    """
    if user in ("", "0", "root", "0:0"):
        return ROOT
    name, group = split_user(user)
    uid = _number(name)
    entry = find_entry(_lines(running, "/etc/passwd"), name, uid, 7)
    if entry is None and uid is None:
        raise NotFound(f"the image has no user {name!r}")
    # The host's image has no user of this number, but a home that every user can write.
    gid, home = 0, "/home" if running.spec.image.trees else "/"
    if entry is not None:
        uid, gid, home = int(entry[2]), int(entry[3]), entry[5] or "/"
    assert uid is not None
    groups: tuple[int, ...] = ()
    if group:
        gid = _group(running, group)
    elif entry is not None:
        groups = tuple(
            int(line[2])
            for line in _lines(running, "/etc/group")
            if len(line) == 4 and _is_id(line[2]) and entry[0] in line[3].split(",")
        )
    return Identity(uid, gid, groups[:64], home)


def find_entry(lines: Iterable[list[str]], name: str, number: int | None, fields: int) -> list[str] | None:
    """The line of a name, or of a number, in passwd (7 fields) or group (4)."""
    for line in lines:
        if len(line) != fields or not _is_id(line[2]) or (fields == 7 and not _is_id(line[3])):
            continue
        # A number is a number: an image whose passwd names somebody "1000" does not say who 1000 is.
        if line[0] == name if number is None else int(line[2]) == number:
            return line
    return None


def _is_id(text: str) -> bool:
    return is_number(text) and len(text) <= 10 and int(text) <= LAST_ID


def _group(running: Running, group: str) -> int:
    number = _number(group)
    if number is not None:
        return number
    entry = find_entry(_lines(running, "/etc/group"), group, None, 4)
    if entry is None:
        raise NotFound(f"the image has no group {group!r}")
    return int(entry[2])
