"""Process: Popen's contract for a command in a container."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import pytest

from pycontain import (
    DEVNULL,
    PIPE,
    CancelToken,
    CgroupLimits,
    CommandNotExecutable,
    CommandNotFound,
    Container,
    Engine,
    StartError,
    StateError,
    WorkdirError,
)
from pycontain._objects.process import Process
from tests.support.descriptors import left_open, open_descriptors

SOON = 5.0
"""Seconds in which what must not block has to be back; far below the sleeps of the commands."""


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Container]:
    """Provide a container on a host without cgroup v2, where every exec has a supervisor."""
    with Engine(tmp_path / "root") as engine:
        engine._session.cgroups.unified = None
        with Container(engine=engine) as one:
            yield one


@pytest.fixture(params=["container", "supervised"])
def either(request: pytest.FixtureRequest) -> Container:
    """Return the default container, then a supervised one."""
    found: Container = request.getfixturevalue(request.param)
    return found


@contextlib.contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _another_waits(process: Process) -> Iterator[Callable[[], int]]:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(process.wait)
        time.sleep(0.2)
        try:
            yield lambda: waiting.result(SOON)
        finally:
            process._execution.kill()


def _within(call: Callable[[], Any]) -> Any:
    """Run `call` in a thread and return its result, so that a hanging call fails the test."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    thread.join(SOON)
    assert found, "it blocks"
    return found[0]


def test_poll_and_kill_while_another_thread_waits(either: Container) -> None:
    with either.popen(["sleep", "100"]) as process, _another_waits(process) as ended:
        assert _within(process.poll) is None
        _within(process.kill)
        assert ended() == -signal.SIGKILL
    assert process.poll() == -signal.SIGKILL


def test_terminate_while_another_thread_waits(container: Container) -> None:
    with container.popen(["sleep", "100"]) as process, _another_waits(process) as ended:
        _within(process.terminate)
        assert ended() == -signal.SIGTERM


def test_wait_with_a_timeout_while_another_thread_waits(container: Container) -> None:
    def expired() -> bool:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)
        return True

    with container.popen(["sleep", "100"]) as process, _another_waits(process) as ended:
        assert _within(expired)
        process.kill()
        assert ended() == -signal.SIGKILL


def test_two_threads_wait(container: Container) -> None:
    with container.popen(["sleep", "0.3"]) as process, ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: process.wait(SOON), range(2))) == [0, 0]


def test_late_kill_spares_the_next_command_in_the_cgroup(container: Container) -> None:
    """A kill that races with the end of a command must not hit the next command in the same cgroup."""
    for _ in range(30):
        process = container.popen(["sleep", "0.01"], stdout=DEVNULL, stderr=DEVNULL)
        with _another_waits_briefly(process):
            process.kill()
        assert container.exec(["true"]).returncode == 0
        process.close()


@contextlib.contextmanager
def _another_waits_briefly(process: Process) -> Iterator[None]:
    thread = threading.Thread(target=process.wait)
    thread.start()
    time.sleep(0.01)
    yield
    thread.join()


@pytest.mark.parametrize(
    ("args", "options", "kind"),
    [
        (["nope"], {}, CommandNotFound),
        (["/etc/passwd"], {}, CommandNotExecutable),
        (["true"], {"workdir": "/nowhere"}, WorkdirError),
    ],
)
@pytest.mark.parametrize("pty", [False, True])
def test_a_command_that_cannot_start_says_so_at_once(
    either: Container, args: list[str], options: dict[str, str], kind: type[StartError], pty: bool
) -> None:
    either.exec(["true"])
    before = open_descriptors()
    for _ in range(5):
        with pytest.raises(kind):
            either.popen(args, stdin=PIPE, pty=pty, workdir=options.get("workdir"))
    assert not left_open(before)
    assert either.exec(["echo", "on"]).stdout == "on\n"


