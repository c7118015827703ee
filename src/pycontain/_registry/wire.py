"""Answers that come to an end: below HTTP, where a byte now and then or headers for ever still count."""

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
"""Bytes before the content, headers of every `100 Continue` included."""
_BESIDE_MOST = 1 << 18
"""Bytes of one read that are not content: lengths of chunks, their extensions, trailers."""


class Watched(io.RawIOBase):
    """What a socket gives, as long as it gets on and stays within what is `allowed`.

    Only waiting counts as time: what the reader does between two reads is not the sender's fault.
    """

    def __init__(self, raw: io.RawIOBase, patience: Patience) -> None:
        self._raw, self._patience = raw, patience
        self.allowed = _HEAD_MOST
        self._waited, self._got = 0.0, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Raises TimeoutError and OSError where enough is enough."""
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
        """The socket's share with it."""
        if not self.closed:
            self._raw.close()
        super().close()


def classes(patience: Patience) -> dict[str, type[urllib3.HTTPConnectionPool]]:
    """Kinds of pools whose answers are watched, by scheme; for `pool_classes_by_scheme`."""

    class Answer(http.client.HTTPResponse):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._watched = Watched(self.fp.detach(), patience)
            self.fp = io.BufferedReader(self._watched)

        def begin(self) -> None:
            """Headers that are none are refused here: urllib3 would tell the log what they say."""
            super().begin()
            try:
                assert_header_parsing(self.msg)
            except urllib3.exceptions.HeaderParsingError:
                raise http.client.HTTPException("headers that cannot be read") from None

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
