"""Count of record locks: each lock once, however many descriptors show it."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import pytest

from pycontain._kernel import native, record_locks

_OFD_SETLK = 37
_MANY = 1 << 30


def _lock(fd: int, how: int, count: int) -> None:
    for at in range(count):
        fcntl.fcntl(fd, how, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 2 * at, 1, 0))


def _device(path: Path) -> bytes:
    number = path.stat().st_dev
    return b"%02x:%02x" % (os.major(number), os.minor(number))


@pytest.fixture
def compares_files() -> None:
    """Skip where the kernel cannot compare open files: equal locks count once there."""
    if native.lib.pcx_compare_files(os.getpid(), 0, os.getpid(), 0) != 0:
        pytest.skip("this kernel has no kcmp")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An empty file."""
    path = tmp_path / "file"
    path.touch()
    return path


@pytest.mark.parametrize("how", [fcntl.F_SETLK, _OFD_SETLK])
def test_a_duplicated_descriptor_shows_no_lock_twice(how: int, path: Path) -> None:
    before = record_locks.count([os.getpid()], _MANY)
    with path.open("r+b") as file:
        _lock(file.fileno(), how, 50)
        copies = [os.dup(file.fileno()) for _ in range(9)]
        try:
            found = record_locks.count([os.getpid()], before + 60)
        finally:
            for fd in copies:
                os.close(fd)
    assert found == before + 50


def test_an_inherited_descriptor_shows_no_lock_twice(path: Path) -> None:
    before = record_locks.count([os.getpid()], _MANY)
    with path.open("r+b") as file:
        _lock(file.fileno(), _OFD_SETLK, 50)
        _lock(file.fileno(), fcntl.F_SETLK, 20)
        waiting, end = os.pipe()
        children = []
        for _ in range(3):
            if (pid := os.fork()) == 0:
                os.close(end)
                os.read(waiting, 1)
                os._exit(0)
            children.append(pid)
        try:
            found = record_locks.count([os.getpid(), *children], before + 75)
        finally:
            os.close(end)
            for pid in children:
                os.waitpid(pid, 0)
            os.close(waiting)
    assert found == before + 70


def test_equal_locks_of_different_open_files_count_each(path: Path, compares_files: None) -> None:
    before = record_locks.count([os.getpid()], _MANY)
    files = [path.open("r+b") for _ in range(5)]
    for file in files:
        _lock(file.fileno(), _OFD_SETLK, 10)
    found = record_locks.count([os.getpid()], before + 49)
    for file in files:
        file.close()
    assert found == before + 50


def test_counting_ends_beyond_the_limit(path: Path, compares_files: None) -> None:
    files = [path.open("r+b") for _ in range(5)]
    for file in files:
        _lock(file.fileno(), _OFD_SETLK, 100)
    found = record_locks.count([os.getpid()], 150)
    for file in files:
        file.close()
    assert 150 < found < 500


def test_a_process_that_ended_holds_nothing() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert record_locks.count([pid], _MANY) == 0


def test_sample_shows_locks_of_files_without_a_descriptor(path: Path) -> None:
    import mmap

    path.write_bytes(bytes(4096))
    before = record_locks.sample({_device(path)})
    with path.open("r+b") as file:
        _lock(file.fileno(), _OFD_SETLK, 30)
        mapped = mmap.mmap(file.fileno(), 4096)
    during = record_locks.sample({_device(path)})
    elsewhere = record_locks.sample({b"ff:ff"})
    mapped.close()
    assert during.complete
    assert during.found - before.found == 30
    assert elsewhere.found == 0
