"""Unpacking of an archive into a directory, by a confined process."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Sequence
from typing import TypeAlias

from attrs import frozen

from pycontain._kernel import native
from pycontain._kernel.launcher import Launcher
from pycontain._kernel.plan import request
from pycontain._kernel.protocol import RequestKind, UnpackFlag, structure

_REQUEST = structure(
    "pc_unpack_request",
    "max_bytes max_entries flags first_id uid gid group_count groups",
    without="request",
)
_REPORT = structure("pc_unpack_report", "problem error flags implied entries bytes skipped name")
_GROUPS_MOST: int = native.lib.PC_FILE_GROUPS_MOST
LANDLOCK_LEAST = 3
"""The first Landlock ABI that can restrict the truncation of files."""
_PIPE = 1 << 20
"""Bytes of a pipe: one MiB, so that each switch between the processes carries more."""


User: TypeAlias = tuple[int, int, tuple[int, ...]]
"""uid, gid and groups inside the container, whose rights an operation has."""


def padded_groups(groups: Sequence[int]) -> tuple[int, ...]:
    """Return groups as an array of C, filled up with zeros.

    Raises:
        ValueError: More groups than the array holds.
    """
    if len(groups) > _GROUPS_MOST:
        raise ValueError(f"groups must be at most {_GROUPS_MOST}, got {len(groups)}")
    return (*groups, *(0,) * (_GROUPS_MOST - len(groups)))


@frozen
class Report:
    """The result of unpacking or packing an archive.

    Attributes:
        problem: The reason of a failure, None without one.
        code: The number of the reason (enum pc_unpack_problem), 0 without one.
        errno: The error of the system call that failed, or 0.
        name: The entry that failed.
        root_opaque: The layer hides everything below it.
        crosses: A path goes through a symbolic link or a file of a lower layer.
        implied: The number of directories that have entries but none of their own.
        entries: The number of entries.
        size: Bytes of the files' content.
        skipped: The number of devices and attributes that were left out.
    """

    problem: str | None
    code: int
    errno: int
    name: str
    root_opaque: bool
    crosses: bool
    implied: int
    entries: int
    size: int
    skipped: int


def widen(pipe: int) -> None:
    """Enlarge a pipe to a megabyte, if the user's limit of pipe pages allows it."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE)


def receive_report(launcher: Launcher) -> Report:
    """Receive the result of a process that unpacks or packs.  Raises ConnectionResetError if it died."""
    data = os.read(launcher.socket, _REPORT.size)
    if len(data) != _REPORT.size:
        raise ConnectionResetError("the process that works on the archive has ended")
    problem, errno, flags, implied, entries, size, skipped, name = _REPORT.unpack(data)
    text = native.lib.pcx_unpack_problem(problem)
    return Report(
        native.ffi.string(text).decode() if problem and text else None,
        problem,
        errno,
        name.partition(b"\0")[0].decode("utf-8", "backslashreplace"),
        bool(flags & native.lib.PC_UNPACK_ROOT_OPAQUE),
        bool(flags & native.lib.PC_UNPACK_CROSSES),
        implied,
        entries,
        size,
        skipped,
    )


class Unpacker:
    """An archive that a process unpacks into a directory.

    Call `feed` with the archive's parts, then `end_stream`, `report` and `finish`, or `close` at any time.

    Args:
        make_launcher: Starts the process.
        directory: The directory; the descriptor remains the caller's.
        owners: Give files the owners that the archive names.
        landlock: The Landlock ABI of the kernel.
        size: Most bytes of content.
        entries: Most entries.
        devices: Make device nodes; they are left out otherwise.
        readable: Make files readable by their owner, whatever their mode in the archive is.
        open_directories: Let the owner of a directory use and remove it, whatever its mode is.
        tree: Add to a tree, which is no layer: whiteouts have no meaning.
        no_special_files: Make no FIFOs, set-id bits and attributes but user.*.
        merge: Apply the layer to the one in the directory.
        no_set_id: Set no set-id bits and no capabilities.
        through: The lower layers' directories, the uppermost first, whose links paths may go through.
        first_id: The id that 0 of the archive becomes.
        join: A pidfd of a process, in whose user namespace the process is root.
        user: The user of that namespace who writes.

    Raises:
        StartError: The process could not be started.
        OSError: It ended at once.
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
        open_directories: bool = False,
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
            owners * UnpackFlag.OWNERS
            | devices * UnpackFlag.DEVICES
            | (landlock >= LANDLOCK_LEAST) * UnpackFlag.LANDLOCK
            | readable * UnpackFlag.READABLE
            | open_directories * UnpackFlag.OPEN_DIRECTORIES
            | tree * UnpackFlag.INTO_TREE
            | no_special_files * UnpackFlag.NO_SPECIAL_FILES
            | merge * UnpackFlag.MERGE
            | no_set_id * UnpackFlag.NO_SET_ID
            | bool(through) * UnpackFlag.THROUGH
        )
        uid, gid, groups = user
        body = _REQUEST.pack(size, entries, flags, first_id, uid, gid, len(groups), *padded_groups(groups))
        self._launcher = make_launcher()
        self.stream = -1
        try:
            theirs, self.stream = os.pipe2(os.O_CLOEXEC)
            try:
                widen(self.stream)
                fds = [directory, theirs, *([join] if join >= 0 else [])]
                native.send(self._launcher.socket, request(RequestKind.UNPACK, body), fds)
                if through:
                    native.send(self._launcher.socket, request(RequestKind.FINISH), list(through))
            finally:
                os.close(theirs)
        except BaseException:
            self.close()
            raise

    def feed(self, data: bytes) -> None:
        """Write a part of the archive.  Raises BrokenPipeError after a failure, which `report` returns."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.stream, view) :]

    def end_stream(self) -> None:
        """Close the stream after the last part."""
        if self.stream >= 0:
            os.close(self.stream)
            self.stream = -1

    def report(self) -> Report:
        """Wait for the result.  Raises ConnectionResetError if the process died."""
        return receive_report(self._launcher)

    def finish(self, lowers: Sequence[int]) -> Report:
        """Complete the layer from the directories of lower layers, the uppermost first."""
        native.send(self._launcher.socket, request(RequestKind.FINISH), list(lowers))
        return self.report()

    def kill(self) -> None:
        """Kill the process and wait for its end."""
        self._launcher.kill()
        self.close()

    def close(self) -> None:
        """Close the stream and the socket, which ends the process."""
        self.end_stream()
        self._launcher.close()