def test_a_pid_is_that_of_the_command(either: Container) -> None:
    with either.popen(["sh", "-c", "echo $$; cat /proc/$$/comm; read x"], stdin=PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{process.pid}\n"
        assert process.stdout.readline() == "sh\n"


@pytest.mark.parametrize("pty", [False, True])
def test_three_streams_and_nothing_else_are_inside(either: Container, pty: bool) -> None:
    with either.popen(["sh", "-c", "ls /proc/$$/fd; true"], pty=pty) as process:
        out, _ = process.communicate(timeout=SOON)
        assert set(out.split()) <= {"0", "1", "2", "10"}  # 10: a shell's own dup of its terminal
        assert {"0", "1", "2"} <= set(out.split())


@pytest.mark.skipif(os.geteuid() != 0, reason="the agent is not dumpable, so only root can list its fds")
def test_agents_keep_no_fd_of_a_started_command(either: Container) -> None:
    def held() -> int:
        time.sleep(0.05)  # the channel of the last one closes when its exit status arrives
        return len(os.listdir(f"/proc/{either.pid}/fd"))

    either.exec(["true"])
    before = held()
    for pty in (False, True):
        with either.popen(["sleep", "100"], pty=pty) as process:
            assert held() == before + 1  # the channel
            process.kill()
        for command in (["nope"], ["true"]):
            with contextlib.suppress(CommandNotFound), either.popen(command, pty=pty):
                pass
    either.exec(["true"])
    assert held() == before


def test_reason_of_a_command_over_its_limit(needs_memory: None) -> None:
    with Container(memory="256M") as container:
        big = ["python3", "-c", "x = bytearray(200 << 20)"]
        with container.popen(big, limits=CgroupLimits(memory="32M")) as process:
            assert process.wait(30) == -signal.SIGKILL
            assert process.reason == "oom"


def test_communicate_goes_on_after_a_timeout(container: Container) -> None:
    data = os.urandom(3 << 20)
    script = (
        "import sys, time; d = sys.stdin.buffer.read(1 << 20); sys.stdout.buffer.write(d); "
        "sys.stdout.flush(); sys.stderr.write('half'); sys.stderr.flush(); time.sleep(1); "
        "sys.stdout.buffer.write(sys.stdin.buffer.read()); sys.stderr.write('whole')"
    )
    process = container.popen(["python3", "-c", script], stdin=PIPE, text=False)
    with pytest.raises(subprocess.TimeoutExpired) as expired:
        process.communicate(data, timeout=0.7)
    assert expired.value.timeout == 0.7
    assert expired.value.stdout == data[: 1 << 20]
    assert expired.value.stderr == b"half"
    with pytest.raises(ValueError, match="input"):
        process.communicate(b"more")
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=0.01)
    assert process.communicate(timeout=30) == (data, b"halfwhole")
    assert process.returncode == 0
    assert process.communicate() == (data, b"halfwhole")


def test_a_timeout_carries_bytes_of_text_as_subprocess_has_it(container: Container) -> None:
    with container.popen(["sh", "-c", "echo ä; sleep 100"]) as process:
        with pytest.raises(subprocess.TimeoutExpired) as expired:
            process.communicate(timeout=0.3)
        assert expired.value.stdout == "ä\n".encode()
        assert expired.value.stderr is None
        process.kill()
        assert process.communicate(timeout=SOON) == ("ä\n", "")


@pytest.mark.parametrize("pty", [False, True])
def test_timeout_fires_while_input_is_unread(container: Container, pty: bool) -> None:
    process = container.popen(["sleep", "100"], stdin=PIPE, text=False, pty=pty)
    begun = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(b"x\n" * (1 << 20), timeout=0.2)
    assert time.monotonic() - begun < SOON
    process.kill()
    process.communicate(timeout=SOON)


