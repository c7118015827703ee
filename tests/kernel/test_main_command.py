"""A container's own command: its end, its output, and what it leaves running."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import time

import pytest

from pycontain import (
    CommandNotExecutable,
    CommandNotFound,
    Container,
    Engine,
    UnsupportedError,
    WorkdirError,
)

SOON = 5.0
"""Seconds: far below the sleeps of the commands."""


def _fds() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


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


def test_logs_go_on_with_what_the_command_left_running() -> None:
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


def test_all_that_was_written_by_the_end_is_kept() -> None:
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
        Container(engine=engine).start().remove()  # launcher and janitor are there before the count
        before, followers = _fds(), _followers()
        for _ in range(3):
            command = ["sh", "-c", "sleep 100 & exec sleep 100"]
            Container(command=command, init=init, engine=engine).start().remove()
            engine.settle()
        assert _followers() == followers
        assert len(_fds()) <= len(before)


def test_a_fork_of_the_caller_does_not_hold_the_follower() -> None:
    """A child that was forked while the pipe was open for writing here keeps the output from ending."""
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
        (["true"], "/nowhere", WorkdirError),
    ],
)
def test_a_command_that_cannot_start_fails_the_start(
    engine: Engine, init: bool, command: list[str], workdir: str | None, kind: type[Exception]
) -> None:
    engine.ahead.discard()
    container = Container(command=command, workdir=workdir, init=init)
    before = _fds()
    with pytest.raises(kind):
        container.start()
    engine.ahead.discard()
    assert len(_fds()) <= len(before)
    assert container.status != "running"
    container.remove()


@pytest.mark.parametrize("user", ["1000", "nobody", "root:root", "0:root"])
def test_users_without_an_agent_are_two_numbers(user: str) -> None:
    with pytest.raises(UnsupportedError, match="uid:gid"):
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


def test_output_of_single_bytes_is_kept_in_few_pieces() -> None:
    code = "import os, time\nfor at in range(2000): os.write(1, b'%d' % (at % 10)); time.sleep(0.0005)"
    expected = b"".join(b"%d" % (at % 10) for at in range(2000))
    with Container(command=[sys.executable, "-c", code]) as container:
        assert b"".join(container.logs(follow=True)) == expected
        assert list(container.logs()) == [expected]
