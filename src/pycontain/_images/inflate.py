"""Take the compression off a stream, piece by piece and within bounds, the interpreter's lock set free."""

from __future__ import annotations

import bz2
import functools
import lzma
import zlib
from collections.abc import Iterator
from typing import Any, Protocol

from pycontain._images.bounds import RATIO_FROM, LayerLimits
from pycontain.errors import ImageError, UnsupportedError

_PIECE = 1 << 20
_SLICE = 64 << 10
"""What follows the end of a member is copied: small slices bound what an archive of many members costs."""
_MEMBERS_MOST = 1 << 20
_XZ_MEMORY = 128 << 20
_MAGICS = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
)
_SKIPPABLE = b"\x2a\x4d\x18"
"""Bytes 1 to 3 of a zstd frame that holds nothing of the content."""
HEAD = 6
"""Bytes by which a compression is known."""


def compression_of(head: bytes) -> str:
    """'gzip', 'zstd', 'xz', 'bzip2', or 'none'."""
    for magic, name in _MAGICS:
        if head.startswith(magic):
            return name
    if head[1:4] == _SKIPPABLE and 0x50 <= head[0] <= 0x5F:
        return "zstd"
    return "none"


class _Member(Protocol):
    """What zlib, isal, zstd, lzma and bz2 have in common."""

    @property
    def eof(self) -> bool:
        """The member is over."""

    @property
    def unused_data(self) -> bytes:
        """What came after it."""


class _Deflate:
    """zlib's interface, or isal's, as the others have theirs."""

    def __init__(self, module: Any) -> None:
        self._object = module.decompressobj(31)
        self.needs_input = True

    def decompress(self, data: bytes, max_length: int) -> bytes:
        piece: bytes = self._object.decompress(self._object.unconsumed_tail + data, max_length)
        self.needs_input = not self._object.unconsumed_tail
        return piece

    @property
    def eof(self) -> bool:
        return bool(self._object.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._object.unused_data)


def _fast_zlib() -> Any:
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib
    return isal_zlib


@functools.cache
def _zstd() -> Any:
    """Looked for once: a stream has up to a million frames, each with a decompressor of its own."""
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        try:
            from backports import zstd
        except ImportError:
            raise UnsupportedError(
                "layers compressed with zstd", hint="pip install backports.zstd, or Python 3.14"
            ) from None
    return zstd


def _member(kind: str) -> Any:
    if kind == "gzip":
        return _Deflate(_fast_zlib())
    if kind == "zstd":
        return _zstd().ZstdDecompressor()
    if kind == "xz":
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
    return bz2.BZ2Decompressor()


class Inflater:
    """Content out of what is fed; any number of members or frames.  Raises ImageError as it goes.

    read, made: bytes so far on either side.
    """

    def __init__(self, limits: LayerLimits) -> None:
        self.read = self.made = 0
        self.kind = ""
        self._limits = limits
        self._head = b""
        self._current: Any = None
        self._members = 0
        self._padding = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What comes out of these bytes, in pieces of at most 1 MiB."""
        self.read += len(data)
        if not self.kind:
            data = self._head + data
            if len(data) < HEAD:
                self._head = data
                return
            self._head = b""
            self.kind = compression_of(data)
        yield from self._pieces(data)

    def finish(self) -> Iterator[bytes]:
        """Nothing more comes: the rest, and an error where the stream ends in the middle."""
        if not self.kind:
            self.kind = compression_of(self._head)
            yield from self._pieces(self._head)
        if self._current is not None and not self._current.eof:
            raise ImageError(f"the {self.kind} stream ends too early")

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        if self.kind == "none":
            if data:
                yield self._counted(data)
            return
        for at in range(0, len(data), _SLICE):
            piece = data[at : at + _SLICE]
            try:
                yield from self._slice(piece)
            except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError) as error:
                raise ImageError(f"the {self.kind} stream is damaged: {error}") from error
            except Exception as error:
                if type(error).__name__ not in ("ZstdError", "IsalError", "error"):
                    raise
                raise ImageError(f"the {self.kind} stream is damaged: {error}") from error

    def _slice(self, data: bytes) -> Iterator[bytes]:
        while data or (self._current is not None and not self._current.needs_input and not self._current.eof):
            if self._current is None or self._current.eof:
                data = self._begin(data)
                if self._current is None or not data:
                    return
            piece = self._current.decompress(data, max_length=_PIECE)
            data = self._current.unused_data if self._current.eof else b""
            if piece:
                yield self._counted(piece)

    def _begin(self, data: bytes) -> bytes:
        """At a member's first byte, or in the zeros that may follow the last."""
        if self._members:
            rest = data.lstrip(b"\0")
            self._padding |= len(rest) != len(data)
            if not rest:
                return b""
            if self._padding:
                raise ImageError(f"something follows the end of the {self.kind} stream")
            data = rest
        self._members += 1
        if self._members > _MEMBERS_MOST:
            raise ImageError(f"the {self.kind} stream has more than {_MEMBERS_MOST} members")
        self._current = _member(self.kind)
        return data

    def _counted(self, piece: bytes) -> bytes:
        self.made += len(piece)
        if self.made > self._limits.size:
            raise ImageError(f"the layer is larger than {self._limits.size} bytes", hint="see LayerLimits")
        if self.made > RATIO_FROM and self.made > self._limits.ratio * self.read:
            raise ImageError(
                f"the layer unpacks to more than {self._limits.ratio} times its size", hint="see LayerLimits"
            )
        return piece
