"""Content digests (OCI image specification, descriptor.md, "Digests")."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from pycontain._model.sizes import shown
from pycontain.errors import ImageError

_LENGTHS = {"sha256": 64, "sha512": 128}
_HEX = re.compile(r"[a-f0-9]+")


class Digest(str):
    """A validated content digest of the form `algorithm:hex`; a `str` otherwise.

    Only sha256 and sha512 in lower case and of the right length are accepted, because digests become
    parts of paths and URLs.

    Raises:
        ImageError: The text is not a digest.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Digest:
        """Validate `text` and return it as a digest."""
        algorithm, colon, value = text.partition(":") if isinstance(text, str) else ("", "", "")
        if not colon or len(value) != _LENGTHS.get(algorithm, -1) or not _HEX.fullmatch(value):
            raise ImageError(f"not a digest: {shown(text)}")
        return super().__new__(cls, text)

    @property
    def algorithm(self) -> str:
        """Return the hash algorithm, 'sha256' or 'sha512'."""
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        """Return the hexadecimal digits without the algorithm."""
        return self.partition(":")[2]

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """Return the sha256 digest of `data`."""
        return cls(f"sha256:{hashlib.sha256(data).hexdigest()}")

    def hasher(self) -> Any:
        """Return a new hashlib object of this algorithm."""
        return hashlib.new(self.algorithm)

    def matches(self, hasher: Any) -> bool:
        """Return whether a hashlib object of the same algorithm has this value."""
        return bool(hasher.hexdigest() == self.hex)


def chain_id(parent: Digest | None, diff_id: Digest) -> Digest:
    """Return the chain id of a layer on top of `parent` (OCI config.md, "Layer ChainID").

    The chain id of the lowest layer is its diff id.
    """
    return diff_id if parent is None else Digest.of(f"{parent} {diff_id}".encode())