def test_earlier_writes_precede_the_input(container: Container) -> None:
    with container.popen(["cat"], stdin=PIPE) as process:
        assert process.stdin is not None
        process.stdin.write("one ")
        assert process.communicate("two")[0] == "one two"
    with container.popen(["cat"], stdin=PIPE) as process:
        assert process.stdin is not None
        process.stdin.write("alone")
        assert process.communicate(timeout=SOON)[0] == "alone"


@pytest.mark.parametrize("text", [True, False])
def test_buffered_reads_are_not_lost(container: Container, text: bool) -> None:
    with container.popen(["sh", "-c", "echo ä; echo b; read x; echo $x"], stdin=PIPE, text=text) as process:
        assert process.stdout is not None
        time.sleep(0.2)
        assert process.stdout.readline() == ("ä\n" if text else "ä\n".encode())
        out, _ = process.communicate("c\n" if text else b"c\n", timeout=SOON)
        assert out == ("b\nc\n" if text else b"b\nc\n")


def test_input_of_the_wrong_kind_is_refused_before_anything_happens(container: Container) -> None:
    with container.popen(["cat"], stdin=PIPE, text=False) as process:
        with pytest.raises(TypeError):
            process.communicate("text")  # type: ignore[arg-type,unused-ignore]
        assert process.communicate(b"bytes") == (b"bytes", b"")
    with container.popen(["cat"], stdin=PIPE) as process:
        with pytest.raises(TypeError):
            process.communicate(b"bytes")  # type: ignore[arg-type]
        assert process.communicate("text") == ("text", "")
    with container.popen(["cat"], stdin=PIPE, text=False) as process:
        assert process.communicate(bytearray(b"array"))[0] == b"array"  # type: ignore[arg-type]


def test_communicate_closes_its_streams(container: Container) -> None:
    before = open_descriptors()
    threads = threading.active_count()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for pty in (False, True):
            process = container.popen(["echo", "x"], stdin=PIPE, pty=pty)
            assert process.communicate() == ("x\n", None if pty else "")
            assert threading.active_count() == threads
            for stream in (process.stdin, process.stdout, process.stderr):
                assert stream is None or stream.closed
            del process, stream
            gc.collect()
    assert not left_open(before)


def test_communicate_with_a_terminal(container: Container) -> None:
    script = "stty -echo; read a; echo [$a]; read b; echo [$b]"
    with container.popen(["sh", "-c", f"{script}; sleep 100"], pty=True) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate("one\n", timeout=0.4)
        process.kill()
        assert "[one]\n" in process.communicate(timeout=SOON)[0]
    with container.popen(["sh", "-c", script], pty=True) as process:
        assert process.communicate("one\ntwo\n", timeout=SOON)[0].endswith("[one]\n[two]\n")


def test_an_interrupt_loses_nothing(container: Container) -> None:
    data = os.urandom(4 << 20)
    script = "import sys, time; time.sleep(0.8); sys.stdout.buffer.write(sys.stdin.buffer.read())"
    with container.popen(["python3", "-c", script], stdin=PIPE, text=False) as process:
        with pytest.raises(KeyboardInterrupt), _interrupted_after(0.3):
            process.communicate(data)
        assert process.communicate(timeout=30) == (data, b"")
    with container.popen(["sleep", "0.8"]) as process:
        with pytest.raises(KeyboardInterrupt), _interrupted_after(0.2):
            process.wait()
        assert process.wait(SOON) == 0


def test_sixteen_megabytes_both_ways(container: Container) -> None:
    data = os.urandom(16 << 20)
    with container.popen(["tee", "/dev/stderr"], stdin=PIPE, text=False) as process:
        assert process.communicate(data, timeout=60) == (data, data)


def test_output_that_never_ends_does_not_outlast_the_timeout(container: Container) -> None:
    with container.popen(["yes"], text=False, max_output=None) as process:
        with pytest.raises(subprocess.TimeoutExpired) as expired:
            process.communicate(timeout=0.1)
        assert set(expired.value.stdout or b"") == set(b"y\n")
        process.kill()
        process.communicate(timeout=30)


