"""A strict reader of untrusted JSON documents, field by field."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pycontain._model.sizes import shown
from pycontain.errors import ImageError

MANIFEST_MOST = 4 << 20
"""Largest manifest or index in bytes; registries refuse larger ones themselves."""
CONFIG_MOST = 8 << 20
"""Largest image configuration in bytes."""
_CONTAINERS_MOST, _VALUES_MOST = 100_000, 1_000_000

_T = TypeVar("_T")


class MediaType:
    """Media types (OCI media-types.md and Docker's image manifest version 2, schema 2)."""

    OCI_INDEX = "application/vnd.oci.image.index.v1+json"
    OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
    OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
    OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
    DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
    DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
    DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
    DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

    INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
    MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
    CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})
    LAYERS = frozenset(
        {
            OCI_LAYER,
            OCI_LAYER + "+gzip",
            OCI_LAYER + "+zstd",
            "application/vnd.oci.image.layer.nondistributable.v1.tar",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
            DOCKER_LAYER,
            DOCKER_LAYER + ".gzip",
            DOCKER_LAYER + ".zstd",
            "application/vnd.docker.image.rootfs.foreign.diff.tar",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        }
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ImageError(f"JSON document has the name {shown(name)} twice")
        result[name] = value
    return result


def _constant(text: str) -> Any:
    raise ImageError(f"JSON document has the constant {text}, which JSON does not allow")


def _load(data: bytes, what: str) -> Any:
    # Before they are made: an empty object takes 3 bytes there and 72 in memory.
    if data.count(b"{") + data.count(b"[") > _CONTAINERS_MOST or data.count(b",") > _VALUES_MOST:
        raise ImageError(f"{what} has more than {_CONTAINERS_MOST} lists and objects, or too many values")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{what} is not a JSON document: {type(error).__name__}") from error


def parse_list(data: bytes, what: str, most: int) -> list[Fields]:
    """Parse `data` as a JSON list of objects.

    Args:
        data: The UTF-8 text.
        what: The document's name in error messages.
        most: The largest number of entries.

    Raises:
        ImageError: The data is not JSON, not a list of objects, or has more than `most` entries.
    """
    value = _load(data, what)
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ImageError(f"{what} is not a JSON list of objects")
    if len(value) > most:
        raise ImageError(f"{what} has more than {most} entries")
    return [Fields(one, f"{what}[{at}]") for at, one in enumerate(value)]


def parse(data: bytes, what: str, most: int) -> Fields:
    """Parse `data` as a JSON object.

    Args:
        data: The UTF-8 text.
        what: The document's name in error messages.
        most: The largest size in bytes.

    Raises:
        ImageError: The data is too large or nested too deeply, is not an object, or repeats a name.
    """
    if len(data) > most:
        raise ImageError(f"{what} is larger than {most} bytes")
    value = _load(data, what)
    if not isinstance(value, dict):
        raise ImageError(f"{what} is not a JSON object")
    return Fields(value, what)


class Fields:
    """A JSON object whose fields are read with an expected type; null counts as absent.

    Every reading method raises ImageError, with the document and the field, for a value of another type.
    """

    def __init__(self, value: Mapping[str, Any], what: str) -> None:
        self._value = value
        self.what = what

    def __contains__(self, name: str) -> bool:
        return self._value.get(name) is not None

    def wrong(self, name: str, why: str) -> ImageError:
        """Return an ImageError about the field `name`."""
        return ImageError(f"{self.what}: {name} {why}")

    def _get(self, name: str, kind: type[_T], expected: str) -> _T | None:
        value = self._value.get(name)
        if value is None:
            return None
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(name, f"must be {expected}, got {shown(value)}")
        if isinstance(value, str):
            self._encodable(name, value)
        return value

    def _encodable(self, name: str, text: str) -> None:
        """Refuse half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise self.wrong(name, f"must be valid Unicode, got {shown(text)}") from None

    def text(self, name: str, default: str = "") -> str:
        """Return a string."""
        value = self._get(name, str, "a string")
        return default if value is None else value

    def integer(self, name: str, default: int = 0) -> int:
        """Return an integer of at least 0 and below 2^63."""
        value = self._get(name, int, "a number")
        if value is not None and not 0 <= value < 1 << 63:
            raise self.wrong(name, f"must be at least 0 and below 2^63, got {shown(value)}")
        return default if value is None else value

    def truth(self, name: str) -> bool:
        """Return a boolean, False when the field is absent."""
        return bool(self._get(name, bool, "a boolean"))

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of strings as a tuple."""
        value: list[Any] | None = self._get(name, list, "a list")
        for part in value or ():
            if not isinstance(part, str):
                raise self.wrong(name, f"must be a list of strings, got the entry {shown(part)}")
            self._encodable(name, part)
        return tuple(value or ())

    def mapping(self, name: str) -> dict[str, str]:
        """Return an object whose values are strings."""
        value: dict[str, Any] | None = self._get(name, dict, "an object")
        for key, part in (value or {}).items():
            if not isinstance(part, str):
                raise self.wrong(name, f"must be an object of strings, got the value {shown(part)}")
            self._encodable(name, key + part)
        return dict(value or {})

    def names(self, name: str) -> tuple[str, ...]:
        """Return the names of an object that is used as a set."""
        value: dict[str, Any] | None = self._get(name, dict, "an object")
        for key in value or ():
            self._encodable(name, key)
        return tuple(value or ())

    def inner(self, name: str) -> Fields | None:
        """Return a nested object, or None when the field is absent."""
        value: dict[str, Any] | None = self._get(name, dict, "an object")
        return None if value is None else Fields(value, f"{self.what}: {name}")

    def each(self, name: str, make: Callable[[Fields], _T], most: int) -> tuple[_T, ...]:
        """Return a list of at most `most` objects, each converted by `make`."""
        value: list[Any] | None = self._get(name, list, "a list")
        if len(value or ()) > most:
            raise self.wrong(name, f"has more than {most} entries")
        result = []
        for at, part in enumerate(value or ()):
            if not isinstance(part, dict):
                raise self.wrong(f"{name}[{at}]", f"must be an object, got {shown(part)}")
            result.append(make(Fields(part, f"{self.what}: {name}[{at}]")))
        return tuple(result)


def compact(value: Mapping[str, Any]) -> bytes:
    """Serialize a document canonically: equal documents give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
