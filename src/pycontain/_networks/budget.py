"""Processor time of the name service's thread, shared fairly between the containers that it answers."""

from __future__ import annotations

import time

SHARE = 0.04
"""Of one processor, for all containers together that ask without end."""
BURST = 0.1
"""Seconds of processor time that a container has at once, after it asked for little."""
SLICE = 0.002
"""Seconds of it that a container waits for, once it has spent them, so that it has few wake-ups."""

_LONGEST = 3600.0
"""Seconds of one wait."""


class Budget:
    """Processor time of one container: it may be overdrawn by a single query, and is refilled with time."""

    def __init__(self) -> None:
        self._left = BURST
        self._when = time.monotonic()

    def spend(self, seconds: float, share: float) -> float:
        """Charge processor time; return how long to wait until some is left, 0 where some is.

        Args:
            seconds: Processor time that was used.
            share: Seconds of it that are refilled in each second.
        """
        now = time.monotonic()
        self._left = min(self._left + (now - self._when) * share, BURST) - seconds
        self._when = now
        if self._left > 0:
            return 0.0
        return min((SLICE - self._left) / share, _LONGEST) if share > 0 else _LONGEST
