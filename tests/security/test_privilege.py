"""E11, E12, E19 to E22, E25: privilege escalation, and access to other processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain import Bind, Container, Engine, Image, Security
from pycontain._security import capabilities

_ALL = frozenset(capabilities.NAMES)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a static program that prints its ids and capabilities."""
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler on this host")
    top = tmp_path_factory.mktemp("compiled")
    source = top / "who.c"
    source.write_text(
        "#include <stdio.h>\n#include <string.h>\n#include <unistd.h>\n"
        'int main (void) { char line[256]; FILE *f = fopen ("/proc/self/status", "r");\n'
        'printf ("uid %d gid %d\\n", geteuid (), getegid ());\n'
        'while (f && fgets (line, sizeof line, f)) if (!strncmp (line, "Cap", 3) || !strncmp (line, "NoNew", 5))'
        " fputs (line, stdout); return 0; }\n"
    )
    subprocess.run(["gcc", "-static", "-O1", "-o", str(top / "who"), str(source)], check=True)
    return top / "who"


def _who(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        found[key if colon else "id"] = value if colon else line
    return found


@pytest.mark.case("E11")
@pytest.mark.parametrize(
    ("security", "bits"),
    [
        (Security.SANDBOX, 0),
        (Security.DOCKER, None),
        (Security.SANDBOX.evolve(capabilities={"CHOWN", "KILL"}), 1 << 0 | 1 << 5),
    ],
    ids=["sandbox", "docker", "two"],
)
def test_capability_sets_are_the_profiles(
    security: Security, bits: int | None, compiled: Path, root: Path
) -> None:
    shutil.copy(compiled, root / "bin" / "identify")
    if bits is None:
        bits = sum(1 << capabilities.NAMES.index(name) for name in security.capabilities)
    commands = [(["identify"], None), (["identify"], "1000"), (["sh", "-c", "identify"], None)]
    with Container(Image.from_rootfs(root), security=security) as container:
        for command, user in commands:
            if (
                user
                and not container._engine._session.features.privileged
                and not container._engine._session.sub_ids
            ):
                continue
            sets = _who(container.exec(command, user=user).stdout)
            assert int(sets["CapInh"], 16) == int(sets["CapAmb"], 16) == 0
            assert int(sets["CapBnd"], 16) == bits
            assert int(sets["CapPrm"], 16) & ~bits == 0
    with Container(Image.from_rootfs(root), security=security, command=["identify"], init=False) as container:
        container.wait(10)
        alone = _who(b"".join(container.logs()).decode())
        assert int(alone["CapInh"], 16) == int(alone["CapAmb"], 16) == 0
        assert int(alone["CapBnd"], 16) == bits


@pytest.mark.control("E11")
def test_wider_capability_set_would_be_detected(compiled: Path, root: Path) -> None:
    shutil.copy(compiled, root / "bin" / "identify")
    with Container(Image.from_rootfs(root), security=Security.SANDBOX.evolve(capabilities=_ALL)) as container:
        assert int(_who(container.exec(["identify"]).stdout)["CapBnd"], 16) != 0


def _privileged_programs(compiled: Path, root: Path) -> None:
    for name, mode in (("suid", 0o4755), ("sgid", 0o2755), ("filecap", 0o755)):
        shutil.copy(compiled, root / "bin" / name)
        (root / "bin" / name).chmod(mode)
    subprocess.run(["setcap", "all=eip", str(root / "bin" / "filecap")], check=True)


@pytest.fixture
def as_root(engine: Engine) -> None:
    """Skip where the programs cannot be made."""
    if not engine._session.features.privileged:
        pytest.skip("setuid programs of root are made by root")
    if shutil.which("setcap") is None:
        pytest.skip("no setcap on this host")


@pytest.mark.case("E12")
@pytest.mark.parametrize("init", [True, False])
def test_no_program_gives_privilege(init: bool, compiled: Path, root: Path, as_root: None) -> None:
    _privileged_programs(compiled, root)
    shutil.copytree(root / "bin", root.parent / "volume")
    for name in ("suid", "sgid", "filecap"):
        command = ["sh", "-c", f"/bin/{name}; echo; /v/{name}"]
        options = {"mounts": {"/v": Bind(root.parent / "volume")}, "user": "1000:1000"}
        with Container(Image.from_rootfs(root), command=command, init=init, **options) as container:  # type: ignore[arg-type]
            container.wait(20)
            output = b"".join(container.logs()).decode()
        for part in output.split("\n\n"):
            sets = _who(part)
            assert sets["id"] == "uid 1000 gid 1000", (name, output)
            assert sets["NoNewPrivs"].strip() == "1"
            assert int(sets["CapPrm"], 16) == 0


@pytest.mark.control("E12")
def test_program_would_run_without_both_controls(
    compiled: Path, root: Path, as_root: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """no_new_privs and nosuid are each sufficient, so the test switches off both."""
    from pycontain._rootfs import layout

    _privileged_programs(compiled, root)
    monkeypatch.setattr(layout, "_GUARDED", 0)
    relaxed = Security.SANDBOX.evolve(
        no_new_privs=False, seccomp=None, landlock=False, capabilities={"SETUID", "CHOWN"}
    )
    with (
        Engine(ahead=0) as engine,
        Container(Image.from_rootfs(root), security=relaxed, engine=engine) as container,
    ):
        assert "uid 0" in container.exec(["/bin/suid"], user="1000:1000").stdout


@pytest.fixture
def one_key() -> Iterator[str]:
    """Provide a key of the host in the session keyring and the user keyring."""
    if shutil.which("keyctl"):
        subprocess.run(
            ["keyctl", "add", "user", "pyc-key", "pyc-secret", "@u"], check=False, capture_output=True
        )
    yield "pyc-key"
    if shutil.which("keyctl"):
        subprocess.run(["keyctl", "purge", "user", "pyc-key"], check=False, capture_output=True)


KEYS = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for ring in (-2, -3, -4, -5):
    found = libc.syscall(250, 10, ring, b'user', b'pyc-key', 0)
    print('found' if found > 0 else ctypes.get_errno())
print('added' if libc.syscall(248, b'user', b'pyc-inside', b'x', 1, -3) > 0 else ctypes.get_errno())
try:
    print(open('/proc/keys').read())
except OSError: pass
"""


@pytest.mark.case("E19")
def test_no_key_crosses(one_key: str) -> None:
    with Container() as container:
        output = container.exec([sys.executable, "-c", KEYS]).stdout.split()
    assert output == ["1"] * 5
    behind = Security.SANDBOX.evolve(seccomp=None)
    with Container(security=behind) as one, Container(security=behind) as other:
        assert "found" not in one.exec([sys.executable, "-c", KEYS]).stdout
        assert "found" not in other.exec([sys.executable, "-c", KEYS]).stdout


@pytest.mark.control("E19")
def test_key_in_the_session_keyring_would_be_found() -> None:
    code = KEYS.replace("for ring", "libc.syscall(248, b'user', b'pyc-key', b'x', 1, -3)\nfor ring")
    with Container(security=Security.SANDBOX.evolve(seccomp=None)) as container:
        assert "found" in container.exec([sys.executable, "-c", code]).stdout


DEVICES = """
import os, stat, sys
for name, kind, number in (('mem', stat.S_IFCHR, (1, 1)), ('kmsg', stat.S_IFCHR, (1, 11)), ('sda', stat.S_IFBLK, (8, 0)),
                           ('fuse', stat.S_IFCHR, (10, 229)), ('null', stat.S_IFCHR, (1, 3))):
    try:
        os.mknod('/tmp/' + name, kind | 0o666, os.makedev(*number)); print('made', name)
    except OSError: pass
for top in ('/dev', '/v'):
    for name in sorted(os.listdir(top)) if os.path.isdir(top) else ():
        path = f'{top}/{name}'
        if stat.S_ISCHR(os.lstat(path).st_mode) or stat.S_ISBLK(os.lstat(path).st_mode):
            try:
                os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK)); print('open', path)
            except OSError: pass
