"""Calls of untrusted functions: attacks on the zygote, on later calls and on the caller."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pycontain import CallError, Container, Engine, Image, PycontainError, Security, StateError, Zygote
from pycontain._python import host

pytest.importorskip("cloudpickle", reason="pycontain[call] is not installed")

SIGNALS_ARE_SCOPED = 6
"""The version of Landlock that has it (Linux 6.12)."""


@pytest.fixture
def container() -> Iterator[Container]:
    with Container() as one:
        yield one


@pytest.fixture
def zygote(container: Container) -> Iterator[Zygote]:
    with container.zygote() as one:
        one.call(int)
        yield one


def look_into(pid: int) -> dict[str, str]:
    """Try every way to read, write or trace another process, and return the errors."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = {}

    def tried(name: str, attempt: Callable[[], Any]) -> None:
        try:
            result = attempt()
        except OSError as error:
            found[name] = error.strerror or "?"
        else:
            found[name] = "done" if result != -1 else os.strerror(ctypes.get_errno())

    def steal() -> int:
        pidfd = os.pidfd_open(pid)
        return int(libc.syscall(438, pidfd, 0, 0))

    buffer = ctypes.create_string_buffer(16)
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 16)
    tried("read memory", lambda: os.open(f"/proc/{pid}/mem", os.O_RDONLY))
    tried("write memory", lambda: os.open(f"/proc/{pid}/mem", os.O_RDWR))
    tried("read link", lambda: len(os.readlink(f"/proc/{pid}/fd/1")))
    tried("open fd", lambda: os.open(f"/proc/{pid}/fd/1", os.O_WRONLY))
    tried("maps", lambda: len(Path(f"/proc/{pid}/maps").read_bytes()))
    tried("environ", lambda: len(Path(f"/proc/{pid}/environ").read_bytes()))
    tried("attach", lambda: libc.ptrace(16, pid, 0, 0))
    tried("seize", lambda: libc.ptrace(0x4206, pid, 0, 0))
    tried("process_vm_readv", lambda: libc.process_vm_readv(pid, vector, 1, vector, 1, 0))
    tried("pidfd_getfd", steal)
    return found


def _weaker() -> Security:
    """Return a filter that allows ptrace and similar calls, so that only the kernel's check is left."""
    return Security.DOCKER.evolve(seccomp=None)


