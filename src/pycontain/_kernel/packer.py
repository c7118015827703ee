"""Packing of a directory tree into an archive, by a confined process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from pycontain._kernel import native
from pycontain._kernel.launcher import Launcher
from pycontain._kernel.plan import request
from pycontain._kernel.protocol import PackFlag, RequestKind, structure
from pycontain._kernel.unpacker import LANDLOCK_LEAST, Report, receive_report, widen

_OPTIONS = structure("pc_pack_request", "first_id clamp flags uid gid", without="request")
_CHUNK = 1 << 20


class Packer:
    """A tree that a process packs into an uncompressed tar archive.

    Iterate over `chunks`, then call `report`.

    Args:
        make_launcher: Starts the process.
        directory: The tree; the descriptor remains the caller's.
        first_id: The id that is 0 in the archive, where files belong to a container's block of ids.
        whiteouts: Convert overlayfs's whiteouts to those of layers (OCI layer.md, "Whiteouts").
        clamp: The latest time in the archive, in seconds since the epoch.
        landlock: The Landlock ABI of the kernel.
        one_mount: Leave out file systems mounted below the tree.
        headers: Pack files without content, as files of size 0.
        left_out: Paths below the tree to leave out.
        content: Leave out the entry of the tree itself.
        owner: The uid and gid of every entry.
        no_kernel: Leave out /proc, /sys and their like.
        stream: The descriptor to write to, instead of `chunks`.
        join: A pidfd of a process, in whose user namespace the process is root.

    Raises:
        StartError: The process could not be started.
        OSError: It ended at once.
    """

    def __init__(
        self,
        make_launcher: Callable[[], Launcher],
        directory: int,
        *,
        first_id: int = 0,
        whiteouts: bool = False,
        clamp: int | None = None,
        landlock: int = 0,
        one_mount: bool = False,
        headers: bool = False,
        left_out: Sequence[str] = (),
        content: bool = False,
        owner: tuple[int, int] | None = None,
        no_kernel: bool = False,
        stream: int = -1,
        join: int = -1,
    ) -> None:
        flags = (
            whiteouts * PackFlag.WHITEOUTS
            | (clamp is not None) * PackFlag.CLAMP
            | (landlock >= LANDLOCK_LEAST) * PackFlag.LANDLOCK
            | one_mount * PackFlag.ONE_MOUNT
            | headers * PackFlag.HEADERS
            | content * PackFlag.CONTENT
            | (owner is not None) * PackFlag.OWNER
            | no_kernel * PackFlag.NO_KERNEL
        )
        self._launcher = make_launcher()
        self._stream = -1
        try:
            theirs = stream
            if stream < 0:
                self._stream, theirs = os.pipe2(os.O_CLOEXEC)
            try:
                widen(theirs)
                options = _OPTIONS.pack(first_id, clamp or 0, flags, *(owner or (0, 0)))
                options += b"".join(path.encode("utf-8", "surrogateescape") + b"\0" for path in left_out)
                fds = [directory, theirs, *([join] if join >= 0 else [])]
                native.send(self._launcher.socket, request(RequestKind.PACK, options), fds)
            finally:
                if stream < 0:
                    os.close(theirs)
        except BaseException:
            self.close()
            raise

    def chunks(self) -> Iterator[bytes]:
        """Yield the archive as it is made."""
        while chunk := os.read(self._stream, _CHUNK):
            yield chunk

    def report(self) -> Report:
        """Receive the result after the last chunk.  Raises ConnectionResetError if the process died."""
        return receive_report(self._launcher)

    def kill(self) -> None:
        """Kill the process and wait for its end."""
        self._launcher.kill()
        self.close()

    def close(self) -> None:
        """End it."""
        if self._stream >= 0:
            os.close(self._stream)
            self._stream = -1
        self._launcher.close()
