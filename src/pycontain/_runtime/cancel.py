"""End running commands from another thread, a cancelled asyncio task, or a Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from pycontain._kernel import native

if TYPE_CHECKING:
    from pycontain._runtime.running import Running

_SENTINEL = 4
"""The kind of launcher that only waits for SIGINT (ext/start.c)."""

_PATIENCE = 5.0
"""Seconds for the sentinel's thread to end; it is a daemon, so the caller's exit never waits for it."""


class Cancellable(Protocol):
    """A command that runs, or one that has just ended."""

    thread: int

    def cancel(self) -> None:
        """End it with reason 'cancelled', without waiting; no-op after its end."""


class CancelToken:
    """Handle that ends commands from another thread.

    Pass one to `exec`, `popen` or `run`, and call `cancel` from anywhere.  Many commands may share a token.
    It stays cancelled: a command that starts with it later is ended at once.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        # Weak: a process that the caller drops is reported by its finalizer.
        self._commands: weakref.WeakSet[Cancellable] = weakref.WeakSet()
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """True once `cancel` was called."""
        return self._cancelled

    def cancel(self) -> None:
        """End every command that runs with this token; each returns with reason 'cancelled'.

        Returns at once; the commands return when their processes are gone.  Idempotent.
        """
        with self._lock:
            self._cancelled = True
            commands = list(self._commands)
        for one in commands:
            one.cancel()

    @contextlib.contextmanager
    def covering(self, command: Cancellable) -> Iterator[None]:
        """End this command too if `cancel` is called meanwhile, or was called before."""
        try:
            self.add(command)
            yield
        finally:
            with self._lock:
                self._commands.discard(command)

    def add(self, command: Cancellable) -> None:
        """End this command too when `cancel` is called, or now if it was called before.

        Args:
            command: The command; the token does not keep it alive.
        """
        with self._lock:
            self._commands.add(command)
            late = self._cancelled
        if late:
            command.cancel()


def cancel_all(running: Running, thread_other_than: int | None = None) -> None:
    """Cancel the commands of a container.

    Args:
        running: The container.
        thread_other_than: Identifier of a thread whose commands go on.
    """
    for one in (*running.active, *running.processes):
        if thread_other_than is None or one.thread != thread_other_than:
            one.cancel()


class TaskWatch:
    """The asyncio future that waits for this thread, as `asyncio.to_thread` makes it.

    Cancelling a task does not reach the thread that it waits for: asyncio marks its own future and lets the
    thread go on.  That future is known only to a callback of the executor's work item, which is on this
    thread's stack.  Where a later Python keeps it elsewhere, nothing is found and nothing is watched.
    """

    def __init__(self, command: Cancellable) -> None:
        self._command = command
        self._work: Any = _work_item()

    @property
    def pending(self) -> bool:
        """Return whether an executor runs this thread and its asyncio future is not watched yet."""
        return self._work is not None

    def attach(self) -> None:
        """Find the future and watch it; the loop attaches it a moment after it submits the work."""
        if self._work is None:
            return
        future = _asyncio_future(self._work)
        if future is None:
            return
        self._work = None
        command = weakref.ref(self._command)

        def done(waited_for: Any) -> None:
            running = command()
            if running is not None and waited_for.cancelled():
                running.cancel()

        try:
            future.get_loop().call_soon_threadsafe(future.add_done_callback, done)
        except RuntimeError:  # the loop is closed, so no task waits for the command
            self._command.cancel()


def _work_item() -> Any:
    """Return the concurrent future whose work this thread does, or None."""
    module = sys.modules.get("concurrent.futures.thread")
    if module is None or "asyncio" not in sys.modules:
        return None
    code = module._WorkItem.run.__code__
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is code:
            return getattr(frame.f_locals.get("self"), "future", None)
        frame = frame.f_back
    return None


def _asyncio_future(work: Any) -> Any:
    isfuture = sys.modules["asyncio"].isfuture
    for callback in list(getattr(work, "_done_callbacks", ())):
        for cell in getattr(callback, "__closure__", None) or ():
            with contextlib.suppress(ValueError):  # an empty cell
                if isfuture(cell.cell_contents):
                    return cell.cell_contents
    return None


class Interrupts:
    """Ctrl-C for commands that other threads wait for.

    Python raises KeyboardInterrupt in the main thread only, which then waits for its worker threads.  The
    children of `subprocess.run` end by the terminal's signal to the process group, which frees it at once;
    a container's processes are in sessions of their own.  A small process in the caller's group ends by the
    same signal; then the commands of other threads are cancelled, unless the caller handles SIGINT itself.
    """

    def __init__(self, list_running: Callable[[], list[Running]]) -> None:
        self._list_running = list_running
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._socket = -1
        self._pidfd = -1
        self._closed = False

    def watch(self) -> None:
        """Start the process and the thread that waits for it, unless they run."""
        if self._socket >= 0 or self._closed:
            return
        with self._lock:
            if self._socket >= 0 or self._closed:
                return
            socket, pidfd = native.ffi.new("int *"), native.ffi.new("int *")
            native.checked(native.lib.pcx_start_launcher(_SENTINEL, socket, pidfd), "sentinel")
            self._socket, self._pidfd = socket[0], pidfd[0]
            ends = socket[0], pidfd[0]
            self._thread = threading.Thread(
                target=self._wait, args=ends, name="pycontain-interrupts", daemon=True
            )
            self._thread.start()

    def _wait(self, socket: int, pidfd: int) -> None:
        with contextlib.suppress(OSError):
            native.receive(socket)
        with self._lock:
            closed = self._closed
            if self._socket == socket:
                self._socket = self._pidfd = -1
            os.close(socket)
            os.close(pidfd)
        if not closed and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            main = threading.main_thread().ident
            for one in self._list_running():
                cancel_all(one, thread_other_than=main)

    def close(self) -> None:
        """End the process; its thread ends with it."""
        with self._lock:
            self._closed = True
            thread = self._thread
            if self._socket >= 0:
                native.lib.pcx_shutdown(self._socket)
        if thread is not None and thread is not threading.current_thread():
            thread.join(_PATIENCE)

    def forget(self) -> None:
        """Close the descriptors in a forked child, which has no such thread."""
        self._lock, self._closed = threading.Lock(), True
        for fd in (self._socket, self._pidfd):
            if fd >= 0:
                os.close(fd)
        self._socket = self._pidfd = -1
