"""Image references, normalized as Docker does (distribution/reference)."""

from __future__ import annotations

import re

from attrs import evolve, frozen

from pycontain._model.sizes import shown
from pycontain.errors import InvalidReference
from pycontain.oci.digest import Digest

_LABEL = r"[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]"
_DOMAIN = re.compile(rf"(?:(?:{_LABEL})(?:\.(?:{_LABEL}))*|\[[a-fA-F0-9:]+\])(?::[0-9]{{1,5}})?")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}")
_ID = re.compile(r"[a-f0-9]{64}")
_MOST = 255
_HUB, _HUB_SPACE = "docker.io", "library/"


@frozen
class Reference:
    """An image reference: registry and repository, with a tag, a digest, or both.

    'debian' is docker.io/library/debian:latest; a first part is a registry when it has a dot or a
    colon or is 'localhost'.

    Attributes:
        registry: Host name of the registry, with its port if it has one.
        repository: Name of the image in the registry.
        tag: Tag, if the reference has one.
        digest: Digest, if the reference has one.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse a reference as users write it; without tag and digest the tag is 'latest'.

        Raises:
            InvalidReference: The text is not a reference.
        """
        if not isinstance(text, str) or not text or len(text) > 1024 or not text.isascii():
            raise InvalidReference(f"not an image reference: {shown(text)}")
        name, at, digest_text = text.partition("@")
        digest = _digest(text, digest_text) if at else None
        tag: str | None = None
        if ":" in name.rpartition("/")[2]:
            name, _, tag = name.rpartition(":")
            if not _TAG.fullmatch(tag):
                raise InvalidReference(f"not a tag: {shown(tag)}")
        registry, path = _split(name)
        if not _DOMAIN.fullmatch(registry) or not _PATH.fullmatch(path) or len(registry) + len(path) >= _MOST:
            raise InvalidReference(
                f"not an image reference: {shown(text)}",
                hint="write [registry/]name[:tag][@digest] with the name in lower case",
            )
        if _ID.fullmatch(name):
            raise InvalidReference(
                f"not an image reference: {name} has the form of an id", hint="look it up by its digest"
            )
        if tag is None and digest is None:
            tag = "latest"
        return cls(registry, path, tag, digest)

    @property
    def name(self) -> str:
        """Return the registry and the repository, joined by a slash."""
        return f"{self.registry}/{self.repository}"

    @property
    def familiar(self) -> str:
        """Return the shortest form that parses to this reference."""
        for short in (self.repository.removeprefix(_HUB_SPACE), self.repository):
            if _split(short) == (self.registry, self.repository) and not _ID.fullmatch(short):
                return self._with(short)
        return self._with(self.name)

    def pinned(self, digest: Digest) -> Reference:
        """Return a reference to the same repository by digest only."""
        return evolve(self, tag=None, digest=digest)

    def _with(self, name: str) -> str:
        return name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def __str__(self) -> str:
        return self._with(self.name)


def _digest(text: str, digest: str) -> Digest:
    from pycontain.errors import ImageError

    try:
        return Digest(digest)
    except ImageError as error:
        raise InvalidReference(f"{shown(text)}: {error}") from error


def _split(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    is_registry = slash and ("." in first or ":" in first or first == "localhost" or first != first.lower())
    if not is_registry:
        return _HUB, name if slash else _HUB_SPACE + name
    if first in (_HUB, "index.docker.io"):
        return _HUB, rest if "/" in rest else _HUB_SPACE + rest
    return first, rest
