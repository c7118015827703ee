"""L01 to L17: limits hold for the whole process tree."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pycontain import CgroupLimits, CommandTimeout, Container, Engine, ExecResult

FULL = bool(os.environ.get("PYC_SECURITY_FULL"))


def _python(container: Container, code: str, **options: Any) -> ExecResult:
    return container.exec([sys.executable, "-c", code], **options)


def _host_fork() -> float:
    begun = time.perf_counter()
    subprocess.run(["true"], check=True)
    return time.perf_counter() - begun


BOMBS = {
    "fork": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "thread": "import threading, time\nwhile True:\n    try: threading.Thread(target=time.sleep, args=(100,)).start()\n    except RuntimeError: pass",
    "vfork": "import subprocess\nwhile True:\n    try: subprocess.Popen(['sleep', '100'], close_fds=False)\n    except OSError: pass",
    "exec": "import os, sys\nos.fork(); os.fork(); os.execv(sys.executable, [sys.executable, '-c', 'import os,sys; os.fork(); os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])'])",
}


@pytest.mark.case("L01", "L02")
@pytest.mark.parametrize("bomb", list(BOMBS))
def test_bomb_is_contained_and_removed(bomb: str, needs_pids: None, engine: Engine) -> None:
    with Container(pids=64) as container:
        process = container.popen([sys.executable, "-c", BOMBS[bomb]], stdout=-3, stderr=-3)
        time.sleep(1)
        assert min(_host_fork() for _ in range(5)) < 0.1
        stats = container.stats()
        assert stats.processes is None or stats.processes <= 64
        begun = time.monotonic()
        process.kill()
        container.remove()
        engine.settle()
        assert time.monotonic() - begun < 3


@pytest.mark.control("L01", "L02")
def test_without_a_limit_more_processes_live(needs_pids: None) -> None:
    code = "import os, time\nn = 0\nfor _ in range(100):\n    try:\n        if os.fork() == 0: time.sleep(2); os._exit(0)\n        n += 1\n    except OSError: pass\nprint(n)"
    with Container(pids=64) as one, Container(pids=1000) as other:
        assert int(_python(one, code).stdout) < 64
        assert int(_python(other, code).stdout) == 100


HUNGRY = {
    "touch": "x = bytearray(256 << 20)",
    "shared": "import mmap; m = mmap.mmap(-1, 256 << 20); [m.__setitem__(i, 1) for i in range(0, 256 << 20, 4096)]",
    "memfd": "import os; f = os.memfd_create('x'); [os.write(f, b'x' * (1 << 20)) for _ in range(256)]",
    "sysv": "import ctypes; c = ctypes.CDLL(None); c.shmat.restype = ctypes.c_void_p\ni = c.shmget(0, 256 << 20, 0o1600); p = c.shmat(i, None, 0); ctypes.memset(p, 1, 256 << 20)",
    "shm": "f = open('/dev/shm/x', 'wb', 0); [f.write(b'x' * (1 << 20)) for _ in range(256)]",
    "tmp": "f = open('/tmp/x', 'wb', 0); [f.write(b'x' * (1 << 20)) for _ in range(256)]",
}


@pytest.mark.case("L03", "L04", "L06")
@pytest.mark.parametrize("way", list(HUNGRY))
def test_memory_is_bounded_for_every_kind_of_allocation(way: str, needs_memory: None) -> None:
    with Container(memory="64M") as container:
        done = _python(container, HUNGRY[way])
        assert done.returncode != 0
        assert done.reason == "oom" or "No space" in done.stderr
        if done.reason == "oom":
            assert done.returncode == -signal.SIGKILL
        stats = container.stats()
        assert stats.memory is None or stats.memory <= (64 << 20) + (1 << 20)
        assert container.exec(["echo", "on"]).stdout == "on\n"


@pytest.mark.control("L03", "L04", "L06")
@pytest.mark.parametrize("way", ["touch", "memfd"])
def test_same_program_succeeds_with_enough_memory(way: str, needs_memory: None) -> None:
    with Container(memory="1G") as container:
        assert _python(container, HUNGRY[way]).returncode == 0


KERNEL = {
    "pipes": "import os, fcntl\nfs = []\nwhile True:\n    r, w = os.pipe(); fcntl.fcntl(w, 1031, 1 << 20); os.set_blocking(w, False); fs.append((r, w))\n    try:\n        while True: os.write(w, b'x' * 65536)\n    except BlockingIOError: pass",
    "sockets": "import socket\nfs = []\nwhile True:\n    a, b = socket.socketpair(); a.setblocking(False); fs.append((a, b))\n    try:\n        while True: a.send(b'x' * 65536)\n    except BlockingIOError: pass",
    "names": "import os\ni = 0\nwhile True:\n    i += 1\n    try: os.stat('/tmp/' + str(i) * 20)\n    except OSError: pass\n    if i > 400000: break",
    "timers": "import ctypes\nc = ctypes.CDLL(None); t = (ctypes.c_long * 4)(); n = 0\nwhile c.timer_create(1, None, t) == 0 and n < 400000: n += 1",
    "watches": "import ctypes, os\nc = ctypes.CDLL(None)\nfs = []\nwhile True:\n    f = c.inotify_init1(0)\n    if f < 0: break\n    fs.append(f)\n    [c.inotify_add_watch(f, d.encode(), 2) for d in ('/tmp', '/usr', '/etc')]",
}


@pytest.mark.case("L05")
@pytest.mark.parametrize("what", list(KERNEL))
def test_memory_of_the_kernel_counts_too(what: str, needs_memory: None) -> None:
    with Container(memory="64M", rlimits={"nofile": 1024}) as container:
        try:
            _python(container, KERNEL[what], timeout=20)
        except CommandTimeout:
            pass
        stats = container.stats()
        assert stats.memory is None or stats.memory <= (64 << 20) * 1.05
        assert container.exec(["echo", "on"]).stdout == "on\n"


DESCRIPTORS = """
import array, errno, os, socket
held, sent = [], 0
try:
    while True: held.append(os.open('/dev/null', os.O_RDONLY))
