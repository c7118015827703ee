"""Streams of the caller that a command inherits."""

from __future__ import annotations

import os
import pty
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pycontain import DEVNULL, PIPE, STDOUT, CommandTimeout, Container, Descriptor

MUCH = 5_000_000


def test_output_is_complete_when_exec_returns(container: Container, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        for _ in range(20):
            file.seek(0)
            file.truncate()
            result = container.exec(f"head -c {MUCH // 10} /dev/zero", shell=True, stdout=file)
            assert vars(result)["stdout"] is None  # a stream that is not captured


def test_output_is_complete_after_wait(container: Container, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        process = container.popen(f"head -c {MUCH} /dev/zero", shell=True, stdout=file, stderr=STDOUT)
    assert process.wait(60) == 0
    assert (tmp_path / "out").stat().st_size == MUCH


def test_parts_of_one_file_stay_in_order(container: Container, tmp_path: Path) -> None:
    script = "i=0; while [ $i -lt 200 ]; do echo $i; echo $i >&2; i=$((i+1)); done"
    with (tmp_path / "out").open("wb") as file:
        container.exec(script, shell=True, stdout=file, stderr=file)
    assert (tmp_path / "out").read_text().split() == [str(n // 2) for n in range(400)]


def test_input_comes_from_a_file_at_its_offset(container: Container, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"skipped\n" + b"x" * MUCH)
    with (tmp_path / "in").open("rb", buffering=0) as file:
        file.seek(8)
        process = container.popen(["wc", "-c"], stdin=file)
    assert process.communicate(timeout=60)[0].strip() == str(MUCH)


def test_commands_are_chained_by_pipes(container: Container) -> None:
    first = container.popen(f"head -c {MUCH} /dev/zero", shell=True, text=False, stdout=PIPE)
    second = container.popen(["wc", "-c"], stdin=first.stdout)
    assert first.stdout is not None
    first.stdout.close()
    assert second.communicate(timeout=60)[0].strip() == str(MUCH)
    assert first.wait(60) == 0


def test_writer_gets_epipe_when_its_reader_is_gone(container: Container) -> None:
    first = container.popen(["yes"], text=False, stdout=PIPE)
    second = container.popen(["head", "-n", "1"], stdin=first.stdout)
    assert first.stdout is not None
    first.stdout.close()
    assert second.communicate(timeout=60)[0] == "y\n"
    assert first.wait(60) != 0


@pytest.mark.timeout(60)
def test_unread_inherited_pipe_does_not_outlast_the_timeout(container: Container) -> None:
    read, write = os.pipe()
    with pytest.raises(CommandTimeout):
        container.exec(["yes"], stdout=write, timeout=0.5)
    os.close(write)
    os.close(read)


def test_processes_left_behind_keep_their_output(container: Container, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        began = time.monotonic()
        container.exec("(sleep 1; echo late) & echo soon", shell=True, stdout=file)
        assert time.monotonic() - began < 1
    assert (tmp_path / "out").read_text() == "soon\n"
    deadline = time.monotonic() + 20
    while (tmp_path / "out").read_text() != "soon\nlate\n":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_descriptors_and_threads_are_given_back(container: Container, tmp_path: Path) -> None:
    def count() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    with (tmp_path / "file").open("w+b") as file:
        container.exec("true", shell=True, stdout=file)
        before = count()
        for _ in range(10):
            container.exec("echo x", shell=True, stdout=file, stderr=file)
            container.popen(["cat"], stdin=file, stdout=DEVNULL).wait(20)
        deadline = time.monotonic() + 20
        while any(now > then for now, then in zip(count(), before, strict=True)):
            assert time.monotonic() < deadline, (before, count())
            time.sleep(0.05)


def test_streams_of_the_wrong_direction_are_refused(container: Container, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (tmp_path / "file").open("rb") as reads, (tmp_path / "file").open("ab") as writes:
        with pytest.raises(ValueError, match="stdout must be open for writing"):
            container.exec("true", shell=True, stdout=reads)
        with pytest.raises(ValueError, match="stdin must be open for reading"):
            container.popen(["true"], stdin=writes)
    path = os.open(tmp_path / "file", os.O_PATH)
    with pytest.raises(ValueError, match="stdin must be open for reading"):
        container.popen(["true"], stdin=path)
    os.close(path)


def test_terminal_is_accessible_only_if_passed(container: Container) -> None:
    ours, theirs = pty.openpty()
    for stream, expected in ((theirs, "1\n"), (Descriptor(theirs), "0\n")):
        with container.popen("test -t 0; echo $?", shell=True, stdin=stream, stdout=PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.read() == expected
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize(
    ("stream", "kind", "text"),
    [
        (999, ValueError, "must be an open descriptor, got 999"),
        ("out.txt", TypeError, "must be a file, a desc"),
    ],
)
@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_non_streams_are_refused(
    container: Container, name: str, stream: int | str, kind: type[Exception], text: str
) -> None:
    starts: tuple[Callable[..., object], ...] = (container.exec, container.popen)
    for start in starts:
        with pytest.raises(kind, match=f"{name} {text}"):
            start(["true"], **{name: stream})
