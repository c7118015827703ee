"""The main command of a container: its end, its output, and its orphaned processes."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pickle
import signal
import sys
import threading
import time
from datetime import datetime, timedelta

import pytest

from pycontain import (
    CommandNotExecutable,
    CommandNotFound,
    Container,
    Engine,
    UnsupportedError,
    WorkdirError,
)
from pycontain._objects.log import OutputLog
from tests.support.descriptors import left_open, open_descriptors

SOON = 5.0
"""Seconds: far below the sleeps of the commands."""


def _followers() -> int:
    return sum(thread.name == "pycontain-main" for thread in threading.enumerate())


def test_wait_is_for_the_command_not_for_its_output() -> None:
    with Container(command=["sh", "-c", "sleep 100 & echo a; exit 5"]) as container:
        assert container.wait(SOON) == 5
        assert b"".join(container.logs()) == b"a\n"


def test_status_follows_the_command() -> None:
    with Container(command=["sh", "-c", "sleep 100 & echo a"]) as container:
        patience = time.monotonic() + SOON
        while container.status == "running" and time.monotonic() < patience:
            time.sleep(0.01)
        assert container.status == "exited"
        assert container.exec(["echo", "on"]).stdout == "on\n"


def test_logs_include_output_of_orphaned_processes() -> None:
    script = "(sleep 0.3; echo late) & echo early"
    with Container(command=["sh", "-c", script]) as container:
        assert b"".join(container.logs(follow=True)) == b"early\nlate\n"


def test_logs_end_with_the_container() -> None:
    container = Container(command=["sh", "-c", "(while sleep 0.05; do echo x; done) & echo early"]).start()
    follow = container.logs(follow=True)
    assert next(follow).startswith(b"early\n")
    assert b"x" in next(follow)
    remover = threading.Timer(0.2, container.remove)
    remover.start()
    assert set(b"".join(follow)) == set(b"x\n")
    remover.join()


def test_output_written_before_the_end_is_kept() -> None:
    for _ in range(10):
        script = "sleep 100 & head -c 60000 /dev/zero"
        with Container(command=["sh", "-c", script]) as container:
            container.wait(SOON)
            assert len(b"".join(container.logs())) == 60000


def test_a_writer_in_the_background_does_not_hold_the_end_back() -> None:
    with Container(command=["sh", "-c", "yes & exit 3"]) as container:
        assert container.wait(SOON) == 3


def test_sixteen_megabytes_are_kept() -> None:
    with Container(command=["sh", "-c", "head -c 30000000 /dev/zero; echo end"]) as container:
        assert container.wait(30) == 0
        kept = b"".join(container.logs())
    assert kept.endswith(b"\0end\n")
    assert (16 << 20) - 65536 <= len(kept) <= 16 << 20


def test_closed_output_is_not_the_end() -> None:
    with Container(command=["sh", "-c", "exec >&- 2>&-; sleep 0.3; exit 6"]) as container:
        assert container.wait(SOON) == 6


@pytest.mark.parametrize("init", [True, False])
def test_removal_ends_the_follower_and_its_fds(init: bool) -> None:
    gc.collect()
    with Engine(ahead=0) as engine:
        Container(engine=engine).start().remove()  # launcher and cleanup helper exist before the count
        before, followers = open_descriptors(), _followers()
        for _ in range(3):
            command = ["sh", "-c", "sleep 100 & exec sleep 100"]
            Container(command=command, init=init, engine=engine).start().remove()
            engine.settle()
        assert _followers() == followers
        assert not left_open(before)


def test_forked_child_of_the_caller_does_not_delay_remove() -> None:
    """The removal does not wait for a forked child that has inherited the write end of the output."""
    from pycontain._runtime.streams import Plumbing

    children: list[int] = []
    close_guest = Plumbing.close_guest

    def fork_first(self: Plumbing) -> None:
        if not children:
            children.append(os.fork())
            if children[0] == 0:
                time.sleep(30)
                os._exit(0)
        close_guest(self)

    Plumbing.close_guest = fork_first  # type: ignore[method-assign]
    try:
        container = Container(command=["sleep", "100"]).start()
    finally:
        Plumbing.close_guest = close_guest  # type: ignore[method-assign]
    try:
        remover = threading.Thread(target=container.remove, daemon=True)
        remover.start()
        remover.join(SOON)
        assert not remover.is_alive()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(children[0], signal.SIGKILL)
        os.waitpid(children[0], 0)


def test_no_busy_loop() -> None:
    with Container(command=["sh", "-c", "sleep 100 & echo a; exec >&- 2>&-; sleep 100"]) as container:
        assert next(container.logs(follow=True)) == b"a\n"
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.2


@pytest.mark.parametrize("init", [True, False])
@pytest.mark.parametrize(
    ("command", "workdir", "kind"),
    [
        (["nope"], None, CommandNotFound),
        (["/etc/passwd"], None, CommandNotExecutable),
        (["true"], "/etc/passwd", WorkdirError),
    ],
)
def test_a_command_that_cannot_start_fails_the_start(
    engine: Engine, init: bool, command: list[str], workdir: str | None, kind: type[Exception]
) -> None:
    engine._session.warm.discard()
    container = Container(command=command, workdir=workdir, init=init)
    before = open_descriptors()
    with pytest.raises(kind):
        container.start()
    engine._session.warm.discard()
    assert not left_open(before)
    assert container.status != "running"
    container.remove()


@pytest.mark.parametrize("user", ["1000", "nobody", "root:root", "0:root"])
def test_users_without_an_agent_are_two_numbers(user: str) -> None:
    # Where only the id 0 is mapped, 1000 is refused for that.
    with pytest.raises((UnsupportedError, ValueError), match=r"uid:gid|0 to 0 here"):
        Container(command=["id"], init=False, user=user).start()


@pytest.mark.parametrize(
    ("user", "ids"), [(None, "0 0"), ("root", "0 0"), ("0", "0 0"), (0, "0 0"), ("1000:1001", "1000 1001")]
)
def test_users_of_a_command_that_is_pid_1(container: Container, user: str | int | None, ids: str) -> None:
    if container.isolation.identity == "single" and ids != "0 0":
        pytest.skip("the single-id map has one id inside")
    with Container(command=["sh", "-c", "echo $(id -u) $(id -g)"], init=False, user=user) as one:
        assert one.wait(SOON) == 0
        assert b"".join(one.logs()).decode().strip() == ids


def test_waiting_very_long() -> None:
    with Container(command=["true"]) as container:
        assert container.wait(1e10) == 0


def test_signals() -> None:
    for init in (True, False):
        script = "trap 'exit 7' USR1; echo up; while :; do sleep 0.01; done"
        with Container(command=["sh", "-c", script], init=init) as container:
            assert next(container.logs(follow=True)) == b"up\n"
            with pytest.raises(ValueError, match="signal"):
                container.kill(65)
            container.kill(signal.SIGUSR1)
            assert container._main is not None
            assert container._main.join(SOON)
            container._main.signal(signal.SIGUSR1)
            assert container.wait(SOON) == 7


def test_a_command_may_open_its_streams_by_name() -> None:
    for init in (True, False):
        script = "sleep 0.1; echo a > /dev/stdout; echo b > /dev/stderr"
        with Container(command=["sh", "-c", script], init=init, user="0:0") as container:
            container.wait(SOON)
            assert b"".join(container.logs()) == b"a\nb\n"


def test_output_of_single_bytes_is_kept() -> None:
    code = "import os, time\nfor at in range(2000): os.write(1, b'%d' % (at % 10)); time.sleep(0.0005)"
    expected = b"".join(b"%d" % (at % 10) for at in range(2000))
    with Container(command=[sys.executable, "-c", code]) as container:
        assert b"".join(container.logs(follow=True)) == expected
        assert b"".join(container.logs()) == expected


# Reason, usage and status


def _ended(container: Container) -> tuple[int | None, str | None]:
    status = container.wait(SOON * 4)
    assert (status, status.reason, status.usage) == (container.returncode, container.reason, container.usage)
    return container.returncode, container.reason


@pytest.mark.parametrize("init", [True, False])
def test_reason_of_a_command_that_ended_by_itself(init: bool) -> None:
    with Container(command=["sh", "-c", "exit 3"], init=init) as container:
        assert _ended(container) == (3, "exit")
    with Container(command=["sh", "-c", "sleep 100 & kill -9 $!; exit 0"], init=init) as container:
        assert _ended(container) == (0, "exit")


def test_reason_of_a_command_that_a_signal_ended() -> None:
    with Container(command=["sh", "-c", "kill -9 $$"]) as container:
        assert _ended(container) == (-9, "signal")


@pytest.mark.usefixtures("needs_memory")
@pytest.mark.parametrize("init", [True, False])
def test_reason_of_a_command_that_took_too_much_memory(init: bool) -> None:
    command = ["python3", "-c", "bytearray(1 << 30)"]
    with Container(command=command, init=init, memory="64M") as container:
        assert _ended(container) == (-9, "oom")
        assert container.usage is not None
        assert container.usage.oom_kills  # cgroup v2 kills, and counts, the whole group
        assert container.usage.memory_peak is not None
        assert 32 << 20 < container.usage.memory_peak <= 64 << 20


@pytest.mark.parametrize("init", [True, False])
def test_reason_after_lifetime_expires(init: bool) -> None:
    with Container(command=["sleep", "100"], init=init, lifetime=0.3) as container:
        assert _ended(container) == (-9, "timeout")


@pytest.mark.parametrize("init", [True, False])
@pytest.mark.parametrize(
    ("verb", "reason"), [("kill", "signal"), ("remove", "cancelled"), ("kill_all", "cancelled")]
)
def test_reason_after_the_container_is_stopped(init: bool, verb: str, reason: str) -> None:
    with Engine() as engine, Container(command=["sleep", "100"], init=init, engine=engine) as container:
        if verb == "kill_all":
            engine.kill_all()
            container.wait(SOON)
        else:
            getattr(container, verb)()
        assert (container.returncode, container.reason) == (-9, reason)
        assert container.usage is not None
        assert container.usage.wall > 0


def test_nothing_is_known_of_a_command_that_runs() -> None:
    with Container(command=["sleep", "100"]) as container:
        assert (container.returncode, container.reason, container.usage) == (None, None, None)
    with Container() as container:
        assert (container.returncode, container.reason, container.usage) == (None, None, None)
    with Container(lifetime=0.2) as container:
        patience = time.monotonic() + SOON
        while container.status == "running" and time.monotonic() < patience:
            time.sleep(0.01)
        assert container.reason == "timeout"


def test_usage_of_the_main_command() -> None:
    script = (
        "import time; bytearray(40 << 20); t = time.process_time()\nwhile time.process_time() < t + .2: pass"
    )
    with Container(command=["python3", "-c", script]) as container:
        status = container.wait(SOON * 4)
    assert status.usage.cpu_user + status.usage.cpu_system > 0.15
    assert (status.usage.memory_peak or 0) > 40 << 20


def test_status_is_an_int_that_can_be_sent() -> None:
    with Container(command=["sh", "-c", "exit 4"]) as container:
        status = container.wait(SOON)
    assert (status, f"{status}", json.dumps(status)) == (4, "4", "4")
    copied = pickle.loads(pickle.dumps(status))
    assert (copied, copied.reason, copied.usage) == (4, "exit", status.usage)


# Logs


def test_logs_of_one_stream() -> None:
    with Container(command=["sh", "-c", "echo out; echo err >&2"]) as container:
        container.wait(SOON)
        assert b"".join(container.logs(stderr=False)) == b"out\n"
        assert b"".join(container.logs(stdout=False)) == b"err\n"
        assert sorted(b"".join(container.logs()).splitlines()) == [b"err", b"out"]
        with pytest.raises(ValueError, match="stdout and stderr"):
            container.logs(stdout=False, stderr=False)


@pytest.mark.parametrize(
    ("tail", "expected"),
    [(0, b""), (1, b"5\n"), (2, b"4\n5\n"), (5, b"1\n2\n3\n4\n5\n"), (9, b"1\n2\n3\n4\n5\n")],
)
def test_logs_of_the_last_lines(tail: int, expected: bytes) -> None:
    with Container(command=["sh", "-c", "echo 1; sleep 0.1; seq 2 4; sleep 0.1; echo 5"]) as container:
        container.wait(SOON)
        assert b"".join(container.logs(tail=tail)) == expected


def test_logs_since_a_moment_with_times() -> None:
    with Container(command=["sh", "-c", "echo early; sleep 1; printf la; sleep 0.1; echo te; echo x"]) as one:
        begun = time.time()
        one.wait(SOON)
        late = b"".join(one.logs(since=begun + 0.5))
        stamped = b"".join(one.logs(timestamps=True)).decode().splitlines()
        assert b"".join(one.logs(since=timedelta(hours=1))) == b"early\nlate\nx\n"
    assert late == b"late\nx\n"
    assert [line.split(" ", 1)[1] for line in stamped] == ["early", "late", "x"]
    moments = [datetime.fromisoformat(line.split(" ", 1)[0]).timestamp() for line in stamped]
    assert begun - 1 < moments[0] < moments[1] <= moments[2] < begun + SOON


def test_logs_say_how_much_was_dropped() -> None:
    with Container(command=["sh", "-c", "head -c 20000000 /dev/zero"]) as container:
        container.wait(30)
        assert container.logs_dropped + len(b"".join(container.logs())) == 20_000_000
        assert container.logs_dropped > 0


def test_single_bytes_do_not_take_many_times_their_size() -> None:
    log = OutputLog()
    for _ in range(200_000):
        log.add(1, b"x")
    assert log.dropped > 0
    assert len(log._entries) * 128 <= 16 << 20