except OSError as error: print(errno.errorcode[error.errno], len(held))
os.close(held.pop()); os.close(held.pop())
ours, theirs = socket.socketpair()
try:
    for _ in range(100_000):
        ours.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', held[:200]))], socket.MSG_DONTWAIT)
        sent += 200
except OSError as error: print(errno.errorcode[error.errno])
print(sent < 50_000)
"""


def _descriptors(most: int) -> list[str]:
    """Return how many files a command can open, and whether sending them over sockets allows more."""
    with Container(rlimits={"nofile": most}) as container:
        return str(container.exec([sys.executable, "-c", DESCRIPTORS]).stdout).split()


@pytest.mark.case("L09")
def test_descriptors_are_bounded_open_or_in_flight() -> None:
    words = _descriptors(300)
    assert words[0] == "EMFILE"
    assert int(words[1]) < 300
    assert words[-1] == "True"


@pytest.mark.control("L09")
def test_with_a_higher_limit_more_are_open() -> None:
    assert int(_descriptors(900)[1]) > 800


@pytest.mark.control("L05")
def test_pipes_are_charged_to_the_container(needs_memory: None) -> None:
    with Container(memory="64M", rlimits={"nofile": 1024}) as container:
        done = _python(container, KERNEL["pipes"])
        assert (done.usage.memory_peak or 0) > 30 << 20 or done.reason == "oom"


WRITE = """
import os, sys
how, names = sys.argv[1], 0
if how == "deleted":
    file = open("/big", "wb", 0)
    os.unlink("/big")
elif how == "unnamed":
    file = os.fdopen(os.open("/", os.O_TMPFILE | os.O_RDWR), "wb", 0)
elif how == "hidden":
    os.mkdir("/hidden")
    file = open("/hidden/big", "wb", 0)
    os.chmod("/hidden", 0)
