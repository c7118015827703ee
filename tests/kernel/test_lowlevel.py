"""pycontain.lowlevel: spawn, setns, unshare, pivot_root, and paths beneath a directory."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pycontain import StartError, lowlevel
from pycontain._kernel import native
from pycontain._kernel.launcher import Launcher
from pycontain._kernel.protocol import RecordKind
from pycontain.lowlevel import Namespace

PIVOT = """
import os, sys
from pycontain import lowlevel
from pycontain.lowlevel import Namespace
user, group = os.geteuid(), os.getegid()
lowlevel.unshare(Namespace.USER | Namespace.MOUNT if user else Namespace.MOUNT)
if user:
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
import ctypes
libc = ctypes.CDLL(None)
assert libc.mount(None, b"/", None, 0x44000, None) == 0
assert libc.mount(b"pyc", sys.argv[1].encode(), b"tmpfs", 0, None) == 0
open(sys.argv[1] + "/here", "w").close()
lowlevel.pivot_root(sys.argv[1])
print(sorted(os.listdir("/")))
"""


def _run(code: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_steps_are_named_in_order() -> None:
    steps = lowlevel.steps()
    assert steps.index("clone") < steps.index("pivot_root") < steps.index("seccomp") < steps.index("execve")


def test_unshare_and_setns() -> None:
    code = """
import os
from pycontain import lowlevel
from pycontain.lowlevel import Namespace
if os.geteuid():
    lowlevel.unshare(Namespace.USER)
before = os.readlink("/proc/self/ns/uts")
fd = os.open("/proc/self/ns/uts", os.O_RDONLY)
lowlevel.unshare(Namespace.UTS)
print(os.readlink("/proc/self/ns/uts") != before)
if not os.geteuid():
    lowlevel.setns(fd, Namespace.UTS)
    print(os.readlink("/proc/self/ns/uts") == before)
"""
    assert "False" not in _run(code)


def test_pivot_root(tmp_path: Path) -> None:
    assert _run(PIVOT, str(tmp_path)) == "['here']\n"


def test_open_beneath_stays_beneath(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("inside")
    (tmp_path / "out").symlink_to("/etc/hostname")
    (tmp_path / "up").symlink_to("../..")
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fd = lowlevel.open_beneath(directory, "in")
        assert os.read(fd, 10) == b"inside"
        os.close(fd)
        for path in ("out", "up", "..", "/etc/hostname", "up/etc/hostname"):
            with pytest.raises(OSError) as refused:  # noqa: PT011  the errno is checked
                lowlevel.open_beneath(directory, path)
            assert refused.value.errno == errno.EXDEV
    finally:
        os.close(directory)


@pytest.fixture
def launcher() -> object:
    if os.geteuid() != 0:
        pytest.skip("the plan of this test writes a map that only root may write")
    one = Launcher(plain=False)
    yield one
    one.close()


def test_spawn_runs_a_plan(launcher: Launcher, tmp_path: Path) -> None:
    """A static program, PID 1 in namespaces of its own, on a tmpfs with nothing else in it."""
    busybox = Path("/bin/busybox")
    if not busybox.exists():
        pytest.skip("no static busybox on this host")
    (tmp_path / "busybox").write_bytes(busybox.read_bytes())
    (tmp_path / "busybox").chmod(0o755)
    tmp_path.chmod(0o755)
    ours, theirs = native.pair()
    source = native.checked(native.lib.pcx_open_tree(-100, os.fsencode(tmp_path), 0))
    read, write = os.pipe2(os.O_CLOEXEC)
    command = lowlevel.encode_exec(
        flags=7,
        number=1,
        tasks=0,
        uid=0,
        gid=0,
        groups=[],
        argv=[b"/busybox", b"sh", b"-c", b"echo $$; /busybox hostname"],
        env=b"",
        env_count=0,
        workdir="/",
        search="/",
    )
    plan = lowlevel.Plan(
        control_fd=0,
        namespaces=Namespace.USER | Namespace.MOUNT | Namespace.PID | Namespace.UTS,
        ops=[lowlevel.Op(lowlevel.OpKind.MOUNT, "", source=0)],
        sources=[lowlevel.Source(fd=1, attributes=lowlevel.MountAttr.RDONLY)],
        security=lowlevel.encode_security(
            flags=0, capabilities=0, securebits=0, landlock=(0, 0, 0, 0, 0), rlimits={}, seccomp=b""
        ),
        flags=lowlevel.PlanFlag.COMMAND_IS_INIT,
        uid_map="0 0 1\n",
        gid_map="0 0 1\n",
        hostname="below",
        command=command,
    )
    spawned = lowlevel.spawn(launcher, plan, [theirs, source, read, write, write])
    for fd in (theirs, source, write):
        os.close(fd)
    try:
        ready = native.receive(ours)
        assert ready is not None
        assert ready.kind == RecordKind.READY
        received = b""
        while chunk := os.read(read, 100):
            received += chunk
        assert received == b"1\nbelow\n"
    finally:
        for fd in (read, ours, spawned.pidfd):
            os.close(fd)


def test_spawn_error_names_the_failed_step(launcher: Launcher) -> None:
    plan = lowlevel.Plan(
        control_fd=7,
        namespaces=0,
        ops=[],
        sources=[],
        security=lowlevel.encode_security(
            flags=0, capabilities=0, securebits=0, landlock=(0, 0, 0, 0, 0), rlimits={}, seccomp=b""
        ),
    )
    with pytest.raises(StartError) as failed:
        lowlevel.spawn(launcher, plan, [])
    assert failed.value.step == "plan"
