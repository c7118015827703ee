"""Addresses that allowed names resolved to: how long each is kept, and how many for each container."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from attrs import frozen

MOST_PER_ANSWER = 256
"""Addresses of one answer that are allowed; the rest is withheld from the answer too."""
MOST_PER_CONTAINER = 8192
"""Elements of one container; beyond, its oldest is removed."""
MOST = 16384
"""Elements of one network; beyond, the oldest is removed."""
MOST_NAMES, MOST_NAMES_PER_CONTAINER = 4096, 1024
"""Refused names that are kept, of a network and of one container in it; later ones are not recorded."""

Key = tuple[str, bytes]
"""The name of a set of the firewall, and a key in it."""


@frozen
class Held:
    """DNS name of an element, its deadline on the monotonic clock, and the container that asked for it."""

    name: str
    until: float
    container: str


class Learned:
    """The elements of one network, oldest first."""

    def __init__(self) -> None:
        self._held: dict[Key, Held] = {}
        self._of: dict[str, dict[Key, None]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._held)

    def get(self, key: Key) -> Held | None:
        """Return what is known of an element."""
        return self._held.get(key)

    def add(self, key: Key, held: Held) -> None:
        """Add or renew an element as the newest one."""
        self.drop(key)
        self._held[key] = held
        self._of.setdefault(held.container, {})[key] = None

    def drop(self, key: Key) -> None:
        """Forget an element; no-op for one that is not known."""
        held = self._held.pop(key, None)
        if held is not None:
            own = self._of[held.container]
            del own[key]
            if not own:
                del self._of[held.container]

    def surplus(self, container: str) -> Iterator[Key]:
        """Forget and yield the oldest elements until the bounds hold."""
        while len(self._of.get(container, ())) > MOST_PER_CONTAINER:
            yield self._first(self._of[container])
        while len(self._held) > MOST:
            yield self._first(self._held)

    def _first(self, keys: dict[Key, Held] | dict[Key, None]) -> Key:
        key = next(iter(keys))
        self.drop(key)
        return key

    def outdated(self, allows: Callable[[str], bool]) -> list[Key]:
        """Return the elements of names that are not allowed, and those that have expired."""
        now = time.monotonic()
        return [key for key, held in self._held.items() if held.until < now or not allows(held.name)]


class RefusedNames:
    """Counts of the queries for names that are not allowed, by container."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, int]] = {}
        self._kept = 0

    def add(self, container: str, name: str) -> None:
        """Count a name; a new one beyond the bounds is not recorded."""
        counts = self._counts.setdefault(container, {})
        if name in counts:
            counts[name] += 1
        elif len(counts) < MOST_NAMES_PER_CONTAINER and self._kept < MOST_NAMES:
            counts[name] = 1
            self._kept += 1

    def items(self) -> list[tuple[str, int]]:
        """Return each name with its count in all containers."""
        totals: dict[str, int] = {}
        for counts in self._counts.values():
            for name, count in counts.items():
                totals[name] = totals.get(name, 0) + count
        return list(totals.items())
