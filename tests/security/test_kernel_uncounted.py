"""A02, A10: kernel memory that no cgroup counts ends a container that takes too much of it."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from benchmarks.kernel_resources import program
from pycontain import CommandFailed, Container
from pycontain._kernel import record_locks
from pycontain._runtime import kernel_memory, uncounted

LOCKS = ["record-locks", "ofd-locks", "ofd-locks-mapped"]
SOCKETS = ["netlink", "accept-queue", "accept-queue-data", "error-queue-udp", "icmp-errors"]

SQLITE = """
import os, sqlite3, threading
def work(number):
    for _ in range(20):
        db = sqlite3.connect(f'/tmp/{number % 4}.db', timeout=60)
        db.execute('PRAGMA journal_mode=' + ('WAL' if number % 2 else 'DELETE'))
        db.execute('CREATE TABLE IF NOT EXISTS t (n)')
        db.execute('INSERT INTO t VALUES (1)')
        db.commit()
        db.close()
threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
for one in threads: one.start()
for one in threads: one.join()
print('done')
"""
GETIFADDRS = """
import socket
for _ in range(2000):
    socket.if_nameindex()
    socket.getaddrinfo('127.0.0.1', 80)
print('done')
"""
BACKLOG = """
import socket
server = socket.socket(); server.bind(('127.0.0.1', 0)); server.listen(1024)
clients = [socket.create_connection(server.getsockname()) for _ in range(900)]
for one in clients: one.send(b'GET / HTTP/1.1' + b'x' * 1000)
for _ in clients:
    one, _ = server.accept()
    assert len(one.recv(4096)) == 1014
    one.close()
print('done')
"""
INHERITED = """
import fcntl, os, struct, time
for n in range(200):
    f = os.open(f'/tmp/l{n}', os.O_RDWR | os.O_CREAT)
    for at in range(20): fcntl.fcntl(f, 37, struct.pack('hhqqi4x', 0, 0, 2 * at, 1, 0))
for _ in range(40):
    if os.fork() == 0:
        time.sleep(1.5)
        os._exit(0)
time.sleep(1)
print('done')
"""


QUEUES = """
import socket, time
keep = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(40)]
for one in keep:
    one.bind(('127.0.0.1', 0))
    for _ in range(10): one.sendto(bytes(15000), one.getsockname())
print('full', flush=True)
time.sleep(60)
"""


def _measure(container: Container, most: int, *others: Container) -> int:
    running = container._running
    assert running is not None
    return uncounted.measure(running, most, [one._running for one in others if one._running])


def _run(container: Container, kind: str) -> tuple[str | None, str]:
    """Run a guest that takes objects; its reason, or None if it still ran after its time, and its answer."""
    guest = container.popen([sys.executable, "-c", program(kind, 4, seconds=30)])
    assert guest.stdout is not None
    said = guest.stdout.readline()
    reason = guest.reason if not said and guest.wait() else None
    guest.kill()
    guest.communicate()
    return reason, said


@pytest.mark.case("A02", "A10")
@pytest.mark.parametrize("kind", [*LOCKS, *SOCKETS])
def test_a_guest_that_takes_uncounted_memory_ends_with_oom(kind: str, needs_memory: None) -> None:
    with Container(memory="64M", pids=64) as container:
        reason, said = _run(container, kind)
        assert reason == "oom", said
        assert container.exec(["echo", "on"]).stdout == "on\n"
        assert container.exec(["false"]).reason == "exit"


@pytest.mark.case("A02", "A10")
def test_a_command_that_ended_by_itself_is_not_blamed_for_another(needs_memory: None) -> None:
    with Container(memory="64M", pids=64) as container:
        running = container._running
        assert running is not None
        other = container.popen(["sh", "-c", "read line; exit 3"], stdin=subprocess.PIPE)
        assert other.stdin is not None
        running.session.kernel_memory._watched[container.id].stops += 1  # as by a kill that came too late
        other.stdin.write("\n")
        other.stdin.close()
        assert (other.wait(), other.reason) == (3, "exit")


def _queue_answers() -> None:
    import socket
    import time

    keep = []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        route.bind((0, 0))
        keep.append(route)
        for number in range(200):
            route.send((32).to_bytes(4, "little") + b"\x12\x00\x01\x03" + bytes([number]) + bytes(23))


@pytest.mark.case("A02", "A10")
def test_a_call_that_takes_uncounted_memory_fails_with_oom(needs_memory: None) -> None:
    with Container(memory="64M") as container:
        with pytest.raises(CommandFailed) as failed:
            container.call(_queue_answers, timeout=60)
        assert failed.value.reason == "oom"
        assert container.call(abs, -3) == 3


@pytest.mark.case("A02", "A10")
@pytest.mark.parametrize("init", [True, False])
def test_a_main_command_that_takes_uncounted_memory_ends_with_oom(init: bool, needs_memory: None) -> None:
    command = [sys.executable, "-c", program("netlink", 4, seconds=30)]
    with Container(command=command, memory="64M", init=init) as container:
        status = container.wait(timeout=60)
    assert (status, status.reason) == (-9, "oom")


@pytest.mark.control("A02", "A10")
@pytest.mark.parametrize("kind", ["record-locks", "netlink"])
def test_without_the_watch_a_guest_holds_more(
    kind: str, needs_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_memory, "_LEAST", 1 << 50)
    with Container(memory="64M", pids=64) as container:
        guest = container.popen([sys.executable, "-c", program(kind, 4)])
        assert guest.stdout is not None
        assert guest.stdout.readline().strip()
        assert _measure(container, 12 << 20) > 12 << 20
        guest.kill()
        guest.communicate()


@pytest.mark.case("A02", "A10")
@pytest.mark.parametrize("code", [SQLITE, GETIFADDRS, BACKLOG, INHERITED])
def test_ordinary_programs_are_measured_and_left_alone(
    code: str, needs_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    measure = uncounted.measure

    def note(*arguments: object) -> int:
        measured.append(measure(*arguments))  # type: ignore[arg-type]
        return measured[-1]

    monkeypatch.setattr(kernel_memory.Holding, "may_exceed", lambda *_: True)
    monkeypatch.setattr(uncounted, "measure", note)
    monkeypatch.setattr(record_locks, "count_host", lambda: None)
    with Container(memory="64M") as container:
        done = container.exec([sys.executable, "-c", code], timeout=120)
        deadline = time.monotonic() + 5
        while not measured and time.monotonic() < deadline:
            time.sleep(0.05)
    assert (done.reason, done.stdout) == ("exit", "done\n"), done.stderr
    assert measured
    assert max(measured) <= 16 << 20  # its limit


@pytest.mark.case("A10")
def test_containers_in_one_namespace_are_measured_with_the_counters_of_all(needs_memory: None) -> None:
    with (
        Container(memory="64M") as first,
        Container(memory="64M", network=f"container:{first.name}") as second,
    ):
        guest = second.popen([sys.executable, "-c", QUEUES])
        assert guest.stdout is not None
        assert guest.stdout.readline().strip()
        assert _measure(first, 16 << 20) > 4 << 20
        assert _measure(first, 16 << 20, second) < 2 << 20
        guest.kill()
        guest.communicate()
