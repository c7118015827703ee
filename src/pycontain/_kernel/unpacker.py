"""The process that makes a directory of a layer's archive: confined, and gone with its layer."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Sequence
from typing import TypeAlias

from attrs import frozen

from pycontain._kernel import native
from pycontain._kernel.launcher import Launcher
from pycontain._kernel.plan import request

_UNPACK, _FINISH = 11, 12
_BOUNDS = struct.Struct("<QQII")
_USER = struct.Struct("<IIII64I")
_REPORT = struct.Struct("<IiIIQQQ256s")
_OWNERS, _DEVICES, _LANDLOCK, _READABLE, _TREE, _NO_SPECIAL_FILES, _MERGE = 1, 2, 4, 8, 16, 32, 64
_NO_SET_ID, _THROUGH = 128, 256
_ROOT_OPAQUE, _CROSSES = 1, 2
_LANDLOCK_FROM = 3
"""The Landlock ABI that can say what an unpacker may not."""
_F_SETPIPE_SZ = 1031
_PIPE = 1 << 20


User: TypeAlias = tuple[int, int, tuple[int, ...]]
"""uid, gid and groups inside, with whose rights something is done."""


def encode_user(user: User) -> bytes:
    """Return uid, gid and groups as C reads them."""
    uid, gid, groups = user
    return _USER.pack(uid, gid, len(groups), 0, *groups, *(0,) * (64 - len(groups)))


@frozen
class Report:
    """What became of an archive: a problem in words with errno and the entry's name, or counts."""

    problem: str | None
    errno: int
    name: str
    root_opaque: bool
    crosses: bool
    """A path leads through a link or file of a lower layer."""
    implied: int
    entries: int
    size: int
    skipped: int


def widen(pipe: int) -> None:
    """Let a pipe hold a megabyte: each switch of processes carries more."""
    try:
        fcntl.fcntl(pipe, _F_SETPIPE_SZ, _PIPE)
    except OSError:
        pass  # the user's share of pipes is used up: slower, not wrong


def hear(launcher: Launcher) -> Report:
    """The report of a launcher that unpacks or packs.  Raises ConnectionResetError when it died."""
    data = os.read(launcher.socket, _REPORT.size)
    if len(data) != _REPORT.size:
        raise ConnectionResetError("the process at the layer is gone")
    problem, errno, flags, implied, entries, size, skipped, name = _REPORT.unpack(data)
    text = native.lib.pcx_unpack_problem(problem)
    return Report(
        native.ffi.string(text).decode() if problem and text else None,
        errno,
        name.partition(b"\0")[0].decode("utf-8", "backslashreplace"),
        bool(flags & _ROOT_OPAQUE),
        bool(flags & _CROSSES),
        implied,
        entries,
        size,
        skipped,
    )


class Unpacker:
    """One archive on its way into one directory.

    `feed` the archive and `end_stream`, ask for the `report`, then `finish`; `close` ends it at
    any time.  owners: files get the owners that the archive names.  devices: nodes are made.
    readable: whatever mode the archive names, the owner may read.  tree: add to a tree that is no layer.
    no_special_files: no FIFOs, set-id bits and attributes but user.*.  merge: the
    layer comes upon the one that stands in the directory.  no_set_id: files get no set-id bits and no
    capabilities.  through: the lower layers' directories, the uppermost first; paths of the archive
    lead through their links.  first_id: what
    the archive's 0 becomes.  join: a pidfd of a
    process whose user namespace to be root of.
    """

    def __init__(
        self,
        make_launcher: Callable[[], Launcher],
        directory: int,
        *,
        owners: bool,
        landlock: int,
        size: int,
        entries: int,
        devices: bool = False,
        readable: bool = False,
        tree: bool = False,
        no_special_files: bool = False,
        merge: bool = False,
        no_set_id: bool = False,
        through: Sequence[int] = (),
        first_id: int = 0,
        join: int = -1,
        user: User = (0, 0, ()),
    ) -> None:
        flags = (
            owners * _OWNERS
            | devices * _DEVICES
            | (landlock >= _LANDLOCK_FROM) * _LANDLOCK
            | readable * _READABLE
            | tree * _TREE
            | no_special_files * _NO_SPECIAL_FILES
            | merge * _MERGE
            | no_set_id * _NO_SET_ID
            | bool(through) * _THROUGH
        )
        bounds = _BOUNDS.pack(size, entries, flags, first_id) + encode_user(user)
        self._launcher = make_launcher()
        self.stream = -1
        try:
            theirs, self.stream = os.pipe2(os.O_CLOEXEC)
            try:
                widen(self.stream)
                fds = [directory, theirs, *([join] if join >= 0 else [])]
                native.send(self._launcher.socket, request(_UNPACK, bounds), fds)
                if through:
                    native.send(self._launcher.socket, request(_FINISH), list(through))
            finally:
                os.close(theirs)
        except BaseException:
            self.close()
            raise

    def feed(self, data: bytes) -> None:
        """More of the archive.  Raises BrokenPipeError where it stopped reading: its report says why."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.stream, view) :]

    def end_stream(self) -> None:
        """Nothing more comes."""
        if self.stream >= 0:
            os.close(self.stream)
            self.stream = -1

    def report(self) -> Report:
        """Wait for what it has to say.  Raises ConnectionResetError when it died."""
        return hear(self._launcher)

    def finish(self, lowers: Sequence[int]) -> Report:
        """The lower layers' directories are there, the uppermost first: take from them what is needed."""
        native.send(self._launcher.socket, request(_FINISH), list(lowers))
        return self.report()

    def kill(self) -> None:
        """End it whatever it does, and wait until it is gone."""
        self._launcher.kill()
        self.close()

    def close(self) -> None:
        """End it."""
        self.end_stream()
        self._launcher.close()
