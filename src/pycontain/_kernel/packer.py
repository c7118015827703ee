"""The process that makes an archive of a tree: confined, and gone with it."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence

from pycontain._kernel import native
from pycontain._kernel.launcher import Launcher
from pycontain._kernel.plan import request
from pycontain._kernel.unpacker import Report, hear, widen

_PACK = 13
_OPTIONS = struct.Struct("<QqIIII")
_WHITEOUTS, _CLAMP, _LANDLOCK, _ONE_MOUNT, _HEADERS = 1, 2, 4, 8, 16
_CONTENT, _OWNER, _NO_KERNEL = 32, 64, 128
_LANDLOCK_FROM = 3
_CHUNK = 1 << 20


class Packer:
    """One tree on its way into an uncompressed tar: iterate over `chunks`, then ask for the `report`.

    first_id: the id that is the archive's 0, where files belong to a container's block.  whiteouts:
    overlayfs's marks become those of layers (OCI layer.md, "Whiteouts").  clamp: seconds since the
    epoch that no time in the archive is after.  one_mount: what is mounted below the tree is left out.
    headers: no content, files are of size 0.  left_out: paths below the tree.
    content: without an entry for the tree itself.  owner: uid and gid of everything.  no_kernel: /proc
    and its like are left out.  stream: where to write it to, instead of `chunks`.  join: a pidfd of a
    process whose user namespace to be root of.
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
            whiteouts * _WHITEOUTS
            | (clamp is not None) * _CLAMP
            | (landlock >= _LANDLOCK_FROM) * _LANDLOCK
            | one_mount * _ONE_MOUNT
            | headers * _HEADERS
            | content * _CONTENT
            | (owner is not None) * _OWNER
            | no_kernel * _NO_KERNEL
        )
        self._launcher = make_launcher()
        self._stream = -1
        try:
            theirs = stream
            if stream < 0:
                self._stream, theirs = os.pipe2(os.O_CLOEXEC)
            try:
                widen(theirs)
                options = _OPTIONS.pack(first_id, clamp or 0, flags, *(owner or (0, 0)), 0)
                options += b"".join(path.encode("utf-8", "surrogateescape") + b"\0" for path in left_out)
                fds = [directory, theirs, *([join] if join >= 0 else [])]
                native.send(self._launcher.socket, request(_PACK, options), fds)
            finally:
                if stream < 0:
                    os.close(theirs)
        except BaseException:
            self.close()
            raise

    def chunks(self) -> Iterator[bytes]:
        """The archive, as it comes."""
        while chunk := os.read(self._stream, _CHUNK):
            yield chunk

    def report(self) -> Report:
        """What became of it, after the last chunk.  Raises ConnectionResetError when it died."""
        return hear(self._launcher)

    def kill(self) -> None:
        """End it whatever it does, and wait until it is gone."""
        self._launcher.kill()
        self.close()

    def close(self) -> None:
        """End it."""
        if self._stream >= 0:
            os.close(self._stream)
            self._stream = -1
        self._launcher.close()
