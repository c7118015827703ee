"""A04: locks, leases and watches on the host's programs end at the container."""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path
from subprocess import PIPE

import pytest

from pycontain import Bind, Container

HOLD = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(fd, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
WATCH = """
import ctypes, os, select, sys
libc = ctypes.CDLL(None)
fd = libc.inotify_init1(0)
assert libc.inotify_add_watch(fd, sys.argv[1].encode(), 0x21) >= 0
print("watching", flush=True)
sys.stdin.read()
print(len(os.read(fd, 4096)) if select.select([fd], [], [], 0)[0] else 0)
"""


def _program() -> str:
    return str(Path("/usr/bin/env").resolve())


def _seen(container: Container, path: str) -> bool:
    """Return whether a lock that the container holds on a path is met by the host."""
    with container.popen(["python3", "-c", HOLD, path], stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline().strip() == "held"
        with open(_program(), "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                met = False
            except BlockingIOError:
                met = True
        process.stdin.close()
        process.wait(20)
    return met


def _events(container: Container, path: str, other: Container) -> int:
    """Return how many bytes of events a watch gets of what the host and another container run."""
    with container.popen(["python3", "-c", WATCH, path], stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline().strip() == "watching"
        subprocess.run([_program(), "true"], check=True)
        other.exec([_program(), "true"], check=True)
        process.stdin.close()
        return int(process.stdout.read())


@pytest.mark.case("A04")
def test_locks_on_host_programs_end_at_the_container() -> None:
    with Container() as one:
        assert not _seen(one, _program())


@pytest.mark.case("A04")
def test_locks_of_containers_on_host_programs_do_not_meet() -> None:
    script = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with Container() as one, Container() as other:
        process = one.popen(["python3", "-c", HOLD, _program()], stdin=PIPE, stdout=PIPE)
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline().strip() == "held"
        assert other.exec(["python3", "-c", script, _program()]).returncode == 0
        process.stdin.close()
        process.wait(20)


@pytest.mark.case("A04")
def test_watches_on_host_programs_get_no_events_of_others() -> None:
    with Container() as one, Container() as other:
        assert _events(one, str(Path(_program()).parent), other) == 0


@pytest.mark.case("A04")
def test_snapshots_keep_inodes_of_their_own() -> None:
    with Container() as first:
        snapshot = first.snapshot()
        assert not _seen(first, _program())
        with Container(snapshot) as one:
            assert not _seen(one, _program())
            assert one.exec(["stat", "-f", "-c", "%T", "/usr"]).stdout.strip() == "overlayfs"
    snapshot.remove()


@pytest.mark.control("A04")
def test_through_a_bind_they_reach_the_host() -> None:
    with Container(mounts={"/host": Bind("/usr", read_only=True)}) as one, Container() as other:
        path = _program().replace("/usr/", "/host/", 1)
        assert _seen(one, path)
        assert _events(one, str(Path(path).parent), other) > 0