@pytest.mark.parametrize("security", ["default", "without a filter"])
def test_zygote_and_waiting_child_cannot_be_traced(security: str) -> None:
    chosen = Security.SANDBOX if security == "default" else _weaker()
    with Container(security=chosen) as container, container.zygote() as zygote:
        parent = zygote.call(os.getppid)
        found = zygote.call(look_into, parent)
        assert "done" not in found.values()
        assert len(found) == 10
        # A child that waits while another call runs.
        threads = [threading.Thread(target=zygote.call, args=(time.sleep, one)) for one in (0.1, 1)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        others = zygote.call(lambda: [one for one in os.listdir("/proc") if one.isdigit() and int(one) > 2])
        for pid in others:
            found = zygote.call(look_into, int(pid))
            assert "done" not in found.values(), (pid, found)
        for thread in threads:
            thread.join()


def test_call_beside_cannot_be_looked_into(container: Container, zygote: Zygote) -> None:
    def tell() -> None:
        Path("/tmp/pid").write_text(str(os.getpid()))
        time.sleep(1.5)

    thread = threading.Thread(target=zygote.call, args=(tell,))
    thread.start()
    while not (pid := str(container.exec(["cat", "/tmp/pid"]).stdout)):
        time.sleep(0.01)
    assert "done" not in zygote.call(look_into, int(pid)).values()
    thread.join()


def signal_all(number: int) -> dict[str, str]:
    """Send the signal to the zygote, to all of its children, and to all processes."""
    found = {}
    mine, parent = os.getpid(), os.getppid()
    for pid in (parent, *range(2, mine + 10)):
        if pid == mine:
            continue
        try:
            os.kill(pid, number)
            found[str(pid)] = "sent"
        except ProcessLookupError:
            continue
        except PermissionError:
            found[str(pid)] = "refused"
    try:
        os.kill(-1, number)
    except OSError:
        found["-1"] = "refused"
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT])
def test_call_cannot_harm_the_next_one_by_a_signal(
    zygote: Zygote, number: int, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_START_PATIENCE", 1.0)
    before = zygote.call(os.getppid)
    try:
        sent = zygote.call(signal_all, number, timeout=5)
    except PycontainError:
        sent = {}
    for _ in range(3):
        assert zygote.call(int, "7", timeout=10) == 7
    if engine._session.features.landlock >= SIGNALS_ARE_SCOPED:
        assert "sent" not in sent.values()
        assert zygote.call(os.getppid) == before


def _zygote_pid(container: Container, zygote: Zygote) -> str:
    return str(zygote.call(os.getppid))


def test_killed_zygote_is_replaced(container: Container, zygote: Zygote) -> None:
    pid = _zygote_pid(container, zygote)
    # A signal is sent before it has killed.
    container.exec(["sh", "-c", f"kill -9 {pid}; while kill -0 {pid}; do sleep 0.01; done"], check=True)
    assert zygote.call(int, "7") == 7
    assert _zygote_pid(container, zygote) != pid


def test_stopped_zygote_is_replaced(
    container: Container, zygote: Zygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_START_PATIENCE", 0.5)
    pid = _zygote_pid(container, zygote)
    time.sleep(0.3)
    container.exec(["sh", "-c", f"kill -STOP {pid}"], check=True)
    with pytest.raises(PycontainError):
        zygote.call(time.sleep, 0, timeout=1)  # the waiting child runs, and its end is not reported
    assert zygote.call(int, "7") == 7
    assert _zygote_pid(container, zygote) != pid


def test_end_of_the_zygote_ends_the_call_that_runs(container: Container, zygote: Zygote) -> None:
    pid = _zygote_pid(container, zygote)
    threading.Timer(0.5, container.exec, [["sh", "-c", f"kill -9 {pid}"]]).start()

    def tell() -> None:
        Path("/tmp/pid").write_text(str(os.getpid()))
        time.sleep(1000)

    with pytest.raises(StateError, match="zygote ended while"):
        zygote.call(tell)
    left = container.exec(["cat", "/tmp/pid"], check=True).stdout
    assert container.exec(["test", "-e", f"/proc/{left}"]).returncode == 1
    assert zygote.call(int, "7") == 7


def test_killed_child_that_waits_is_replaced(container: Container, zygote: Zygote) -> None:
    mine = zygote.call(os.getpid)
    time.sleep(0.3)
    killed = container.exec(["sh", "-c", f"kill -9 {mine + 1}"])
    assert killed.returncode == 0
    assert zygote.call(int, "7") == 7


def answer(state: int, size: int, data: bytes, status: int = 0) -> None:
    """Write a forged answer in place of the call's own answer."""
    for name in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if "pycontain-answer" in path:
            os.pwrite(int(name), data, 16)
            os.pwrite(int(name), struct.pack("<QQ", state, size), 0)
    os._exit(status)


class Exploit:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("/tmp/pyc-unpickled",)


HOSTILE = {
    "a pickle": pickle.dumps(Exploit()),
    "nothing": b"",
    "no JSON": b"{]",
    "an object": b'{"a": 1}',
    "no tag": b'["=", [1, 2]]',
    "an unknown tag": b'["=", ["x", 1]]',
    "half a pair": b'["=", ["d", 1]]',
    "a list for a key": b'["=", ["d", ["l"], 1]]',
    "NaN": b'["=", NaN]',
    "an overflow": b'["=", 1e999]',
    "a wide integer": b'["=", ' + b"9" * 5000 + b"]",
    "a wide hexadecimal": b'["=", ["i", "' + b"f" * (1 << 20) + b'"]]',
    "depth": b'["=", ' + b'["l", ' * 500 + b"1" + b"]" * 501,
    "great depth": b"[" * 900_000,
    "many arrays": b'["=", ["l"' + b',["l"]' * 1_100_000 + b"]]",
    "equal hashes": b'["=", ["s"' + b"".join(b",%d" % (one * (2**61 - 1)) for one in range(2)) + b"]]",
    "UTF-16": '["=", 1]'.encode("utf-16"),
    "an error of numbers": b'["!", 1, 2, 3]',
    "too many parts": b'["=", 1, 2]',
}


@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "equal hashes"])
def test_hostile_answer_is_refused(zygote: Zygote, name: str) -> None:
    data = HOSTILE[name]
    with pytest.raises(CallError):
        zygote.call(answer, 1, len(data), data)
    assert not os.path.exists("/tmp/pyc-unpickled")
    assert zygote.call(int, "7") == 7