elif how == "write":
    file = open("/big", "wb", 0)
while how in ("write", "deleted", "unnamed", "hidden"):
    file.write(b"x" * (1 << 20))
while how == "fallocate":
    fd = os.open(f"/big{names}", os.O_CREAT | os.O_WRONLY)
    os.posix_fallocate(fd, 0, 1 << 20)
    names += 1
while how == "deep":
    os.mkdir("d")
    os.chdir("d")
os.mkdir("/many")
while True:
    os.close(os.open(f"/many/{names}", os.O_CREAT | os.O_WRONLY))
    names += 1
"""


@pytest.mark.case("L07", "L08", "U26")
@pytest.mark.parametrize("how", ["write", "fallocate", "deleted", "unnamed", "hidden", "deep", "inodes"])
def test_writer_beyond_the_disk_limit_is_killed(how: str, engine: Engine) -> None:
    with Container(disk="32M") as container:
        if how == "deleted" and not os.access(f"/proc/{container.pid}/fd", os.R_OK):
            pytest.skip("/proc does not show this user the open files of a container")
        done = container.exec([sys.executable, "-c", WRITE, how], timeout=120)
        assert (done.reason, done.returncode) == ("disk", -9), done
        used = container._engine._session.disk._watched[container.id].used
        assert used < 4 << 30  # a bound of the test's own: far more than a disk writes between two looks
        assert container.exec(["echo", "on"]).stdout == "on\n"


@pytest.mark.case("L07", "U26")
@pytest.mark.parametrize("init", [True, False])
def test_main_command_beyond_the_disk_limit_is_killed(init: bool) -> None:
    command = ["sh", "-c", "head -c 100M /dev/zero > /x; sleep 100"]
    with Container(command=command, disk="8M", init=init) as container:
        status = container.wait(timeout=60)
    assert (status, status.reason) == (-9, "disk")


@pytest.mark.case("L07", "U26")
def test_disk_limit_takes_no_memory(needs_memory: None) -> None:
    with Container(disk="600M", memory="64M") as container:
        done = container.exec("head -c 400M /dev/zero > /big && stat -c %s /big", shell=True, timeout=120)
        assert (done.reason, done.stdout) == ("exit", f"{400 << 20}\n")


@pytest.mark.case("U26")
def test_default_container_has_a_disk_limit() -> None:
    with Container() as container:
        assert container.isolation.limits["disk"] == 2 << 30
    with Container(disk="unlimited") as container:
        assert "disk" not in container.isolation.limits


@pytest.mark.case("L07")
def test_short_command_beyond_the_limit_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that ends before the disk watch polls is checked at its end."""
    with Container(disk="1M") as container:
        # Another program's free space can hide these 4 MiB from a single look.
        monkeypatch.setattr(container._engine._session.disk, "_free", lambda: (0, 0))
        assert container.exec("head -c 4M /dev/zero > /x; sync", shell=True).reason == "disk"
        assert container.exec(["true"]).reason == "exit"


@pytest.mark.case("L07")
def test_a_read_only_root_takes_nothing() -> None:
    with Container(read_only=True) as container:
        code = "import os\nfor top, dirs, _ in os.walk('/'):\n    dirs[:] = [d for d in dirs if os.path.join(top, d) not in ('/proc', '/sys')]\n    try: open(top + '/pyc-x', 'w').close(); print(top)\n    except OSError: pass"
        found = set(container.exec([sys.executable, "-c", code]).stdout.split())
        # The prefix of the interpreter may be below /tmp on the host.
        assert {one for one in found if not one.startswith("/tmp/")} <= {
            "/tmp",
            "/run",
            "/dev/shm",
            "/workspace",
        }


@pytest.mark.control("L07", "L08", "U26")
def test_larger_disk_limit_takes_more() -> None:
    with Container(disk="512M") as container:
        done = container.exec("head -c 64M /dev/zero > /x; for n in $(seq 500); do : > /$n; done", shell=True)
        assert done.reason == "exit"
        assert container.exec(["stat", "-c", "%s", "/x"]).stdout == f"{64 << 20}\n"


