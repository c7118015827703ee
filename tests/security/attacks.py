"""Attacks that run against the engine, and as controls against one with a defence switched off.

Each returns what it got hold of, an empty list where nothing.
"""

from __future__ import annotations

import errno
import os
import pty
import subprocess
import sys
import tempfile
from pathlib import Path

from pycontain import Container, Engine, Image, StartError, Tmpfs
from tests.support.roots import make_root

SCANNER = """
import ctypes, errno, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
own, seen, end = os.getpid(), set(), time.monotonic() + float(sys.argv[1])
print('up', flush=True)
def attempt(what, pid, function):
    try:
        got = function()
    except OSError:
        return
    if got and (what, str(got)) not in seen:
        seen.add((what, str(got)))
        print(what, pid, got, flush=True)
def fds(pid):
    for fd in os.listdir(f'/proc/{pid}/fd'):
        where = os.readlink(f'/proc/{pid}/fd/{fd}')
        if where.startswith('/') and not os.path.exists(where):
            return where
while time.monotonic() < end:
    for name in os.listdir('/proc'):
        if not name.isdigit() or int(name) in (own, os.getppid()):
            continue
        pid = int(name)
        # Before its execve a process of ours is the agent: afterwards it is the guest's own.
        attempt('exe', pid, lambda: 'memfd' in os.readlink(f'/proc/{pid}/exe') and 'the agent')
        attempt('fd', pid, lambda: fds(pid))
        if pid == 1:
            attempt('mem', pid, lambda: os.close(os.open(f'/proc/{pid}/mem', os.O_RDWR)) or 'opened')
            attempt('environ', pid, lambda: open(f'/proc/{pid}/environ', 'rb').read())
            if libc.ptrace(0x4206, pid, 0, 0) == 0:
                print('ptrace', pid, 'seized', flush=True)
                libc.ptrace(17, pid, 0, 0)
            held = libc.syscall(434, pid, 0)
            if libc.syscall(438, held, 3, 0) >= 0:
                print('pidfd_getfd', pid, 'taken', flush=True)
            if held >= 0:
                os.close(held)
print('end')
"""


def scan_processes(execs: int, seconds: float) -> list[str]:
    """E01: inspect every process that appears while commands are started."""
    with Container() as container:
        watcher = container.popen([sys.executable, "-c", SCANNER, str(seconds)])
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "up\n"
        for _ in range(execs):
            container.exec(["true"])
        output, wrong = watcher.communicate()
    found: list[str] = output.splitlines()
    assert found[-1:] == ["end"], (found, wrong, watcher.returncode)
    return found[:-1]


def write_to_programs(seconds: float) -> list[str]:
    """E02, CVE-2019-5736: hold /proc/PID/exe of the engine's programs and reopen it for writing."""
    code = """
import os, sys, time
held, found, end = {}, [], time.monotonic() + float(sys.argv[1])
print('up', flush=True)
while time.monotonic() < end:
    for name in os.listdir('/proc'):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            if 'memfd' in os.readlink(f'/proc/{name}/exe') and name not in held:
                held[name] = os.open(f'/proc/{name}/exe', os.O_PATH)
                found.append('held')
        except OSError:
            pass
    for name, fd in held.items():
        try:
            copy = os.open(f'/proc/self/fd/{fd}', os.O_RDWR)
            os.pwrite(copy, os.pread(copy, 1, 0), 0)
            found.append('written ' + os.readlink(f'/proc/self/fd/{fd}'))
        except OSError:
            pass
print(sorted(set(found)))
"""
    with Container() as container:
        watcher = container.popen([sys.executable, "-c", code, str(seconds)])
        assert watcher.stdout is not None
        watcher.stdout.readline()
        for _ in range(int(seconds * 100)):
            container.exec(["true"])
        output: str = watcher.communicate()[0]
    return [] if output.strip() == "[]" else [output.strip()]


def enter_descriptors(most: int) -> list[str]:
    """E03, CVE-2024-21626: use /proc/self/fd/N as a working directory, directly and through a link."""
    found = []
    held = [os.open("/", os.O_RDONLY | os.O_DIRECTORY) for _ in range(8)]
    for fd in held:
        os.set_inheritable(fd, True)
    try:
        with Container() as container:
            for number in range(most):
                for path in (f"/proc/self/fd/{number}", f"/proc/1/fd/{number}", "/tmp/way"):
                    container.exec(["ln", "-sfn", f"/proc/self/fd/{number}", "/tmp/way"])
                    try:
                        done = container.exec(["/bin/ls", "."], workdir=path)
                    except StartError:
                        continue
                    found.append(f"{path}: {done.stdout[:200]!r} {done.stderr[:200]!r}")
    finally:
        for fd in held:
            os.close(fd)
    return found


