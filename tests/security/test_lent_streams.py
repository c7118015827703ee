"""A29, A33: attacks on host files through inherited streams and read-only binds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pycontain import PIPE, Bind, Container, Descriptor, PathError, Security

BEFORE = b"line of before\n" * 3
PROFILES = {"sandbox": Security.SANDBOX, "docker": Security.DOCKER}

STDOUT = r"""
import fcntl, os
def attempt(what, *more):
    try:
        return what(*more)
    except OSError as error:
        return error.errno
flags = [os.O_RDWR, os.O_WRONLY | os.O_TRUNC]
attempt(fcntl.fcntl, 1, fcntl.F_SETFL, 0)
attempt(os.pwrite, 1, b"OVERWRITTEN", 0)
attempt(os.lseek, 1, 0, 0)
attempt(os.ftruncate, 1, 4)
seen = [attempt(os.pread, 1, 60, 0)]
for name in ("/proc/self/fd/1", "/dev/stdout"):
    for how in flags:
        fd = attempt(os.open, name, how | os.O_NONBLOCK)
        seen.append(attempt(os.pread, fd, 60, 0))
        attempt(os.ftruncate, fd, 0)
os.write(2, repr([one for one in seen if isinstance(one, bytes)]).encode())
os.write(1, b"after\n")
"""

STDIN = r"""
import os
try:
    fd = os.open("/proc/self/fd/0", os.O_WRONLY | os.O_NONBLOCK)
    os.write(fd, b"OVERWRITTEN")
except OSError:
    pass
try:
    os.ftruncate(0, 0)
except OSError:
    pass
"""

LEASE = r"""
import fcntl, os, signal, sys, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
fd = os.open(sys.argv[1], os.O_RDONLY)
for kind in (fcntl.F_RDLCK, fcntl.F_WRLCK):
    for command in (1024, 1024 | 1 << 40):
        try:
            fcntl.fcntl(fd, command, kind)
        except (OSError, OverflowError):
            pass
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.case("A33")
@pytest.mark.parametrize("profile", ["sandbox", "docker"])
def test_inherited_log_can_only_be_appended(tmp_path: Path, profile: str) -> None:
    log = tmp_path / "log"
    log.write_bytes(BEFORE)
    log.chmod(0o666)
    optional = {"landlock", "time", "memory", "pids"}
    with Container(security=PROFILES[profile].evolve(optional=optional)) as c, log.open("ab") as file:
        result = c.exec(["python3", "-c", STDOUT], stdout=file, timeout=30)
        assert result.stderr == "[]"
        assert log.read_bytes() == BEFORE + b"after\n"
        with c.popen(["python3", "-c", STDOUT], stdout=file) as process:
            process.wait(30)
    assert log.read_bytes() == BEFORE + b"after\n" * 2


@pytest.mark.control("A33")
def test_log_passed_by_open_descriptor_is_overwritten(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(BEFORE)
    with Container() as c, log.open("ab") as file:
        c.exec(["python3", "-c", STDOUT], stdout=Descriptor(file), timeout=30)
    assert not log.read_bytes().startswith(BEFORE)


@pytest.mark.case("A33")
def test_inherited_input_cannot_be_written(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_bytes(BEFORE)
    data.chmod(0o666)
    with Container() as c, data.open("rb") as file:
        process = c.popen(["python3", "-c", STDIN], stdin=file)
        process.communicate(timeout=30)
    assert data.read_bytes() == BEFORE


@pytest.mark.case("A33")
@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_a_directory_is_no_stream(tmp_path: Path, name: str) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    with Container() as c:
        with pytest.raises(PathError, match=f"{name} must be a file"):
            c.popen(["cat"], **{name: fd})  # type: ignore[call-overload]
        assert c.exec("true", shell=True).returncode == 0
    os.close(fd)


@pytest.mark.case("A29")
@pytest.mark.parametrize("profile", ["sandbox", "docker"])
@pytest.mark.parametrize("read_only", [True, False])
def test_no_lease_of_a_guest_holds_up_an_open_of_the_host(
    tmp_path: Path, profile: str, read_only: bool
) -> None:
    config = tmp_path / "config"
    config.write_text("x")
    optional = {"landlock", "time", "memory", "pids"}
    with Container(
        mounts={"/c": Bind(tmp_path, read_only=read_only)},
        security=PROFILES[profile].evolve(optional=optional),
    ) as c:
        process = c.popen(["python3", "-c", LEASE, "/c/config"], stdout=PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        for flags in (os.O_RDONLY, os.O_RDWR):
            os.close(os.open(config, flags | os.O_NONBLOCK))
        process.kill()
        process.wait()


@pytest.mark.control("A29")
def test_without_the_filter_a_lease_holds_up_an_open_of_the_host(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("x")
    loose = Security.SANDBOX.evolve(seccomp=None, landlock=False)
    with Container(mounts={"/c": Bind(tmp_path, read_only=True)}, security=loose) as c:
        process = c.popen(["python3", "-c", LEASE, "/c/config"], stdout=PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(BlockingIOError):
            os.open(config, os.O_RDWR | os.O_NONBLOCK)
        process.kill()
        process.wait()
