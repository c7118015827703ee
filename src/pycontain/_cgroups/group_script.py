"""The script by which a launcher makes cgroups, computed once for containers of the same limits."""

from __future__ import annotations

from attrs import frozen

from pycontain._cgroups.exec_cgroup import ExecCgroup

NAME = "\x02name\x03"
"""Placeholder for the group's name; no suffix of it is a prefix of it."""
OWNER = 1111111111
"""Placeholder for the id that may start processes in the group; ids of blocks have as many digits."""


@frozen(eq=False)
class GroupScript:
    """The file operations that make a group and its first exec cgroup, with placeholders.

    unified, legacy, passed, exec_controllers: as in `Group`.
    """

    unified: str | None
    legacy: dict[str, str]
    passed: frozenset[str]
    exec_controllers: tuple[str, ...]
    exec_cgroup: ExecCgroup
    script: bytes

    def script_for(self, name: str, owner: int | None) -> bytes:
        """Return the script for the group `name`, whose processes the id `owner` may start."""
        script = self.script.replace(NAME.encode(), name.encode())
        return script if owner is None else script.replace(b"%d" % OWNER, b"%d" % owner)