@pytest.mark.parametrize("size", [1 << 20, 1 << 28, 1 << 40, (1 << 64) - 1])
def test_hostile_size_is_bounded(zygote: Zygote, size: int) -> None:
    with pytest.raises(CallError):
        zygote.call(answer, 1, size, b'["=", 1]', max_output="64K")
    data = b'["=", "' + b"x" * (1 << 17) + b'"]'
    with pytest.raises(CallError):
        zygote.call(answer, 1, len(data), data, max_output="64K")


def test_call_that_denies_receipt_is_not_repeated_endlessly(zygote: Zygote) -> None:
    begun = time.monotonic()
    with pytest.raises(StateError, match="did not accept"):
        zygote.call(answer, 0, 0, b"")
    assert time.monotonic() - begun < 20


def test_answer_neither_grows_nor_shrinks(zygote: Zygote) -> None:
    def resize() -> list[str]:
        found = []
        for name in os.listdir("/proc/self/fd"):
            try:
                path = os.readlink(f"/proc/self/fd/{name}")
            except OSError:
                continue
            for size in (0, 1 << 40) if "pycontain-answer" in path else ():
                try:
                    os.ftruncate(int(name), size)
                except PermissionError:
                    found.append("refused")
        return found

    assert zygote.call(resize) == ["refused", "refused"]


def test_words_of_a_guest_are_fit_for_a_terminal(zygote: Zygote) -> None:
    data = b'["!", "\\u001b]0;x\\u0007", "\\u009b31m", "\\u001b[2J"]'
    with pytest.raises(CallError) as caught:
        zygote.call(answer, 1, len(data), data, 1)
    error = caught.value
    assert all(one.isprintable() for one in f"{error}{error.type_name}{error.traceback}")


@pytest.mark.parametrize(
    "body",
    [
        "os.write(0, b'x' * 100000); time.sleep(100)",
        "os.write(0, b'[' * 100000); time.sleep(100)",
        "os.write(0, b'{}'); time.sleep(100)",
        "os.write(0, b'null'); time.sleep(100)",
        "hello(); os.read(0, 99999); os.write(0, b'{\"error\": [1, 2, 3]}'); time.sleep(100)",
        "hello(); os.read(0, 99999); os.write(0, b'{\"ready\": false}'); time.sleep(100)",
        "hello(); os.read(0, 99999); os.write(0, b'{\"ready\": true}'); time.sleep(100)",
        "hello(); os.read(0, 99999); os.write(0, b'{\"ready\": true}'); os.write(0, b'x'); time.sleep(100)",
        "time.sleep(100)",
        "hello(); os.read(0, 99999); os.write(0, b'{\"ready\": true}'); answer(b'x'); time.sleep(100)",
        "hello(); os.read(0, 99999); os.write(0, b'{\"ready\": true}'); answer(bytes(64)); time.sleep(100)",
        "hello(); os.read(0, 99999); os.write(0, b'{\"ready\": true}'); started(); time.sleep(100)",
    ],
)
def test_interpreter_that_lies_is_refused(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_START_PATIENCE", 0.3)
    text = f"""#!/usr/bin/python3
import importlib.util, json, os, sys, time
def hello():
    words = dict(implementation="cpython", version="3", magic=importlib.util.MAGIC_NUMBER.hex())
    os.write(0, json.dumps(words).encode())
def answer(*records):
    import socket
    fds = socket.recv_fds(socket.socket(fileno=os.dup(0)), 64, 32)[1]
    for record in records:
        os.write(fds[4], record)
    return fds
def started():
    import struct
    answer(struct.pack("<IIiiiI5Q", 3, 0, 0, -1, 1, 0, 0, 0, 0, 0, 0), b'x')
{body}
"""
    from pycontain._objects.zygote import make

    with Container(Image.host()) as container:
        container.exec(["sh", "-c", "cat > /tmp/python; chmod +x /tmp/python"], input=text, check=True)
        with pytest.raises(PycontainError):
            make(container, (), "/tmp/python", timeout=2).call(int, timeout=5)
