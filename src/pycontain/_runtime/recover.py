"""Removal of what engines of dead processes left: cgroups, directories, network interfaces."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from pycontain._cgroups.hierarchies import remove_owner
from pycontain._state.owner import Claim, claim_dead

if TYPE_CHECKING:
    from collections.abc import Callable

    from pycontain._cgroups.layout import CgroupLayout
    from pycontain._kernel.launcher import Launcher
    from pycontain._state.paths import Roots

_PATIENCE, _PAUSE = 2.0, 0.01
"""Seconds to try for one dead owner, and between two tries."""


def recover(roots: Roots, layout: CgroupLayout, make_helper: Callable[[], Launcher]) -> int:
    """Remove everything of owners whose process is gone.

    An owner of which something cannot be removed yet keeps its name, so that the next engine tries again.

    Args:
        roots: The directories of the engine.
        layout: The cgroup hierarchies of this host.
        make_helper: Starts a cleanup helper; called only if there is a dead owner.

    Returns:
        The number of dead owners.
    """
    claims = claim_dead(roots)
    if not claims:
        return 0
    helper = make_helper()
    live = os.open(os.path.join(roots.data, "live"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for claim in claims:
            claim.release(removed=_remove(claim, layout, helper, live))
    finally:
        os.close(live)
        helper.close()
    return len(claims)


def _remove(claim: Claim, layout: CgroupLayout, helper: Launcher, live: int) -> bool:
    """Remove everything of one dead owner; return whether nothing is left.

    Without a cgroup that reports the end of the last process, a directory may be busy for a moment.
    """
    from pycontain._networks.recover import remove_networks

    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            groups_gone = remove_owner(claim.owner, layout)
            if os.geteuid() == 0:  # rootless networks were in a namespace that no longer exists
                remove_networks(claim.owner)
            helper.remove(live, claim.owner)
            if groups_gone:
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE)