def count_descriptors() -> list[str]:
    """E04: return fds of a command other than its three streams, while the caller has 200 open."""
    held = []
    for at in range(200):
        fd = os.open("/" if at % 2 else "/dev/null", os.O_RDONLY)
        os.set_inheritable(fd, at % 3 == 0)
        held.append(fd)
    try:
        with Container() as container:
            code = "import os; print(*(fd for fd in os.listdir('/proc/self/fd') if int(fd) > 2))"
            output = container.exec([sys.executable, "-S", "-c", code]).stdout.split()
            # One of them is the listing's own.
            return [f"fd {fd}" for fd in output[1:]]
    finally:
        for fd in held:
            os.close(fd)


LINKED = {
    "proc": ("proc", "/r"),
    "proc-relative": ("proc", "../../r"),
    "proc-dangling": ("proc", "/r/none/none"),
    "dev": ("dev", "/r"),
    "dev-relative": ("dev", "../../../s"),
    "tmp": ("tmp", "/t"),
    "etc": ("etc", "/t"),
    "etc-relative": ("etc", "../../t"),
}
"""Paths of the engine in an image, as links to directories of a launcher's root."""


def links_for_the_engines_places(name: str) -> list[str]:
    """E05, E06, E08: start images with links in place of the engine's directories."""
    place, target = LINKED[name]
    with tempfile.TemporaryDirectory(prefix="pyc-links-") as directory:
        root = make_root(Path(directory) / "rootfs")
        shown = root / place
        for path in sorted(shown.rglob("*"), reverse=True):
            path.unlink()
        shown.rmdir()
        shown.symlink_to(target)
        return mounts_beside(root)


def mounts_beside(root: Path) -> list[str]:
    """Start a container of this directory and return the engine's mounts and files missing inside."""
    try:
        with Container(Image.from_rootfs(root), tmpfs={"/run": Tmpfs("1M")}) as container:
            lines = container.exec(["cat", "/proc/self/mountinfo"]).stdout.splitlines()
            places = {line.split()[4] for line in lines}
            wanted = {"/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/tmp", "/run"}
            found = [f"nothing is mounted at {place}" for place in sorted(wanted - places)]
            if container.exec(["cat", "/etc/hostname"]).stdout.strip() != container.id[:12]:
                found.append("/etc/hostname is not ours")
            return found
    except StartError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EXDEV):
            return []
        return [f"refused by chance: {error}"]


def _with_this_build(code: str) -> list[str]:
    """Return a Python command that loads the same extension as this process, weakened or not."""
    extension = sys.modules["pycontain._kernel._ffi"].__file__
    return [sys.executable, "-c", f"from tests.security.weak import load; load({extension!r}); {code}"]


def push_into_the_terminal() -> list[str]:
    """E18: reach the caller's terminal from inside."""
    code = (
        "from tests.security.attacks import open_the_terminal; "
        "print('found', open_the_terminal(), flush=True)"
    )
    pid, master = pty.fork()
    if pid == 0:
        command = _with_this_build(code)
        os.execv(command[0], command)
    output = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:
            break
        if not part:
            break
        output += part
    os.close(master)
    os.waitpid(pid, 0)
    line = next(line for line in output.decode().splitlines() if line.startswith("found"))
    return [] if "[]" in line else [line]


def open_the_terminal() -> list[str]:
    """Return the paths by which a command without a terminal can open the caller's terminal."""
    with Engine() as engine, Container(engine=engine) as container:
        done = container.exec([sys.executable, "-c", "import os; print(os.open('/dev/tty', os.O_RDWR))"])
        return [] if done.returncode else ["/dev/tty was opened"]


def groups_of_the_caller() -> list[str]:
    """E16: a command of another user has none of the supplementary groups of the caller."""
    code = "from tests.security.attacks import list_groups; print(list_groups())"
    done = subprocess.run(
        _with_this_build(code),
        extra_groups=list(range(4000, 4040)),
        capture_output=True,
        text=True,
        check=False,
    )
    return [] if done.stdout.strip() == "[]" else [done.stdout.strip() + done.stderr[-500:]]


def list_groups() -> list[str]:
    """Return the groups of commands of three users that are not theirs."""
    found = []
    with tempfile.TemporaryDirectory(prefix="pyc-groups-") as directory:
        root = make_root(Path(directory) / "rootfs")
        with Engine() as engine, Container(Image.from_rootfs(root), engine=engine) as container:
            for user, wanted in (("0", {"0"}), ("bob", {"1000", "2000"}), ("1000:2000", {"2000"})):
                line = container.exec(["cat", "/proc/self/status"], user=user).stdout
                groups = set(line.split("Groups:")[1].split("\n")[0].split())
                found += [f"{user}: {one}" for one in sorted(groups - wanted)]
    return found
