"""Ways to run commands: leftovers, buffered output, deadlines, cancellation."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pycontain import (
    BUFFER,
    PIPE,
    CancelToken,
    CommandFailed,
    CommandTimeout,
    Container,
    ContainerEnded,
    Engine,
    ExecResult,
    run,
)

SOON = 5.0
"""Seconds in which an ended command has to return; far below the sleeps of the commands."""


@pytest.fixture
def engine_of_its_own(tmp_path: Path) -> Iterator[Engine]:
    """Provide an engine that no other test uses."""
    with Engine(tmp_path / "root") as engine:
        yield engine


def _eventually(check: Callable[[], bool], within: float = SOON) -> bool:
    deadline = time.monotonic() + within
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _running(c: Container, name: str) -> int:
    script = f"for f in /proc/[0-9]*/comm; do cat $f; done 2>/dev/null | grep -cx {name}"
    return int(c.exec(script, shell=True).stdout)


def _exec_in_thread(c: Container, **options: Any) -> tuple[threading.Thread, list[Any]]:
    """Start `sleep 60` in a thread; return the thread and a list that gets its result or exception."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append(c.exec(["sleep", "60"], **options))
        except Exception as error:  # noqa: BLE001  the test looks at it
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert _eventually(lambda: _running(c, "sleep") == 1)
    return thread, outcome


def _joined(thread: threading.Thread) -> bool:
    thread.join(SOON)
    return not thread.is_alive()


# Leftovers


@pytest.mark.parametrize("supervised", [False, True])
def test_leftover_keeps_working_pipes(supervised: bool, engine_of_its_own: Engine) -> None:
    if supervised:
        engine_of_its_own._session.cgroups.unified = None
    with Container(engine=engine_of_its_own) as c:
        script = "(for i in 1 2 3; do sleep 0.1; echo tick; echo tock >&2; done; echo whole > /tmp/end) &"
        c.exec(script, shell=True)
        assert _eventually(lambda: c.exec(["cat", "/tmp/end"]).stdout == "whole\n")


def test_leftover_that_writes_much_is_drained(container: Container) -> None:
    """The agent drains more output than a pipe holds, and serves requests meanwhile."""
    container.exec("(head -c 50000000 /dev/zero; echo > /tmp/written) &", shell=True)
    assert container.exec(["echo", "served"], timeout=SOON).stdout == "served\n"
    assert _eventually(lambda: container.exec(["test", "-e", "/tmp/written"]).returncode == 0)


def test_pipes_of_leftovers_are_closed_with_their_last_writer(container: Container) -> None:
    if os.geteuid() != 0:
        pytest.skip("the agent's descriptors are visible to root of the host only")
    fds = f"/proc/{container.pid}/fd"
    before = len(os.listdir(fds))
    for _ in range(5):
        container.exec("sleep 0.2 & sleep 0.2 >/dev/null &", shell=True)
    assert len(os.listdir(fds)) > before
    assert _eventually(lambda: len(os.listdir(fds)) <= before)


def test_kill_orphans_kills_leftover_processes(container: Container) -> None:
    result = container.exec("sleep 60 & setsid sleep 60 & echo done", shell=True, kill_orphans=True)
    assert (result.stdout, result.reason) == ("done\n", "exit")
    assert _running(container, "sleep") == 0
    container.exec("sleep 60 &", shell=True)
    assert _running(container, "sleep") == 1


def test_command_that_reads_its_own_output_cannot_hold_a_deadline_back(container: Container) -> None:
    """A guest that reads its own pipe takes bytes between the caller's poll and read."""
    thief = (
        "import os, threading\n"
        "fd = os.open('/proc/self/fd/1', os.O_RDONLY)\n"
        "threading.Thread(target=lambda: [os.read(fd, 65536) for _ in iter(int, 1)], daemon=True).start()\n"
        "while True: os.write(1, b'x')\n"
    )
    begun = time.monotonic()
    with pytest.raises(CommandTimeout):
        container.exec(["python3", "-c", thief], timeout=1, max_output=None)
    assert time.monotonic() - begun < 1 + SOON


# popen


def test_popen_by_default_never_waits_for_a_reader(container: Container) -> None:
    script = "head -c 30000000 /dev/zero; head -c 30000000 /dev/zero >&2; echo end"
    with container.popen(script, shell=True, text=False) as process:
        assert process.wait(30) == 0
        assert process.stdout is not None
        assert process.stderr is not None
        kept, errors = process.stdout.read(), process.stderr.read()
    assert kept.endswith(b"end\n")
    # The thread may add the last bytes while the first are read.
    assert 16 << 20 <= len(kept) < 17 << 20
    assert process.dropped + len(kept) + len(errors) == 60_000_004


