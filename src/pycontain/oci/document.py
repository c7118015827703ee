"""JSON documents from strangers: read strictly, field by field."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pycontain._model.sizes import shown
from pycontain.errors import ImageError

MANIFEST_MOST = 4 << 20
"""Bytes of a manifest or index; registries refuse larger ones themselves."""
CONFIG_MOST = 8 << 20
"""Bytes of an image configuration."""

_T = TypeVar("_T")


class MediaType:
    """Names of content (OCI media-types.md and Docker's image manifest version 2, schema 2)."""

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
            raise ImageError(f"a JSON document says {shown(name)} twice")
        result[name] = value
    return result


def _constant(text: str) -> Any:
    raise ImageError(f"not JSON: {text}")


def _load(data: bytes, what: str) -> Any:
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{what} is no JSON document: {type(error).__name__}") from error


def parse_list(data: bytes, what: str, most: int) -> list[Fields]:
    """The JSON list of objects that `data` is.  Raises ImageError, above `most` entries too."""
    value = _load(data, what)
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ImageError(f"{what} is no JSON list of objects")
    if len(value) > most:
        raise ImageError(f"{what} has more than {most} entries")
    return [Fields(one, f"{what}[{at}]") for at, one in enumerate(value)]


def parse(data: bytes, what: str, most: int) -> Fields:
    """The JSON object that `data` is.  Raises ImageError: too large, too deep, no object, names twice."""
    if len(data) > most:
        raise ImageError(f"{what} is larger than {most} bytes")
    value = _load(data, what)
    if not isinstance(value, dict):
        raise ImageError(f"{what} is no JSON object")
    return Fields(value, what)


class Fields:
    """A JSON object of which every field is taken with its type; null counts as not there.

    Every method raises ImageError, naming document and field, for a value of another type.
    """

    def __init__(self, value: Mapping[str, Any], what: str) -> None:
        self._value = value
        self.what = what

    def __contains__(self, name: str) -> bool:
        return self._value.get(name) is not None

    def wrong(self, name: str, why: str) -> ImageError:
        """An error about a field."""
        return ImageError(f"{self.what}: {name} {why}")

    def _get(self, name: str, kind: type[_T], said: str) -> _T | None:
        value = self._value.get(name)
        if value is None:
            return None
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(name, f"is no {said}: {shown(value)}")
        if isinstance(value, str):
            self._encodable(name, value)
        return value

    def _encodable(self, name: str, text: str) -> None:
        """JSON can spell half of a surrogate pair, which is no text."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise self.wrong(name, f"is no text: {shown(text)}") from None

    def text(self, name: str, default: str = "") -> str:
        """A string."""
        value = self._get(name, str, "text")
        return default if value is None else value

    def integer(self, name: str, default: int = 0) -> int:
        """A number of at least 0 and below 2^63."""
        value = self._get(name, int, "number")
        if value is not None and not 0 <= value < 1 << 63:
            raise self.wrong(name, f"is no size: {shown(value)}")
        return default if value is None else value

    def truth(self, name: str) -> bool:
        """A boolean, False where it is not there."""
        return bool(self._get(name, bool, "boolean"))

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        value: list[Any] | None = self._get(name, list, "list")
        for part in value or ():
            if not isinstance(part, str):
                raise self.wrong(name, f"has what is no text: {shown(part)}")
            self._encodable(name, part)
        return tuple(value or ())

    def mapping(self, name: str) -> dict[str, str]:
        """An object of strings."""
        value: dict[str, Any] | None = self._get(name, dict, "object")
        for key, part in (value or {}).items():
            if not isinstance(part, str):
                raise self.wrong(name, f"has what is no text: {shown(part)}")
            self._encodable(name, key + part)
        return dict(value or {})

    def names(self, name: str) -> tuple[str, ...]:
        """The names of an object whose values say nothing."""
        value: dict[str, Any] | None = self._get(name, dict, "object")
        for key in value or ():
            self._encodable(name, key)
        return tuple(value or ())

    def inner(self, name: str) -> Fields | None:
        """An object."""
        value: dict[str, Any] | None = self._get(name, dict, "object")
        return None if value is None else Fields(value, f"{self.what}: {name}")

    def each(self, name: str, make: Callable[[Fields], _T], most: int) -> tuple[_T, ...]:
        """A list of objects, each made into something."""
        value: list[Any] | None = self._get(name, list, "list")
        if len(value or ()) > most:
            raise self.wrong(name, f"has more than {most} entries")
        result = []
        for at, part in enumerate(value or ()):
            if not isinstance(part, dict):
                raise self.wrong(f"{name}[{at}]", f"is no object: {shown(part)}")
            result.append(make(Fields(part, f"{self.what}: {name}[{at}]")))
        return tuple(result)


def compact(value: Mapping[str, Any]) -> bytes:
    """The same bytes for the same document, whoever writes it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
