"""Stall and size limits below HTTP, for slow or endless responses."""

from __future__ import annotations

import http.client
import io
import time
from typing import TYPE_CHECKING, Any

import urllib3
import urllib3.connection
from urllib3.util.response import assert_header_parsing

if TYPE_CHECKING:
    from pycontain._registry.endpoint import Patience

_HEAD_MOST = 1 << 20
"""Bytes of headers, including those of `100 Continue` responses."""
_BESIDE_MOST = 1 << 18
"""Bytes of chunk framing and trailers that one read may consume."""


class Watched(io.RawIOBase):
    """Stream of a socket with a minimum speed and a bound on the bytes of the next reads.

    Only time spent in reads counts, not the time that the reader takes in between.

    Attributes:
        allowed: Bytes that may still be received; the owner sets it before each read.
    """

    def __init__(self, raw: io.RawIOBase, patience: Patience) -> None:
        self._raw, self._patience = raw, patience
        self.allowed = _HEAD_MOST
        self._waited, self._got = 0.0, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Receive into a buffer.

        Raises:
            TimeoutError: The sender is slower than the minimum speed.
            OSError: The bound on bytes is exceeded.
        """
        if self.allowed <= 0:
            raise OSError("more headers and chunk framing than content")
        begun = time.monotonic()
        count = self._raw.readinto(buffer)
        self._waited += time.monotonic() - begun
        self._got += count or 0
        self.allowed -= count or 0
        patience = self._patience
        if self._waited > patience.grace and self._got < patience.slowest * self._waited:
            raise TimeoutError(f"slower than {patience.slowest} bytes a second")
        return count

    def close(self) -> None:
        """Close the stream and its reference to the socket."""
        if not self.closed:
            self._raw.close()
        super().close()


def classes(patience: Patience) -> dict[str, type[urllib3.HTTPConnectionPool]]:
    """Return connection pools with these limits, by scheme; for `pool_classes_by_scheme`."""

    class Answer(http.client.HTTPResponse):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._watched = Watched(self.fp.detach(), patience)
            self.fp = io.BufferedReader(self._watched)

        def begin(self) -> None:
            """Receive the headers; malformed ones are refused here, since urllib3 would log their text."""
            super().begin()
            try:
                assert_header_parsing(self.msg)
            except urllib3.exceptions.HeaderParsingError:
                raise http.client.HTTPException("malformed headers") from None

        def read1(self, n: int = -1) -> bytes:
            self._watched.allowed = max(n, 0) + _BESIDE_MOST
            return super().read1(n)

        def read(self, amt: int | None = None) -> bytes:
            self._watched.allowed = (amt or 0) + _BESIDE_MOST
            return super().read(amt)

    class Plain(urllib3.connection.HTTPConnection):
        response_class = Answer

    class Secure(urllib3.connection.HTTPSConnection):
        response_class = Answer

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}
