"""Start, stop, commands, popen, threads, forks, crashes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pycontain import PIPE, Conflict, Container, Engine, StateError
from pycontain._objects.engine import default_engine
from pycontain._objects.main_command import MainCommand
from pycontain._runtime import start as starting
from pycontain._runtime.running import Running
from tests.support.descriptors import left_open, open_descriptors


def test_states() -> None:
    container = Container(name="pyc-states")
    assert (str(container.status), container.name) == ("created", "pyc-states")
    container.start()
    assert str(container.status) == "running"
    assert container.pid > 1
    with pytest.raises(StateError):
        container.start()
    container.remove()
    assert str(container.status) == "removed"
    container.remove()
    with pytest.raises(StateError):
        container.start()


def test_status_while_another_thread_starts_and_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    container = Container()
    begin, end = starting.start, Running.end

    def started(*args: Any) -> Running:
        seen.append(container.status)
        return begin(*args)

    def ended(running: Running, *args: Any) -> None:
        seen.append(container.status)
        end(running, *args)

    monkeypatch.setattr("pycontain._objects.lifecycle.start", started)
    monkeypatch.setattr(Running, "end", ended)
    with container:
        seen.append(container.status)
    assert (seen, container.status) == (["starting", "running", "stopping"], "removed")


def test_a_container_that_is_removed_cannot_be_started_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    container = Container(command=["true"])
    close, errors = MainCommand.close, []

    def closed(main: MainCommand) -> None:
        try:
            container.start()
        except StateError as error:
            errors.append(str(error))
        close(main)

    container.start()
    monkeypatch.setattr(MainCommand, "close", closed)
    container.remove()
    assert errors == [f"container {container.name} is removed"]
    assert container.status == "removed"


def test_a_container_that_its_engine_ended_starts_again(engine: Engine) -> None:
    with Container() as container:
        engine.kill_all()
        assert container.status == "exited"
        container.start()
        assert container.exec(["true"]).returncode == 0


def test_command_and_logs() -> None:
    with Container(command=["sh", "-c", "echo hi; exit 3"]) as container:
        assert container.wait(10) == 3
        assert b"".join(container.logs()) == b"hi\n"
        assert container.status == "exited"


def test_logs_follow() -> None:
    with Container(command=["sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.05; done"]) as container:
        assert b"".join(container.logs(follow=True)) == b"1\n2\n3\n"


def test_command_as_pid_1() -> None:
    with Container(command=["sh", "-c", "echo pid $$; exit 4"], init=False) as container:
        assert container.wait(10) == 4
        assert b"".join(container.logs()) == b"pid 1\n"


def test_no_exec_beside_pid_1() -> None:
    with Container(command=["sleep", "100"], init=False) as container:  # noqa: SIM117
        with pytest.raises(StateError, match="init=False"):
            container.exec(["true"])
    with pytest.raises(ValueError, match="init=False"):
        Container(init=False)


def test_missing_command_as_pid_1() -> None:
    from pycontain import CommandNotFound

    with pytest.raises(CommandNotFound):
        Container(command=["/no/such"], init=False).start()


def test_stop_asks_first() -> None:
    script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done"
    container = Container(command=["sh", "-c", script]).start()
    follow = container.logs(follow=True)
    assert next(follow) == b"up\n"
    container.stop(timeout=10)
    assert b"bye" in b"".join(container.logs())
    container.remove()


def test_wait_timeout() -> None:
    with Container(command=["sleep", "100"]) as container, pytest.raises(subprocess.TimeoutExpired):
        container.wait(0.05)


def test_lifetime() -> None:
    with Container(lifetime=0.2) as container, pytest.raises(StateError):
        container.exec(["sleep", "100"])


def test_popen_pipes(container: Container) -> None:
    with container.popen(["cat"], stdin=PIPE) as process:
        assert process.pid > 1
        assert process.poll() is None
        assert process.communicate("hello\n") == ("hello\n", "")
    assert (process.returncode, process.reason) == (0, "exit")
    assert process.usage is not None


def test_popen_iterates(container: Container) -> None:
    with container.popen(["seq", "3"]) as process:
        assert process.stdout is not None
        assert [line.strip() for line in process.stdout] == ["1", "2", "3"]


def test_terminal_and_resize(container: Container) -> None:
    with container.popen(["sh", "-c", "tty; stty size; read x; echo got $x; stty size"], pty=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline().strip() == "/dev/pts/0"
        assert process.stdout.readline().strip() == "24 80"
        process.resize(50, 132)
        process.stdin.write("yo\n")
        assert process.stdout.read().split() == ["yo", "got", "yo", "50", "132"]
        assert process.wait() == 0


@pytest.mark.parametrize("round_", range(20))
def test_terminal_carries_hundred_megabytes(round_: int, roomy: Container) -> None:
    """In raw mode the digests of the input inside and outside agree."""
    import hashlib

    megabytes = int(os.environ.get("PYC_MEGABYTES", "100"))
    code = (
        "import os, sys, tty, hashlib\n"
        "tty.setraw(0)\n"
        "data = os.urandom(1 << 20); h = hashlib.sha256()\n"
        f"for _ in range({megabytes}):\n"
        "    h.update(data); v = memoryview(data)\n"
        "    while v: v = v[os.write(1, v):]\n"
        "open('/tmp/digest', 'w').write(h.hexdigest())\n"
    )
    digest, size = hashlib.sha256(), 0
    with roomy.popen(["python3", "-c", code], pty=True, text=False) as process:
        assert process.stdout is not None
        while chunk := process.stdout.read(1 << 16):
            digest.update(chunk)
            size += len(chunk)
        assert process.wait() == 0
    assert size == megabytes << 20
    assert roomy.exec(["cat", "/tmp/digest"]).stdout == digest.hexdigest()


@pytest.fixture(scope="module")
def roomy() -> object:
    with Container() as container:
        yield container


def test_popen_signals(container: Container) -> None:
    process = container.popen(["sleep", "100"])
    process.terminate()
    assert process.wait(10) == -signal.SIGTERM
    process.close()
    process = container.popen("sleep 100 & sleep 100", shell=True)
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
    process.close()


@pytest.mark.case("F11")
def test_started_in_a_thread_that_ends() -> None:
    started: list[Container] = []
    thread = threading.Thread(target=lambda: started.append(Container().start()))
    thread.start()
    thread.join()
    time.sleep(0.05)
    assert started[0].exec(["echo", "alive"]).stdout == "alive\n"
    started[0].remove()


def _children() -> list[str]:
    return sorted(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_callers_children_are_not_reaped() -> None:
    """Children that an earlier test left, as multiprocessing does, do not count."""
    before = _children()
    with Container() as container:
        container.exec(["true"])
        assert _children() == before


def test_a_fork_does_not_hold_the_container() -> None:
    with Container() as container:
        container.exec(["true"])
        child = os.fork()
        if child == 0:
            time.sleep(5)
            os._exit(0)
        try:
            container.remove()
            assert container.status == "removed"
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


@pytest.mark.parametrize("options", [{}, {"command": ["sleep", "60"]}, {"lifetime": 60}])
def test_a_forked_child_leaves_a_with_block_quietly(options: dict[str, Any]) -> None:
    with Container(**options) as container:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                container.__exit__(None, None, None)
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert container.exec(["echo", "alive"]).stdout == "alive\n"


VICTIM = """
import os, sys, random
from pycontain import Container, Engine
engine = Engine(sys.argv[1])
print(engine._session.owner.name, flush=True)
while True:
    with Container(engine=engine) as c:
        c.exec(['true'])
        c.exec(['sleep', '0.002'])
