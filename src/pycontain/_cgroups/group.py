"""A container's cgroups: limits above, an exec cgroup per exec below."""

from __future__ import annotations

import contextlib
import errno
import os
import threading

from pycontain._cgroups import translate
from pycontain._cgroups.detect import BASE, Layout, detect, write
from pycontain._cgroups.exec_cgroup import (
    Counters,
    ExecCgroup,
    keyed,
    remove_groups,
    remove_subtree,
    wait_empty,
)
from pycontain._cgroups.group_script import NAME, OWNER, GroupScript
from pycontain._cgroups.refusals import remedy
from pycontain._cgroups.steps import Steps
from pycontain._kernel import files
from pycontain._kernel.waiting import PRIORITY, ready
from pycontain._model.limits import CgroupLimits
from pycontain.errors import UnsupportedError

_TO_V1 = {"io": "blkio"}
_ALWAYS = ("memory", "pids")
_ONLY_V2 = {"io_weight": "io", "memory_high": "memory"}
_GROUP_SCRIPTS = 64
_PER_EXEC = frozenset({"memory", "pids", "cpu", "io"})
"""Controllers of v2 that every container passes on to its exec cgroups; others when a limit asks for them."""


class Cgroups:
    """Where the containers of one owner live, in every hierarchy of this host."""

    def __init__(self, owner: str, layout: Layout | None = None) -> None:
        self.layout = layout or detect()
        self.owner = owner
        self._made: set[str] = set()
        self._fds: dict[str, int] = {}
        self._group_scripts: dict[object, GroupScript] = {}
        self._lock = threading.Lock()
        self.unified = self._prepare_unified()

    def _prepare_unified(self) -> str | None:
        if self.layout.unified is None:
            return None
        directory = self.layout.unified
        for part in (BASE, self.owner):
            directory = f"{directory}/{part}"
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory)
            for controller in self.layout.controllers:
                write(f"{directory}/cgroup.subtree_control", f"+{controller}")
        self._made.add(directory)
        return directory

    def legacy(self, controller: str) -> str:
        """This owner's directory in the v1 hierarchy of `controller`, made when first asked for."""
        base = self.layout.legacy[controller]
        directory = f"{base}/{BASE}/{self.owner}"
        with self._lock:
            if directory not in self._made:
                for path in (f"{base}/{BASE}", directory):
                    make_legacy(controller, path)
                if controller == "memory" and self.layout.counts_sockets:
                    # The first group that counts patches code of the kernel: once per engine, not per start.
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
        """Does a v2 tree end and freeze whole trees here?"""
        return self.unified is not None

    @property
    def keeps_out(self) -> bool:
        """True if a cgroup namespace would keep PID 1 from writing to the exec cgroups.

        This is so where v2 is mounted with nsdelegate and PID 1 has a group beside them (cgroups(7)).
        """
        return self.layout.delegate and bool(self.layout.controllers & _PER_EXEC)

    def check(self, limits: CgroupLimits) -> None:
        """Raise UnsupportedError for a limit that no controller here can hold."""
        for controller, fields in translate.v2(limits).items():
            if not self.layout.has(controller):
                name = next(iter(fields))
                raise UnsupportedError(f"{name}: no cgroup controller {controller} here", hint=remedy())
        for name, controller in _ONLY_V2.items():
            if getattr(limits, name) is not None and controller not in self.layout.controllers:
                raise UnsupportedError(
                    f"{name} on cgroup v1", hint=f"it needs cgroup v2 with the {controller} controller"
                )
        if limits.swap is not None and limits.memory is None and "memory" not in self.layout.controllers:
            raise UnsupportedError("swap without memory on cgroup v1", hint="give memory as well")

    @property
    def usable(self) -> bool:
        """Can this user make any group here?"""
        return self.unified is not None or bool(self.layout.legacy)

    def group_script(self, limits: CgroupLimits, first: int, owned: bool) -> GroupScript:
        """How groups of these limits are made by a launcher; their directories are sent from `first` on."""
        key = (limits, first, owned)
        found = self._group_scripts.get(key)
        if found is None:
            found = Group(self, NAME, OWNER if owned else None).group_script(limits, first)
            if len(self._group_scripts) >= _GROUP_SCRIPTS or limits.cpuset_cpus or limits.cpuset_mems:
                self._group_scripts.clear()  # where it says what cpuset inherits, it holds for now alone
            else:
                self._group_scripts[key] = found
        return found

    def directory_fd(self, path: str) -> int:
        """An fd of one of this owner's directories, kept open."""
        with self._lock:
            if (fd := self._fds.get(path)) is None:
                fd = self._fds[path] = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            return fd

    @property
    def held(self) -> list[int]:
        """Every fd that `directory_fd` keeps open."""
        with self._lock:
            return list(self._fds.values())

    def remove(self) -> bool:
        """Remove this owner's directories everywhere; False while something lives below."""
        self.forget()
        return remove_groups(self._made)

    def forget(self) -> None:
        """Close the fds alone."""
        while self._fds:
            os.close(self._fds.popitem()[1])


