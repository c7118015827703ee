"""Calls of functions: values, errors, limits, deadlines, usage and cleanup."""

from __future__ import annotations

import functools
import math
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pycontain import (
    CallError,
    CgroupLimits,
    CommandFailed,
    CommandNotFound,
    CommandTimeout,
    Container,
    StateError,
    UnsupportedError,
    Zygote,
)
from pycontain._python.host import Prepared
from tests.support.descriptors import left_open, open_descriptors

pytest.importorskip("cloudpickle", reason="pycontain[call] is not installed")

SEEN: list[int] = []


def remember(number: int) -> list[int]:
    SEEN.append(number)
    return SEEN


def uptime() -> str:
    with open("/proc/uptime", encoding="ascii") as file:
        return file.read()


def descriptors() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue  # the process that listed them
    return sorted(found)


def with_numpy(container: Container) -> Zygote:
    try:
        return container.zygote(["numpy.random"])
    except CallError as error:
        if error.type_name != "ModuleNotFoundError":
            raise
        pytest.skip("the interpreter inside has no numpy")


@pytest.fixture
def zygote(container: Container) -> Iterator[Zygote]:
    with container.zygote(["json", "random"]) as one:
        yield one


def test_value_round_trip(zygote: Zygote) -> None:
    value = [
        None,
        True,
        1,
        -(2**63),
        10**40,
        -(10**40),
        1.5,
        -0.0,
        math.inf,
        -math.inf,
        2 + 3j,
        "text \ud800 \0 ,[",
        b"\0\xff",
        bytearray(b"x"),
        (1, (2,)),
        {1, "a"},
        frozenset({b"k"}),
        {"a": [{}], 2: (), None: set(), (1, 2): 3.5},
    ]
    back = zygote.call(lambda: value)
    assert (back, list(map(type, back))) == (value, list(map(type, value)))
    assert math.isnan(zygote.call(lambda: math.nan))


def test_arguments_travel(container: Container) -> None:
    assert container.call(divmod, 17, 5) == (3, 2)
    assert container.call(functools.partial(int, base=16), "ff") == 255


def test_no_state_is_seen_from_the_call_before(zygote: Zygote) -> None:
    assert [zygote.call(remember, number) for number in range(3)] == [[0], [1], [2]]
    assert SEEN == []


def test_every_call_is_a_process_and_a_session_of_its_own(zygote: Zygote) -> None:
    found = [zygote.call(lambda: (os.getpid(), os.getpgrp(), os.getsid(0), os.getppid())) for _ in range(2)]
    for pid, group, session, _ in found:
        assert pid == group == session
    assert found[0][0] != found[1][0]
    assert found[0][3] == found[1][3]


def test_imports_are_there_before_the_call(container: Container) -> None:
    with container.zygote(["colorsys"]) as prepared:
        assert prepared.call(lambda: "colorsys" in sys.modules)
    assert not container.call(lambda: "colorsys" in sys.modules)


def test_calls_draw_different_numbers(zygote: Zygote) -> None:
    assert len({zygote.call(lambda: random.random()) for _ in range(4)}) == 4


def test_numpy_draws_different_numbers(container: Container) -> None:
    def draw() -> float:
        import numpy

        return float(numpy.random.rand())

    with with_numpy(container) as prepared:
        assert len({prepared.call(draw) for _ in range(4)}) == 4


def test_no_descriptor_but_its_own(zygote: Zygote) -> None:
    barrier: list[Any] = []
    thread = threading.Thread(target=lambda: barrier.append(zygote.call(time.sleep, 1)))
    thread.start()
    for _ in range(2):
        found = zygote.call(descriptors)
        assert [path.split(":")[0] for path in found] == ["/dev/null", "/memfd", "pipe", "pipe"]
    thread.join()


def test_streams_are_carried(zygote: Zygote) -> None:
    def both() -> str:
        print("out")
        os.write(2, b"err")
        return sys.stdin.read()

    result = zygote.run(both)
    assert (result.value, result.stdout, result.stderr, result.reason) == ("", "out\n", "err", "exit")
    assert result.usage.wall > 0
    assert result.timings["total"] > 0


