"""K01, K02, K04 to K06: the kernel's attack surface, and defence in depth with one control removed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from pycontain import Bind, Container, Engine, Security
from pycontain._security import capabilities
from tests.security.conftest import Canary

_ALL = frozenset(capabilities.NAMES)

CALLS = {
    "io_uring_setup": 425, "bpf": 321, "userfaultfd": 323, "perf_event_open": 298, "keyctl": 250, "add_key": 248,
    "kexec_load": 246, "kexec_file_load": 320, "init_module": 175, "finit_module": 313, "delete_module": 176,
    "open_by_handle_at": 304, "name_to_handle_at": 303, "fanotify_init": 300, "quotactl": 179, "swapon": 167,
    "syslog": 103, "kcmp": 312, "vmsplice": 278, "process_vm_readv": 310, "ptrace": 101, "acct": 163, "iopl": 172,
    "pidfd_getfd": 438, "process_madvise": 440, "modify_ldt": 154, "uselib": 134, "personality": 135,
}  # fmt: skip


def _calls(security: Security) -> dict[str, int]:
    """Return the errno by call, or 0 for a call that passed the filter."""
    code = "import ctypes, sys\nlibc = ctypes.CDLL(None, use_errno=True)\nfor one in sys.argv[1:]:\n"
    code += "    name, number = one.split('=')\n    ctypes.set_errno(0)\n"
    code += "    print(name, libc.syscall(int(number), 0x7777777, -1, -1, -1, -1, -1), ctypes.get_errno())\n"
    with Container(security=security) as container:
        arguments = [f"{name}={number}" for name, number in CALLS.items()]
        output = container.exec([sys.executable, "-c", code, *arguments]).stdout
    return {line.split()[0]: int(line.split()[2]) for line in output.splitlines()}


@pytest.mark.case("K01")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86_64")
def test_dangerous_calls_are_refused() -> None:
    found = _calls(Security.SANDBOX)
    assert len(found) == len(CALLS)
    assert {name for name, error in found.items() if error not in (1, 38)} == set()


@pytest.mark.control("K01")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86_64")
def test_without_the_filter_calls_reach_the_kernel() -> None:
    found = _calls(Security.SANDBOX.evolve(seccomp=None))
    assert len({name for name, error in found.items() if error not in (1, 38)}) > 8


@pytest.mark.case("K04")
def test_crash_leaves_and_starts_nothing() -> None:
    with Container(workdir="/tmp") as container:
        before = container.exec(["ls", "-A", "/tmp"]).stdout
        for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGQUIT):
            done = container.exec(["sh", "-c", f"kill -{int(number)} $$"])
            assert done.returncode == -number
        assert container.exec(["ls", "-A", "/tmp"]).stdout == before
        # 0 would keep a file away, and start the host's handler all the same.
        assert container.exec("grep core /proc/self/limits", shell=True).stdout.split()[4:6] == ["1", "1"]


@pytest.mark.control("K04")
def test_allowed_core_dump_would_be_detected() -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith("|") or "/" in pattern:
        pytest.skip(f"cores of this host go to {pattern}")
    with Container(workdir="/tmp", rlimits={"core": -1}) as container:
        container.exec(["sh", "-c", "kill -11 $$"])
        assert "core" in container.exec(["ls", "-A", "/tmp"]).stdout


LANDLOCK = """
import ctypes, errno, os, socket, stat
try:
    os.mknod('/tmp/node', stat.S_IFCHR | 0o600, os.makedev(1, 3))
except OSError as error: print('mknod', errno.errorcode[error.errno])
try:
    os.mknod('/tmp/node2', stat.S_IFBLK | 0o600, os.makedev(1, 3))
except OSError as error: print('mknod', errno.errorcode[error.errno])
"""


@pytest.mark.case("K05")
def test_landlock_denies_without_other_controls(engine: Engine) -> None:
    if not engine._session.features.landlock:
        pytest.skip("no Landlock in this kernel")
    alone = Security.SANDBOX.evolve(seccomp=None, masked_paths=(), readonly_paths=(), capabilities={"MKNOD"})
    with Container(security=alone) as container:
        assert container.exec([sys.executable, "-c", LANDLOCK]).stdout == "mknod EACCES\nmknod EACCES\n"
        assert container.isolation.landlock == engine._session.features.landlock


@pytest.mark.control("K05")
def test_other_controls_deny_without_landlock() -> None:
    without = Security.SANDBOX.evolve(seccomp=None, landlock=False, capabilities={"MKNOD"})
    with Container(security=without) as container:
        assert "EACCES" not in container.exec([sys.executable, "-c", LANDLOCK]).stdout


REACH = """
import ctypes, glob, os, stat, sys
libc = ctypes.CDLL(None, use_errno=True)
path, secret = sys.argv[1], sys.argv[2]
def attempt(what, function):
    try:
        got = function()
    except (OSError, ValueError): return
    if got: print(what, got)
