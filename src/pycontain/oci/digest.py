"""Digests: the names of content (OCI image specification, descriptor.md, "Digests")."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from pycontain._model.sizes import shown
from pycontain.errors import ImageError

_LENGTHS = {"sha256": 64, "sha512": 128}
_HEX = re.compile(r"[a-f0-9]+")


class Digest(str):
    """`algorithm:hex` of some content, checked; a `str` in all else.

    sha256 and sha512, in lower case and of the right length, are the digests there are: nothing else
    is ever made part of a path or a URL.  Raises ImageError for any other text.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Digest:
        """Raises ImageError for what is no digest."""
        algorithm, colon, value = text.partition(":") if isinstance(text, str) else ("", "", "")
        if not colon or len(value) != _LENGTHS.get(algorithm, -1) or not _HEX.fullmatch(value):
            raise ImageError(f"not a digest: {shown(text)}")
        return super().__new__(cls, text)

    @property
    def algorithm(self) -> str:
        """'sha256' or 'sha512'."""
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        """The digits alone."""
        return self.partition(":")[2]

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """The sha256 of some bytes."""
        return cls(f"sha256:{hashlib.sha256(data).hexdigest()}")

    def hasher(self) -> Any:
        """A new hashlib object of this algorithm."""
        return hashlib.new(self.algorithm)

    def matches(self, hasher: Any) -> bool:
        """Is this what a hashlib object of the same algorithm came to?"""
        return bool(hasher.hexdigest() == self.hex)


def chain_id(parent: Digest | None, diff_id: Digest) -> Digest:
    """The name of a stack of layers (OCI config.md, "Layer ChainID"); the lowest one's is its diff id."""
    return diff_id if parent is None else Digest.of(f"{parent} {diff_id}".encode())
