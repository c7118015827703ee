"""Removal of the cgroups and directories of ended containers, in the background.

A separate program, the cleanup helper, does the work: a thread of this process would take the interpreter
lock while the next container starts.  The engine waits for it when it closes, so nothing is left at exit.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from typing import TYPE_CHECKING

from attrs import define

from pycontain._kernel import native
from pycontain._kernel.plan import request
from pycontain._kernel.protocol import AFTER, RequestKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from pycontain._cgroups.group import Group
    from pycontain._kernel.launcher import Launcher
    from pycontain._state.owner import Owner

_MOST_PENDING = 64
"""Jobs that may be pending before a caller waits for the oldest."""

_TRIES, _PAUSE = 400, 0.005
"""Tries to pass descriptors while too many of this user are in flight, and seconds between two."""


@define(eq=False)
class CleanupJob:
    """Everything of one container that has to be removed after its end.

    Args:
        name: Name of its directory below the owner's live directory.
        group: Its cgroups, None without any.
        pidfd: Descriptor of its PID 1, after whose death the work begins, or -1.
        block: Its block of user ids, which is free again when the work is done.
        has_directory: Whether there is a directory to remove.
        taken: Whether the job was handed to the cleanup helper.
        mounts: Descriptor of its mount namespace, or -1.
    """

    name: str
    group: Group | None
    pidfd: int
    block: int | None
    has_directory: bool = True
    taken: bool = False
    mounts: int = -1


class Cleanup:
    """Jobs of the cleanup helper, which is started with the first one."""

    def __init__(self, owner: Owner, make_helper: Callable[[], Launcher]) -> None:
        self._owner = owner
        self._make_helper = make_helper
        self._helper: Launcher | None = None
        self._pending: dict[int, CleanupJob] = {}
        self._number = 0
        self._lock = threading.Lock()
        self.errors: list[str] = []

    def put(self, job: CleanupJob) -> None:
        """Hand over a job and its descriptors; returns at once unless too many are pending.  Idempotent."""
        with self._lock:
            if job.taken:
                return
            try:
                self._send(job)
            except OSError as error:
                self._lose(error)
            # Set after the request: a caller that was interrupted before this calls again, and the helper
            # removes nothing the second time.
            job.taken = True
            for fd in (job.pidfd, job.mounts):
                if fd >= 0:
                    os.close(fd)
            self._receive(_MOST_PENDING, wait=False)

    def discard(self, name: str) -> None:
        """Remove a tree below the owner's live directory, in the background."""
        self.put(CleanupJob(name, None, -1, None))

    def settle(self) -> None:
        """Wait until every job handed over so far is done."""
        with self._lock:
            if self._pending and self._helper is not None:
                # An interrupt may have lost an answer: the answer to this request comes last and implies all.
                self._number += 1
                self._pending[self._number] = CleanupJob("settle", None, -1, None, False)
                native.send(self._helper.socket, request(RequestKind.REMOVE, number=self._number))
            self._receive(0, wait=True)

    def close(self) -> None:
        """Finish every job and end the cleanup helper."""
        self.settle()
        with self._lock:
            self.forget()

    def forget(self) -> None:
        """Close this process's end of the cleanup helper."""
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.close()

    def _send(self, job: CleanupJob) -> None:
        fds, names = [], []
        if job.group is not None:
            for fd, name in job.group.abandon():
                fds.append(fd)
                names.append(f"g{name}")
        if job.has_directory:
            fds.append(self._owner.live_fd)
            names.append(f"t{job.name}")
        if job.mounts >= 0:
            fds.append(job.mounts)
            names.append("k")
        flags = 0
        if job.pidfd >= 0:
            flags = AFTER
            fds.insert(0, job.pidfd)
        if self._helper is None:
            self._helper = self._make_helper()
        self._number += 1
        payload = "".join(f"{name}\0" for name in names).encode()
        message = request(RequestKind.REMOVE, payload, flags=flags, number=self._number)
        self._pending[self._number] = job
        _pass(self._helper.socket, message, fds)

    def _receive(self, most: int, *, wait: bool) -> None:
        """Read the answers so far; wait for all with `wait`, else until at most `most` are pending."""
        while self._pending and self._helper is not None:
            patience = -1 if wait or len(self._pending) > most else 0
            try:
                record = native.receive(self._helper.socket, patience)
            except TimeoutError:
                return
            except OSError as error:
                self._lose(error)
                return
            if record is None:
                self._lose(ConnectionResetError("the cleanup helper died"))
                return
            self._finish(record)

    def _finish(self, record: native.Record) -> None:
        """Finish the job of this answer, and those before it, whose answers an interrupt lost."""
        for number in [one for one in self._pending if one <= record.value]:
            job = self._pending.pop(number)
            if number == record.value and record.errno:
                # The block stays taken, because a process with its ids may live.
                self.errors.append(f"{job.name}: {os.strerror(record.errno)}")
            elif job.block is not None:
                block, job.block = job.block, None
                self._owner.blocks.release(block)

    def _lose(self, error: OSError) -> None:
        """Leave the pending jobs to the next engine; their blocks stay taken until this one ends."""
        self.errors.extend(f"{one.name}: {error}" for one in self._pending.values())
        self._pending.clear()
        self.forget()


def _pass(socket: int, message: bytes, fds: list[int]) -> None:
    """Send a request, waiting while too many descriptors are in flight.

    Descriptors that were sent and not received count for all processes of a user (ETOOMANYREFS, unix(7)).
    """
    for _ in range(_TRIES):
        try:
            native.send(socket, message, fds)
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            time.sleep(_PAUSE)
        else:
            return
    native.send(socket, message, fds)