SPIN = """
import os, time
for _ in range(16):
    if os.fork() == 0:
        try: os.nice(-20)
        except OSError: pass
        end = time.monotonic() + 4
        while time.monotonic() < end: pass
        os._exit(0)
try:
    while True: os.wait()
except ChildProcessError: pass
"""


@pytest.fixture
def needs_cpu(engine: Engine) -> None:
    """Skip where no cgroup bounds processor time."""
    if not engine._session.cgroups.layout.has("cpu"):
        pytest.skip("no cpu controller is delegated to this user")


def _processors(cpus: float) -> float:
    """Return the processors that sixteen spinning processes used."""
    with Container(cpus=cpus) as container:
        usage = container.exec([sys.executable, "-c", SPIN]).usage
    assert usage.cpu_user is not None
    assert usage.cpu_system is not None
    return (usage.cpu_user + usage.cpu_system) / usage.wall


@pytest.mark.case("L10")
def test_processors_are_bounded(needs_cpu: None) -> None:
    assert _processors(0.25) <= 0.25 * 1.1


@pytest.mark.control("L10")
def test_with_more_processors_more_is_used(needs_cpu: None) -> None:
    assert _processors(2) > 0.25 * 1.1


TREE = {
    "sleep": "import time; time.sleep(100)",
    "deaf": "import signal, time\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\ntime.sleep(100)",
    "stopped": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "daemon": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(100)\n    os._exit(0)\ntime.sleep(100)",
    "orphans": "import os, time\nfor _ in range(50):\n    if os.fork() == 0:\n        if os.fork() == 0: os.setsid(); time.sleep(100)\n        os._exit(0)\n    os.wait()\nprint('partial', flush=True)\ntime.sleep(100)",
    "pipe": "import os; r, w = os.pipe(); os.read(r, 1)",
}


@pytest.mark.case("L11")
@pytest.mark.parametrize("tree", list(TREE))
def test_a_timeout_ends_every_process(tree: str) -> None:
    with Container() as container:
        begun = time.monotonic()
        with pytest.raises(CommandTimeout) as caught:
            container.exec([sys.executable, "-c", TREE[tree]], timeout=1)
        assert time.monotonic() - begun < 2.5
        if tree == "orphans":
            assert str(caught.value.stdout) == "partial\n"
        listing = container.exec("ls -d /proc/[0-9]* | wc -l", shell=True).stdout
        assert int(listing) <= 5


@pytest.mark.control("L11")
def test_without_a_timeout_orphans_live_on() -> None:
    code = TREE["orphans"].replace("\ntime.sleep(100)", "")
    with Container() as container:
        container.exec([sys.executable, "-c", code])
        assert int(container.exec("ls -d /proc/[0-9]* | wc -l", shell=True).stdout) > 50


@pytest.mark.case("L12")
def test_a_flood_is_cut_off() -> None:
    with Container() as container:
        before = _resident()
        done = container.exec("yes & yes >&2", shell=True, max_output="1M", timeout=20)
        assert done.reason == "output"
        assert done.truncated
        assert len(done.stdout) <= 1 << 20
        assert _resident() - before < 20 << 20


@pytest.mark.control("L12")
def test_without_a_cap_all_output_arrives() -> None:
    with Container() as container:
        done = container.exec("head -c 3000000 /dev/zero", shell=True, max_output=None, text=False)
        assert len(done.stdout) == 3_000_000
        assert not done.truncated


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.case("L13")
def test_fifty_megabytes_through_both_ways() -> None:
    size = int(os.environ.get("PYC_MEGABYTES", "50")) << 20
    data = os.urandom(size)
    code = "import sys\nwhile part := sys.stdin.buffer.read1(65536):\n    sys.stdout.buffer.write(part); sys.stderr.buffer.write(part)"
    with Container() as container:
        done = container.exec([sys.executable, "-c", code], input=data, text=False, max_output=None)
    assert done.stdout == data
    assert done.stderr == data


