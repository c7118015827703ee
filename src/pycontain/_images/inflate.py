"""Streaming decompression within limits; the decompressors release the GIL."""

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
"""Size of an input slice: the input after a member's end is copied, which small slices keep cheap."""
_MEMBERS_MOST = 1 << 20
_XZ_MEMORY = 128 << 20
_MAGICS = (
    (b"\x1f\x8b\x08", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
)
_SKIPPABLE = b"\x2a\x4d\x18"
"""Bytes 1 to 3 of a skippable zstd frame."""
HEAD = 6
"""Number of leading bytes that identify a compression."""


def compression_of(head: bytes) -> str:
    """Return 'gzip', 'zstd', 'xz', 'bzip2' or 'none' for the first bytes of a stream."""
    for magic, name in _MAGICS:
        if head.startswith(magic):
            return name
    if head[1:4] == _SKIPPABLE and 0x50 <= head[0] <= 0x5F:
        return "zstd"
    return "none"


class _Member(Protocol):
    """The interface that the decompressors share."""

    @property
    def eof(self) -> bool:
        """Return whether the member has ended."""

    @property
    def unused_data(self) -> bytes:
        """Return the input after the member's end."""


class _Deflate:
    """An adapter of zlib's and isal's decompressors to the shared interface."""

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
    """Import zstd once: a stream may have a million frames, each with its own decompressor."""
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
    """A decompressor of streams with any number of members or frames.

    Attributes:
        read: Compressed bytes so far.
        made: Decompressed bytes so far.
        kind: The compression, once it is known.

    Raises:
        ImageError: From `feed` and `finish`, when the stream is damaged or exceeds a limit.
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
        """Yield the decompressed data in pieces of at most 1 MiB."""
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
        """Yield the remaining data.

        Raises:
            ImageError: The stream ends in the middle of a member.
        """
        if not self.kind:
            self.kind = compression_of(self._head)
            yield from self._pieces(self._head)
        if self._current is not None and not self._current.eof:
            raise ImageError(f"the {self.kind} stream is truncated")

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
        """Begin the next member; skip the zeros that may follow the last one."""
        if self._members:
            rest = data.lstrip(b"\0")
            self._padding |= len(rest) != len(data)
            if not rest:
                return b""
            if self._padding:
                raise ImageError(f"the {self.kind} stream has data after its end")
            data = rest
        self._members += 1
        if self._members > _MEMBERS_MOST:
            raise ImageError(f"the {self.kind} stream has more than {_MEMBERS_MOST} members")
        self._current = _member(self.kind)
        return data

    def _counted(self, piece: bytes) -> bytes:
        self.made += len(piece)
        if self.made > self._limits.size:
            raise ImageError(
                f"the layer is larger than {self._limits.size} bytes", hint="raise LayerLimits.size"
            )
        if self.made > RATIO_FROM and self.made > self._limits.ratio * self.read:
            raise ImageError(
                f"the layer unpacks to more than {self._limits.ratio} times its size",
                hint="raise LayerLimits.ratio",
            )
        return piece