"""


@pytest.mark.soak
@pytest.mark.case("F02")
def test_killed_callers_leave_nothing(tmp_path: Path) -> None:
    """300 SIGKILLs at random moments of start, exec and stop; then one engine collects it all."""
    import random

    root = tmp_path / "root"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    layout = default_engine()._session.cgroups.layout
    bases = [f"{base}/pycontain" for base in (*layout.legacy.values(), layout.unified) if base]
    owners = set()
    rounds = int(os.environ.get("PYC_KILLS", "300"))
    for at in range(0, rounds, 10):
        victims = [
            subprocess.Popen(
                [sys.executable, "-c", VICTIM, str(root)], stdout=subprocess.PIPE, env=environment
            )
            for _ in range(min(10, rounds - at))
        ]
        for victim in victims:
            assert victim.stdout is not None
            owners.add(victim.stdout.readline().decode().strip())
            time.sleep(random.uniform(0, 0.02))
            victim.kill()
        for victim in victims:
            victim.communicate()
    with Engine(root) as engine:
        assert os.listdir(root / "data" / "live") == [engine._session.owner.name]
        assert os.listdir(root / "run" / "owners") == [f"{engine._session.owner.name}.lock"]
        assert len(owners) == rounds
        for base in filter(os.path.isdir, bases):
            assert not owners.intersection(os.listdir(base))


@pytest.mark.soak
@pytest.mark.case("F13")
def test_thousand_containers_leave_nothing(engine: Engine) -> None:
    # The watch of disk limits borrows a launcher too, and makes the second one if it meets a start.
    with engine._session.launchers.borrow(), engine._session.launchers.borrow():
        pass
    for _ in range(20):
        with Container() as container:
            container.exec(["true"])
    engine._session.warm.discard()
    engine.settle()
    before = open_descriptors(), threading.active_count(), _memory()
    for _ in range(1000):
        with Container() as container:
            container.exec(["true"])
    engine._session.warm.discard()
    engine.settle()
    after = open_descriptors(), threading.active_count(), _memory()
    assert not left_open(before[0])
    assert after[1] <= before[1]
    assert after[2] - before[2] < 8 << 20


@pytest.mark.soak
@pytest.mark.case("F13")
def test_two_hundred_at_once(engine: Engine) -> None:
    from concurrent.futures import ThreadPoolExecutor

    engine._session.interrupts.watch()
    engine._session.warm.discard()
    engine.settle()
    before, launchers = open_descriptors(), len(engine._session.launchers)
    with ThreadPoolExecutor(16) as pool:
        containers = list(pool.map(lambda _: Container().start(), range(200)))
        echoed = list(pool.map(lambda one: one.exec(["echo", one.id]).stdout.strip(), containers))
        assert echoed == [one.id for one in containers]
        list(pool.map(lambda one: one.remove(), containers))
    engine._session.warm.discard()
    engine.settle()
    # A launcher is a socket and a pidfd, and stays.
    assert left_open(before).total() <= 2 * (len(engine._session.launchers) - launchers)


@pytest.mark.soak
@pytest.mark.case("F13")
def test_ten_thousand_execs(container: Container) -> None:
    container.exec(["true"])
    before, memory = open_descriptors(), _memory()
    for _ in range(10_000):
        container.exec(["true"])
    assert not left_open(before)
    assert _memory() - memory < 8 << 20


def _memory() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def test_first_containers_of_many_threads(tmp_path: Path) -> None:
    """Concurrent first starts create the host image of a new store once."""
    from concurrent.futures import ThreadPoolExecutor

    with Engine(tmp_path / "root") as engine, ThreadPoolExecutor(8) as pool:

        def first(number: int) -> str:
            with Container(engine=engine) as container:
                return str(container.exec(["echo", str(number)]).stdout)

        assert list(pool.map(first, range(8))) == [f"{number}\n" for number in range(8)]


def test_name_is_unique_among_live_containers() -> None:
    with Container(name="pyc-twin") as first:
        twin = Container(name="pyc-twin")
        with pytest.raises(Conflict, match="pyc-twin"):
            twin.start()
        assert first.exec(["echo", "on"]).stdout == "on\n"
        first.restart()
    with twin:
        assert twin.name == "pyc-twin"
