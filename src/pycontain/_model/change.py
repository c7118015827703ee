"""What a container has made of its image."""

from __future__ import annotations

from typing import Literal

from attrs import frozen


@frozen
class Change:
    """One path below the root, and what became of it."""

    path: str
    kind: Literal["added", "changed", "deleted"]
