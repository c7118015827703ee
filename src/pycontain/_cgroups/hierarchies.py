"""The cgroup directories of one owner, in every hierarchy of this host."""

from __future__ import annotations

import os
import threading

from pycontain._cgroups import translate
from pycontain._cgroups.exec_cgroup import remove_groups, remove_subtree, wait_empty
from pycontain._cgroups.group_script import GroupScript
from pycontain._cgroups.layout import BASE, CgroupLayout, detect, write
from pycontain._cgroups.refusals import remedy
from pycontain._cgroups.steps import make_missing
from pycontain._model.limits import CgroupLimits
from pycontain.errors import UnsupportedError

PER_EXEC = frozenset({"memory", "pids", "cpu", "io"})
"""Controllers of v2 that every container enables for its exec cgroups; others only for a limit."""

_ONLY_V2 = {"io_weight": "io", "memory_high": "memory"}
_GROUP_SCRIPTS_MOST = 64


class Cgroups:
    """The cgroup directories of one owner, below which its containers get theirs.

    Attributes:
        layout: The hierarchies of this host.
        owner: The name of the directories.
        unified: The owner's directory in the v2 hierarchy, or None without one.
    """

    def __init__(self, owner: str, layout: CgroupLayout | None = None) -> None:
        self.layout = layout or detect()
        self.owner = owner
        self._made: set[str] = set()
        self._fds: dict[str, int] = {}
        self._scripts: dict[object, GroupScript] = {}
        self._lock = threading.Lock()
        self.unified = self._prepare_unified()

    def _prepare_unified(self) -> str | None:
        if self.layout.unified is None:
            return None
        directory = self.layout.unified
        for part in (BASE, self.owner):
            directory = f"{directory}/{part}"
            make_missing("unified", directory)
            for controller in self.layout.controllers:
                write(f"{directory}/cgroup.subtree_control", f"+{controller}")
        self._made.add(directory)
        return directory

    def legacy(self, controller: str) -> str:
        """Return this owner's directory in the v1 hierarchy of `controller`; the first call makes it."""
        base = self.layout.legacy[controller]
        directory = f"{base}/{BASE}/{self.owner}"
        with self._lock:
            if directory not in self._made:
                for path in (f"{base}/{BASE}", directory):
                    make_missing(controller, path)
                if controller == "memory" and self.layout.counts_sockets:
                    # The first group that counts sockets makes the kernel patch its own code.
                    # Do it once per engine, not once per start.
                    write(f"{directory}/{translate.SOCKETS}", "-1")
                self._made.add(directory)
        return directory

    def note(self, directory: str) -> bool:
        """Record a directory to remove at the end, and return whether it was not recorded before."""
        with self._lock:
            new = directory not in self._made
            self._made.add(directory)
            return new

    @property
    def kills(self) -> bool:
        """True if cgroup v2 can kill and freeze whole trees here."""
        return self.unified is not None

    @property
    def keeps_out(self) -> bool:
        """True if a cgroup namespace would keep PID 1 from writing to the exec cgroups.

        This is so where v2 is mounted with nsdelegate and PID 1 has a group beside them (cgroups(7)).
        """
        return self.layout.delegate and bool(self.layout.controllers & PER_EXEC)

    def check(self, limits: CgroupLimits) -> None:
        """Raise UnsupportedError for a limit that no controller here can hold."""
        for controller, fields in translate.v2(limits).items():
            if not self.layout.has(controller):
                name = next(iter(fields))
                raise UnsupportedError(f"{name}: it has no cgroup controller {controller}", hint=remedy())
        for name, controller in _ONLY_V2.items():
            if getattr(limits, name) is not None and controller not in self.layout.controllers:
                raise UnsupportedError(
                    f"{name} on cgroup v1", hint=f"use a host with the {controller} controller of cgroup v2"
                )
        if limits.swap is not None and limits.memory is None and "memory" not in self.layout.controllers:
            raise UnsupportedError("swap without memory on cgroup v1", hint="set memory as well")

    @property
    def usable(self) -> bool:
        """True if this user can make any cgroup here."""
        return self.unified is not None or bool(self.layout.legacy)

    def script(self, key: object) -> GroupScript | None:
        """Return the script that `keep_script` stored under a key."""
        return self._scripts.get(key)

    def keep_script(self, key: object, script: GroupScript) -> None:
        """Store a script for further containers of the same limits."""
        if len(self._scripts) >= _GROUP_SCRIPTS_MOST:
            self._scripts.clear()
        self._scripts[key] = script

    def directory_fd(self, path: str) -> int:
        """Return a descriptor of one of this owner's directories, which stays open until `forget`."""
        with self._lock:
            if (fd := self._fds.get(path)) is None:
                fd = self._fds[path] = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            return fd

    @property
    def held(self) -> list[int]:
        """The descriptors that `directory_fd` keeps open."""
        with self._lock:
            return list(self._fds.values())

    def remove(self) -> bool:
        """Remove this owner's directories in every hierarchy; False if processes are left below one."""
        self.forget()
        return remove_groups(self._made)

    def forget(self) -> None:
        """Close the descriptors only, as in a forked child."""
        while self._fds:
            os.close(self._fds.popitem()[1])


def remove_owner(owner: str, layout: CgroupLayout) -> bool:
    """Kill the processes of a dead owner and remove its cgroups; False if some could not be removed."""
    done = True
    if layout.unified is not None:
        directory = f"{layout.unified}/{BASE}/{owner}"
        if os.path.isdir(directory):
            write(f"{directory}/cgroup.kill", "1")
            wait_empty(directory, 10)
            done &= remove_subtree(directory)
    for base in layout.legacy.values():
        done &= remove_subtree(f"{base}/{BASE}/{owner}")
    return done
