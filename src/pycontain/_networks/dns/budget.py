"""Budgets of processor time, which the name service shares fairly between containers."""

from __future__ import annotations

import time

SHARE = 0.04
"""Share of one processor for all containers that are over their budget."""
BURST = 0.1
"""Seconds of processor time in a full budget."""
SLICE = 0.002
"""Seconds of budget to wait for after it is spent, so that there are few wake-ups."""

_LONGEST = 3600.0
"""Seconds of one wait."""


class Budget:
    """Token bucket of one container; one query may overdraw it."""

    def __init__(self) -> None:
        self._left = BURST
        self._when = time.monotonic()

    def spend(self, seconds: float, share: float) -> float:
        """Charge processor time.

        Args:
            seconds: Processor time that was used.
            share: Seconds that are refilled per second.

        Returns:
            Seconds to wait until the budget is positive again; 0 if it is.
        """
        now = time.monotonic()
        self._left = min(self._left + (now - self._when) * share, BURST) - seconds
        self._when = now
        if self._left > 0:
            return 0.0
        return min((SLICE - self._left) / share, _LONGEST) if share > 0 else _LONGEST
