"""The cgroups of one container: its limits, and one cgroup per exec below them."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

from pycontain._cgroups import translate
from pycontain._cgroups.exec_cgroup import Counters, ExecCgroup, keyed
from pycontain._cgroups.group_script import NAME, OWNER, GroupScript
from pycontain._cgroups.hierarchies import PER_EXEC
from pycontain._cgroups.layout import write
from pycontain._cgroups.steps import Steps, make_missing
from pycontain._kernel import files
from pycontain._kernel.waiting import PRIORITY, ready
from pycontain.errors import UnsupportedError

if TYPE_CHECKING:
    from pycontain._cgroups.hierarchies import Cgroups
    from pycontain._model.limits import CgroupLimits

_ALWAYS = ("memory", "pids")
"""Controllers of v1 in which every container has a group, whatever its limits are."""


class Group:
    """The cgroups of one container.

    unified_fd: the v2 directory that PID 1 is cloned into, or -1.  tasks: the v1 files that it enters by.
    """

    def __init__(self, cgroups: Cgroups, name: str, block: int | None) -> None:
        self._cgroups = cgroups
        self.name = name
        self._block = block
        self._unified: str | None = None
        self._legacy: dict[str, str] = {}
        self._exec_controllers: tuple[str, ...] = ()
        self._passed: frozenset[str] = frozenset()
        self._orphans = False
        self._free: list[ExecCgroup] = []
        self._busy: list[ExecCgroup] = []
        self._number = 0
        self._memory: int | None = None
        self._lock = threading.Lock()
        self.unified_fd = -1
        self.tasks: tuple[int, ...] = ()

    def make(self, limits: CgroupLimits) -> None:
        """Make the directories, write the limits, and open the files that a start needs.

        Raises:
            LimitError: The kernel refused a value.
            UnsupportedError: The kernel has no such limit.
        """
        opened = self._plan(limits).run()
        if self._unified is not None:
            self.unified_fd = opened.pop(0)
        self.tasks = tuple(opened)

    def creation_script(self, limits: CgroupLimits, first: int = 0) -> bytes:
        """Return a script by which a launcher makes this group and its first exec cgroup.

        The script opens the v2 group of PID 1, if there is one, and then the `tasks` files.

        Args:
            limits: The container's.
            first: The position of `parents` among the descriptors that are sent with the script.
        """
        self._memory = limits.memory
        plan = _group_script(self._cgroups, limits, first, self._block is not None)
        self._unified = plan.unified.replace(NAME, self.name) if plan.unified is not None else None
        self._legacy = {one: path.replace(NAME, self.name) for one, path in plan.legacy.items()}
        self._passed, self._exec_controllers, self._number = plan.passed, plan.exec_controllers, 1
        self._free.append(plan.exec_cgroup.moved(NAME, self.name))
        return plan.script_for(self.name, self._block)

    def group_script(self, limits: CgroupLimits, first: int) -> GroupScript:
        """Return the script of `creation_script` before the name and the owner are filled in."""
        steps = self._plan(limits)
        exec_cgroup, more = self._plan_exec_cgroup(None)
        steps.merge(more)
        script = steps.below(self._above(), first)
        return GroupScript(
            self._unified, dict(self._legacy), self._passed, self._exec_controllers, exec_cgroup, script
        )

    def can_hold(self, limits: CgroupLimits) -> bool:
        """Return True if this group, which was made without limits, has the controllers for these."""
        layout = self._cgroups.layout
        new = translate.v2(limits).keys() & layout.controllers
        old = translate.v1(limits).keys() & layout.legacy.keys() - layout.controllers
        return new <= self._passed and old <= self._legacy.keys()

    def limits_script(self, limits: CgroupLimits, first: int) -> bytes:
        """Return a script by which a launcher writes the limits of a group that exists.

        Args:
            limits: The container's.
            first: The position of `parents` among the descriptors that are sent with the script.
        """
        steps = Steps()
        self._memory = limits.memory
        self._limit(steps, limits)
        for exec_cgroup in self._free:
            self._limit_exec_cgroup(steps, exec_cgroup.directory, exec_cgroup.legacy)
        return steps.below(self._above(), first)

    def _limit_exec_cgroup(self, steps: Steps, directory: str | None, legacy: dict[str, str]) -> None:
        """Repeat the container's memory limit, for language runtimes that read only their own cgroup."""
        if self._memory is None:
            return
        if directory is not None and "memory" in self._passed:
            steps.limit(directory, {"memory.max": [str(self._memory)]})
        if "memory" in legacy:
            steps.limit(legacy["memory"], {"memory.limit_in_bytes": [str(self._memory)]})

    def _limit(self, steps: Steps, limits: CgroupLimits) -> None:
        for controller, wanted in translate.v2(limits).items():
            if self._unified is not None and controller in self._cgroups.layout.controllers:
                steps.limit(self._unified, wanted)
        for controller, wanted in translate.v1(limits).items():
            if controller in self._legacy:
                if not self._cgroups.layout.counts_sockets:
                    wanted.pop(translate.SOCKETS, None)
                steps.limit(self._legacy[controller], wanted)

    def _plan(self, limits: CgroupLimits) -> Steps:
        """Return the steps that make the directories, write the limits and open what a start needs."""
        new, old = translate.v2(limits).keys(), translate.v1(limits).keys()
        layout = self._cgroups.layout
        steps = Steps()
        if self._cgroups.unified is not None:
            own = self._unified = f"{self._cgroups.unified}/{self.name}"
            steps.make("unified", own)
            self._passed = layout.controllers & (PER_EXEC | new)
            for controller in self._passed:
                steps.do(files.write(f"{own}/cgroup.subtree_control", f"+{controller}"))
            if self._passed:
                # cgroups(7), "no internal processes": a group that enables controllers has no processes.
                own = f"{own}/init"
                steps.make("unified", own)
            if self._block is not None:
                steps.do(files.own(f"{self._unified}/cgroup.procs", self._block))
            steps.finally_do(files.open_directory(own))
        for controller in layout.legacy:
            if controller in layout.controllers or (controller not in old and controller not in _ALWAYS):
                continue
            directory = f"{self._cgroups.legacy(controller)}/{self.name}"
            self._legacy[controller] = directory
            steps.make(controller, directory)
            steps.finally_do(files.open_to_write(f"{directory}/tasks"))
        self._exec_controllers = ("memory",) if "memory" in self._legacy else ()
        self._memory = limits.memory
        self._limit(steps, limits)
        return steps

    def entry_fds(self) -> list[int]:
        """Return the descriptors that a start sends: the v2 directory, if there is one, and the v1 files."""
        return [*((self.unified_fd,) if self.unified_fd >= 0 else ()), *self.tasks]

    def started(self) -> None:
        """Close the descriptors of a start: PID 1 is in its groups."""
        for fd in (*self.tasks, *((self.unified_fd,) if self.unified_fd >= 0 else ())):
            os.close(fd)
        self.tasks, self.unified_fd = (), -1

    def acquire(self, limits: CgroupLimits | None = None, *, idle: bool = False) -> ExecCgroup | None:
        """Return an exec cgroup for one exec, or None on a host without cgroups.

        Args:
            limits: Limits of the exec, or None for the container's only.
            idle: The exec waits until `activate`. Idle ones do not count as concurrent, so the container's
                counters still belong to a single running exec.

        Raises:
            LimitError: The kernel refused a value.
            UnsupportedError: No controller can hold a limit.
        """
        if limits is None:
            with self._lock:
                if self._free:
                    return self._begin(self._free.pop(), idle)
        else:
            self._cgroups.check(limits)
        if self._unified is None and not self._legacy:
            return None
        exec_cgroup = self._make_exec_cgroup(limits)
        with self._lock:
            return self._begin(exec_cgroup, idle)

    def activate(self, exec_cgroup: ExecCgroup) -> None:
        """Count an idle exec cgroup as running from now on; see `acquire`."""
        with self._lock:
            exec_cgroup.idle = False
            self._mark_concurrent(exec_cgroup)

    def _begin(self, exec_cgroup: ExecCgroup, idle: bool) -> ExecCgroup:
        self._busy.append(exec_cgroup)
        exec_cgroup.idle, exec_cgroup.concurrent = idle, False
        if not idle:
            self._mark_concurrent(exec_cgroup)
        return exec_cgroup

    def _mark_concurrent(self, exec_cgroup: ExecCgroup) -> None:
        active = [one for one in self._busy if not one.idle]
        for one in active:
            one.concurrent = len(active) > 1 or (one.concurrent and one is not exec_cgroup)

    def first_exec_cgroup(self) -> tuple[ExecCgroup, bytes] | None:
        """Return the first exec cgroup and the script that makes it; None if one exists already."""
        if self._free or (self._unified is None and not self._legacy):
            return None
        exec_cgroup, steps = self._plan_exec_cgroup(None)
        return exec_cgroup, steps.script

    def keep(self, exec_cgroup: ExecCgroup) -> None:
        """Record that the exec cgroup of `first_exec_cgroup` was made."""
        with self._lock:
            self._free.append(exec_cgroup)

    def _make_exec_cgroup(self, limits: CgroupLimits | None) -> ExecCgroup:
        exec_cgroup, steps = self._plan_exec_cgroup(limits)
        exec_cgroup.limited = limits is not None
        try:
            steps.run()
        except BaseException:
            exec_cgroup.remove()
            raise
        return exec_cgroup

    def _plan_exec_cgroup(self, limits: CgroupLimits | None) -> tuple[ExecCgroup, Steps]:
        with self._lock:
            self._number += 1
            name = f"e{self._number}"
        layout = self._cgroups.layout
        directory: str | None = None
        legacy: dict[str, str] = {}
        old = translate.v1(limits) if limits is not None else {}
        new = translate.v2(limits) if limits is not None else {}
        steps = Steps()
        if self._unified is not None:
            directory = f"{self._unified}/{name}"
            steps.make("unified", directory)
            if "memory" in self._passed:
                steps.do(files.write(f"{directory}/memory.oom.group", "1"))
            for controller in layout.controllers & new.keys():
                self._pass_on(controller)
                steps.limit(directory, new[controller])
            if self._block is not None:
                steps.do(files.own(f"{directory}/cgroup.procs", self._block))
        for controller in dict.fromkeys((*self._exec_controllers, *old)):
            if controller in layout.controllers:
                continue
            parent = self._legacy.get(controller) or self._late(controller)
            legacy[controller] = f"{parent}/{name}"
            steps.make(controller, legacy[controller])
            wanted = translate.exec_files(controller, old, self._cgroups.layout.counts_sockets)
            steps.limit(legacy[controller], wanted)
        if limits is None:
            self._limit_exec_cgroup(steps, directory, legacy)
        # Refused forks are counted in the container's group: on v1 because the exec cgroup has no pids group,
        # on v2 since Linux 6.11 because the event belongs to the group whose limit was reached.
        above = self._legacy.get("pids") if "pids" not in legacy else None
        if "pids" in self._passed:
            above = self._unified
        exec_cgroup = ExecCgroup(
            directory,
            self._passed,
            legacy,
            f"{above}/pids.events" if above else None,
        )
        return exec_cgroup, steps

    def _pass_on(self, controller: str) -> None:
        """Enable a v2 controller that only an exec needs.  Raises UnsupportedError if the kernel refuses."""
        if controller in self._passed:
            return
        try:
            write(f"{self._unified}/cgroup.subtree_control", f"+{controller}")
        except OSError as error:
            raise UnsupportedError(
                f"a {controller} limit for one command in a container that has none",
                hint=f"set a {controller} limit for the container as well",
            ) from error
        self._passed |= {controller}

    def _late(self, controller: str) -> str:
        """Make the group of a v1 controller that only an exec needs; older processes stay outside it."""
        directory = f"{self._cgroups.legacy(controller)}/{self.name}"
        make_missing(controller, directory)
        self._legacy[controller] = directory
        return directory

    def release(self, exec_cgroup: ExecCgroup, *, reusable: bool = True) -> None:
        """Take an exec cgroup back after its exec, to use it again if `ExecCgroup.reset` allows that."""
        with self._lock:
            if exec_cgroup not in self._busy:
                return  # the end of the container removed its exec cgroups
            self._busy.remove(exec_cgroup)
            self._orphans |= exec_cgroup.populated
        if reusable and exec_cgroup.directory is not None and not self._free and exec_cgroup.reset():
            with self._lock:
                self._free.append(exec_cgroup)
        else:
            exec_cgroup.remove()  # fails if processes are left; the end of the container removes it then

    def was_exclusive(self, exec_cgroup: ExecCgroup) -> bool:
        """Return True if no other exec ran since this one began: the container's counters belong to it."""
        with self._lock:
            return not exec_cgroup.concurrent and not self._orphans

    @property
    def freezable(self) -> bool:
        """True if the container has a v2 group, which can be frozen."""
        return self._unified is not None

    def freeze(self, frozen: bool) -> None:
        """Freeze or thaw every process and wait until the kernel reports it.  Raises OSError."""
        write(f"{self._unified}/cgroup.freeze", "1" if frozen else "0")
        wanted = f"frozen {int(frozen)}"
        events = os.open(f"{self._unified}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        try:
            while wanted not in os.pread(events, 256, 0).decode():
                if not ready({events: PRIORITY}, 10.0):
                    raise TimeoutError(f"the container did not become {wanted}")
        finally:
            os.close(events)

    def kill(self) -> None:
        """Send SIGKILL to every process of the container, PID 1 included, where cgroup v2 can."""
        if self._unified is not None:
            with contextlib.suppress(FileNotFoundError):
                write(f"{self._unified}/cgroup.kill", "1")

    def counters(self) -> Counters:
        """Return the counters of the whole container.  Raises OSError after its removal."""
        return ExecCgroup(self._unified, self._passed, self._legacy, None).counters()

    def init_oom_killed(self) -> bool:
        """Return True if the kernel killed a process in the group of PID 1 at the memory limit."""
        if (memory := self._legacy.get("memory")) is not None:
            path = f"{memory}/memory.oom_control"
        elif "memory" in self._passed:
            path = f"{self._unified}/init/memory.events"
        else:
            return False
        return bool(keyed(files.run(files.read(path)).texts[0], b"oom_kill"))

    def paths(self) -> dict[str, str]:
        """Return `{controller: directory}`, with the v2 group as 'unified'."""
        return {**self._legacy, **({"unified": self._unified} if self._unified else {})}

    def abandon(self) -> list[tuple[int, str]]:
        """Close the descriptors and return `parents`, below which the cleanup helper removes the group."""
        self.started()
        with self._lock:
            self._free.clear()
            self._busy.clear()
        return self.parents()

    def parents(self) -> list[tuple[int, str]]:
        """Return the descriptor of the directory above the group, and the group's name, per hierarchy."""
        return [(self._cgroups.directory_fd(parent), self.name) for parent in self._above()]

    def _above(self) -> list[str]:
        """Return the directory above the group, per hierarchy."""
        return [os.path.dirname(path) for path in self.paths().values()]

    @property
    def enters_unified(self) -> bool:
        """True if PID 1 is cloned into a v2 group."""
        return self._unified is not None

    @property
    def tasks_count(self) -> int:
        """The number of v1 hierarchies, in each of which PID 1 writes itself to `tasks`."""
        return len(self._legacy)


def _group_script(cgroups: Cgroups, limits: CgroupLimits, first: int, owned: bool) -> GroupScript:
    """Return the script for groups of these limits, whose parents are sent from descriptor `first` on."""
    key = (limits, first, owned)
    script = cgroups.script(key)
    if script is None:
        script = Group(cgroups, NAME, OWNER if owned else None).group_script(limits, first)
        # Limits of cpuset copy the sets of the groups above, which may change.
        if not (limits.cpuset_cpus or limits.cpuset_mems):
            cgroups.keep_script(key, script)
    return script
