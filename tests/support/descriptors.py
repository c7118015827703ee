"""Open file descriptors of this process, by what they refer to."""

from __future__ import annotations

import os
import re
import time
from collections import Counter

_PATIENCE = 5.0
"""Seconds in which a descriptor may be open that a thread of the engine closes again."""


def open_descriptors() -> Counter[str]:
    """Return how many descriptors of each kind are open.

    A kind is the target of the link in /proc/self/fd without its numbers, so that two sockets, or the
    directories of two cgroups, are of one kind and a failed comparison names what was left open.
    """
    kinds: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
        kinds[re.sub(r"[0-9a-f]{12,}|\d+", "N", target)] += 1
    return kinds


def left_open(before: Counter[str]) -> Counter[str]:
    """Return the descriptors that are open now and were not before, by kind.

    The engine's threads open files of /proc for a moment, so a descriptor counts only if it stays open.
    """
    deadline = time.monotonic() + _PATIENCE
    while (left := open_descriptors() - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left