def test_leaving_the_block_closes_the_pipes_first(container: Container) -> None:
    with container.popen(["yes"]) as process:
        pass
    assert process.returncode in (1, -signal.SIGPIPE)


def test_durations(container: Container) -> None:
    with container.popen(["sleep", "0.2"]) as process:
        with pytest.raises(subprocess.TimeoutExpired) as expired:
            process.wait(timedelta(milliseconds=10))
        assert expired.value.timeout == 0.01
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=timedelta(milliseconds=10))
        with pytest.raises(ValueError, match="negative"):
            process.wait(-1)
        assert process.wait(1e10) == 0
    with container.popen(["sleep", "0.2"]) as process:
        assert process.communicate(timeout=1e10) == ("", "")


def test_signal_numbers(container: Container) -> None:
    with container.popen(["sleep", "100"]) as process:
        for wrong in (-1, 65, 1 << 40):
            with pytest.raises(ValueError, match="signal"):
                process.send_signal(wrong)
        with pytest.raises(TypeError):
            process.send_signal("SIGTERM")  # type: ignore[arg-type]
        process.send_signal(0)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(SOON) == -signal.SIGUSR1
        process.send_signal(15)
        process.kill()


def test_signal_to_a_process_that_ended_with_its_container() -> None:
    with Container() as container:
        process = container.popen(["sleep", "100"])
        other = container.popen(["sleep", "100"])
    process.send_signal(15)
    process.terminate()
    other.kill()
    assert process.wait(SOON) == other.wait(SOON) == -signal.SIGKILL
    process.close()
    other.close()


@pytest.mark.parametrize("size", [(0, 80), (24, 0), (65536, 80), (24, -1)])
def test_sizes_of_terminals(container: Container, size: tuple[int, int]) -> None:
    before = open_descriptors()
    if min(size) == 0:  # others do not reach the Process
        with pytest.raises(ValueError, match="between 1 and 65535"):
            container.popen(["sleep", "100"], pty=True, rows=size[0], columns=size[1])
    assert not left_open(before)
    with container.popen(["sleep", "100"], pty=True) as process:
        with pytest.raises(ValueError, match="between 1 and 65535"):
            process.resize(*size)
        process.resize(1, 65535)
        process.kill()
    with pytest.raises(StateError):
        process.resize(24, 80)


@pytest.mark.parametrize("options", [{"encoding": "nope"}, {"errors": "nope"}, {"encoding": "hex"}])
@pytest.mark.parametrize("pty", [False, True])
def test_a_wrong_encoding_leaves_no_command(either: Container, options: dict[str, str], pty: bool) -> None:
    either.exec(["true"])
    before = open_descriptors()
    with pytest.raises(LookupError):
        either.popen(["sleep", "4711"], pty=pty, **options)  # type: ignore[call-overload]
    assert not left_open(before)
    script = "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $f; echo; done"
    lines = either.exec(["sh", "-c", script]).stdout.splitlines()
    assert "sleep 4711 " not in lines


def _forget(container: Container, *args: str, pty: bool = False, cancel: CancelToken | None = None) -> None:
    process = container.popen(args, stdout=DEVNULL, stderr=DEVNULL, pty=pty, cancel=cancel)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    del process
    gc.collect()


def _output_of_a_forgotten_one(container: Container) -> IO[Any]:
    out = container.popen(["seq", "3"], stderr=DEVNULL).stdout
    gc.collect()
    assert out is not None
    return out


