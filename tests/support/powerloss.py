"""A model of a disk after a power loss, for a file system with only the guarantees of POSIX.

The model keeps two states of every inode: the one that processes see, and the one that is surely on the
disk.  Between them are changes that the kernel may have written or not, each by itself and in any order:

* data of a file is on the disk when fsync(2) or fdatasync(2) of that file has returned.  Before that,
  each write may be there, be missing, or be torn at any sector; the length may have grown without it.
* an entry of a directory (a name made, moved, replaced or removed) is on the disk when fsync(2) of that
  directory has returned.  The two halves of a rename are separate changes, so a moved file may show
  under both names or under none, and fsync of a file does not keep its name.
* syncfs(2) puts everything on the disk.

Real file systems with a journal promise more: names change in the order in which they were changed, and
an fsync takes the changes before it along.  The way "journal" shows such a disk.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

from attrs import define, field, frozen

from tests.support.history import Event

SECTOR = 512
_FILE, _DIRECTORY, _LINK, _NODE = "file", "directory", "link", "node"

Way: TypeAlias = Literal["nothing", "names", "lengths", "data", "torn", "mixed", "journal", "all"]
WAYS: tuple[Way, ...] = ("nothing", "names", "lengths", "data", "torn", "mixed", "journal", "all")
"""Subsets of the pending changes that have reached the disk.

