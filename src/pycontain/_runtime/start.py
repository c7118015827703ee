"""Start of a container: a warm one, one from a pre-cloned child, or a new one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pycontain._runtime.launch import Launch
from pycontain._runtime.log import debug
from pycontain._runtime.network import JOINED
from pycontain._runtime.running import Running
from pycontain._runtime.signals import shielded
from pycontain.errors import StartError

if TYPE_CHECKING:
    from pycontain._runtime.session import Session
    from pycontain._runtime.spec import ContainerSpec


def start(
    session: Session, spec: ContainerSpec, command: tuple[bytes, Sequence[int]] | None = None
) -> Running:
    """Start a container, or leave nothing of it behind.

    Args:
        session: The session that owns it.
        spec: The container.
        command: Exec buffer and three streams of a command that is PID 1; None for the agent.

    Raises:
        StartError: A step failed; it is named.
        UnsupportedError: This host lacks a control that the spec asks for.
        LimitError: A limit cannot be set.
        PathError: A path to mount cannot be used.
    """
    if command is None and (running := session.warm.take(spec)) is not None:
        debug("container %s started in %.1f ms", spec.name, running.timings["total"] * 1000)
        return running
    try:
        return _make(session, spec, command, precloned=True)
    except ConnectionError:
        pass  # the launcher had died while it was idle; the pool has dropped it
    except StartError as error:
        if error.step != "spare":
            raise
    # An idle process dies of a signal or the OOM killer only.  A lasting cause shows again with a new one.
    try:
        return _make(session, spec, command, precloned=False)
    except ConnectionError as error:
        raise StartError(
            f"container {spec.name} could not start: its launcher died",
            step="launcher",
            errno=error.errno or 0,
            hint="the OOM killer ends it where the host has no memory left",
        ) from error


def _make(
    session: Session, spec: ContainerSpec, command: tuple[bytes, Sequence[int]] | None, *, precloned: bool
) -> Running:
    launch = Launch(session, spec, command)
    try:
        with session.launchers_for(spec.network_spec).borrow() as launcher:
            child = None
            if precloned and command is None and spec.network_spec.kind != JOINED:
                child = session.warm.precloned.take(launcher, launch.root_plan, launch.limits)
            launch.prepare(precloned=child)
            launch.ask(launcher)
            running = launch.conclude()
            session.warm.started(launcher, launch)
        session.registry.add(running)
        session.disk.add(running)
        session.kernel_memory.add(running)
        debug("container %s started in %.1f ms", spec.name, running.timings["total"] * 1000)
        return running
    except BaseException:
        shielded(lambda: _undo(session, launch))
        raise


def _undo(session: Session, launch: Launch) -> None:
    launch.abandon()
    session.cleanup.settle()
