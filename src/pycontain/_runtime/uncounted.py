"""Measurement of the kernel memory of a container that no cgroup counts."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pycontain._cgroups.exec_cgroup import keyed
from pycontain._cgroups.translate import SOCKETS
from pycontain._kernel import record_locks, socket_memory
from pycontain._kernel.netns import SocketSpec, open_sockets
from pycontain._runtime.watch import descendants
from pycontain.errors import StartError, StateError

if TYPE_CHECKING:
    from pycontain._runtime.running import Running

_MANY_LOCKS = 8192
"""Locks of open files in a sample from which on the rest of the host's locks are attributed in proportion."""
_SOCKET_MOST = 1 << 20
"""Bytes in the queues of one socket, unless the host's `net.core.rmem_max` allows more."""


def measure(running: Running, most: int, others: Sequence[Running]) -> int:
    """Return the bytes of sockets and file locks of a container that no cgroup counts.

    Sockets that are too few to exceed the limit count as 0, and locks of the host that are too few count
    as this container's.

    Args:
        running: the container.
        most: its limit.
        others: containers that may share its network namespace, whose sockets are measured as one.
    """
    used = _held_by_sockets(running, most, others)
    enough = (most - used) // record_locks.SIZE
    if enough < 0:
        return used
    host = record_locks.count_host() if running.session.features.privileged else None
    if host is not None and host <= enough:
        return used + host * record_locks.SIZE
    pids = (running.pid, *descendants(running.pid))
    locks = record_locks.count(pids, enough)
    if locks <= enough:
        locks = max(locks, _open_file_locks(running, host, others))
    return used + locks * record_locks.SIZE


def _open_file_locks(running: Running, host: int | None, others: Sequence[Running]) -> int:
    """Return how many locks of open files are on a container's own file systems, by a sample of the host's.

    Args:
        running: the container.
        host: the number of locks on the host, if that is known.
        others: containers whose file systems are not its own.
    """
    found = record_locks.Sample(0, 0, complete=True)
    with contextlib.suppress(OSError):
        own = _devices(running.pid)
        found = record_locks.sample(own)
        if found.found < _MANY_LOCKS:
            return found.found
        own -= _devices(os.getpid())
        for other in others:
            with contextlib.suppress(OSError):
                own -= _devices(other.pid)
        found = record_locks.sample(own)
    if found.complete or host is None or found.found < _MANY_LOCKS:
        return found.found
    return found.found * host // found.lines


def _devices(pid: int) -> set[bytes]:
    """Return the devices of the mounts that a process has, as /proc/locks has them."""
    with open(f"/proc/{pid}/mountinfo", "rb") as file:
        pairs = {line.split(None, 3)[2] for line in file}
    return {b"%02x:%02x" % tuple(map(int, pair.split(b":"))) for pair in pairs}


def _held_by_sockets(running: Running, most: int, others: Sequence[Running]) -> int:
    try:
        namespace = _namespace(running.pid)
        if namespace == _namespace("self"):
            return 0  # the host's: its sockets are not this container's
        sockets, waiting = socket_memory.count_sockets(running.pid)
        if sockets * _socket_most() + waiting * socket_memory.WAITING <= most:
            return 0
        countable, held = socket_memory.queued(running.pid)
    except OSError:
        return 0  # it has ended
    sharing = [running]
    for other in others:
        with contextlib.suppress(OSError):
            if _namespace(other.pid) == namespace:
                sharing.append(other)
    if (so_far := held + _uncounted(countable, sharing)) > most:
        return so_far
    with contextlib.suppress(OSError, StartError, StateError):
        buffers, unowned = _tcp(running)
        countable += buffers
        held += unowned
    return held + _uncounted(countable, sharing)


def _tcp(running: Running) -> tuple[int, int]:
    """Return the memory of the TCP sockets in a container's network namespace."""
    wanted = [SocketSpec(socket.AF_NETLINK, socket.SOCK_RAW, socket_memory.SOCK_DIAG)]
    pidfd = running.share_pidfd()
    try:
        with running.session.launchers_for(running.spec.network_spec).borrow() as launcher:
            (fd,) = open_sockets(launcher, pidfd, wanted, {})
    finally:
        os.close(pidfd)
    with socket.socket(fileno=fd) as diag:
        return socket_memory.tcp(diag)


def _namespace(pid: int | str) -> int:
    """Return the inode of a process's network namespace."""
    return os.stat(f"/proc/{pid}/ns/net").st_ino


def _socket_most() -> int:
    """Return how many bytes the queues of one socket hold at most."""
    return max(_SOCKET_MOST, 2 * _number("/proc/sys/net/core/rmem_max"))


def _uncounted(buffers: int, sharing: Sequence[Running]) -> int:
    """Return the bytes of socket buffers that no cgroup counted within a limit.

    Args:
        buffers: bytes that a cgroup can count, of all sockets of a network namespace.
        sharing: the containers in it.
    """
    counted = beyond = 0
    for running in sharing:
        paths = running.group.paths() if running.group is not None else {}
        if (memory := paths.get("memory")) is not None:
            own = _number(f"{memory}/{SOCKETS.replace('limit', 'usage')}")
            counted += own
            # The kernel lets a socket have one buffer although the limit is reached.
            beyond += max(0, own - _number(f"{memory}/{SOCKETS}"))
        elif (unified := paths.get("unified")) is not None:
            with contextlib.suppress(OSError), open(f"{unified}/memory.stat", "rb") as file:
                counted += keyed(file.read(), b"sock") or 0
    return max(0, buffers - counted) + beyond


def _number(path: str) -> int:
    """Return the number in a file, or 0 where there is no such file."""
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except OSError:
        return 0
