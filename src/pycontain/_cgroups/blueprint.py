"""How a launcher makes a container's groups: worked out once for containers of the same limits."""

from __future__ import annotations

from attrs import frozen

from pycontain._cgroups.leaf import Leaf

NAME = "\x02name\x03"
"""Stands for the name of the group; no part of it is the beginning of it."""
OWNER = 1111111111
"""Stands for the id that may start processes in it: as many digits as every block has."""


@frozen(eq=False)
class Blueprint:
    """A group that is not there, with a first leaf, and the script that makes it.

    unified, legacy, passed, leaf_controllers: as `Group` has them.
    """

    unified: str | None
    legacy: dict[str, str]
    passed: frozenset[str]
    leaf_controllers: tuple[str, ...]
    leaf: Leaf
    script: bytes

    def script_for(self, name: str, owner: int | None) -> bytes:
        """What makes the group `name`."""
        script = self.script.replace(NAME.encode(), name.encode())
        return script if owner is None else script.replace(b"%d" % OWNER, b"%d" % owner)
