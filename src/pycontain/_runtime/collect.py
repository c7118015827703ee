"""Remove what ended containers leave, behind the caller's back but never behind its exit.

The work is done by a program of its own, the janitor: a thread of this process would
take the interpreter's lock from whoever starts the next container.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from attrs import define

from pycontain._kernel import native
from pycontain._kernel.plan import request

if TYPE_CHECKING:
    from collections.abc import Callable

    from pycontain._cgroups.group import Group
    from pycontain._kernel.launcher import Launcher
    from pycontain._state.owner import Owner

_MOST_INTERRUPTIONS = 1000
"""Handlers in a row that raise before the next one is put off; where none can be put off at all, it ends."""

_MOST_WAITING = 64
"""Containers whose remains may lie about before a caller waits for the oldest."""

_TURNS, _TURN = 400, 0.005
"""How often a user's fds on their way are waited for, and seconds in between."""


@define(eq=False)
class Remains:
    """What one container leaves: its groups, its directory, its ids, and the pidfd that tells of its end.

    taken: the collector has them.  mounts: an fd of its mount namespace, or -1.
    """

    name: str
    group: Group | None
    pidfd: int
    block: int | None
    has_directory: bool = True
    taken: bool = False
    mounts: int = -1


class Collector:
    """Hands remains to the janitor and hears what became of them."""

    def __init__(self, owner: Owner, make_janitor: Callable[[], Launcher]) -> None:
        self._owner = owner
        self._make_janitor = make_janitor
        self._janitor: Launcher | None = None
        self._waiting: dict[int, Remains] = {}
        self._number = 0
        self._lock = threading.Lock()
        self.errors: list[str] = []

    def put(self, remains: Remains) -> None:
        """Take over; returns at once unless too much is waiting already."""
        with self._lock:
            if remains.taken:
                return
            try:
                self._send(remains)
            except OSError as error:
                self._lost(error)
            # Only now: who is interrupted before comes again, and the janitor finds nothing the second time.
            remains.taken = True
            for fd in (remains.pidfd, remains.mounts):
                if fd >= 0:
                    os.close(fd)
            self._hear(_MOST_WAITING, wait=False)

    def discard(self, name: str) -> None:
        """Remove a tree below the owner's live directory, behind the caller's back."""
        self.put(Remains(name, None, -1, None))

    def settle(self) -> None:
        """Wait until everything taken over so far is removed."""
        with self._lock:
            if self._waiting and self._janitor is not None:
                self._number += 1  # its answer is known to come, whatever an interrupt lost before
                self._waiting[self._number] = Remains("settle", None, -1, None, False)
                native.send(self._janitor.socket, request(native.REMOVE, number=self._number))
            self._hear(0, wait=True)

    def close(self) -> None:
        """Remove what is left and end the janitor."""
        self.settle()
        with self._lock:
            self.forget()

    def forget(self) -> None:
        """Let go of the janitor."""
        janitor, self._janitor = self._janitor, None
        if janitor is not None:
            janitor.close()

    def _send(self, remains: Remains) -> None:
        fds, names = [], []
        if remains.group is not None:
            for fd, name in remains.group.abandon():
                fds.append(fd)
                names.append(f"g{name}")
        if remains.has_directory:
            fds.append(self._owner.live_fd)
            names.append(f"t{remains.name}")
        if remains.mounts >= 0:
            fds.append(remains.mounts)
            names.append("k")
        flags = 0
        if remains.pidfd >= 0:
            flags = native.AFTER
            fds.insert(0, remains.pidfd)
        if self._janitor is None:
            self._janitor = self._make_janitor()
        self._number += 1
        payload = "".join(f"{name}\0" for name in names).encode()
        message = request(native.REMOVE, payload, flags=flags, number=self._number)
        self._waiting[self._number] = remains
        _pass(self._janitor.socket, message, fds)

    def _hear(self, most: int, *, wait: bool) -> None:
        """Hear of what is done; wait for the rest where told to, or while more than `most` is not."""
        while self._waiting and self._janitor is not None:
            patience = -1 if wait or len(self._waiting) > most else 0
            try:
                record = native.receive(self._janitor.socket, patience)
            except TimeoutError:
                return
            except OSError as error:
                self._lost(error)
                return
            if record is None:
                self._lost(ConnectionResetError("the janitor is gone"))
                return
            self._done(record)

    def _done(self, record: native.Record) -> None:
        """Answers come in order: one that an interrupt lost is known by a later one."""
        for number in [one for one in self._waiting if one <= record.value]:
            remains = self._waiting.pop(number)
            if number == record.value and record.errno:
                # Its ids stay taken: a process of it may live.
                self.errors.append(f"{remains.name}: {os.strerror(record.errno)}")
            elif remains.block is not None:
                block, remains.block = remains.block, None
                self._owner.blocks.release(block)

    def _lost(self, error: OSError) -> None:
        """Without a janitor the remains stay for the next engine, and their ids taken until this one ends."""
        self.errors.extend(f"{one.name}: {error}" for one in self._waiting.values())
        self._waiting.clear()
        self.forget()


def _pass(socket: int, message: bytes, fds: list[int]) -> None:
    """Fds on their way count for all processes of a user until they are received (ETOOMANYREFS, unix(7))."""
    for _ in range(_TURNS):
        try:
            native.send(socket, message, fds)
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            time.sleep(_TURN)
        else:
            return
    native.send(socket, message, fds)


def shielded(work: Callable[[], None]) -> None:
    """Do the work where no signal handler interrupts it; what one raises comes when it is done.

    Handlers run in the main thread alone: there they are put off.  No thread of its own does the work, since
    none may be had, or it may die before it begins, where memory is short.
    """
    if threading.current_thread() is not threading.main_thread():
        work()
        return
    saved: dict[int, Any] = {}
    came: list[int] = []
    pending = _despite_handlers(lambda: _put_off(saved, lambda number, _: came.append(number)))
    try:
        work()
    finally:
        pending = _despite_handlers(lambda: _take_up(saved)) or pending
    for number in came:
        saved[number](number, sys._getframe())
    if pending is not None:
        raise pending


def _despite_handlers(work: Callable[[], None]) -> BaseException | None:
    """Do it again until no handler came in between; what the last one raised."""
    pending: BaseException | None = None
    for _ in range(_MOST_INTERRUPTIONS):
        try:
            work()
            break
        except BaseException as error:  # noqa: BLE001  the caller raises it
            pending = error
    return pending


def _put_off(saved: dict[int, Any], note: Callable[[int, object], None]) -> None:
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if callable(handler) and number not in saved:
            saved[number] = handler
            signal.signal(number, note)


def _take_up(saved: dict[int, Any]) -> None:
    for number, handler in saved.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)
