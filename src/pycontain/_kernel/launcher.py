"""Launchers: small static programs, from which all containers of this process are cloned.

A launcher serves one start at a time.  When threads start containers at the same time, further launchers are
made, up to the number of processors.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from pycontain._kernel import native
from pycontain._kernel.hostpath import AT_FDCWD
from pycontain._kernel.plan import request
from pycontain._kernel.protocol import LauncherKind, RecordKind, RequestKind, stage_name, structure
from pycontain._kernel.waiting import is_ready
from pycontain.errors import StartError

_MEASURE = structure("pc_measure_request", "max_bytes max_inodes", without="request")
_FIRST_TABLE_SLOT = 255
"""The descriptor up to which the table of this process is grown at first."""
_PATIENCE = 10.0
"""Seconds in which a killed launcher has to end."""


class Launcher:
    """A launcher: its socket and its process.

    Args:
        plain: The caller is unprivileged (without CAP_SYS_ADMIN): the launcher makes a user namespace first.
        maps: Of `sub_id_maps`, or None for a map of one id; only with `plain`.
        files: It makes no namespaces, but joins the user namespace of a container to work on its files.
        rootless_netns: An unprivileged one with a network namespace of its own, to make networks in.
        views: The entries of its containers' /sys, as (path on the host, bytes for sysview.c).

    Attributes:
        socket: The socket for requests, or -1 once closed.
        pidfd: The process, or -1 once closed.
        precloned: The pre-cloned child that waits in it, or None.
        unanswered: Starts whose answers were not received yet, in their order.
        receiving: Held while a request is sent and its answer received.
        old_layers: The kernel's overlayfs takes no detached mounts as layers (before Linux 6.15).

    Raises:
        StartError: It could not start.
        OSError: A system call of this process failed.
    """

    def __init__(
        self,
        *,
        plain: bool = False,
        maps: tuple[list[str], list[str]] | None = None,
        files: bool = False,
        rootless_netns: bool = False,
        views: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        socket, pidfd = native.ffi.new("int *"), native.ffi.new("int *")
        kind = LauncherKind.ROOT
        if files:
            kind = LauncherKind.FILES
        elif rootless_netns:
            kind = LauncherKind.ROOTLESS_NETNS
        elif plain:
            kind = LauncherKind.PLAIN
        result = native.lib.pcx_start_launcher(kind, socket, pidfd)
        if result == -errno.EFBIG:
            raise StartError(
                "the launcher could not start: its program is larger than RLIMIT_FSIZE of this process",
                step="launcher",
                errno=errno.EFBIG,
                hint="raise the hard limit (`ulimit -Hf` in a shell, LimitFSIZE= in systemd)",
            )
        native.checked(result, "launcher")
        self.socket: int = socket[0]
        self.pidfd: int = pidfd[0]
        self.precloned: Any = None
        self.unanswered: collections.deque[Any] = collections.deque()
        self.receiving = threading.Lock()
        try:
            self.old_layers = self._receive_ready(maps)
            if views:
                self._show(views, plain=plain)
        except BaseException:
            self.close()
            raise

    def _receive_ready(self, maps: tuple[list[str], list[str]] | None) -> bool:
        record = native.receive(self.socket)
        if record is not None and record.kind == RecordKind.STARTED:
            if maps is not None:
                _write_maps(record.value, maps)
            native.send(self.socket, request(RequestKind.MAPS, value=int(maps is not None)))
            record = native.receive(self.socket)
        if record is None or record.kind != RecordKind.READY:
            failure = f"could not set up its {stage_name(record.op)}" if record else "ended during its start"
            raise StartError(
                f"the launcher {failure}",
                step="launcher",
                errno=record.errno if record else 0,
                hint="run `pycontain doctor`: user namespaces may be disabled",
            )
        return bool(record.flags)

    def _show(self, views: Sequence[tuple[str, bytes]], *, plain: bool) -> None:
        """Set up the /sys of its containers; an unprivileged launcher opens the mounts itself."""
        fds: list[int] = []
        try:
            for path, entry in () if plain else views:
                if entry.startswith(b"t"):
                    fds.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
                elif path:
                    fd = native.lib.pcx_open_tree(AT_FDCWD, os.fsencode(path), 1)
                    fds.append(native.checked(fd, "launcher"))
            native.send(self.socket, request(RequestKind.SYS, b"".join(entry for _, entry in views)), fds)
        finally:
            for fd in fds:
                os.close(fd)
        record = native.receive(self.socket)
        if record is None or record.errno:
            raise StartError(
                "the launcher could not make the containers' /sys",
                step="launcher",
                errno=record.errno if record else 0,
                hint="check that /sys is mounted on the host",
            )

    def receive_unanswered(self) -> None:
        """Receive the answers to all starts that were requested before, with `receiving` held."""
        while self.unanswered:
            self.unanswered[0].receive_answer(self.socket)
            self.unanswered.popleft()

    def measure(self, directory: int, name: str, most: tuple[int, int]) -> tuple[int, int]:
        """Count the content of a tree.

        Args:
            directory: The descriptor of the directory above the tree.
            name: The tree's name.
            most: Bytes and inodes above which counting stops.

        Returns:
            Bytes and inodes.

        Raises:
            OSError: The tree cannot be read.
            ConnectionResetError: The launcher has ended.
        """
        message = request(RequestKind.MEASURE, _MEASURE.pack(*most) + os.fsencode(name) + b"\0")
        with self.receiving:
            self.receive_unanswered()
            native.send(self.socket, message, [directory])
            record = native.receive_uninterrupted(self.socket)
        if record is None:
            raise ConnectionResetError("the launcher has ended")
        if record.errno:
            raise OSError(record.errno, os.strerror(record.errno), name)
        return record.cpu_user, record.cpu_system

    def close(self) -> None:
        """Close the launcher's descriptors, which ends it and every container that it started."""
        for fd in (self.socket, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self.socket = self.pidfd = -1

    def kill(self) -> None:
        """Kill the process and wait for its end; call `close` afterwards."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            is_ready(self.pidfd, _PATIENCE)

    def remove(self, directory: int, name: str) -> None:
        """Remove the tree `name` below a directory, as the launcher's user.  Raises OSError."""
        native.send(self.socket, request(RequestKind.REMOVE, b"t" + os.fsencode(name) + b"\0"), [directory])
        record = native.receive_uninterrupted(self.socket)
        if record is None:
            raise ConnectionResetError("the launcher has ended")
        if record.errno:
            raise OSError(record.errno, os.strerror(record.errno), name)


def _write_maps(pid: int, maps: tuple[list[str], list[str]]) -> None:
    for tool, entries in zip(("newuidmap", "newgidmap"), maps, strict=True):
        done = subprocess.run([tool, str(pid), *entries], capture_output=True, text=True, check=False)
        if done.returncode:
            raise StartError(
                f"{tool} refused the id map: {done.stderr.strip()}",
                step="id map",
                hint="check /etc/subuid and /etc/subgid",
            )


def sub_id_maps() -> tuple[list[str], list[str]] | None:
    """Return arguments for newuidmap and newgidmap: this user becomes 0, its subordinate ids 1 and above.

    Returns:
        Two lists, or None if the tools or the subordinate ids are missing.
    """
    if not (shutil.which("newuidmap") and shutil.which("newgidmap")):
        return None
    maps = []
    for path, own in (("/etc/subuid", os.getuid()), ("/etc/subgid", os.getgid())):
        found = _sub_id_range(path)
        if found is None:
            return None
        first, count = found
        maps.append(["0", str(own), "1", "1", str(first), str(min(count, 65535))])
    return maps[0], maps[1]


def _sub_id_range(path: str) -> tuple[int, int] | None:
    import pwd

    names = {str(os.getuid())}
    try:
        names.add(pwd.getpwuid(os.getuid()).pw_name)
    except KeyError:
        pass
    try:
        with open(path, encoding="ascii") as lines:
            for line in lines:
                fields = line.strip().split(":")
                if len(fields) == 3 and fields[0] in names and int(fields[2]) >= 1000:
                    return int(fields[1]), int(fields[2])
    except (OSError, ValueError):
        return None
    return None


class Borrowed:
    """A launcher that `LauncherPool.borrow` lends for a `with` block."""

    def __init__(self, pool: LauncherPool) -> None:
        self._pool = pool
        self.launcher: Launcher | None = None

    def __enter__(self) -> Launcher:
        try:
            self._pool.lend(self)
        except BaseException:
            if self.launcher is not None:
                self._pool.give_back(self.launcher)
            raise
        assert self.launcher is not None
        return self.launcher

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.launcher is not None
        if kind is not None and issubclass(kind, ConnectionError):
            self._pool.drop(self.launcher)
        else:
            self._pool.give_back(self.launcher)


class LauncherPool:
    """The launchers of one kind.

    Args:
        plain: Of `Launcher`.
        maps: Of `Launcher`.
        size: Most launchers; by default the number of processors, and at least two.
        rootless_netns: Of `Launcher`.
        views: Returns the views of a new launcher.
    """

    def __init__(
        self,
        *,
        plain: bool,
        maps: tuple[list[str], list[str]] | None,
        size: int | None = None,
        rootless_netns: bool = False,
        views: Callable[[], Sequence[tuple[str, bytes]]] = tuple,
    ) -> None:
        self._plain = plain
        self._views = views
        self._rootless_netns = rootless_netns
        self._maps = maps
        self._size = size or max(2, os.cpu_count() or 1)
        self._free: list[Launcher] = []
        self._count = 0
        self._all: list[Launcher] = []
        self._orphans: list[Any] = []
        # Locked directly: an exception of a signal handler in Condition.__enter__ would leave it locked.
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        # In a process with threads the kernel waits for a grace period whenever it grows the table.
        native.lib.pcx_grow_descriptor_table(_FIRST_TABLE_SLOT)

    def borrow(self) -> Borrowed:
        """Return a context manager that lends a launcher, made if all are in use and `size` allows it."""
        return Borrowed(self)

    def __len__(self) -> int:
        return self._count

    @property
    def idle(self) -> bool:
        """True if a launcher is free."""
        return bool(self._free)

    def precloned(self) -> list[Any]:
        """Return the pre-cloned children of all launchers, dead ones included."""
        with self._mutex:
            waiting = [launcher.precloned for launcher in self._all if launcher.precloned is not None]
            return waiting + self._orphans

    def lend(self, to: Borrowed) -> None:
        """Assign a free launcher or a new one, or wait for one."""
        with self._mutex:
            while not self._free and self._count >= self._size:
                self._changed.wait()
            if self._free:
                # No call between the two lines: a signal handler could raise after it and lose the launcher.
                to.launcher = self._free[-1]
                del self._free[-1]
                return
            self._count += 1
        try:
            to.launcher = Launcher(
                plain=self._plain, maps=self._maps, rootless_netns=self._rootless_netns, views=self._views()
            )
        except BaseException:
            with self._mutex:
                self._count -= 1
                self._changed.notify()
            raise
        with self._mutex:
            self._all.append(to.launcher)

    def give_back(self, launcher: Launcher) -> None:
        """Make a launcher free again."""
        with self._mutex:
            self._changed.notify()
            self._free.append(launcher)

    def drop(self, launcher: Launcher) -> None:
        """Remove a launcher that has ended."""
        launcher.close()
        with self._mutex:
            if launcher.precloned is not None:
                self._orphans.append(launcher.precloned)
            self._all.remove(launcher)
            self._count -= 1
            self._changed.notify()

    def forget(self) -> None:
        """Close the descriptors only, in a forked child, where a thread that is gone may hold the lock."""
        for launcher in self._all:
            launcher.close()

    def end(self) -> None:
        """End every launcher and with it every container; `precloned` is unchanged until `close`."""
        with self._mutex:
            for launcher in self._all:
                launcher.close()

    def close(self) -> None:
        """End every launcher and forget all of them."""
        with self._mutex:
            for launcher in self._all:
                launcher.close()
            self._all.clear()
            self._free.clear()
            self._count = 0
