"""Users of commands: names are looked up in passwd and group of the image, which is untrusted."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from pycontain._kernel import native
from pycontain._kernel.hostpath import BENEATH_WITHOUT_LINKS
from pycontain._kernel.plan import request
from pycontain._kernel.protocol import RequestKind
from pycontain._model.user import LAST_ID, is_number, split_user
from pycontain.errors import NotFound, PathError, StateError, UnsupportedError

if TYPE_CHECKING:
    from pycontain._images.image import LocalImage
    from pycontain._runtime.running import Running

MOST_READ = 1 << 20
"""Bytes of passwd or group that are read; reading without a limit exhausts memory (CVE-2026-47262)."""
_GROUPS_MOST = 64


@frozen
class Identity:
    """User, group and supplementary groups of a command, as ids inside, and its home directory."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/root"


ROOT = Identity()


def open_inside(running: Running, path: str, flags: int) -> int:
    """Return a descriptor of a path inside, opened by the agent beneath its root.

    Raises:
        PathError: The path cannot be opened.
        StateError: The container has ended.
    """
    control = running.acquire_control()
    ours, theirs = native.pair()
    try:
        try:
            message = request(RequestKind.OPEN, path.encode("utf-8", "surrogateescape") + b"\0", value=flags)
            native.send(control, message, [theirs])
        finally:
            os.close(theirs)
            running.release_control()
        record = native.receive_uninterrupted(ours)
    finally:
        os.close(ours)
    if record is None:
        raise StateError(f"container {running.spec.name} has ended")
    if record.errno:
        raise PathError(f"cannot open {path}: {os.strerror(record.errno)}", path=path, errno=record.errno)
    return record.fd


def _lines(running: Running, path: str) -> Iterator[list[str]]:
    """Yield the fields of each line of a file of the image; no lines where it cannot be opened.

    Lines are split one by one: lists of a megabyte of newlines would take 90 MB.
    """
    yield from _split(_text(running, path))


def _split(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        yield line.split(":")


def _text(running: Running, path: str) -> str:
    try:
        fd = open_inside(running, path, os.O_RDONLY)
    except PathError:
        return ""
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_READ:
            raise PathError(
                f"{path} of the image must be a regular file of at most {MOST_READ} bytes", path=path
            )
        text = b""
        while len(text) <= MOST_READ and (chunk := os.read(fd, MOST_READ + 1 - len(text))):
            text += chunk
    except OSError as error:  # a link of the image may point to any file below its root
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


def check_known(image: LocalImage, covered: Iterable[str], user: str, ids: int) -> None:
    """Check a user before a container is created, as far as the files of the image can decide.

    Args:
        image: The image; its layers are read beneath each directory and without links.
        covered: Mount points; files below them are not those of the image.
        user: As in `resolve`.
        ids: The number of ids inside, from 0 on.

    Raises:
        NotFound: passwd or group of the image does not have the name.
        ValueError: An id does not exist inside.
    """
    for part, path in zip(split_user(user), ("/etc/passwd", "/etc/group"), strict=True):
        number = _number(part)
        if number is not None and number >= ids:
            raise ValueError(f"the ids of a container are 0 to {ids - 1} here, got {number}")
        if not part or number is not None or any(f"{path}/".startswith(f"{place}/") for place in covered):
            continue
        lines = _lines_of_layers(image.directories, path)
        if lines is not None and find_entry(lines, part, None, 7 if path == "/etc/passwd" else 4) is None:
            kind = "user" if path == "/etc/passwd" else "group"
            raise NotFound(f"the image has no {kind} {part!r}", hint=f"use an id, or a {kind} of {path}")


def check_groups(
    ids: int, image: LocalImage, covered: Iterable[str], groups: Iterable[str | int] | str | int | None
) -> None:
    """Check `group_add` as `check_known` does.

    Raises:
        UnsupportedError: Containers of this user have a single group.
        NotFound: group of the image does not have the name.
        ValueError: An id does not exist inside.
    """
    given = [groups] if isinstance(groups, str | int) else list(groups or ())
    if given and ids == 1:
        raise UnsupportedError(
            "group_add with a single id", hint="give this user ranges in /etc/subuid and /etc/subgid"
        )
    for one in given:
        check_known(image, covered, f"0:{one}", ids)


def with_groups(running: Running, identity: Identity) -> Identity:
    """Return the identity with the groups of `group_add`.

    Raises:
        NotFound: The image has no such group.
    """
    added = [_group(running, one) for one in running.spec.group_add]
    return evolve(identity, groups=tuple(dict.fromkeys([*identity.groups, *added]))[:_GROUPS_MOST])


def _lines_of_layers(directories: Sequence[str], path: str) -> Iterable[list[str]] | None:
    """Return the lines of the uppermost layer that has the file, None if that cannot be decided."""
    for directory in directories:
        try:
            top = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        flags = os.O_PATH | os.O_CLOEXEC
        try:
            fd = int(
                native.lib.pcx_openat2(top, os.fsencode(path.lstrip("/")), flags, BENEATH_WITHOUT_LINKS, 0)
            )
        finally:
            os.close(top)
        if fd in (-errno.ENOENT, -errno.ENOTDIR):
            continue
        return None if fd < 0 else _lines_of_file(fd)
    return []


def _lines_of_file(place: int) -> Iterable[list[str]] | None:
    """Return the lines of a file, none for a whiteout; closes its O_PATH descriptor."""
    try:
        found = os.fstat(place)
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
            return []
        if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_READ:
            return None
        with open(f"/proc/self/fd/{place}", "rb") as file:
            return _split(file.read(MOST_READ).decode("utf-8", "replace"))
    except OSError:
        return None
    finally:
        os.close(place)


def resolve(running: Running, user: str) -> Identity:
    """Return the identity of a user, as docker does, except that digits are never a name.

    Args:
        running: The container.
        user: 'name', 'uid', 'name:group' or 'uid:gid'.

    Raises:
        NotFound: The image does not have the name.
        ValueError: The text is none of these.
        PathError: passwd or group of the image cannot be read.
    """
    if user in ("", "0", "root", "0:0"):
        return ROOT
    name, group = split_user(user)
    uid = _number(name)
    entry = find_entry(_lines(running, "/etc/passwd"), name, uid, 7)
    if entry is None and uid is None:
        raise NotFound(f"the image has no user {name!r}", hint="use an id, or a user of /etc/passwd")
    # The host image has no user of this id, but a home directory that every user can write.
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
    return Identity(uid, gid, groups[:_GROUPS_MOST], home)


def find_entry(lines: Iterable[list[str]], name: str, number: int | None, fields: int) -> list[str] | None:
    """Return the first valid line of a name, or of a number, in passwd (7 fields) or group (4 fields)."""
    for line in lines:
        if len(line) != fields or not _is_id(line[2]) or (fields == 7 and not _is_id(line[3])):
            continue
        # Digits are an id, also if passwd of the image has a user with the name "1000".
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
        raise NotFound(f"the image has no group {group!r}", hint="use an id, or a group of /etc/group")
    return int(entry[2])