def read(name):
    with open(name, 'rb') as file: return secret.encode() in file.read(1 << 16) and name
def write(name):
    with open(name, 'r+b') as file: file.write(b'x'); return name
ways = [path, '../' * 30 + path, *(f'/proc/{pid}/{where}{path}' for pid in ('1', 'self', '2') for where in ('root', 'cwd'))]
ways += [f'/proc/{pid}/fd/{fd}{up}{path}' for pid in ('1', 'self') for fd in range(12) for up in ('', '/../../../../../..')]
for way in ways:
    attempt('read', lambda: read(way)); attempt('write', lambda: write(way))
libc.unshare(0x10000000 | 0x20000)
os.makedirs('/tmp/m', exist_ok=True)
for source, kind in ((b'/dev/sda', b'ext4'), (b'/dev/vda', b'ext4'), (b'none', b'devtmpfs'), (b'none', b'proc'), (b'none', b'sysfs')):
    if libc.mount(source, b'/tmp/m', kind, 0, None) == 0:
        attempt('mount', lambda: read('/tmp/m' + path)); attempt('core', lambda: write('/tmp/m/sys/kernel/core_pattern'))
for name in ('/proc/sys/kernel/core_pattern', '/proc/sys/kernel/modprobe', '/proc/sysrq-trigger', '/sys/kernel/uevent_helper'):
    attempt('write', lambda: os.close(os.open(name, os.O_WRONLY)) or name)
for name, number in (('mem', (1, 1)), ('vda', (254, 0)), ('sda', (8, 0)), ('loop0', (7, 0))):
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        try: os.mknod(f'/tmp/{name}{kind}', kind | 0o600, os.makedev(*number))
        except OSError: continue
        attempt('device', lambda: os.close(os.open(f'/tmp/{name}{kind}', os.O_RDWR)) or name)
class Handle(ctypes.Structure): _fields_ = [('size', ctypes.c_uint), ('kind', ctypes.c_int), ('data', ctypes.c_ubyte * 64)]
for mount in ('/', '/usr', '/tmp'):
    fd = os.open(mount, os.O_RDONLY)
    for inode in (2, 64, 128, 256):
        handle = Handle(8, 1); handle.data[0:4] = inode.to_bytes(4, 'little')
        got = libc.syscall(304, fd, ctypes.byref(handle), os.O_RDONLY)
        if got >= 0: attempt('handle', lambda: read(f'/proc/self/fd/{got}{path}'))
"""

WALLS: dict[str, dict[str, object]] = {
    "none": {},
    "seccomp": {"seccomp": None},
    "capabilities": {"capabilities": _ALL},
    "masks": {"masked_paths": (), "readonly_paths": ()},
    "landlock": {"landlock": False},
    "no_new_privs": {"no_new_privs": False, "capabilities": {"SYS_ADMIN"}},
    "seccomp and capabilities": {"seccomp": None, "capabilities": _ALL, "landlock": False},
}


@pytest.mark.case("K06")
@pytest.mark.parametrize("wall", list(WALLS))
def test_canary_is_safe_with_one_control_removed(wall: str, canary: Canary) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    with Container(security=Security.SANDBOX.evolve(**WALLS[wall])) as container:  # type: ignore[arg-type]
        done = container.exec([sys.executable, "-c", REACH, str(canary.top / "secret"), Canary.SECRET])
        assert done.stdout == "" or wall == "seccomp and capabilities", done.stdout
        assert "canary" not in done.stdout
        assert done.returncode == 0, done.stderr
    assert Path("/proc/sys/kernel/core_pattern").read_text() == pattern


@pytest.mark.control("K06")
def test_reachable_canary_would_be_found(canary: Canary) -> None:
    with Container(mounts={str(canary.top): Bind(canary.top, read_only=True)}) as container:
        done = container.exec([sys.executable, "-c", REACH, str(canary.top / "secret"), Canary.SECRET])
        assert done.stdout.startswith("read ")


@pytest.mark.case("K02")
def test_agents_files_have_no_owner_inside(engine: Engine) -> None:
    if not engine._session.features.privileged:
        pytest.skip("rootless: the agent shares its id with the guest")
    script = "cd /proc/1; for f in *; do test -w $f && echo $f; done; stat -c %u oom_score_adj environ"
    with Container() as container:
        # timerslack_ns has 0666 by itself; writing it takes a capability (proc_pid_timerslack_ns(5)).
        output = set(container.exec(script, shell=True).stdout.split()) - {"timerslack_ns"}
    assert output == {"65534"}