@pytest.mark.parametrize("pty", [False, True])
def test_dropped_process_handle_leaves_no_fd(container: Container, pty: bool) -> None:
    container.exec(["true"])
    before = open_descriptors()
    with pytest.warns(ResourceWarning, match="still running"):
        _forget(container, "sleep", "100", pty=pty)
    assert not left_open(before)
    with contextlib.closing(container.popen(["true"], stdout=DEVNULL, stderr=DEVNULL, pty=pty)) as process:
        process.wait()
        terminal = process._terminal
        process._terminal = -1  # as if close was forgotten, but for the streams, which tell of themselves
    process._terminal = terminal
    del process
    gc.collect()
    assert not left_open(before)


def test_token_cancels_processes(container: Container) -> None:
    token = CancelToken()
    with container.popen(["sleep", "100"], cancel=token) as process:
        token.cancel()
        assert process.wait(SOON) == -signal.SIGKILL
        assert process.reason == "cancelled"
    with container.popen(["sleep", "100"], cancel=token) as late:
        assert late.wait(SOON) == -signal.SIGKILL
        assert late.reason == "cancelled"


def test_token_does_not_keep_a_dropped_process(container: Container) -> None:
    token = CancelToken()
    with pytest.warns(ResourceWarning, match="still running"):
        _forget(container, "sleep", "100", cancel=token)
    token.cancel()


@pytest.mark.parametrize("kill", [False, True])
def test_orphans_of_a_process_end_with_it(container: Container, kill: bool) -> None:
    command = "sleep 4712 & exit 3"
    with container.popen(command, shell=True, kill_orphans=kill) as process:
        assert process.wait(SOON) == 3
        assert process.reason == "exit"
    script = "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $f; echo; done"
    assert ("sleep 4712 " in container.exec(["sh", "-c", script]).stdout.splitlines()) is not kill


def test_streams_outlive_the_process_object(container: Container) -> None:
    with pytest.warns(ResourceWarning):
        out = _output_of_a_forgotten_one(container)
    with out:
        assert out.read() == "1\n2\n3\n"


def test_forgotten_ones_give_their_leaf_back(container: Container) -> None:
    group = container._running.group  # type: ignore[union-attr]
    if group is None:
        pytest.skip("no cgroups here")
    for _ in range(20):
        with pytest.warns(ResourceWarning):
            _forget(container, "true")
    container.popen(["true"], stdout=DEVNULL, stderr=DEVNULL).wait()
    assert len(group._busy) <= 1


def test_close_twice_and_wait_after(container: Container) -> None:
    process = container.popen(["cat"], stdin=PIPE, pty=True)
    process.close()
    process.close()
    assert process.wait(SOON) == -signal.SIGHUP


def test_output_of_single_bytes_is_joined(container: Container) -> None:
    code = "import os\nfor at in range(20000): os.write(1, b'%d' % (at % 10))"
    with container.popen([sys.executable, "-c", code]) as process:
        out, _ = process.communicate()
    assert out == "".join(str(at % 10) for at in range(20000))


def test_end_of_input_ends_a_reader_of_a_terminal(either: Container) -> None:
    with either.popen(["cat"], pty=True) as process:
        out, _ = process.communicate("one\ntwo", timeout=SOON)
    assert out.replace("^D\b\b", "") == "one\ntwoone\ntwo"
    assert process.returncode == 0


def test_closing_the_input_of_a_terminal_is_the_end_of_input(either: Container) -> None:
    with either.popen(["sh", "-c", "cat >/dev/null; echo over"], pty=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("line\n")
        process.stdin.close()
        assert process.stdout.read() == "line\nover\n"
    assert process.returncode == 0


@pytest.mark.parametrize("error", [None, ValueError])
def test_a_forked_child_leaves_the_end_to_the_parent(
    container: Container, error: type[BaseException] | None
) -> None:
    with container.popen(["cat"], stdin=PIPE, stdout=PIPE) as process:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                signal.alarm(10)
                with pytest.raises(StateError, match="parent of this forked process"):
                    process.wait(5)
                process.__exit__(error, None, None)
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert process.communicate("x", timeout=5)[0] == "x"
        assert process.wait(5) == 0
