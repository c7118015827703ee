"""Open file descriptors of this process, by what they refer to."""

from __future__ import annotations

import os
import re
from collections import Counter


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