def test_exception_is_reported(zygote: Zygote) -> None:
    def wrong() -> None:
        print("before", flush=True)
        raise KeyError("no such \x1b[31mthing")

    with pytest.raises(CallError) as caught:
        zygote.call(wrong)
    error = caught.value
    assert (error.type_name, error.stdout, error.reason) == ("KeyError", "before\n", "exit")
    assert "in wrong" in error.traceback
    assert "\x1b" not in error.message + error.traceback + str(error)
    assert error.usage is not None


def test_exception_that_cannot_be_formatted_is_reported(zygote: Zygote) -> None:
    def wrong() -> None:
        class Strange(Exception):
            def __str__(self) -> str:
                raise SystemExit(3)

        raise Strange

    with pytest.raises(CallError, match="Strange"):
        zygote.call(wrong)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("object()", "result is of type object: return plain data"),
        ("{'a': [1, (2, object)]}", "result['a'][1][1] is of type type: return plain data"),
        ("(i for i in ())", "result is of type generator: return list(value)"),
        ("type('S', (str,), {})('x')", "result is of type __main__.S: return str(value)"),
    ],
)
def test_result_that_is_no_data_is_refused_with_its_place(zygote: Zygote, what: str, said: str) -> None:
    with pytest.raises(CallError) as caught:
        zygote.call(eval, what)
    assert caught.value.type_name == "NotPlain"
    assert said in caught.value.message


def test_endless_nesting_is_refused(zygote: Zygote) -> None:
    def endless() -> list[Any]:
        loop: list[Any] = []
        loop.append(loop)
        return loop

    with pytest.raises(CallError, match="nested"):
        zygote.call(endless)


def test_result_is_bounded(zygote: Zygote) -> None:
    with pytest.raises(CallError, match="max_output"):
        zygote.call(lambda: "x" * 5000, max_output=4096)
    assert len(zygote.call(lambda: "x" * 5000, max_output="8K")) == 5000


def test_output_is_bounded(zygote: Zygote) -> None:
    def flood() -> None:
        while True:
            os.write(1, b"x" * 4096)

    with pytest.raises(CommandFailed) as caught:
        zygote.call(flood, max_output=10_000)
    assert (caught.value.reason, len(caught.value.stdout)) == ("output", 10_000)
    assert zygote.call(int) == 0


def test_large_argument_travels(zygote: Zygote) -> None:
    assert zygote.call(len, b"x" * 3_000_000) == 3_000_000


def sleepers() -> None:
    """Return the pids of a process tree in which every process has its own session."""
    os.write(1, b"%d\n" % os.getpid())
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.write(1, b"%d\n" % os.getpid())
                time.sleep(1000)
            os._exit(0)
    time.sleep(1000)


def _alive(container: Container, pids: list[str]) -> list[str]:
    listed = container.exec(["ls", "/proc"]).stdout
    assert isinstance(listed, str)
    return sorted({*pids} & {*listed.split()})


def test_timeout_ends_every_process_of_the_call(container: Container, zygote: Zygote) -> None:
    with pytest.raises(CommandTimeout) as caught:
        zygote.call(sleepers, timeout=4)  # forks of an interpreter are slow in user-mode-linux
    pids = str(caught.value.stdout).split()
    assert len(pids) == 4
    assert caught.value.reason == "timeout"
    assert 3.9 < caught.value.usage.wall < 9
    assert not _alive(container, pids)
    assert zygote.call(int) == 0


def test_leftover_processes_of_a_call_end_with_it(
    container: Container, zygote: Zygote, needs_freezer: None
) -> None:
    def leave() -> int:
        ready, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.write(tell, b"x")
            time.sleep(1000)
        os.read(ready, 1)
        return pid

    left = zygote.call(leave)
    assert container.exec(["test", "-e", f"/proc/{left}"]).returncode == 1
    assert zygote.call(int) == 0


