"""Deadlines that all lie the same time ahead: the order in which they are set is that in which they come."""

from __future__ import annotations

import time
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Deadlines(Generic[Item]):
    """Of one thread.  seconds: from `set` to the deadline."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._times: dict[Item, float] = {}

    def __len__(self) -> int:
        return len(self._times)

    def set(self, item: Item) -> None:
        """From now; an earlier one of the item no longer counts."""
        self._times.pop(item, None)
        self._times[item] = time.monotonic() + self._seconds

    def drop(self, item: Item) -> None:
        """The item has none."""
        self._times.pop(item, None)

    def ahead(self) -> float | None:
        """Seconds to the next one; None where there is none."""
        first = next(iter(self._times.values()), None)
        return None if first is None else max(first - time.monotonic(), 0)

    def due(self) -> list[Item]:
        """Those that have come; they have none any more."""
        now = time.monotonic()
        come = []
        for item, when in self._times.items():
            if when > now:
                break
            come.append(item)
        for item in come:
            del self._times[item]
        return come
