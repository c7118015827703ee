"""Fixed-length timeouts: insertion order is expiry order, so no heap is needed."""

from __future__ import annotations

import time
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Deadlines(Generic[Item]):
    """Timeouts of equal length for items; not thread-safe.

    Args:
        seconds: Time from `set` to the deadline.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._times: dict[Item, float] = {}

    def __len__(self) -> int:
        return len(self._times)

    def set(self, item: Item) -> None:
        """Start or restart the timeout of an item."""
        self._times.pop(item, None)
        self._times[item] = time.monotonic() + self._seconds

    def drop(self, item: Item) -> None:
        """Cancel the timeout of an item; no-op if it has none."""
        self._times.pop(item, None)

    def ahead(self) -> float | None:
        """Return the seconds until the next deadline, or None."""
        first = next(iter(self._times.values()), None)
        return None if first is None else max(first - time.monotonic(), 0)

    def due(self) -> list[Item]:
        """Remove and return the items whose timeout has expired."""
        now = time.monotonic()
        come = []
        for item, when in self._times.items():
            if when > now:
                break
            come.append(item)
        for item in come:
            del self._times[item]
        return come