def test_popen_by_default_gives_lines_as_they_come(container: Container) -> None:
    with container.popen("echo one; read x; echo two $x", shell=True, stdin=PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "one\n"
        process.stdin.write("three\n")
        assert list(process.stdout) == ["two three\n"]
        with pytest.raises(OSError, match="PIPE"):
            process.stdout.fileno()
    assert process.returncode == 0


def test_popen_continues_after_its_handle_is_dropped(container: Container) -> None:
    with pytest.warns(ResourceWarning, match="still running"):
        container.popen("for i in $(seq 3000); do echo line $i of many; done; echo > /tmp/e", shell=True)
    assert _eventually(lambda: container.exec(["test", "-e", "/tmp/e"]).returncode == 0)


def test_popen_stream_that_is_closed_ends_the_writer(container: Container) -> None:
    process = container.popen(["yes"])
    process.close()
    assert process.wait(SOON) == -signal.SIGPIPE


def test_popen_with_a_deadline_is_killed_with_its_tree(container: Container) -> None:
    with container.popen("sleep 60 & sleep 60", shell=True, timeout=0.3) as process:
        assert process.wait(SOON) == -signal.SIGKILL
    assert process.reason == "timeout"
    assert _running(container, "sleep") == 0


@pytest.mark.parametrize("stream", [BUFFER, PIPE])
def test_communicate_kills_at_max_output(container: Container, stream: int) -> None:
    with container.popen(["yes"], stdout=stream, max_output="1M") as process:
        out, _ = process.communicate(timeout=30)
    assert len(out) == 1 << 20
    assert (process.reason, process.returncode) == ("output", -signal.SIGKILL)


# stdin=


def test_exec_reads_a_file_of_the_caller(container: Container, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_text("pear\napple\n")
    with source.open() as file:
        assert container.exec(["sort"], stdin=file).stdout == "apple\npear\n"
    with pytest.raises(ValueError, match="stdin and input"):
        container.exec(["cat"], stdin=PIPE, input="x")


def test_run_has_the_options_of_exec() -> None:
    result = run(None, "echo $0; exit 3", shell=True, text=False, stderr=subprocess.STDOUT)
    assert (result.stdout, result.returncode) == (b"/bin/sh\n", 3)
    assert run(None, ["yes"], max_output="64K").reason == "output"


# Cancellation


def test_token_cancels_from_another_thread(container: Container) -> None:
    token = CancelToken()
    thread, outcome = _exec_in_thread(container, cancel=token)
    token.cancel()
    assert _joined(thread)
    [result] = outcome
    assert isinstance(result, ExecResult)
    assert (result.reason, result.returncode) == ("cancelled", -signal.SIGKILL)
    assert _running(container, "sleep") == 0
    assert container.exec(["sleep", "60"], cancel=token).reason == "cancelled"
    with pytest.raises(CommandFailed, match="cancelled"):
        container.exec(["sleep", "60"], cancel=token, check=True)


def test_cancelled_command_keeps_its_output(container: Container) -> None:
    token = CancelToken()
    timer = threading.Timer(0.3, token.cancel)
    timer.start()
    result = container.exec("echo so far; sleep 60", shell=True, cancel=token)
    assert (result.reason, result.stdout) == ("cancelled", "so far\n")


def test_container_cancel_ends_every_command_and_goes_on(container: Container) -> None:
    thread, outcome = _exec_in_thread(container)
    with container.popen(["sleep", "60"]) as process:
        container.cancel()
        assert process.wait(SOON) == -signal.SIGKILL
    assert process.reason == "cancelled"
    assert _joined(thread)
    assert outcome[0].reason == "cancelled"
    assert container.exec(["echo", "on"]).stdout == "on\n"


@pytest.mark.parametrize("way", ["to_thread", "executor", "wait_for"])
def test_cancelled_task_ends_its_command(container: Container, way: str) -> None:
    async def main() -> None:
        work: Any
        if way == "executor":
            loop = asyncio.get_running_loop()
            work = loop.run_in_executor(None, container.exec, ["sleep", "60"])
        else:
            work = asyncio.create_task(asyncio.to_thread(container.exec, ["sleep", "60"]))
        if way == "wait_for":
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(work, 0.3)
        else:
            await asyncio.sleep(0.3)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work

    begun = time.monotonic()
    asyncio.run(main())  # joins the threads of its executor
    assert time.monotonic() - begun < SOON
    assert _running(container, "sleep") == 0


def test_task_that_is_not_cancelled_gets_its_result(container: Container) -> None:
    async def main() -> list[str]:
        work = [asyncio.to_thread(container.exec, f"sleep 0.1; echo {n}", shell=True) for n in range(4)]
        return [result.stdout for result in await asyncio.gather(*work)]

    assert asyncio.run(main()) == [f"{n}\n" for n in range(4)]


# The end of containers


@pytest.mark.parametrize("verb", ["kill_all", "close", "remove", "kill"])
def test_ending_a_container_raises_in_the_threads_that_run_commands(tmp_path: Path, verb: str) -> None:
    with Engine(tmp_path / "root") as engine, Container(engine=engine) as c:
        thread, outcome = _exec_in_thread(c)
        begun = time.monotonic()
        (getattr(engine, verb) if verb in ("kill_all", "close") else getattr(c, verb))()
        assert _joined(thread)
        assert time.monotonic() - begun < SOON
    [error] = outcome
    assert isinstance(error, ContainerEnded)
    assert error.reason == ("signal" if verb == "kill" else "cancelled")
    expected = {"kill_all": "kill_all", "close": "closed", "remove": "removed", "kill": "killed"}
    assert expected[verb] in str(error)


def test_engine_goes_on_after_kill_all(engine_of_its_own: Engine) -> None:
    engine = engine_of_its_own
    with Container(engine=engine) as first, Container(None, ["sleep", "60"], engine=engine) as second:
        engine.kill_all()
        assert (first.status, second.status) == ("exited", "exited")
        with Container(engine=engine) as third:
            assert third.exec(["true"]).returncode == 0


def test_reason_of_a_command_ended_by_lifetime() -> None:
    with Container(lifetime=0.5) as c, pytest.raises(ContainerEnded, match="lifetime") as caught:
        c.exec(["sleep", "60"])
    assert caught.value.reason == "timeout"


def test_reason_of_a_command_ended_by_killed_init(container: Container) -> None:
    if os.geteuid() != 0:
        pytest.skip("the agent belongs to another user namespace")
    threading.Timer(0.3, os.kill, (container.pid, signal.SIGKILL)).start()
    with pytest.raises(ContainerEnded, match=r"init (was killed by signal 9|died)") as caught:
        container.exec(["sleep", "60"])
    assert caught.value.reason == "signal"


_POOL = """
import os
from concurrent.futures import ThreadPoolExecutor
from pycontain import Container
def one(i):
    with Container() as c:
        os.write(1, b"up\\n")  # print writes text and newline apart
        os.write(1, f"{c.exec(['sleep', '60']).reason}\\n".encode())
with ThreadPoolExecutor(2) as pool:
    [future.result() for future in [pool.submit(one, i) for i in range(2)]]
"""


def test_one_interrupt_ends_a_pool_of_threads() -> None:
    # A shell starts background jobs with SIGINT ignored, which the tests may be part of.
    source = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + _POOL
    process = subprocess.Popen(
        [sys.executable, "-c", source],
        stdout=PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["up\n", "up\n"]
        time.sleep(0.5)  # both commands run, and the sentinel waits
        os.killpg(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=SOON * 2)
    finally:
        process.kill()
        process.wait()
    assert out == "cancelled\ncancelled\n"
    assert process.returncode == -signal.SIGINT


def test_interrupt_that_the_caller_handles_cancels_nothing() -> None:
    handled = "import signal; signal.signal(signal.SIGINT, lambda *_: print('handled', flush=True))\n"
    source = handled + _POOL.replace("'60'", "'2'")
    process = subprocess.Popen(
        [sys.executable, "-c", source],
        stdout=PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["up\n", "up\n"]
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert sorted(out.split()) == ["exit", "exit", "handled"]


# Usage


@pytest.mark.usefixtures("needs_memory")
def test_killed_child_is_counted_where_the_command_ends_with_0() -> None:
    with Container(memory="64M") as c:
        if c.isolation.cgroups == "v2":
            pytest.skip("cgroup v2 kills every process of the command at its memory limit")
        result = c.exec("python3 -c 'bytearray(1 << 30)' || true", shell=True)
        assert (result.reason, result.returncode) == ("exit", 0)
        assert result.usage.oom_kills == 1
        assert c.exec(["true"]).usage.oom_kills == 0


def test_written_bytes_are_counted(container: Container) -> None:
    """Written bytes come from the io controller, or else from the rusage of reaped processes."""
    command = ["stat", "-f", "-c", "%T", container._engine._session.owner.live]
    if subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "tmpfs":
        pytest.skip("the container's files are in memory")
    script = "dd if=/dev/zero of=/root/f bs=1M count=8 conv=fsync 2>/dev/null || exit 7"
    result = container.exec(script, shell=True)
    assert result.returncode == 0
    assert result.usage.written_bytes is not None
    assert result.usage.read_bytes is not None
    assert result.usage.written_bytes >= 8 << 20


def test_threads_without_an_event_loop_wait_as_before(container: Container) -> None:
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda n: container.exec(["echo", str(n)]).stdout, range(6)))
    assert results == [f"{n}\n" for n in range(6)]
