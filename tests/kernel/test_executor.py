"""Python functions in sandboxes by the interface of concurrent.futures."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import CancelledError, as_completed
from pathlib import Path

import pytest

from pycontain import (
    CallError,
    CgroupLimits,
    CommandFailed,
    CommandTimeout,
    Engine,
    SandboxExecutor,
    sandboxed,
)

pytest.importorskip("cloudpickle", reason="pycontain[call] is not installed")

STATE = {"ready": False}


def square(number: int) -> int:
    return number * number


def make_ready(value: bool) -> None:
    STATE["ready"] = value


def is_ready() -> bool:
    return STATE["ready"]


def hostname_and_files() -> tuple[str, list[str]]:
    Path(f"/tmp/{os.getpid()}").touch()
    return os.uname().nodename, os.listdir("/tmp")


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leave() -> None:
    os._exit(3)


def fork_many() -> int:
    for _ in range(20):
        if os.fork() == 0:
            time.sleep(100)
    return 20


def allocate() -> int:
    return len(bytearray(512 << 20))


@sandboxed(max_workers=1)
def factorial(number: int) -> int:
    return 1 if number < 2 else number * factorial(number - 1)


def test_map_returns_results_in_order() -> None:
    with SandboxExecutor(max_workers=2) as executor:
        assert list(executor.map(square, range(50))) == [number * number for number in range(50)]


def test_workers_are_started_when_they_are_needed(engine: Engine) -> None:
    with SandboxExecutor(max_workers=8) as executor:
        assert engine.containers == []
        for number in range(5):
            assert executor.submit(square, number).result() == number * number
        assert len(engine.containers) == 1
    assert engine.containers == []


def test_tasks_run_at_the_same_time() -> None:
    with SandboxExecutor(max_workers=2) as executor:
        list(executor.map(square, range(2)))
        begun = time.monotonic()
        list(executor.map(time.sleep, [1, 1]))
        assert time.monotonic() - begun < 1.9


def test_exceptions_have_the_traceback_of_the_function() -> None:
    with SandboxExecutor(max_workers=1) as executor:
        error = executor.submit(int, "x").exception()
    assert isinstance(error, CallError)
    assert error.type_name == "ValueError"
    assert "Traceback" in error.traceback


@pytest.mark.parametrize(("task", "reason"), [(crash, "signal"), (leave, "exit")])
def test_a_task_that_dies_harms_no_other(task: object, reason: str) -> None:
    with SandboxExecutor(max_workers=1) as executor:
        assert callable(task)
        futures = [executor.submit(square, 3), executor.submit(task), executor.submit(square, 4)]
        error = futures[1].exception()
        assert isinstance(error, CommandFailed)
        assert error.reason == reason
        assert (futures[0].result(), futures[2].result()) == (9, 16)


def test_processes_that_a_task_leaves_are_killed(engine: Engine) -> None:
    with SandboxExecutor(max_workers=1) as executor:
        assert executor.submit(fork_many).result() == 20
        executor.submit(square, 1).result()
        (container,) = engine.containers
        assert "sleep" not in container.exec("cat /proc/[0-9]*/comm", shell=True).stdout
        names = container.exec("cat /proc/[0-9]*/comm", shell=True).stdout.split()
        assert len(names) < 10


def test_limits_and_timeouts_are_those_of_the_task(needs_memory: None) -> None:
    with SandboxExecutor(max_workers=1, memory="1G", task_limits=CgroupLimits(memory="64M")) as executor:
        error = executor.submit(allocate).exception()
        assert isinstance(error, CommandFailed)
        assert error.reason == "oom"
        wide = executor.with_options(limits=CgroupLimits(memory="900M"))
        assert wide.submit(allocate).result() == 512 << 20
        assert isinstance(executor.submit(allocate).exception(), CommandFailed)


def test_timeout_ends_one_task_only() -> None:
    with SandboxExecutor(max_workers=2, timeout=30) as executor:
        slow = executor.with_options(timeout=0.3).submit(time.sleep, 100)
        assert executor.submit(square, 5).result() == 25
        assert isinstance(slow.exception(), CommandTimeout)


def test_initializer_runs_before_each_task() -> None:
    with SandboxExecutor(max_workers=1, initializer=make_ready, initargs=(True,)) as executor:
        assert executor.submit(is_ready).result()
        assert executor.submit(is_ready).result()
    with SandboxExecutor(max_workers=1) as executor:
        assert not executor.submit(is_ready).result()


def test_error_of_the_initializer_is_that_of_the_task() -> None:
    with SandboxExecutor(max_workers=1, initializer=int, initargs=("x",)) as executor:
        error = executor.submit(square, 1).exception()
    assert isinstance(error, CallError)
    assert error.type_name == "ValueError"


def test_max_tasks_per_child_replaces_the_container() -> None:
    with SandboxExecutor(max_workers=1, max_tasks_per_child=2) as executor:
        seen = [executor.submit(hostname_and_files).result() for _ in range(4)]
    names = [name for name, _ in seen]
    assert names[0] == names[1] != names[2] == names[3]
    assert [len(files) for _, files in seen] == [1, 2, 1, 2]


def test_a_container_that_ended_is_replaced(engine: Engine) -> None:
    with SandboxExecutor(max_workers=1) as executor:
        assert executor.submit(square, 2).result() == 4
        engine.containers[0].kill()
        deadline = time.monotonic() + 10
        while engine.containers and engine.containers[0].status == "running":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert executor.submit(square, 3).result() == 9


def test_tasks_that_have_not_begun_can_be_cancelled(engine: Engine) -> None:
    executor = SandboxExecutor(max_workers=1, timeout=60)
    begun = threading.Event()
    first = executor.submit(time.sleep, 0.5)
    first.add_done_callback(lambda _: begun.set())
    rest = [executor.submit(square, number) for number in range(20)]
    executor.shutdown(cancel_futures=True)
    assert first.result() is None
    assert begun.is_set()
    for future in rest:
        with pytest.raises(CancelledError):
            future.result()
    assert engine.containers == []
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.submit(square, 1)


def test_shutdown_without_waiting_ends_what_was_begun(engine: Engine) -> None:
    executor = SandboxExecutor(max_workers=2)
    futures = [executor.submit(square, number) for number in range(10)]
    executor.shutdown(wait=False)
    assert sorted(future.result() for future in as_completed(futures)) == sorted(map(square, range(10)))
    executor.shutdown()
    assert engine.containers == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_workers": 0}, ValueError),
        ({"max_workers": True}, ValueError),
        ({"max_tasks_per_child": -1}, ValueError),
        ({"initializer": 3}, TypeError),
        ({"name": "one"}, ValueError),
        ({"memory": "much"}, ValueError),
        ({"nonsense": 1}, TypeError),
    ],
)
def test_wrong_options_are_refused_before_a_task(options: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        SandboxExecutor(**options)  # type: ignore[arg-type]


def test_sandboxed_function_refers_to_itself() -> None:
    try:
        assert factorial(5) == 120
        assert factorial.function(3) == 6
        assert list(factorial.map([1, 2, 3])) == [1, 2, 6]
    finally:
        factorial.close()


def test_sandboxed_function_starts_again_after_close(engine: Engine) -> None:
    @sandboxed
    def name() -> str:
        return os.uname().nodename

    try:
        assert name() != os.uname().nodename
        assert engine.containers
        name.close()
        assert engine.containers == []
        assert name.submit().result()
    finally:
        name.close()
