"""The launchers of this process: small programs from which every container is born.

A launcher serves one start at a time; a second one is made when two threads
start at once, up to the number of processors.
"""

from __future__ import annotations

import collections
import contextlib
import os
import shutil
import signal
import struct
import subprocess
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from pycontain._kernel import native
from pycontain._kernel.hostpath import AT_FDCWD
from pycontain._kernel.plan import request
from pycontain._kernel.waiting import is_ready
from pycontain.errors import StartError

_EFBIG = 27
_FIRST_TABLE_SLOT = 255
_PLAIN, _FILES, _ROOTLESS_NETNS = 1, 2, 3
_PATIENCE = 10.0
"""Seconds for a killed launcher to be gone."""


class Launcher:
    """One launcher: a socket, and the process behind it.

    plain: the caller has no CAP_SYS_ADMIN; the launcher makes a user namespace of its own first.
    maps: for plain users, the id maps to write with newuidmap and newgidmap, or None for the single-id map.
    files: it makes no namespace, but joins the user namespace of the container whose files it works on.
    rootless_netns: a plain one in a network namespace of its own, in which networks can be made.
    views: of the /sys of its containers, each path of the host to show and its entry for sysview.c.
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
        kind = _FILES if files else _ROOTLESS_NETNS if rootless_netns else _PLAIN if plain else 0
        result = native.lib.pcx_start_launcher(kind, socket, pidfd)
        if result == -_EFBIG:
            raise StartError(
                "the launcher could not start: its program is larger than RLIMIT_FSIZE of this process",
                step="launcher",
                errno=_EFBIG,
                hint="raise the hard limit (`ulimit -Hf` in a shell, LimitFSIZE= in systemd)",
            )
        native.checked(result, "launcher")
        self.socket: int = socket[0]
        self.pidfd: int = pidfd[0]
        self.precloned: Any = None
        """What is known of the child that waits here, for who asked for it."""
        self.owed: collections.deque[Any] = collections.deque()
        """Starts that were asked for and not heard of yet: the answers come in this order."""
        self.listening = threading.Lock()
        try:
            self.old_layers = self._hear_ready(maps)
            if views:
                self._show(views, plain=plain)
        except BaseException:
            self.close()
            raise

    def _hear_ready(self, maps: tuple[list[str], list[str]] | None) -> bool:
        record = native.receive(self.socket)
        if record is not None and record.kind == native.STARTED:
            if maps is not None:
                _write_maps(record.value, maps)
            native.send(self.socket, request(native.MAPS, value=int(maps is not None)))
            record = native.receive(self.socket)
        if record is None or record.kind != native.READY:
            errno = record.errno if record else 0
            where = record.op if record else 0
            raise StartError(
                f"the launcher could not start (stage {where})",
                step="launcher",
                errno=errno,
                hint="user namespaces may be disabled: see `Engine().doctor()`",
            )
        return bool(record.flags)

    def _show(self, views: Sequence[tuple[str, bytes]], *, plain: bool) -> None:
        """Let its containers have a /sys; an unprivileged user's launcher opens the mounts itself."""
        fds: list[int] = []
        try:
            for path, entry in () if plain else views:
                if entry.startswith(b"t"):
                    fds.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
                elif path:
                    fd = native.lib.pcx_open_tree(AT_FDCWD, os.fsencode(path), 1)
                    fds.append(native.checked(fd, "launcher"))
            native.send(self.socket, request(native.SYS, b"".join(entry for _, entry in views)), fds)
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

    def hear_owed(self) -> None:
        """Hear of every start that was asked for, with `listening` held: the next answer is another one's."""
        while self.owed:
            self.owed[0].listen(self.socket)
            self.owed.popleft()

    def measure(self, directory: int, name: str, most: tuple[int, int]) -> tuple[int, int]:
        """Bytes and inodes of the tree `name` below a directory fd, counted up to `most`.  Raises OSError."""
        message = request(native.MEASURE, struct.pack("QQ", *most) + os.fsencode(name) + b"\0")
        with self.listening:
            self.hear_owed()
            native.send(self.socket, message, [directory])
            record = native.receive_uninterrupted(self.socket)
        if record is None:
            raise ConnectionResetError("the launcher is gone")
        if record.errno:
            raise OSError(record.errno, os.strerror(record.errno), name)
        return record.cpu_user, record.cpu_system

    def close(self) -> None:
        """End the launcher, and with it every container that it started."""
        for fd in (self.socket, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self.socket = self.pidfd = -1

    def kill(self) -> None:
        """End it at once, whatever it does, and wait until it is gone; `close` comes after."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            is_ready(self.pidfd, _PATIENCE)

    def remove(self, directory: int, name: str) -> None:
        """Remove the tree `name` below the directory fd, as the launcher's user.  Raises OSError."""
        native.send(self.socket, request(native.REMOVE, b"t" + os.fsencode(name) + b"\0"), [directory])
        record = native.receive_uninterrupted(self.socket)
        if record is None:
            raise ConnectionResetError("the launcher is gone")
        if record.errno:
            raise OSError(record.errno, os.strerror(record.errno), name)


def _write_maps(pid: int, maps: tuple[list[str], list[str]]) -> None:
    for tool, entries in zip(("newuidmap", "newgidmap"), maps, strict=True):
        done = subprocess.run([tool, str(pid), *entries], capture_output=True, text=True, check=False)
        if done.returncode:
            raise StartError(
                f"{tool} refused the map: {done.stderr.strip()}",
                step="id map",
                hint="check /etc/subuid and /etc/subgid",
            )


def sub_id_maps() -> tuple[list[str], list[str]] | None:
    """Arguments for newuidmap and newgidmap: 0 is this user, 1 and on are its sub-ids; None without them."""
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
    """A launcher on loan."""

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
    """Launchers that are free; `borrow` makes another while fewer than `size` exist."""

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
        # Taken by itself: a handler's exception in the condition's own __enter__ would leave it locked.
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        # Growth of the table in a process with threads waits for a grace period: pay once.
        native.lib.pcx_grow_descriptor_table(_FIRST_TABLE_SLOT)

    def borrow(self) -> Borrowed:
        """A launcher of one's own while a `with` lasts; a dead one is not given back."""
        return Borrowed(self)

    def __len__(self) -> int:
        return self._count

    @property
    def idle(self) -> bool:
        """Is a launcher free?"""
        return bool(self._free)

    def precloned(self) -> list[Any]:
        """Return the pre-cloned children of all launchers."""
        with self._mutex:
            waiting = [launcher.precloned for launcher in self._all if launcher.precloned is not None]
            return waiting + self._orphans

    def lend(self, to: Borrowed) -> None:
        """Give a free launcher, or a new one, or wait."""
        with self._mutex:
            while not self._free and self._count >= self._size:
                self._changed.wait()
            if self._free:
                # Without a call in between, after which a signal handler might raise and lose it.
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
        """Free again."""
        with self._mutex:
            self._changed.notify()
            self._free.append(launcher)

    def drop(self, launcher: Launcher) -> None:
        """It is dead."""
        launcher.close()
        with self._mutex:
            if launcher.precloned is not None:
                self._orphans.append(launcher.precloned)
            self._all.remove(launcher)
            self._count -= 1
            self._changed.notify()

    def forget(self) -> None:
        """In a forked child: close the fds; a thread that the child does not have may hold the lock."""
        for launcher in self._all:
            launcher.close()

    def end(self) -> None:
        """End every launcher, and so every container; what waits in them stays known until `close`."""
        with self._mutex:
            for launcher in self._all:
                launcher.close()

    def close(self) -> None:
        """End every launcher, and forget them."""
        with self._mutex:
            for launcher in self._all:
                launcher.close()
            self._all.clear()
            self._free.clear()
            self._count = 0