"""


def _devices(**options: object) -> set[str]:
    with Container(mounts={"/v": Bind("/dev")}, **options) as container:  # type: ignore[arg-type]
        return set(container.exec([sys.executable, "-c", DEVICES]).stdout.splitlines())


@pytest.mark.case("E20")
@pytest.mark.parametrize("more", [{}, {"seccomp": None, "capabilities": {"MKNOD"}}], ids=["sandbox", "mknod"])
def test_no_device_but_the_listed(more: dict[str, object]) -> None:
    found = _devices(security=Security.SANDBOX.evolve(**more))  # type: ignore[arg-type]
    assert found <= {f"open /dev/{name}" for name in ("null", "zero", "full", "random", "urandom")}
    assert "open /dev/null" in found


@pytest.mark.control("E20")
def test_without_nodev_a_device_would_be_opened(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    if not engine._session.features.privileged:
        pytest.skip("the kernel forces nodev on mounts of an unprivileged user")
    from pycontain._runtime import compile as compiling

    monkeypatch.setattr(compiling, "MountAttr", types.SimpleNamespace(NOSUID=2, NODEV=0, RDONLY=1))
    with Engine(ahead=0) as own:
        assert "open /v/full" in _devices(engine=own)


NESTING = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def say(what, result):
    if result >= 0: print('done', what, flush=True)
for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 0x80):
    pid = os.fork()
    if pid == 0:
        say(f'unshare {flag:x}', libc.unshare(flag)); os._exit(0)
    os.waitpid(pid, 0)
    say(f'clone {flag:x}', -1 if (child := libc.syscall(56, flag | 17, 0, 0, 0, 0)) < 0 else child) if flag != 0x80 else None
    if flag != 0x80 and child == 0: os._exit(0)
for name in os.listdir('/proc/self/ns'):
    fd = os.open(f'/proc/self/ns/{name}', os.O_RDONLY)
    say(f'setns {name}', libc.setns(fd, 0))
say('mount', libc.mount(b'none', b'/tmp', b'tmpfs', 0, None))
say('bind', libc.mount(b'/usr', b'/tmp', None, 4096, None))
say('fsopen', libc.syscall(430, b'tmpfs', 0))
say('open_tree', libc.syscall(428, -100, b'/', 1))
say('pivot_root', libc.syscall(155, b'/', b'/'))
say('chroot', libc.chroot(b'/tmp'))
"""


