"""What dead engines left: groups, directories, interfaces."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from pycontain._cgroups import group as groups
from pycontain._networks.leftover import remove_networks
from pycontain._state.owner import Claim, claim_dead

if TYPE_CHECKING:
    from collections.abc import Callable

    from pycontain._cgroups.detect import Layout
    from pycontain._kernel.launcher import Launcher
    from pycontain._state.paths import Roots

_COLLECT_PATIENCE, _COLLECT_PAUSE = 2.0, 0.01
"""Seconds for the remains of one dead owner."""


def collect_dead(roots: Roots, layout: Layout, make_janitor: Callable[[], Launcher]) -> int:
    """Remove everything of owners whose process is gone; how many there were.

    What cannot be removed yet keeps its owner's name, so that the next engine tries again.
    """
    claims = claim_dead(roots)
    if not claims:
        return 0
    janitor = make_janitor()
    live = os.open(os.path.join(roots.data, "live"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for claim in claims:
            claim.release(collected=_collect(claim, layout, janitor, live))
    finally:
        os.close(live)
        janitor.close()
    return len(claims)


def _collect(claim: Claim, layout: Layout, janitor: Launcher, live: int) -> bool:
    """Where no cgroup tells when the last process is gone, its directory may be busy a moment longer."""
    patience = time.monotonic() + _COLLECT_PATIENCE
    while True:
        try:
            groups_gone = groups.collect(claim.owner, layout)
            if os.geteuid() == 0:  # a plain user's were in a namespace that is gone
                remove_networks(claim.owner)
            janitor.remove(live, claim.owner)
            if groups_gone:
                return True
        except OSError:
            pass
        if time.monotonic() > patience:
            return False
        time.sleep(_COLLECT_PAUSE)
