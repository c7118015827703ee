"""F05 to F07, F10 to F17: failures around the engine and the cleanup after them (F08: test_inject.py)."""

from __future__ import annotations

import asyncio
import errno
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pycontain import CommandTimeout, Container, Engine
from pycontain._kernel import native

ROOT = Path(__file__).resolve().parent.parent.parent
FULL = bool(os.environ.get("PYC_SECURITY_FULL"))


def _fds() -> int:
    return len(os.listdir("/proc/self/fd"))


FULL_STORE = """
import os, subprocess, sys
from pycontain import Container, Engine, PycontainError
store, wrong, refused = sys.argv[1], [], 0
for size in ('16k', '32k', '64k', '128k', '512k'):
    subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size},nr_inodes=64', 'pyc', store], check=True)
    try:
        with Engine(store) as engine:
            for _ in range(12):
                try:
                    with Container(engine=engine) as container:
                        done = container.exec('head -c 400000 /dev/zero > /big; echo done', shell=True)
                        if done.returncode: wrong.append(done)
                except (PycontainError, OSError) as error:
                    refused += 1
                    if not str(error): wrong.append(error)
            engine._session.warm.discard()
            wrong += os.listdir(engine._session.owner.live)
    except (PycontainError, OSError):
        refused += 1
    subprocess.run(['umount', '-l', store], check=True)
print(wrong, refused > 0)
"""


@pytest.mark.case("F05")
def test_a_full_store_is_a_typed_error(tmp_path: Path, engine: Engine) -> None:
    if not engine._session.features.privileged:
        pytest.skip("a small file system is mounted by root")
    command = ["unshare", "-m", sys.executable, "-c", FULL_STORE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "[] True\n", done.stderr[-3000:]


@pytest.mark.control("F05")
def test_a_store_with_room_works(tmp_path: Path) -> None:
    with Engine(tmp_path / "store") as own, Container(engine=own) as container:
        assert container.exec(["true"]).returncode == 0


FEW = """
import os, resource, sys
from pycontain import Container, Engine, PycontainError
engine = Engine(sys.argv[1])
with Container(engine=engine) as c: c.exec(['true'])
engine._session.warm.discard(); engine.settle()
before = len(os.listdir('/proc/self/fd'))
good = bad = 0
for limit in range(before + 1, before + 90):
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    for _ in range(2):
        try:
            with Container(engine=engine) as c: c.exec(['true'])
            good += 1
        except (PycontainError, OSError):
            bad += 1
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
engine._session.warm.discard(); engine.settle()
after = len(os.listdir('/proc/self/fd'))
with Container(engine=engine) as c: assert c.exec(['echo', 'on']).stdout == 'on\\n'
engine._session.warm.discard()
live = os.listdir(engine._session.owner.live)
print(*engine._session.cleanup.errors, live, sep='\\n', file=sys.stderr)
engine.close()
print(good > 0, bad > 0, after - before, len(live))
"""


@pytest.mark.case("F06")
def test_few_descriptors_are_a_typed_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FEW, str(tmp_path)], capture_output=True, text=True, check=False
    )
    good, bad, more, live = done.stdout.split() or [done.stderr[-2000:], "", "", ""]
    assert (good, bad) == ("True", "True"), done.stderr[-2000:]
    assert int(more) <= 8  # launchers and cgroup directories that were opened since
    assert int(live) == 0, done.stderr[-2000:]