@pytest.mark.control("L13")
def test_missing_byte_is_detected() -> None:
    with Container() as container:
        done = container.exec("head -c 99", shell=True, input=b"x" * 100, text=False)
    assert len(done.stdout) != 100


RAISE = """
import os, resource
for name in ('NOFILE', 'CORE', 'MEMLOCK', 'MSGQUEUE', 'NICE', 'RTPRIO'):
    what = getattr(resource, 'RLIMIT_' + name, {'MSGQUEUE': 12, 'NICE': 13, 'RTPRIO': 14}.get(name))
    soft, hard = resource.getrlimit(what)
    try: resource.setrlimit(what, (hard + 1, hard + 1)); print('raised', name)
    except (OSError, ValueError): pass
try: os.nice(-1); print('nice')
except OSError: pass
for policy in (os.SCHED_FIFO, os.SCHED_RR):
    try: os.sched_setscheduler(0, policy, os.sched_param(1)); print('realtime', policy)
    except OSError: pass
import ctypes
if ctypes.CDLL(None).syscall(251, 1, 0, 1 << 13 | 0) == 0: print('ioprio')
"""


@pytest.mark.case("L15")
def test_no_limit_of_a_process_is_raised() -> None:
    with Container() as container:
        assert _python(container, RAISE).stdout == ""


@pytest.mark.control("L15")
def test_a_soft_limit_below_a_hard_one_is_raised(engine: Engine) -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)); print('raised')"
    with Container(rlimits={"nofile": (100, 200)}) as container:
        assert _python(container, code).stdout == "raised\n"


@pytest.mark.case("L16")
def test_zombies_are_reaped(needs_pids: None) -> None:
    count = 10_000 if FULL else 500
    code = f"import os\nfor _ in range({count}):\n    if os.fork() == 0:\n        if os.fork() == 0: os._exit(0)\n        os._exit(0)\n    os.wait()"
    with Container(pids=64) as container:
        done = _python(container, code)
        assert done.returncode == 0, done
        assert int(container.exec("ls -d /proc/[0-9]* | wc -l", shell=True).stdout) <= 5


@pytest.mark.control("L16")
def test_zombie_of_a_living_parent_is_detected() -> None:
    code = "import os, time\nfor _ in range(20):\n    if os.fork() == 0: os._exit(0)\ntime.sleep(0.2); print(len([1 for n in os.listdir('/proc') if n.isdigit()]))"
    with Container() as container:
        assert int(_python(container, code).stdout) > 20


RESIDUE = "import ctypes, os\nc = ctypes.CDLL(None)\nfor p in ('/tmp/r', '/dev/shm/r', '/r'): open(p, 'w').close()\nc.shmget(77, 4096, 0o1666); c.msgget(77, 0o1666); c.semget(77, 1, 0o1666)\n"
LEFT = "import ctypes, os\nc = ctypes.CDLL(None)\nprint([p for p in ('/tmp/r', '/dev/shm/r', '/r') if os.path.exists(p)], c.shmget(77, 4096, 0o666), c.msgget(77, 0o666), c.semget(77, 1, 0o666))"


@pytest.mark.case("L17")
def test_nothing_of_a_run_is_in_the_next() -> None:
    for _ in range(4):
        with Container() as container:
            assert _python(container, LEFT).stdout == "[] -1 -1 -1\n"
            _python(container, RESIDUE)


@pytest.mark.control("L17")
def test_leftovers_in_the_same_container_are_visible() -> None:
    with Container() as container:
        _python(container, RESIDUE)
        assert "/tmp/r" in _python(container, LEFT).stdout


@pytest.mark.case("L14")
def test_one_commands_limit_is_its_own(needs_memory: None) -> None:
    with Container(memory="256M") as container:
        done = _python(container, HUNGRY["touch"], limits=CgroupLimits(memory="32M"))
        assert done.reason == "oom"
        assert _python(container, "x = bytearray(64 << 20)").returncode == 0
