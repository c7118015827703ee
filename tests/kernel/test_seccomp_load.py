"""The sandbox's filter in the real kernel: ordinary programs work, refused calls fail with their errno."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain._security.profiles import DOCKER_FILTER, SANDBOX_FILTER
from pycontain._security.seccomp import ALLOW, Condition, Filter, Rule, assemble, refuse
from pycontain._security.syscalls import TABLE

MACHINE = platform.machine()

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(MACHINE not in TABLE, reason=f"no table of system calls for {MACHINE}"),
]

PYTHON = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable

LOADER = """
import ctypes, os, sys
program = open(sys.argv[1], "rb").read()
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
libc = ctypes.CDLL(None, use_errno=True)
one = Program(len(program) // 8, program)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(one), 0, 0):
    sys.exit("not loaded: " + os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[2], sys.argv[2:])
"""
"""The agent's order for an exec: no_new_privs, the filter, then execve."""

CALLER = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
results = []
for nr, args in json.loads(sys.argv[1]):
    ctypes.set_errno(0)
    value = libc.syscall(ctypes.c_long(nr), *(ctypes.c_ulong(arg) for arg in args))
    results.append(ctypes.get_errno() if value == -1 else 0)
print(json.dumps(results))
"""
"""Calls by number; the errno of each, 0 for success."""


@pytest.fixture
def directory() -> Iterator[Path]:
    """Provide a directory that every user may write to and reach."""
    with tempfile.TemporaryDirectory(prefix="pycontain-seccomp-") as path:
        os.chmod(path, 0o777)
        yield Path(path)


def confined(
    directory: Path, filter_: Filter, *command: str, user: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a directory under a filter."""
    program = directory / "program"
    program.write_bytes(assemble(filter_, MACHINE))
    try:
        return subprocess.run(
            [PYTHON, "-c", LOADER, str(program), *command],
            cwd=directory,
            user=user,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            env={"PATH": os.environ["PATH"], "HOME": str(directory), "LC_ALL": "C.UTF-8"},
        )
    finally:
        program.unlink()


def errnos(directory: Path, filter_: Filter, *calls: tuple[str | int, list[int]]) -> list[int]:
    """Return the errno of each call under a filter."""
    table = TABLE[MACHINE]
    numbered = [(table[name] if isinstance(name, str) else name, args) for name, args in calls]
    result = confined(directory, filter_, PYTHON, "-c", CALLER, json.dumps(numbered))
    assert result.returncode == 0, result.stdout
    found: list[int] = json.loads(result.stdout)
    return found


PYTHON_JOBS = {
    "threads": """
        import threading, concurrent.futures
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            assert sum(pool.map(abs, range(1000))) == 499500
        thread = threading.Thread(target=print); thread.start(); thread.join()
    """,
    "subprocess": """
        import os, subprocess, signal
        assert subprocess.check_output("echo a | cat", shell=True) == b"a\\n"
        subprocess.run(["true"], check=True, start_new_session=True, close_fds=True, umask=0o27)
        subprocess.run(["true"], check=True, preexec_fn=lambda: None)
        pid = os.posix_spawn("/bin/true", ["true"], {})
        pidfd = os.pidfd_open(pid)
        assert os.waitid(os.P_PIDFD, pidfd, os.WEXITED).si_status == 0
        sleeper = subprocess.Popen(["sleep", "60"])
        signal.pidfd_send_signal(os.pidfd_open(sleeper.pid), signal.SIGKILL)
        assert sleeper.wait() == -9
    """,
    "asyncio": """
        import asyncio
        async def echo(reader, writer):
            writer.write(await reader.read(9)); writer.close()
        async def main():
            process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
            assert (await process.communicate(b"x"))[0] == b"x"
            server = await asyncio.start_server(echo, "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"hello")
            assert await reader.read() == b"hello"
            writer.close(); server.close()
            await asyncio.to_thread(print)
        asyncio.run(main())
    """,
    "multiprocessing": """
        import multiprocessing as mp, multiprocessing.shared_memory as shm
        def job(n): return n * n
        if __name__ == "__main__":
            for method in ("fork", "spawn", "forkserver"):
                context = mp.get_context(method)
                lock, event, queue = context.Lock(), context.Event(), context.Queue()
                with lock: event.set(); queue.put(1)
                assert event.wait(5) and queue.get(timeout=5) == 1
                if method == "fork":
                    with context.Pool(2) as pool: assert pool.map(job, range(9))[8] == 64
                else:
                    process = context.Process(target=print); process.start(); process.join()
                    assert process.exitcode == 0
            block = shm.SharedMemory(create=True, size=4096); block.buf[0] = 1; block.close(); block.unlink()
    """,
    "files": """
        import fcntl, mmap, os, shutil, socket, sqlite3, tempfile
        with sqlite3.connect("db") as db:
            db.execute("pragma journal_mode=wal"); db.execute("create table t (n)")
            db.executemany("insert into t values (?)", [(n,) for n in range(1000)])
            assert db.execute("select sum(n) from t").fetchone() == (499500,)
        db.close()
        shutil.copytree("/etc/apt", "copy") if os.path.isdir("/etc/apt") else None
        os.mkfifo("fifo"); os.mknod("node"); os.link("node", "link"); os.symlink("node", "symlink")
        os.chmod("node", 0o600); os.utime("node", (1, 1)); os.rename("node", "file")
        try: os.setxattr("file", "user.a", b"b"); os.listxattr("file"); os.removexattr("file", "user.a")
        except OSError as error: assert error.errno == 95, error
        fd = os.open("file", os.O_RDWR); os.posix_fallocate(fd, 0, 8192); fcntl.flock(fd, fcntl.LOCK_EX)
        with mmap.mmap(fd, 4096) as mapped: mapped[0] = 65; mapped.flush(); mapped.resize(8192)
        os.copy_file_range(fd, os.open("other", os.O_RDWR | os.O_CREAT), 100); os.fsync(fd); os.sync()
        os.memfd_create("x"); os.eventfd(1); os.getrandom(8); os.sendfile(os.open("out", 65, 0o600), fd, 0, 9)
        left, right = socket.socketpair(); socket.send_fds(left, [b"x"], [fd]); socket.recv_fds(right, 1, 1)
        unix = socket.socket(socket.AF_UNIX); unix.bind("socket"); unix.listen()
    """,
    "network": """
        import socket
        assert socket.getaddrinfo("localhost", 80)
        assert socket.if_nameindex()
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind(("127.0.0.1", 0))
        udp.sendto(b"x", udp.getsockname()); assert udp.recv(1) == b"x"
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); netlink.bind((0, 0))
    """,
    "scheduling": """
        import os, resource, signal, select, time
        os.sched_setaffinity(0, os.sched_getaffinity(0)); os.nice(0); os.sched_yield()
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)); os.getpriority(os.PRIO_PROCESS, 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); resource.getrusage(resource.RUSAGE_SELF)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        signal.setitimer(signal.ITIMER_REAL, 0.01); signal.sigwait({signal.SIGALRM})
        poll = select.epoll(); poll.register(os.pipe()[0]); poll.poll(0); time.sleep(0.01)
        os.times(); os.uname()
        pid, terminal = os.forkpty()
        if pid == 0: os.execvp("stty", ["stty", "-a"])
        assert b"speed" in os.read(terminal, 4096)
    """,
}


@pytest.mark.parametrize("job", sorted(PYTHON_JOBS))
def test_python_works_in_the_sandbox(directory: Path, job: str) -> None:
    """CPython's own features, run from a file so that multiprocessing can spawn."""
    lines = PYTHON_JOBS[job].splitlines()
    (directory / "job.py").write_text("\n".join(line[8:] for line in lines))

    result = confined(directory, SANDBOX_FILTER, PYTHON, "job.py")

    assert result.returncode == 0, result.stdout


SHELL_JOBS = {
    "tools": (
        "sh",
        "mkdir -p a/b && cp -a /etc/hostname a/b/ && tar -czf a.tgz a && tar -xzf a.tgz -C a && find a | sort"
        " | xargs -n1 ls -ld && install -m 600 a/b/hostname c && mv c d && touch -d yesterday d && dd if=d"
        " of=e conv=fsync && truncate -s 9 e && ln -s e f && readlink f && du -s . && df . && stat e && id"
        " && ps && date && nproc && timeout 5 sleep 0.01 && nohup true && env -i true && mktemp && rm -r a",
    ),
    "users": ("setpriv", "setpriv --reuid=65534 --regid=65534 --clear-groups id -u | grep 65534"),
    "dpkg": ("dpkg", "dpkg -l >/dev/null && dpkg-deb --help >/dev/null && apt-cache policy >/dev/null"),
    "cc": (
        "gcc",
        "printf 'int main(void){return 7;}' >a.c && gcc -pipe -O2 a.c -o a; s=0; ./a || s=$?; test $s = 7",
    ),
    "make": ("make", "printf 'all: x y\\nx y:\\n\\techo $@ >$@\\n' >Makefile && make -j4"),
    "git": (
        "git",
        "git init -q g && cd g && git -c user.name=a -c user.email=a commit -q --allow-empty -m a",
    ),
    "node": (
        "node",
        "node -e \"const {execSync} = require('child_process'); const fs = require('fs');"
        "const {Worker} = require('worker_threads'); new Worker('0', {eval: true});"
        "if (execSync('echo a').toString() != 'a\\n') throw 1; fs.copyFileSync('/etc/hostname', 'x');"
        "fs.promises.readFile('x'); require('http').createServer().listen(0, function () {this.close()});\"",
    ),
    "java": ("java", "java -Xmx64m -version"),
    "cargo": (
        "rustc",
        "printf 'fn main(){std::thread::spawn(||{}).join().unwrap()}' >a.rs && rustc a.rs && ./a",
    ),
    "perl": ("perl", "perl -e 'defined(my $p = fork) or die; exit 0 unless $p; waitpid $p, 0; exit $?'"),
    "ip": ("ip", "ip address show && ip route show"),
    "sqlite": ("sqlite3", "sqlite3 db 'create table t(n); insert into t values(1); select * from t'"),
}


@pytest.mark.parametrize("job", sorted(SHELL_JOBS))
def test_programs_work_in_the_sandbox(directory: Path, job: str) -> None:
    """Compilers, package tools and other runtimes, where they are installed."""
    needs, script = SHELL_JOBS[job]
    if shutil.which(needs) is None:
        pytest.skip(f"no {needs} on this host")
    if job == "users" and os.geteuid() != 0:
        pytest.skip("only root can become another user")
    if job == "cargo":
        script = f"export HOME={Path.home()}; {script}"

    result = confined(directory, SANDBOX_FILTER, "sh", "-ec", script)

    assert result.returncode == 0, result.stdout


def test_postgresql_works_in_the_sandbox(directory: Path) -> None:
    """System V shared memory and semaphores, sync_file_range, and many processes."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not binaries:
        pytest.skip("no PostgreSQL on this host")
    script = f"""
        PATH={binaries[-1]}:$PATH
        initdb -D data -A trust -U me >/dev/null
        postgres -D data -k $PWD -c listen_addresses= -c shared_memory_type=sysv >log 2>&1 & server=$!
        trap 'kill -INT $server; wait $server || cat log' EXIT
        for _ in $(seq 100); do pg_isready -q -h $PWD && break; sleep 0.1; done
        psql -h $PWD -U me -c 'create table t as select generate_series(1, 10000) n' -c checkpoint postgres
        psql -h $PWD -U me -Atc 'select sum(n) from t' postgres | grep -x 50005000
    """

    result = confined(
        directory, SANDBOX_FILTER, "sh", "-ec", script, user=65534 if os.geteuid() == 0 else None
    )

    assert result.returncode == 0, result.stdout


@pytest.mark.security
def test_refused_calls_fail_in_the_sandbox(directory: Path) -> None:
    """E13, E18, E21, K01: refused calls, with arguments that are harmless if allowed."""
    expected: list[tuple[str | int, list[int], int]] = [
        ("unshare", [0x10000000], errno.EPERM),
        ("unshare", [0], errno.EPERM),
        ("setns", [0, 0], errno.EPERM),
        ("mount", [0, 0, 0, 0, 0], errno.EPERM),
        ("umount2", [0, 0], errno.EPERM),
        ("pivot_root", [0, 0], errno.EPERM),
        ("chroot", [0], errno.EPERM),
        ("fsopen", [0, 0], errno.EPERM),
        ("open_tree", [0, 0, 0], errno.EPERM),
        ("move_mount", [0, 0, 0, 0, 0], errno.EPERM),
        ("clone", [0x10000011, 0, 0, 0, 0], errno.EPERM),
        ("clone", [0x40000011, 0, 0, 0, 0], errno.EPERM),
        ("clone3", [0, 0], errno.ENOSYS),
        ("bpf", [0, 0, 0], errno.EPERM),
        ("perf_event_open", [0, 0, 0, 0, 0], errno.EPERM),
        ("userfaultfd", [1], errno.EPERM),
        ("keyctl", [0, 0, 0, 0, 0], errno.EPERM),
        ("add_key", [0, 0, 0, 0, 0], errno.EPERM),
        ("ptrace", [0x420C, 0, 0, 0], errno.EPERM),  # PTRACE_SECCOMP_GET_FILTER
        ("process_vm_readv", [0, 0, 0, 0, 0, 0], errno.EPERM),
        ("open_by_handle_at", [0, 0, 0], errno.EPERM),
        ("vmsplice", [0, 0, 0, 0], errno.EPERM),
        ("kcmp", [0, 0, 9, 0, 0], errno.EPERM),
        ("syslog", [3, 0, 0], errno.EPERM),
        ("io_uring_setup", [1, 0], errno.ENOSYS),
        ("futex_requeue", [0, 0, 0, 0], errno.ENOSYS),
        ("statmount", [0, 0, 0, 0], errno.ENOSYS),
        (600, [], errno.ENOSYS),
        (0xFFFFFFFFFFFFFFFF, [], errno.ENOSYS),
        ("socket", [1, 1, 0], 0),
        ("socket", [2, 1, 0], 0),
        ("socket", [16, 3, 0], 0),
        ("socket", [2, 1, 132], errno.EPROTONOSUPPORT),
        ("socket", [16, 3, 9], errno.EAFNOSUPPORT),
        ("socket", [1 << 32 | 38, 5, 0], errno.EAFNOSUPPORT),
        ("socket", [40, 1, 0], errno.EAFNOSUPPORT),
        ("socket", [17, 3, 0], errno.EAFNOSUPPORT),
        ("ioctl", [0, 0x5412, 0], errno.EPERM),
        ("ioctl", [0, 1 << 32 | 0x5412, 0], errno.EPERM),
        ("ioctl", [0, 0x541C, 0], errno.EPERM),
        ("personality", [0xFFFFFFFF], 0),
        ("personality", [0x40000], errno.EPERM),
        ("mknodat", [0xFFFFFF9C, 0, 0o20666, 0x103], errno.EPERM),
        ("mknodat", [0xFFFFFF9C, 0, 0o10666, 0], errno.EFAULT),
    ]

    actual = errnos(directory, SANDBOX_FILTER, *((name, args) for name, args, _ in expected))

    assert list(zip(expected, actual, strict=True)) == [(call, call[2]) for call in expected]


@pytest.mark.security
def test_docker_shape_loads_and_refuses(directory: Path) -> None:
    """Docker's filter allows chroot and tracing, and refuses namespaces and AF_ALG."""
    actual = errnos(
        directory,
        DOCKER_FILTER,
        ("chroot", [0]),
        ("unshare", [0]),
        ("clone3", [0, 0]),
        ("socket", [38, 5, 0]),
        ("socket", [2, 1, 132]),
        ("kcmp", [0, 0, 9, 0, 0]),
    )

    assert actual[0] in (errno.EFAULT, errno.EPERM)
    assert actual[1:4] == [errno.EPERM, errno.ENOSYS, errno.EPERM]
    assert actual[4] in (0, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT)
    assert actual[5] == errno.EPERM


X86_ONLY = pytest.mark.skipif(MACHINE != "x86_64", reason="i386 and x32 calls exist on x86_64 only")


@X86_ONLY
@pytest.mark.security
def test_x32_calls_end_the_process(directory: Path) -> None:
    """E14: getpid by its x32 number."""
    result = confined(directory, SANDBOX_FILTER, PYTHON, "-c", CALLER, json.dumps([(0x40000000 | 39, [])]))

    assert result.returncode == -signal.SIGSYS


@X86_ONLY
@pytest.mark.security
def test_i386_calls_end_the_process(directory: Path) -> None:
    """E14: getpid by int 0x80, which a 64-bit program may use as well."""
    script = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes.fromhex("b814000000cd80c3"))
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))())
"""
    if "User Mode Linux" in Path("/proc/cpuinfo").read_text():
        pytest.skip("user-mode-linux has no i386 system calls")
    if subprocess.run([PYTHON, "-c", script], stdout=subprocess.DEVNULL, timeout=60).returncode != 0:
        pytest.skip("this kernel has no i386 calls")

    result = confined(directory, SANDBOX_FILTER, PYTHON, "-c", script)

    assert result.returncode == -signal.SIGSYS


def test_filters_nest(directory: Path) -> None:
    """A sandboxed program may tighten itself further, and only that."""
    outer, inner = directory / "outer", SANDBOX_FILTER.denying("getppid").allowing("unshare")
    outer.write_bytes(assemble(SANDBOX_FILTER, MACHINE))
    program = json.dumps([(TABLE[MACHINE][name], [0]) for name in ("getppid", "unshare")])

    result = confined(directory, inner, PYTHON, "-c", LOADER, str(outer), PYTHON, "-c", CALLER, program)

    assert json.loads(result.stdout) == [errno.EPERM, errno.EPERM]


def test_long_programs_load(directory: Path) -> None:
    """The kernel accepts long jumps, and they reach their targets."""
    names = sorted(TABLE[MACHINE])
    late = {"getpid": 0, "getppid": 1000, "getsid": 2000, "acct": 3000}
    filter_ = Filter(
        rules=[
            *(
                Rule(
                    names=name,
                    action=refuse(1000 + index),
                    conditions=[Condition(arg=arg, value=(index << 32) + 5) for arg in (4, 5)],
                )
                for index, name in enumerate(names)
                if name not in late
            ),
            *(Rule(names=name, action=refuse(500 + index)) for name, index in late.items() if index),
        ],
        default=ALLOW,
    )
    index = names.index("accept")

    assert len(assemble(filter_, MACHINE)) // 8 > 2000
    assert errnos(
        directory,
        filter_,
        ("getpid", []),
        ("getppid", []),
        ("getsid", []),
        ("acct", []),
        ("accept", [0, 0, 0, 0, (index << 32) + 5, (index << 32) + 5]),
    ) == [0, 1500, 2500, 3500, 1000 + index]


def test_loader_runs_nothing_unfiltered(directory: Path) -> None:
    """Control: a program that the kernel refuses ends the loader."""
    (directory / "bad").write_bytes(bytes(8))

    result = subprocess.run(
        [PYTHON, "-c", LOADER, str(directory / "bad"), "true"], capture_output=True, text=True, timeout=60
    )

    assert result.returncode == 1
    assert "not loaded" in result.stderr