def recover(owner: str, layout: Layout) -> bool:
    """End and remove everything of a dead owner; False where something could not be removed."""
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


def make_legacy(controller: str, path: str) -> None:
    """A v1 group by itself, unless it is there already.  Raises OSError."""
    steps = Steps()
    steps.make(controller, path)
    try:
        steps.run()
    except files.Failed as error:
        if error.errno != errno.EEXIST:
            raise


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
        self._spare: list[ExecCgroup] = []
        self._busy: list[ExecCgroup] = []
        self._number = 0
        self._memory: int | None = None
        self._lock = threading.Lock()
        self.unified_fd = -1
        self.tasks: tuple[int, ...] = ()

    def make(self, limits: CgroupLimits) -> None:
        """Make the directories, write the limits, and open what a start needs.

        Raises LimitError where the kernel refuses a value.
        """
        opened = self._plan(limits).run()
        if self._unified is not None:
            self.unified_fd = opened.pop(0)
        self.tasks = tuple(opened)

    def ahead(self, limits: CgroupLimits, first: int = 0) -> bytes:
        """How a launcher makes this group, with a first exec cgroup: a script for it.

        Its parents' fds stand from `first` on among those sent.  It opens the v2 group of PID 1, if there is
        one, and the `tasks` files, in this order.
        """
        self._memory = limits.memory
        plan = self._cgroups.group_script(limits, first, self._block is not None)
        self._unified = plan.unified.replace(NAME, self.name) if plan.unified is not None else None
        self._legacy = {one: path.replace(NAME, self.name) for one, path in plan.legacy.items()}
        self._passed, self._exec_controllers, self._number = plan.passed, plan.exec_controllers, 1
        self._spare.append(plan.exec_cgroup.moved(NAME, self.name))
        return plan.script_for(self.name, self._block)

    def group_script(self, limits: CgroupLimits, first: int) -> GroupScript:
        """What `ahead` does for groups like this one."""
        steps = self._plan(limits)
        exec_cgroup, more = self._plan_exec_cgroup(None)
        steps.merge(more)
        script = steps.below(self._above(), first)
        return GroupScript(
            self._unified, dict(self._legacy), self._passed, self._exec_controllers, exec_cgroup, script
        )

    def takes(self, limits: CgroupLimits) -> bool:
        """Can a group that was made ahead hold these limits?"""
        layout = self._cgroups.layout
        new = translate.v2(limits).keys() & layout.controllers
        old = translate.v1(limits).keys() & layout.legacy.keys() - layout.controllers
        return new <= self._passed and old <= self._legacy.keys()

    def claim(self, limits: CgroupLimits, first: int) -> bytes:
        """How a launcher writes the limits of a group made ahead; its parents' fds stand from `first` on."""
        steps = Steps()
        self._memory = limits.memory
        self._limit(steps, limits)
        for exec_cgroup in self._spare:
            self._limit_exec_cgroup(steps, exec_cgroup.directory, exec_cgroup.legacy)
        return steps.below(self._above(), first)

    def _limit_exec_cgroup(self, steps: Steps, directory: str | None, legacy: dict[str, str]) -> None:
        """Repeat the container's limit of memory, for runtimes that read only their own group."""
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
        """The directories of the controllers that these limits want, the limits, and what to open."""
        new, old = translate.v2(limits).keys(), translate.v1(limits).keys()
        layout = self._cgroups.layout
        steps = Steps()
        if self._cgroups.unified is not None:
            own = self._unified = f"{self._cgroups.unified}/{self.name}"
            steps.make("unified", own)
            self._passed = layout.controllers & (_PER_EXEC | new)
            for controller in self._passed:
                steps.do(files.write(f"{own}/cgroup.subtree_control", f"+{controller}"))
            if self._passed:
                own = f"{own}/init"  # a group with controllers for its children has no processes
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
        """PID 1 stands in its groups: close what only a start needs."""
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
                if self._spare:
                    return self._begin(self._spare.pop(), idle)
        else:
            self._cgroups.check(limits)
        if self._unified is None and not self._legacy:
            return None
        exec_cgroup = self._make_exec_cgroup(limits)
        with self._lock:
            return self._begin(exec_cgroup, idle)

    def activate(self, exec_cgroup: ExecCgroup) -> None:
        """Count an idle exec cgroup as running from now on."""
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
        if self._spare or (self._unified is None and not self._legacy):
            return None
        exec_cgroup, steps = self._plan_exec_cgroup(None)
        return exec_cgroup, steps.script

    def keep(self, exec_cgroup: ExecCgroup) -> None:
        """An exec cgroup that was made ahead is there."""
        with self._lock:
            self._spare.append(exec_cgroup)

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
        # v1 counts there because the exec cgroup has no pids group; v2, from 6.11 on, where the limit stands.
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
        """A controller of v2 that only an exec asked for.  Raises UnsupportedError where it is too late."""
        if controller in self._passed:
            return
        try:
            write(f"{self._unified}/cgroup.subtree_control", f"+{controller}")
        except OSError as error:
            raise UnsupportedError(
                f"a limit of {controller} for one command alone", hint="give the container one as well"
            ) from error
        self._passed |= {controller}

    def _late(self, controller: str) -> str:
        """A controller that only an exec asked for gets its group now; older processes stay outside it."""
        directory = f"{self._cgroups.legacy(controller)}/{self.name}"
        make_legacy(controller, directory)
        self._legacy[controller] = directory
        return directory

    def release(self, exec_cgroup: ExecCgroup, *, reusable: bool = True) -> None:
        """Take an exec cgroup back after its exec, to use it again if `ExecCgroup.reset` allows that."""
        with self._lock:
            if exec_cgroup not in self._busy:
                return  # the container ended meanwhile, and its exec cgroups with it
            self._busy.remove(exec_cgroup)
            self._orphans |= exec_cgroup.populated
        if reusable and exec_cgroup.directory is not None and not self._spare and exec_cgroup.reset():
            with self._lock:
                self._spare.append(exec_cgroup)
        else:
            exec_cgroup.remove()  # one with orphans in it stays until the container ends

    def was_exclusive(self, exec_cgroup: ExecCgroup) -> bool:
        """Was this exec all that ran since it began, so that the container's own counters are its alone?"""
        with self._lock:
            return not exec_cgroup.concurrent and not self._orphans

    @property
    def freezable(self) -> bool:
        """Is there a v2 group to freeze?"""
        return self._unified is not None

    def freeze(self, frozen: bool) -> None:
        """Stop or go on with every process, and wait until all did.  Raises OSError."""
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
        """SIGKILL for every process of the container, PID 1 included."""
        if self._unified is not None:
            with contextlib.suppress(FileNotFoundError):
                write(f"{self._unified}/cgroup.kill", "1")

    def counters(self) -> Counters:
        """Return what the kernel counted for the whole container.  Raises OSError once it is removed."""
        return ExecCgroup(self._unified, self._passed, self._legacy, None).counters()

    def init_oom_killed(self) -> bool:
        """True if the kernel killed a process at the memory limit in the group of PID 1."""
        if (memory := self._legacy.get("memory")) is not None:
            path = f"{memory}/memory.oom_control"
        elif "memory" in self._passed:
            path = f"{self._unified}/init/memory.events"
        else:
            return False
        return bool(keyed(files.run(files.read(path)).texts[0], b"oom_kill"))

    def paths(self) -> dict[str, str]:
        """`{controller: directory}`; the v2 group under 'unified'."""
        return {**self._legacy, **({"unified": self._unified} if self._unified else {})}

    def abandon(self) -> list[tuple[int, str]]:
        """Return what the cleanup helper removes: (descriptor of the directory, name)."""
        self.started()
        with self._lock:
            self._spare.clear()
            self._busy.clear()
        return self.parents()

    def parents(self) -> list[tuple[int, str]]:
        """(fd of the directory, name) of the group in every hierarchy."""
        return [(self._cgroups.directory_fd(parent), self.name) for parent in self._above()]

    def _above(self) -> list[str]:
        """The directory that the group is in, in every hierarchy."""
        return [os.path.dirname(path) for path in self.paths().values()]

    @property
    def enters_unified(self) -> bool:
        """True if PID 1 is cloned into a v2 group."""
        return self._unified is not None

    @property
    def tasks_count(self) -> int:
        """The number of v1 hierarchies, in each of which PID 1 writes itself to `tasks`."""
        return len(self._legacy)
