"""PureContainerPath: the attributes of a container path that need no file system access."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, TypeAlias

if TYPE_CHECKING:
    from pathlib import PurePosixPath

    from pycontain._objects.container import Container

Other: TypeAlias = "PureContainerPath | PurePosixPath | str"


class PureContainerPath:
    """An absolute path of a container, with the attributes of pathlib.PurePosixPath.

    Raises:
        ValueError: The path is relative.
    """

    __slots__ = ("_container", "_pure", "_user")

    def __init__(self, container: Container, path: Other, user: str | int | None = None) -> None:
        self._container = container
        self._user = user
        self._pure = pure_path(path)
        if not self._pure.is_absolute():
            raise ValueError(f"a container path must be absolute, got {str(path)[:80]!r}")

    @property
    def container(self) -> Container:
        """Container of the path."""
        return self._container

    @property
    def pure(self) -> PurePosixPath:
        """The path as a PurePosixPath."""
        return self._pure

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self._pure.name

    @property
    def stem(self) -> str:
        """Last part of the path without its suffix."""
        return self._pure.stem

    @property
    def suffix(self) -> str:
        """Suffix of the last part, with its dot."""
        return self._pure.suffix

    @property
    def suffixes(self) -> list[str]:
        """All suffixes of the last part."""
        return self._pure.suffixes

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts of the path, the root first."""
        return self._pure.parts

    @property
    def root(self) -> str:
        """Always '/'."""
        return self._pure.root

    @property
    def anchor(self) -> str:
        """Always '/'."""
        return self._pure.anchor

    @property
    def parent(self) -> Self:
        """The path without its last part."""
        return self._with(self._pure.parent)

    @property
    def parents(self) -> tuple[Self, ...]:
        """All parents, the nearest first."""
        return tuple(self._with(one) for one in self._pure.parents)

    def __truediv__(self, other: Other) -> Self:
        return self._with(self._pure / pure_path(other))

    def joinpath(self, *others: Other) -> Self:
        """Return the path with further parts; an absolute one discards those before it."""
        return self._with(self._pure.joinpath(*(pure_path(one) for one in others)))

    def with_name(self, name: str) -> Self:
        """Return the path with another last part.

        Raises:
            ValueError: The name is malformed.
        """
        return self._with(self._pure.with_name(name))

    def with_stem(self, stem: str) -> Self:
        """Return the path with another last part that has the same suffix.

        Raises:
            ValueError: The stem is malformed.
        """
        return self._with(self._pure.with_stem(stem))

    def with_suffix(self, suffix: str) -> Self:
        """Return the path with another suffix.

        Raises:
            ValueError: The suffix is malformed.
        """
        return self._with(self._pure.with_suffix(suffix))

    def relative_to(self, other: Other) -> PurePosixPath:
        """Return the path relative to one of its parents.

        Raises:
            ValueError: The path is not below `other`.
        """
        return self._pure.relative_to(pure_path(other))

    def is_relative_to(self, other: Other) -> bool:
        """Return whether the path is `other` or below it."""
        return self._pure.is_relative_to(pure_path(other))

    def is_absolute(self) -> bool:
        """Return True."""
        return True

    def match(self, pattern: str) -> bool:
        """Return whether the path matches a pattern, as `pathlib.PurePath.match` does."""
        return self._pure.match(pattern)

    def as_posix(self) -> str:
        """Return the path as text."""
        return str(self._pure)

    def __str__(self) -> str:
        return str(self._pure)

    def __repr__(self) -> str:
        return f"<ContainerPath {str(self._pure)!r} of {self._container.name}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PureContainerPath):
            return NotImplemented
        return self._container is other._container and self._pure == other._pure

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, PureContainerPath):
            return NotImplemented
        return self._pure < other._pure

    def __hash__(self) -> int:
        return hash((id(self._container), self._pure))

    def _with(self, pure: PurePosixPath) -> Self:
        return type(self)(self._container, pure, self._user)


def pure_path(path: Other) -> PurePosixPath:
    """Return a path as a PurePosixPath.

    Raises:
        TypeError: The value is not a path.
    """
    # Imported on first use, since pathlib imports urllib.
    from pathlib import PurePosixPath

    if isinstance(path, PureContainerPath):
        return path.pure
    if isinstance(path, PurePosixPath):
        return path
    if isinstance(path, str):
        return PurePosixPath(path)
    raise TypeError(f"a path must be text or a ContainerPath, got {type(path).__name__}")
