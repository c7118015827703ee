"""Memory of the sockets of a network namespace, as the kernel reports it by sock_diag(7) and /proc/net."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator

SOCK_DIAG = 4
"""The netlink protocol of sock_diag."""

_BY_FAMILY, _DONE, _ERROR = 20, 3, 2
_DUMP = 0x301
_TCP, _ALL_STATES = 6, 0xFFFF
_MEMORY = 7
"""INET_DIAG_SKMEMINFO."""
_REQUEST = struct.Struct("=IHHIIBBBxI48x")
_HEADER = struct.Struct("=IHHII")
_MESSAGE = struct.Struct("=BB66xI")
"""struct inet_diag_msg: family, state, ..., inode."""
_ATTRIBUTE = struct.Struct("=HH")
_RECEIVED, _FORWARD, _QUEUED = 0, 4, 5
"""Places in the memory report of a socket: receive and error queue, allocated ahead, queued to be sent."""

_ESTABLISHED, _SYN_RECEIVED, _TIME_WAIT, _CLOSE_WAIT = 1, 3, 6, 8
UNACCEPTED, _REQUESTED, WAITING = 2560, 320, 256
"""Bytes of a connection that no process has accepted, of one in its handshake, of one in TIME_WAIT."""

_COLUMNS = {"netlink": 4, "packet": 6}
"""Column with the receive queue in bytes, by file of /proc/net."""
_QUEUES = ("udp", "udp6", "udplite", "udplite6", "icmp", "icmp6", "raw", "raw6")
"""Files whose fifth column is the send and the receive queue, in hexadecimal."""
_TIMEOUT = 5.0


def count_sockets(pid: int) -> tuple[int, int]:
    """Return how many sockets of every kind, and connections in TIME_WAIT, the namespace of a process has.

    Raises:
        OSError: the process has ended.
    """
    used = waiting = 0
    for line in _read(pid, "sockstat").splitlines():
        fields = line.split()
        if fields[0] == b"sockets:":
            used = int(fields[2])
        elif fields[0] == b"TCP:":
            waiting = int(fields[fields.index(b"tw") + 1])
    return used, waiting


def queued(pid: int) -> tuple[int, int]:
    """Return the bytes in receive and error queues of sockets other than TCP's and AF_UNIX'.

    Args:
        pid: a process in the network namespace.

    Returns:
        Bytes of protocols whose buffers a cgroup can count (UDP), and of those that it never counts.

    Raises:
        OSError: the process has ended.
    """
    countable = uncountable = 0
    for name in _QUEUES:
        found = sum(int(fields[4].split(b":")[1], 16) for fields in _rows(pid, name))
        if name.startswith("udp"):
            countable += found
        else:
            uncountable += found
    uncountable += sum(int(row[at]) for name, at in _COLUMNS.items() for row in _rows(pid, name))
    return countable, uncountable


def tcp(diag: socket.socket) -> tuple[int, int]:
    """Return the memory of the TCP sockets of a namespace.

    Args:
        diag: a socket of `SOCK_DIAG` that was opened in it.

    Returns:
        Bytes of buffers, and of connections that belong to no process: those that were not accepted, that
        are in their handshake or in TIME_WAIT.

    Raises:
        OSError: the kernel has no tcp_diag, or did not answer.
    """
    buffers = owned_by_none = 0
    for family in (socket.AF_INET, socket.AF_INET6):
        for state, inode, memory in _dump(diag, family):
            if memory:
                buffers += memory[_RECEIVED] + memory[_FORWARD] + memory[_QUEUED]
            if state == _TIME_WAIT:
                owned_by_none += WAITING
            elif state == _SYN_RECEIVED:
                owned_by_none += _REQUESTED
            elif inode == 0 and state in (_ESTABLISHED, _CLOSE_WAIT):
                owned_by_none += UNACCEPTED
    return buffers, owned_by_none


def _dump(diag: socket.socket, family: int) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Yield state, inode and memory report of each TCP socket of one family."""
    diag.settimeout(_TIMEOUT)
    wanted = 1 << (_MEMORY - 1)
    diag.send(_REQUEST.pack(_REQUEST.size, _BY_FAMILY, _DUMP, family, 0, family, _TCP, wanted, _ALL_STATES))
    while True:
        data = diag.recv(1 << 17)
        at = 0
        while at < len(data):
            size, kind, _, _, _ = _HEADER.unpack_from(data, at)
            if kind == _DONE:
                return
            if kind == _ERROR:
                code = struct.unpack_from("=i", data, at + _HEADER.size)[0]
                raise OSError(-code, os.strerror(-code))
            body = at + _HEADER.size
            _, state, inode = _MESSAGE.unpack_from(data, body)
            yield state, inode, _memory(data, body + _MESSAGE.size, at + size)
            at += size + 3 & ~3


def _memory(data: bytes, at: int, end: int) -> tuple[int, ...]:
    while at + _ATTRIBUTE.size <= end:
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if kind == _MEMORY:
            return struct.unpack_from(f"={(size - _ATTRIBUTE.size) // 4}I", data, at + _ATTRIBUTE.size)
        at += max(size, _ATTRIBUTE.size) + 3 & ~3
    return ()


def _rows(pid: int, name: str) -> Iterator[list[bytes]]:
    """Yield the fields of each line of a file of /proc/net; none where the kernel lacks the protocol."""
    text = b""
    with contextlib.suppress(FileNotFoundError):
        text = _read(pid, name)
    for line in text.splitlines()[1:]:
        yield line.split()


def _read(pid: int, name: str) -> bytes:
    with open(f"/proc/{pid}/net/{name}", "rb") as file:
        return file.read()