@pytest.mark.case("F06")
def test_other_peoples_fds_on_their_way_are_waited_for(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel counts descriptors in flight per user, over all processes of an unprivileged user."""
    send, refusals = native.send, [errno.ETOOMANYREFS] * 3

    def refused(socket: int, message: bytes, fds: list[int] | tuple[int, ...] = ()) -> None:
        if fds and refusals:
            raise OSError(refusals.pop(), "refused")
        send(socket, message, fds)

    place = Path(engine._session.owner.live, "pyc-refused")
    place.mkdir()
    engine._session.cleanup.discard("pyc-gone")  # the cleanup helper exists from here on
    engine.settle()
    monkeypatch.setattr(native, "send", refused)
    engine._session.cleanup.discard("pyc-refused")
    engine.settle()
    assert (refusals, engine._session.cleanup.errors) == ([], [])
    assert not place.exists()


@pytest.mark.case("F07")
def test_little_memory_is_an_error_and_no_half_container(tmp_path: Path) -> None:
    code = """
import resource, sys
from pycontain import Container, Engine, PycontainError
engine = Engine(sys.argv[1])
with Container(engine=engine) as c: c.exec(['true'])
size = int(open('/proc/self/statm').read().split()[0]) * 4096
good = bad = 0
for more in range(0, 64 << 20, 1 << 20):
    resource.setrlimit(resource.RLIMIT_AS, (size + more, -1))
    try:
        with Container(engine=engine) as c:
            c.exec(['head', '-c', '4000000', '/dev/zero'], text=False)
        good += 1
    except (PycontainError, OSError, MemoryError):
        bad += 1
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
engine.settle()
with Container(engine=engine) as c: assert c.exec(['echo', 'on']).stdout == 'on\\n'
engine.close()
print(good, bad)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    good, bad = map(int, done.stdout.split())
    assert good > 0
    assert bad > 0


@pytest.mark.control("F06", "F07")
def test_a_descriptor_that_leaks_is_counted() -> None:
    before = _fds()
    fd = os.open("/dev/null", os.O_RDONLY)
    try:
        assert _fds() == before + 1
    finally:
        os.close(fd)


def _echo(mark: int) -> bool:
    with Container() as container:
        return bool(container.exec(["echo", str(mark)]).stdout == f"{mark}\n")


def _pool_echo(mark: int) -> bool:
    with Engine() as engine, Container(engine=engine) as container:
        return bool(container.exec(["echo", str(mark)]).stdout == f"{mark}\n")


@pytest.mark.case("F10")
def test_many_threads_share_an_engine() -> None:
    with ThreadPoolExecutor(64) as pool:
        assert all(pool.map(_echo, range(400 if FULL else 96)))


@pytest.mark.case("F10")
def test_tasks_share_an_engine() -> None:
    async def many() -> list[bool]:
        return await asyncio.gather(*(asyncio.to_thread(_echo, at) for at in range(200 if FULL else 40)))

    assert all(asyncio.run(many()))


def share_by_processes(method: str) -> None:
    """Start containers from processes of a pool, beside one of the parent."""
    with Container() as container, multiprocessing.get_context(method).Pool(2) as pool:
        assert all(pool.map(_pool_echo, range(6)))
        assert container.exec(["echo", "on"]).stdout == "on\n"


@pytest.mark.case("F10")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_a_pool_have_engines_of_their_own(method: str) -> None:
    """Run in a subprocess, because a pool's servers remain children of the process that made it."""
    code = f"from tests.security.test_faults import share_by_processes as share; share({method!r})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


ENDINGS = {
    "return": "",
    "exit": "import sys; sys.exit(3)",
    "os._exit": "import os; os._exit(0)",
    "kill": "import os; os.kill(os.getpid(), 9)",
    "segv": "import os; os.kill(os.getpid(), 11)",
    "raise": "raise RuntimeError",
}


@pytest.mark.case("F12")
@pytest.mark.parametrize("ending", list(ENDINGS))
def test_a_guest_ends_with_its_caller(ending: str, tmp_path: Path) -> None:
    code = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from pycontain import Container, Engine
engine = Engine({str(tmp_path)!r})
c = Container(engine=engine).start()
c.popen(['sleep', '1000'])
print(c.pid, flush=True)
sys.stdin.readline()
{ENDINGS[ending]}
"""
    caller = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert caller.stdout is not None
    pid = int(caller.stdout.readline())
    assert os.path.exists(f"/proc/{pid}/ns")
    caller.communicate("\n")
    deadline = time.monotonic() + 2
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not os.path.exists(f"/proc/{pid}")
    with Engine(tmp_path) as engine:
        assert os.listdir(f"{engine._session.roots.data}/live") == [engine._session.owner.name]


@pytest.mark.control("F02", "F13")
def test_leftovers_of_a_killed_caller_are_listed_until_the_next_engine(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pycontain import Container, Engine
engine = Engine({str(tmp_path)!r})
containers = [Container(engine=engine).start() for _ in range(3)]
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    live = next(iter(tmp_path.rglob("live")))
    (owner,) = live.iterdir()
    assert len(list(owner.iterdir())) == 3
    with Engine(tmp_path) as engine:
        assert os.listdir(live) == [engine._session.owner.name]


@pytest.mark.control("F11", "F12")
def test_a_guest_of_a_living_caller_lives() -> None:
    with Container() as container:
        time.sleep(0.5)
        assert os.path.exists(f"/proc/{container.pid}")


@pytest.mark.case("F15")
def test_output_of_short_commands_is_complete() -> None:
    with Container() as container:
        for at in range(5000 if FULL else 300):
            done = container.exec(["sh", "-c", f"echo line {at}; exit {at % 200}"])
            assert (done.returncode, done.stdout) == (at % 200, f"line {at}\n")


@pytest.mark.case("F14")
def test_two_streams_are_exact() -> None:
    size = int(os.environ.get("PYC_MEGABYTES", "20")) << 20
    with Container() as container:
        code = f"import os, sys\nfor fd in (1, 2):\n    left = {size}\n    while left: left -= os.write(fd, bytes([fd]) * min(left, 65536))"
        done = container.exec([sys.executable, "-c", code], text=False, max_output=None)
    assert done.stdout == b"\1" * size
    assert done.stderr == b"\2" * size


@pytest.mark.control("F10", "F14", "F15")
def test_another_code_or_line_would_be_seen() -> None:
    with Container() as container:
        done = container.exec(["sh", "-c", "echo other; exit 1"])
        assert (done.returncode, done.stdout) != (0, "line 0\n")


_STOPPED = """
import os, signal, sys, threading
from pycontain import Container
from pycontain._objects.engine import default_engine

class Stop(BaseException):
    pass

def stop(*_):
    raise Stop

def work(timer):
    timer.start()
    while True:
        with Container() as container:
            container.exec(["sleep", "0.01"])

Container().start().remove()
number, stopped = int(sys.argv[1]), 0
signal.signal(number, stop)
for delay in (0.0005, 0.002, 0.005, 0.02, 0.1):
    timer = threading.Timer(delay, os.kill, (os.getpid(), number))
    try:
        work(timer)
    except Stop:
        stopped += 1
    timer.join()
signal.signal(number, signal.SIG_IGN)
default_engine().settle()
print(stopped, len(default_engine().containers))
"""


@pytest.mark.case("F16")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_with(number: signal.Signals) -> None:
    """Run in a subprocess: Python can lose the result of a call when a signal handler raises."""
    command = [sys.executable, "-c", _STOPPED, str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["5", "0"], done.stderr


@pytest.mark.control("F16")
def test_a_container_that_is_left_open_is_counted(engine: Engine) -> None:
    container = Container().start()
    assert engine.containers == [container]
    container.remove()


@pytest.mark.case("F17")
def test_wall_clock_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter(range(0, 10**9, 86_400))
    monkeypatch.setattr(time, "time", lambda: float(next(jumps)))
    with Container() as container:
        begun = time.monotonic()
        with pytest.raises(CommandTimeout):
            container.exec(["sleep", "100"], timeout=1)
        assert 0.95 <= time.monotonic() - begun <= 1.5
    top = Path(sys.modules["pycontain"].__file__ or "").parent
    # Dates in the records of the store and in logs, and one that a registry names: no wait depends on them.
    dated = {
        "_images/store.py",
        "_images/ingest.py",
        "_images/snapshot_layers.py",
        "_objects/log.py",
        "_registry/http.py",
        "_volumes/records.py",
    }
    reading = {
        str(path.relative_to(top))
        for path in top.rglob("*.py")
        if re.search(r"(?<!datetime\.)\btime\.time\(", path.read_text())
    }
    assert reading == dated


@pytest.mark.control("F17")
def test_clock_jump_is_seen_by_readers_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert time.time() == 0.0


def test_limits_of_this_process_are_as_they_were() -> None:
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 200