nothing: none.  names: entries, and no data.  lengths: entries and lengths, with zeros for data.  data: data,
and no entries.  torn: entries, and any part of the data.  mixed: any entries and any part of the data.
journal: entries up to a moment, and any part of the data.  all: everything.
"""


@define(eq=False)
class Inode:
    """A file, directory, link or node, as processes see it and as the disk has it."""

    kind: str
    mode: int = 0
    moment: int = -1
    target: str = ""
    data: bytearray = field(factory=bytearray)
    kept: bytes = b""
    writes: list[Event] = field(factory=list)
    names: dict[str, Inode] = field(factory=dict)
    kept_names: dict[str, Inode] = field(factory=dict)
    changes: list[tuple[int, str, Inode | None]] = field(factory=list)

    def change(self, moment: int, name: str, inode: Inode | None) -> None:
        """Record a changed entry."""
        if inode is None:
            self.names.pop(name, None)
        else:
            self.names[name] = inode
        self.changes.append((moment, name, inode))

    def write(self, event: Event) -> None:
        """Record changed data or a new length."""
        _apply(self.data, event)
        self.writes.append(event)

    def sync(self) -> None:
        """Move the visible state to the disk."""
        self.kept, self.writes = bytes(self.data), []
        self.kept_names, self.changes = dict(self.names), []


def _apply(data: bytearray, event: Event, parts: Sequence[bool] = ()) -> None:
    """Apply a write (or some of its sectors) or a truncation."""
    if event.kind == "truncate":
        del data[event.number :]
        data.extend(bytes(event.number - len(data)))
        return
    end = event.offset + len(event.data)
    data.extend(bytes(max(0, end - len(data))))
    if not parts:
        data[event.offset : end] = event.data
    for at, wanted in enumerate(parts):
        start = at * SECTOR
        piece = event.data[start : start + SECTOR]
        if wanted:
            data[event.offset + start : event.offset + start + len(piece)] = piece


@frozen
class Seen:
    """A disk after a loss: path to kind, mode, time and content."""

    entries: dict[str, tuple[str, int, int, bytes]]

    @property
    def key(self) -> str:
        """The same for the same disk."""
        return hashlib.sha256(repr(sorted(self.entries.items())).encode()).hexdigest()

    def write(self, top: str) -> None:
        """Make it below a directory that is there."""
        for path, (kind, mode, _, content) in sorted(self.entries.items()):
            place = os.path.join(top, path)
            if kind == _DIRECTORY:
                os.makedirs(place, exist_ok=True)
            elif kind == _LINK:
                os.symlink(content, os.fsencode(place))
            elif kind == _NODE:
                os.mknod(place, 0o020000, 0)
            else:
                with open(place, "wb") as file:
                    file.write(content)
                os.chmod(place, mode)
        for path, (kind, mode, moment, _) in sorted(self.entries.items(), reverse=True):
            place = os.path.join(top, path)
            if kind == _DIRECTORY:
                os.chmod(place, mode)
            if moment >= 0:
                os.utime(place, ns=(moment, moment), follow_symlinks=False)


class Disk:
    """Apply events one by one, and return the possible states after a power loss at any moment."""

    def __init__(self) -> None:
        self.top = Inode(_DIRECTORY, 0o755)
        self._moment = 0

    def _walk(self, path: str) -> Inode:
        inode = self.top
        for part in path.split("/") if path else []:
            inode = inode.names[part]
        return inode

    def _parent(self, path: str) -> tuple[Inode, str]:
        directory, _, name = path.rpartition("/")
        return self._walk(directory), name

    def _inodes(self) -> Iterator[Inode]:
        seen: set[int] = set()
        waiting = [self.top]
        while waiting:
            inode = waiting.pop()
            if id(inode) in seen:
                continue
            seen.add(id(inode))
            yield inode
            waiting += [*inode.names.values(), *inode.kept_names.values()]

    def take(self, event: Event) -> None:
        """Apply one more change."""
        self._moment += 1
        if event.kind == "sync-all":
            for inode in list(self._inodes()):
                inode.sync()
        elif event.kind == "sync":
            self._walk(event.path).sync()
        elif event.kind in ("write", "truncate"):
            self._walk(event.path).write(event)
        elif event.kind in ("mode", "time"):
            inode = self._walk(event.path)
            if event.kind == "mode":
                inode.mode = event.number
            else:
                inode.moment = event.number
        elif event.kind != "mark":
            self._take_name(event)

    def _take_name(self, event: Event) -> None:
        directory, name = self._parent(event.path)
        made = {"create": _FILE, "directory": _DIRECTORY, "link": _LINK, "node": _NODE}.get(event.kind)
        if event.kind == "unlink":
            directory.change(self._moment, name, None)
        elif event.kind == "rename":
            inode = directory.names[name]
            directory.change(self._moment, name, None)
            target, other = self._parent(event.other)
            target.change(self._moment, other, inode)
        elif made is not None and name not in directory.names:
            directory.change(self._moment, name, Inode(made, event.number, target=event.other))

    def after_loss(self, way: Way, seed: int = 0) -> Seen:
        """Return the states that the disk may have if the power fails now."""
        chance = random.Random(f"{way}{seed}")
        until = chance.randint(self._first_change(), self._moment) if way == "journal" else self._moment
        entries: dict[str, tuple[str, int, int, bytes]] = {}
        waiting = [("", self.top)]
        while waiting:
            path, inode = waiting.pop()
            if path:
                content = inode.target.encode() if inode.kind == _LINK else _content(inode, way, chance)
                entries[path] = (inode.kind, inode.mode, inode.moment, content)
            for name, child in _names(inode, way, chance, until).items():
                waiting.append((f"{path}/{name}" if path else name, child))
        return Seen(entries)

    def _first_change(self) -> int:
        changes = [change[0] for inode in self._inodes() for change in inode.changes]
        return min(changes, default=self._moment)


def _names(inode: Inode, way: Way, chance: random.Random, until: int) -> dict[str, Inode]:
    names = dict(inode.kept_names)
    for moment, name, child in inode.changes:
        if way in ("nothing", "data") or (way == "mixed" and chance.random() < 0.5) or moment > until:
            continue
        if child is None:
            names.pop(name, None)
        else:
            names[name] = child
    return names


def _content(inode: Inode, way: Way, chance: random.Random) -> bytes:
    data = bytearray(inode.kept)
    for event in inode.writes:
        if way in ("data", "all"):
            _apply(data, event)
        elif way == "lengths":
            sectors = -(-len(event.data) // SECTOR)
            _apply(data, event, [False] * sectors)
        elif way in ("torn", "mixed", "journal"):
            kind = chance.choice(("whole", "none", "part"))
            if kind == "whole":
                _apply(data, event)
            elif kind == "part" and event.kind == "write":
                sectors = -(-len(event.data) // SECTOR)
                _apply(data, event, [chance.random() < 0.5 for _ in range(sectors)])
    return bytes(data)
