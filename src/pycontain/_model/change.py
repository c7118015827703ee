"""Change of a container's root file system relative to its image."""

from __future__ import annotations

from typing import Literal

from attrs import frozen


@frozen
class Change:
    """A path that a container added, changed or deleted.

    Attributes:
        path: The absolute path in the container.
        kind: 'added', 'changed' or 'deleted'.
    """

    path: str
    kind: Literal["added", "changed", "deleted"]