def test_death_by_signal_has_its_reason(zygote: Zygote) -> None:
    with pytest.raises(CommandFailed) as caught:
        zygote.call(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert (caught.value.returncode, caught.value.reason) == (-15, "signal")
    with pytest.raises(CommandFailed) as caught:
        zygote.call(os._exit, 3)
    assert (caught.value.returncode, caught.value.reason) == (3, "exit")
    with pytest.raises(CallError, match="before its function returned"):
        zygote.call(os._exit, 0)


def test_memory_limit_of_one_call(zygote: Zygote, needs_memory: None) -> None:
    with pytest.raises(CommandFailed) as caught:
        zygote.call(lambda: len(bytearray(200 << 20)), limits=CgroupLimits(memory="64M"))
    assert caught.value.reason == "oom"
    assert zygote.call(lambda: len(bytearray(100 << 20))) == 100 << 20


def test_limit_of_processes_has_its_reason(needs_pids: None) -> None:
    def bomb() -> None:
        while True:
            if os.fork() == 0:
                time.sleep(100)

    with Container(pids=30) as container:
        with pytest.raises(CallError) as caught:
            container.call(bomb)
        assert (caught.value.type_name, caught.value.reason) == ("BlockingIOError", "pids")
        # The same of a command beside a zygote that only waits.
        text = "import os, time\nwhile True:\n if os.fork() == 0: time.sleep(100)"
        assert container.exec(["python3", "-c", text]).reason == "pids"


def test_limit_that_another_call_reached_is_no_reason(needs_pids: None) -> None:
    def bomb() -> None:
        try:
            while True:
                if os.fork() == 0:
                    time.sleep(100)
        except BlockingIOError:
            time.sleep(1.5)

    def wrong() -> None:
        time.sleep(1)
        raise ValueError("by itself")

    with Container(pids=30) as container, container.zygote() as zygote:
        beside = threading.Thread(target=zygote.call, args=(bomb,))
        threading.Timer(0.3, beside.start).start()
        with pytest.raises(CallError) as caught:
            zygote.call(wrong)
        beside.join()
        assert (caught.value.type_name, caught.value.reason) == ("ValueError", "exit")


def test_usage_is_that_of_the_call(zygote: Zygote, needs_memory: None) -> None:
    def work() -> int:
        data = b"x" * (50 << 20)
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
        return len(data)

    heavy, light = zygote.run(work).usage, zygote.run(int).usage
    assert heavy.memory_peak is not None
    assert light.memory_peak is not None
    assert 50 << 20 < heavy.memory_peak < 80 << 20
    assert light.memory_peak < 20 << 20
    used = heavy.cpu_user + heavy.cpu_system
    assert 0.2 <= used <= heavy.wall * 1.1 + 0.05
    assert light.cpu_user + light.cpu_system < used / 2


def test_threads_call_side_by_side(zygote: Zygote, engine: Any) -> None:
    found: list[int] = []

    def caller(number: int) -> None:
        found.extend(zygote.call(lambda one: number * 100 + one, one) for one in range(5))

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(number * 100 + one for number in range(4) for one in range(5))


def test_failed_import_is_reported(container: Container) -> None:
    with pytest.raises(CallError) as caught:
        container.zygote(["no_such_module_anywhere"])
    assert caught.value.type_name == "ModuleNotFoundError"
    assert container.call(int) == 0


def test_unusable_interpreters_are_reported(container: Container) -> None:
    with pytest.raises(CommandNotFound):
        container.zygote(python="no-such-python")
    with pytest.raises(CallError, match="ended before it was prepared") as caught:
        container.zygote(python="ls")
    assert caught.value.traceback


def test_another_version_is_refused(container: Container) -> None:
    script = """#!/bin/sh
exec python3 -c 'import os, socket, time
hello = b"{\\"implementation\\": \\"cpython\\", \\"magic\\": \\"00\\", \\"version\\": \\"3.9.1\\"}"
socket.socket(fileno=0).send(hello)
time.sleep(100)'
"""
    container.exec(["sh", "-c", "cat > /tmp/python; chmod +x /tmp/python"], input=script, check=True)
    with pytest.raises(UnsupportedError, match=r"cpython 3\.9\.1"):
        container.zygote(python="/tmp/python")


@pytest.mark.parametrize("imports", [["os; x"], [""], ["a..b"], ["class"]])
def test_malformed_imports_are_refused(container: Container, imports: list[str]) -> None:
    with pytest.raises(ValueError, match="module"):
        container.zygote(imports)
    with pytest.raises(TypeError):
        container.zygote("numpy")


def test_unsendable_values_are_refused_before_the_call(zygote: Zygote) -> None:
    with pytest.raises(TypeError, match="cannot be sent"):
        zygote.call(len, threading.Lock())
    with pytest.raises(TypeError, match="must be callable"):
        zygote.call(3)  # type: ignore[arg-type]
    assert zygote.call(int) == 0


def test_pause_is_respected(container: Container, zygote: Zygote, needs_freezer: None) -> None:
    zygote.call(int)
    container.pause()
    with pytest.raises(StateError, match="paused"):
        zygote.call(int)
    container.unpause()
    assert zygote.call(int) == 0
    container.pause()


def test_paused_zygote_can_be_closed(container: Container, needs_freezer: None) -> None:
    with container.zygote():
        container.pause()


def test_end_of_the_container_ends_a_call() -> None:
    with Container() as container:
        zygote = container.zygote()
        threading.Timer(0.5, container.kill).start()
        with pytest.raises(StateError, match="ended"):
            zygote.call(time.sleep, 1000)
    with pytest.raises(StateError):
        zygote.call(int)
    zygote.close()


def test_restarted_container_has_a_new_zygote() -> None:
    with Container() as container:
        zygote = container.zygote()
        first = zygote.call(uptime)
        assert container.call(int) == 0
        container.restart()
        assert zygote.call(uptime) != first
        assert container.call(int) == 0


def test_closed_zygote_refuses(container: Container) -> None:
    with container.zygote() as zygote:
        zygote.call(int)
    zygote.close()
    with pytest.raises(StateError, match="closed"):
        zygote.call(int)


def test_interrupt_ends_the_call(container: Container, zygote: Zygote) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    def tell() -> None:
        with open("/tmp/pid", "w", encoding="ascii") as file:
            file.write(str(os.getpid()))
        time.sleep(1000)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.7)
        with pytest.raises(KeyboardInterrupt):
            zygote.call(tell)
    finally:
        signal.signal(signal.SIGALRM, before)
    pid = container.exec(["cat", "/tmp/pid"], check=True).stdout
    assert isinstance(pid, str)
    assert not _alive(container, [pid])
    assert zygote.call(int) == 0


