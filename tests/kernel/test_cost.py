"""Counted costs of a start and an exec: system calls, mount detaches, waits for RCU grace periods."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain import Container, Engine
from pycontain._kernel.pidfd import pid_of

TRACING = Path("/sys/kernel/tracing/instances")
WAITS = ("synchronize_rcu", "__wait_rcu_gp", "rcu_sync_enter", "rcu_barrier")
MOST_CALLS = 580
"""System calls of launcher, child and agent for one start: a tenth above the 529 that were counted.

Of these the overlays of the three host trees take 54, the view of /sys 20, the user that owns the
container's counters 4.
"""


@pytest.fixture
def waits() -> Iterator[Path]:
    """Provide a trace instance for uninterruptible waits with kernel stacks, not yet enabled."""
    if not os.access(TRACING, os.W_OK):
        pytest.skip("no tracefs that this user may write")
    instance = TRACING / f"pyc{os.getpid()}"
    try:
        instance.mkdir()
    except OSError as error:
        pytest.skip(f"tracefs takes no instance here: {error.strerror}")
    try:
        event = instance / "events/sched/sched_switch"
        try:
            (instance / "options/stacktrace").write_text("1")
        except OSError as error:
            pytest.skip(f"no stack traces of waits here: {error.strerror}")
        (event / "filter").write_text("prev_state & 2")
        (instance / "events/sched/sched_process_fork/enable").write_text("1")
        yield instance
        (event / "enable").write_text("0")
    finally:
        instance.rmdir()


@contextlib.contextmanager
def tracing(instance: Path) -> Iterator[None]:
    """Trace waits while the block runs; forks are traced all the time."""
    enable = instance / "events/sched/sched_switch/enable"
    enable.write_text("1")
    try:
        yield
    finally:
        enable.write_text("0")


def grace_periods(instance: Path, engine: Engine) -> dict[str, set[int]]:
    """Return the pids that waited for a grace period by call: this process and children of its launchers.

    One wait may show as several, since a sleeper is woken to look and sleeps on.
    """
    found: dict[str, set[int]] = {}
    ours = {os.getpid()} | {pid_of(launcher.pidfd) for launcher in engine._session.launchers._all}
    for block in re.split(r"\n(?= *\S.*-\d+ +\[\d+\])", (instance / "trace").read_text()):
        born = re.search(r"sched_process_fork: comm=.* pid=(\d+) child_comm=.* child_pid=(\d+)", block)
        if born is not None and int(born[1]) in ours:
            ours.add(int(born[2]))
        head = re.match(r" *\S.*-(\d+) +\[", block)
        stack = re.findall(r"=> (\S+)", block)
        if head is None or int(head[1]) not in ours or not any(name.startswith(WAITS) for name in stack):
            continue
        calls = ("__x64_sys_", "__do_sys_", "__arm64_sys_", "do_exit")
        call = next((name for name in stack if name.startswith(calls)), stack[-1])
        found.setdefault(call, set()).add(int(head[1]))
    return found


def test_start_waits_for_a_single_detach(waits: Path, engine: Engine) -> None:
    """Paced starts, because waits that are cheap in a burst take long on an idle machine."""
    starts = 20
    for _ in range(3):
        Container().start().remove()
    for _ in range(starts):
        container = Container()
        time.sleep(0.06)
        with tracing(waits):
            container.start()
        container.remove()
    engine.settle()
    found = grace_periods(waits, engine)
    detaching = found.pop("__x64_sys_umount", set()) | found.pop("__arm64_sys_umount", set())
    assert not found, found
    assert len(detaching) <= starts  # once in the life of each PID 1


def test_exec_waits_for_no_grace_period(waits: Path, engine: Engine, container: Container) -> None:
    container.exec(["true"])
    for _ in range(20):
        time.sleep(0.06)
        with tracing(waits):
            container.exec(["true"])
    assert not grace_periods(waits, engine)


def test_the_trace_sees_a_wait(waits: Path, engine: Engine) -> None:
    """Control: a move by cgroup.procs, which pycontain never makes, is found."""
    base = Path("/sys/fs/cgroup/memory")
    if not base.is_dir():
        base = Path("/sys/fs/cgroup")
    group = base / f"pyc{os.getpid()}"
    group.mkdir()
    found: dict[str, set[int]] = {}
    try:
        for _ in range(10):
            time.sleep(0.2)
            child = os.fork()
            if child == 0:
                time.sleep(5)
                os._exit(0)
            with tracing(waits):
                (group / "cgroup.procs").write_text(str(child))
            os.kill(child, 9)
            os.waitpid(child, 0)
            found = grace_periods(waits, engine)
            if found:
                break
    finally:
        time.sleep(0.05)
        group.rmdir()
    if not found:
        pytest.skip("this kernel moves processes without waiting (favordynmods)")


@pytest.fixture
def straced(engine: Engine, tmp_path: Path) -> Iterator[Path]:
    """Trace the launcher and its descendants by strace."""
    program = shutil.which("strace")
    if program is None:
        pytest.skip("no strace on this host")
    for _ in range(2):  # the first uses up a pre-cloned child if there is one; no other is made after a pause
        time.sleep(1.1)
        Container().start().remove()
    time.sleep(1.1)
    (launcher,) = engine._session.launchers._free[-1:]
    out = tmp_path / "calls"
    tracer = subprocess.Popen(
        [program, "-f", "-qq", "-o", str(out), "-p", str(pid_of(launcher.pidfd))], stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 10
        while "TracerPid:\t0" in Path(f"/proc/{pid_of(launcher.pidfd)}/status").read_text():
            if tracer.poll() is not None or time.monotonic() > deadline:
                pytest.skip("strace may not attach here")
            time.sleep(0.01)
        yield out
    finally:
        tracer.terminate()
        tracer.communicate()


def test_system_calls_of_a_start(straced: Path, engine: Engine) -> None:
    supervised = not engine._session.cgroups.kills  # a supervisor is a third process then
    with Container() as container:
        container.exec(["true"])
        time.sleep(0.3)
        lines = straced.read_text().splitlines()
    calls = collections.Counter(
        match[1] for line in lines if (match := re.match(r"\d+ +(\w+)\(", line)) is not None
    )
    first_execve = next(at for at, line in enumerate(lines) if " execve(" in line)
    start = sum(re.match(r"\d+ +\w+\(", line) is not None for line in lines[:first_execve])
    assert calls["umount2"] == 1, calls
    assert calls["pivot_root"] == 1, calls
    assert calls["clone3"] == (3 if supervised else 2), calls
    assert calls["seccomp"] == 2, calls
    assert not [line for line in lines if "cgroup.procs" in line]
    assert start <= MOST_CALLS, (start, calls)
