"""Descriptors that are sent out of a container before its snapshot, and used for writing afterwards."""

from __future__ import annotations

import sys

from pycontain import PIPE, Container, Security, Volume

SEND = """
import os, socket, sys
fd = os.open(sys.argv[1], int(sys.argv[2]))
to = socket.socket(socket.AF_UNIX)
to.connect("/v/socket")
socket.send_fds(to, [b"x"], [fd])
"""
RECEIVE = """
import mmap, os, socket, sys
how = sys.argv[1]
place = socket.socket(socket.AF_UNIX)
place.bind("/v/socket")
os.chmod("/v/socket", 0o777)
place.listen(1)
print("ready", flush=True)
peer, _ = place.accept()
if how == "in flight":
    # The sender has ended, and the descriptor is only in the queue of this socket.
    peer.recv(1, socket.MSG_PEEK)
else:
    fd = socket.recv_fds(peer, 10, 1)[1][0]
if how == "mapped":
    memory = mmap.mmap(fd, 8)
    os.close(fd)
print("held", flush=True)
sys.stdin.readline()
if how == "in flight":
    fd = socket.recv_fds(peer, 10, 1)[1][0]
try:
    if how == "mapped":
        memory[:8] = b"poisoned"
        memory.flush()
    elif how == "directory":
        again = os.open("file", os.O_WRONLY, dir_fd=fd)
        os.write(again, b"poisoned")
    elif how == "name":
        os.rename("file", "poisoned", src_dir_fd=fd, dst_dir_fd=fd)
    elif how == "times":
        os.utime(fd)
    elif how == "reopened":
        os.write(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY), b"poisoned")
    else:
        os.pwrite(fd, b"poisoned", 0)
    print("written", flush=True)
except OSError as error:
    print(error.strerror, flush=True)
"""
O_RDONLY, O_RDWR, O_PATH, O_DIRECTORY = 0, 2, 0o10000000, 0o200000
WAYS = {
    "written": ("/made/file", O_RDWR),
    "in flight": ("/made/file", O_RDWR),
    "mapped": ("/made/file", O_RDWR),
    "times": ("/made/file", O_RDONLY),
    "reopened": ("/made/file", O_RDONLY),
    "directory": ("/made", O_RDONLY | O_DIRECTORY),
    "name": ("/made", O_PATH | O_DIRECTORY),
}
"""Ways of writing: the way, the path that is sent, and the flags it was opened with."""
SETUP = "mkdir -m 777 /made && printf original > /made/file && chmod 666 /made/file"
STATE = "cd /made && stat -c '%n %a %s %y' * && cat *"


def change_snapshots(ways: list[str], security: str = "SANDBOX") -> list[str]:
    """Return the ways that change a snapshot after it was taken."""
    return [way for way in ways if _is_changed(way, getattr(Security, security))]


def kind_of_snapshot(way: str) -> str:
    """Return the kind of a snapshot that is taken while this descriptor is outside."""
    return _taken(way, Security.SANDBOX)[0]


def _is_changed(way: str, security: Security) -> bool:
    _, before, after = _taken(way, security)
    return before != after


def _taken(way: str, security: Security) -> tuple[str, str, str]:
    """Return the snapshot's kind, and what it holds before and after the write."""
    path, flags = WAYS[way]
    with (
        Volume() as volume,
        Container(volumes={"/v": volume}, security=security) as outside,
        Container(volumes={"/v": volume}, security=security) as inside,
    ):
        inside.exec(SETUP, shell=True, check=True)
        with outside.popen([sys.executable, "-c", RECEIVE, way], stdin=PIPE) as receiver:
            assert receiver.stdout is not None
            assert receiver.stdin is not None
            assert receiver.stdout.readline() == "ready\n"
            inside.exec([sys.executable, "-c", SEND, path, str(flags)], check=True)
            assert receiver.stdout.readline() == "held\n"
            snapshot = inside.snapshot()
            with Container(snapshot) as first:
                before = first.exec(STATE, shell=True).stdout
            receiver.stdin.write("go\n")
            receiver.stdin.flush()
            assert receiver.stdout.readline()
            with Container(snapshot) as second:
                after = second.exec(STATE, shell=True).stdout
        snapshot.remove()
    return snapshot.kind, str(before), str(after)