def test_descriptors_do_not_grow(zygote: Zygote) -> None:
    zygote.call(int)
    before = open_descriptors()
    for _ in range(5):
        zygote.call(int)
        with pytest.raises(CallError):
            zygote.call(int, "x")
    assert not left_open(before)


def test_forked_caller_lets_go(container: Container, zygote: Zygote) -> None:
    zygote.call(int)
    held = {os.readlink(f"/proc/self/fd/{fd}") for fd in (_prepared(zygote).control,)}
    pid = os.fork()
    if pid == 0:
        names = os.listdir("/proc/self/fd")
        found = set()
        for name in names:
            try:
                found.add(os.readlink(f"/proc/self/fd/{name}"))
            except OSError:
                continue
        os._exit(1 if held & found else 0)
    assert os.waitpid(pid, 0)[1] == 0
    assert zygote.call(int) == 0


def _prepared(zygote: Zygote) -> Prepared:
    prepared = zygote._prepared
    assert prepared is not None
    return prepared


def test_call_is_ten_times_as_fast_as_a_command_that_imports(container: Container) -> None:
    with with_numpy(container) as prepared:

        def total() -> int:
            import numpy

            return int(numpy.arange(100).sum())

        text = "import numpy; print(int(numpy.arange(100).sum()))"
        prepared.call(total)
        calls, commands = [], []
        for _ in range(5):
            begun = time.perf_counter()
            assert prepared.call(total) == 4950
            calls.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            assert container.exec([sys.executable, "-c", text]).stdout == "4950\n"
            commands.append(time.perf_counter() - begun)
        assert sorted(calls)[2] * 10 < sorted(commands)[2]