@pytest.mark.case("E21")
def test_nothing_nests() -> None:
    with Container() as container:
        assert container.exec([sys.executable, "-c", NESTING]).stdout == ""


@pytest.mark.control("E21")
def test_calls_would_succeed_without_the_filter() -> None:
    # Under Landlock the root is one of chroot(2), from which the kernel lets no user namespace be made.
    with Container(security=Security.SANDBOX.evolve(seccomp=None, landlock=False)) as container:
        assert "done unshare 10000000" in container.exec([sys.executable, "-c", NESTING]).stdout


FOREIGN = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
target = int(sys.argv[1])
for pid in (target, 2, 100, os.getppid() + 1000):
    if os.path.exists(f'/proc/{pid}/status') and pid == target: print('seen', pid)
    for name, result in (
        ('kill', libc.kill(pid, 0)), ('pidfd', libc.syscall(434, pid, 0)), ('prlimit', libc.syscall(302, pid, 7, 0, 0)),
        ('ptrace', libc.ptrace(16, pid, 0, 0)), ('affinity', libc.syscall(203, pid, 8, (ctypes.c_ulong * 1)(1))),
    ):
        if result >= 0 and pid == target: print(name, pid)
if len(sys.argv) > 2: os.kill(-1, 9)
"""


@pytest.mark.case("E22")
def test_foreign_processes_are_not_there() -> None:
    sentinel = subprocess.Popen(["sleep", "100"])
    try:
        with Container() as container:
            keeper = container.popen(["sleep", "100"])
            output = container.exec([sys.executable, "-c", FOREIGN, str(sentinel.pid), "kill"]).stdout
            assert output == ""
            keeper.wait()
            assert container.exec(["echo", "on"]).stdout == "on\n"
        assert sentinel.poll() is None
    finally:
        sentinel.kill()
        sentinel.wait()


@pytest.mark.control("E22")
def test_running_process_would_be_detected() -> None:
    with Container() as container:
        keeper = container.popen(["sleep", "100"])
        pid = container.exec("ls /proc | grep -x '[0-9]*' | sed -n 2p", shell=True).stdout.strip()
        assert f"seen {pid}" in container.exec([sys.executable, "-c", FOREIGN, pid]).stdout
        keeper.kill()


HOST = """
import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
class Spec(ctypes.Structure): _fields_ = [('a', ctypes.c_long), ('b', ctypes.c_long)]
now = Spec(int(time.time()) + 1000, 0)
for name, result in (
    ('clock_settime', libc.clock_settime(0, ctypes.byref(now))), ('settimeofday', libc.settimeofday(ctypes.byref(now), None)),
    ('sethostname', libc.sethostname(b'pyc-evil', 8)), ('setdomainname', libc.setdomainname(b'pyc-evil', 8)),
    ('adjtimex', libc.adjtimex((ctypes.c_long * 40)(1))), ('reboot', libc.syscall(169, 0, 0, 0, 0)),
):
    if result >= 0: print(name)
for top, _, names in os.walk('/proc/sys'):
    for name in names:
        try:
            fd = os.open(f'{top}/{name}', os.O_WRONLY)
            print('opened', top, name); os.close(fd)
        except OSError: pass
"""


@pytest.mark.case("E25")
def test_clocks_names_and_sysctls_are_the_hosts_own() -> None:
    before = os.uname()
    with Container() as container:
        assert container.exec([sys.executable, "-c", HOST]).stdout == ""
    assert os.uname() == before


@pytest.mark.control("E25")
def test_with_sys_admin_a_name_would_be_set() -> None:
    before = os.uname()
    opened = Security.SANDBOX.evolve(seccomp=None, capabilities={"SYS_ADMIN"}, readonly_paths=())
    with Container(security=opened) as container:
        assert "sethostname" in container.exec([sys.executable, "-c", HOST]).stdout
    assert os.uname() == before


def test_time_passes() -> None:
    """Control: the clocks inside follow the host's, so the refusals above are not due to missing clocks."""
    with Container() as container:
        output = float(container.exec([sys.executable, "-c", "import time; print(time.time())"]).stdout)
    assert abs(output - time.time()) < 5
