"""The relay of published ports: bytes pass unchanged in both directions between listener and target."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import resource
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pycontain._kernel import native
from pycontain._kernel.launcher import Launcher, sub_id_maps
from pycontain._kernel.pidfd import pid_of
from pycontain._kernel.plan import request
from pycontain._kernel.protocol import RecordKind, RequestKind
from pycontain._kernel.relay import Relay

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
HERE = "127.0.0.1"
PATIENCE = 20.0
MANY = 200
SESSIONS_MOST = 1024
FLOWS_MOST = 4096
_RESET = struct.pack("ii", 1, 0)


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    plain = os.geteuid() != 0
    one = Launcher(plain=plain, maps=sub_id_maps() if plain else None)
    yield one
    one.close()


@pytest.fixture
def relay(launcher: Launcher) -> Iterator[Relay]:
    one = Relay.start(launcher)
    yield one
    one.close()


class Service:
    """A TCP server on loopback; `handle` serves each connection in its own thread."""

    def __init__(self, handle: Callable[[socket.socket], None], family: int = socket.AF_INET) -> None:
        host = HERE if family == socket.AF_INET else "::1"
        self._handle = handle
        self._listener = socket.create_server((host, 0), family=socket.AddressFamily(family), backlog=1024)
        self.port = int(self._listener.getsockname()[1])
        self._threads: list[threading.Thread] = []
        self._loop = threading.Thread(target=self._accept)
        self._loop.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE)
        with connection, contextlib.suppress(OSError):
            self._handle(connection)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._loop.join()
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def echo(connection: socket.socket) -> None:
    """Send back all input, then end."""
    while data := connection.recv(1 << 16):
        connection.sendall(data)


def read_all(connection: socket.socket) -> bytes:
    """Read up to the end of the stream."""
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def _parts(connection: socket.socket, size: int) -> Iterator[bytes]:
    while size > 0:
        data = connection.recv(min(size, 1 << 16))
        assert data
        size -= len(data)
        yield data


def publish(relay: Relay, port: int, *, number: int = 1, behind: str = HERE, host: str = HERE) -> int:
    """Return a TCP port of the relay that forwards to `port`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, backlog=1024) as listener:
        relay.serve(number, TCP, [listener.fileno()], behind, port)
        return int(listener.getsockname()[1])


def publish_udp(
    relay: Relay, port: int, *, number: int = 1, host: str = HERE, behind: str = HERE, patience: int = 0
) -> int:
    """Return a UDP port of the relay that forwards to `port`."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind((host, 0))
        relay.serve(number, UDP, [bound.fileno()], behind, port, patience=patience)
        return int(bound.getsockname()[1])


def connect(port: int, host: str = HERE) -> socket.socket:
    return socket.create_connection((host, port), timeout=PATIENCE)


def gone(pid: int) -> bool:
    """Return whether the process has ended.  Its launcher reaps it."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def rests(pid: int) -> bool:
    """Return whether the relay uses almost no processor time for half a second."""
    before = cpu_ticks(pid)
    time.sleep(0.5)
    return cpu_ticks(pid) - before < 10


@pytest.fixture
def needs_sight() -> None:
    """Skip where the relay's fds cannot be seen."""
    if os.geteuid() != 0:
        pytest.skip("rootless: /proc of the relay is not readable")


@pytest.fixture
def needs_grip() -> None:
    """Skip where the relay cannot be signalled."""
    if os.geteuid() != 0:
        pytest.skip("rootless: the relay may belong to another engine")


@contextlib.contextmanager
def stopped(relay: Relay) -> Iterator[None]:
    """Stop the relay for a while, so that it sees all events of that time in one wakeup."""
    os.kill(relay.pid, signal.SIGSTOP)
    while status(relay.pid)["State"][0] != "T":
        time.sleep(0.001)
    try:
        yield
    finally:
        os.kill(relay.pid, signal.SIGCONT)


def test_fifty_megabytes_come_back_as_they_were(relay: Relay) -> None:
    data = random.Random(1).randbytes(50_000_000)
    with Service(echo) as service, connect(publish(relay, service.port)) as client:

        def send() -> None:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        back = read_all(client)
        sender.join()

        assert hashlib.sha256(data).digest() == hashlib.sha256(back).digest()


def test_many_connections_at_once(relay: Relay) -> None:
    with Service(echo) as service, contextlib.ExitStack() as stack:
        port = publish(relay, service.port)
        clients = [stack.enter_context(connect(port)) for _ in range(MANY)]
        for at, client in enumerate(clients):
            client.sendall(b"%d" % at * 1000)
            client.shutdown(socket.SHUT_WR)

        assert [b"%d" % at * 1000 for at in range(MANY)] == [read_all(client) for client in clients]


def test_many_ports_each_reach_their_own_target(relay: Relay) -> None:
    with contextlib.ExitStack() as stack:
        ports = []
        for number in range(1, 6):

            def say(connection: socket.socket, number: int = number) -> None:
                connection.sendall(b"%d" % number)

            service = stack.enter_context(Service(say))
            ports.append(publish(relay, service.port, number=number))
        for number, port in enumerate(ports, 1):
            with connect(port) as client:
                assert b"%d" % number == read_all(client)


@pytest.mark.parametrize(("host", "behind"), [("::1", HERE), (HERE, "::1"), ("::1", "::1")])
def test_the_families_of_both_sides_may_differ(relay: Relay, host: str, behind: str) -> None:
    family = socket.AF_INET6 if ":" in behind else socket.AF_INET
    with Service(echo, family) as service:
        port = publish(relay, service.port, host=host, behind=behind)
        with connect(port, host) as client:
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"


def test_an_end_in_one_direction_leaves_the_other_open(relay: Relay) -> None:
    def answer_at_the_end(connection: socket.socket) -> None:
        question = read_all(connection)
        time.sleep(0.1)
        connection.sendall(question.upper())

    with Service(answer_at_the_end) as service, connect(publish(relay, service.port)) as client:
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)

        assert read_all(client) == b"QUESTION"


def test_an_end_of_the_service_leaves_the_client_free_to_send(relay: Relay) -> None:
    received: list[bytes] = []

    def stop_speaking(connection: socket.socket) -> None:
        connection.sendall(b"all I say")
        connection.shutdown(socket.SHUT_WR)
        received.append(read_all(connection))

    with Service(stop_speaking) as service, connect(publish(relay, service.port)) as client:
        assert read_all(client) == b"all I say"
        client.sendall(b"still here")
    assert received == [b"still here"]


def test_closed_target_resets_at_once(relay: Relay) -> None:
    with socket.create_server((HERE, 0)) as closed:
        port = closed.getsockname()[1]
    published = publish(relay, port)
    started = time.monotonic()
    with pytest.raises(ConnectionResetError), connect(published) as client:
        client.recv(1)
    assert time.monotonic() - started < 2


def test_service_reset_reaches_the_client(relay: Relay) -> None:
    def reset(connection: socket.socket) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    with Service(reset) as service, connect(publish(relay, service.port)) as client:
        client.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            client.recv(1)


@pytest.mark.parametrize("half_closed", [False, True])
def test_client_reset_reaches_the_service(relay: Relay, half_closed: bool) -> None:
    caught: list[int | None] = []

    def wait(connection: socket.socket) -> None:
        connection.sendall(b"x")
        try:
            assert half_closed == (read_all(connection) == b"")
            poll = select.poll()
            poll.register(connection, 0)
            assert poll.poll(PATIENCE * 1000)
            caught.append(connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        except OSError as error:
            caught.append(error.errno)

    with Service(wait) as service, connect(publish(relay, service.port)) as client:
        client.recv(1)
        if half_closed:
            client.shutdown(socket.SHUT_WR)
            time.sleep(0.1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    assert caught[0] in ((errno.EPIPE, errno.ECONNRESET) if half_closed else (errno.ECONNRESET,))


@pytest.mark.usefixtures("needs_grip")
def test_answer_before_a_reset_is_delivered(relay: Relay) -> None:
    """A service answers a long request early and resets, as HTTP servers do; the answer arrives first."""
    refused = threading.Event()
    go_on = threading.Event()

    def refuse(connection: socket.socket) -> None:
        connection.recv(1)
        assert go_on.wait(PATIENCE)
        connection.sendall(b"too long")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.close()
        refused.set()

    with Service(refuse) as service, connect(publish(relay, service.port)) as client:
        client.sendall(b"x" * 100)
        time.sleep(0.1)
        with stopped(relay):
            go_on.set()
            assert refused.wait(PATIENCE)
            client.sendall(b"x" * 100)
        assert client.recv(100) == b"too long"
        with pytest.raises(ConnectionResetError):
            client.recv(1)


@pytest.mark.usefixtures("needs_grip")
def test_flow_larger_than_one_turn_continues(relay: Relay) -> None:
    """Single bytes fill a pipe long before its size is reached, since each takes a page."""
    with Service(echo) as service:
        port = publish(relay, service.port)
        with connect(port) as one, connect(port) as other:
            for client in (one, other):
                client.setsockopt(TCP, socket.TCP_NODELAY, 1)
                client.sendall(b"x")
                assert client.recv(1) == b"x"
            with stopped(relay):
                for _ in range(3000):
                    one.send(b"1")
                    other.send(b"2")
                one.shutdown(socket.SHUT_WR)
                other.shutdown(socket.SHUT_WR)
            assert read_all(one) == b"1" * 3000
            assert read_all(other) == b"2" * 3000


def test_nothing_of_a_broken_flow_comes_to_another(relay: Relay) -> None:
    def flood(connection: socket.socket) -> None:
        while True:
            connection.sendall(b"secret" * 10000)

    with Service(flood) as flooding, Service(echo) as service:
        busy = publish(relay, flooding.port)
        port = publish(relay, service.port)
        for _ in range(3):
            with connect(busy):
                time.sleep(0.2)
            with connect(port) as client:
                client.sendall(b"hello")
                client.shutdown(socket.SHUT_WR)
                assert read_all(client) == b"hello"


def test_slow_accept_loses_no_data(relay: Relay) -> None:
    """The connection succeeds when there is room again, at the second attempt."""
    with socket.socket() as behind, contextlib.ExitStack() as stack:
        behind.bind((HERE, 0))
        behind.listen(0)
        first = stack.enter_context(connect(behind.getsockname()[1]))
        client = stack.enter_context(connect(publish(relay, behind.getsockname()[1])))
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        time.sleep(0.2)
        behind.settimeout(PATIENCE)
        behind.accept()[0].close()
        assert first.recv(1) == b""
        accepted = stack.enter_context(behind.accept()[0])
        accepted.settimeout(PATIENCE)
        assert read_all(accepted) == b"question"


def test_slow_reader_does_not_block_others(relay: Relay) -> None:
    def flood(connection: socket.socket) -> None:
        while True:
            connection.sendall(bytes(1 << 16))

    with Service(flood) as flooding, Service(echo) as service, contextlib.ExitStack() as stack:
        busy = publish(relay, flooding.port, number=1)
        port = publish(relay, service.port, number=2)
        for _ in range(8):
            stack.enter_context(connect(busy))
        reader = stack.enter_context(connect(busy))
        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                reader.recv(1 << 16)

        thread = threading.Thread(target=read)
        thread.start()
        time.sleep(0.3)
        slowest = 0.0
        for _ in range(50):
            started = time.monotonic()
            with connect(port) as client:
                client.sendall(b"hello")
                assert client.recv(5) == b"hello"
            slowest = max(slowest, time.monotonic() - started)
        stop.set()
        thread.join()
        assert slowest < 1
        relay.drop(1)


def test_idle_relay_uses_no_processor_time(relay: Relay) -> None:
    """Clients that do not read, are half closed or idle cause no busy loop."""

    def flood(connection: socket.socket) -> None:
        while True:
            connection.sendall(bytes(1 << 16))

    with Service(flood) as flooding, Service(echo) as service:
        busy = publish(relay, flooding.port)
        port = publish(relay, service.port)
        with connect(busy), connect(port) as idle, connect(busy) as half:
            idle.sendall(b"x")
            half.shutdown(socket.SHUT_WR)
            time.sleep(0.3)
            assert rests(relay.pid)
        relay.drop(1)


def test_drop_is_complete_when_the_call_returns(relay: Relay) -> None:
    with Service(echo) as service:
        port = publish(relay, service.port, number=1)
        second = publish(relay, service.port, number=1)
        other = publish(relay, service.port, number=2)
        with connect(port) as client, connect(other) as stays:
            for one in (client, stays):
                one.sendall(b"x")
                assert one.recv(1) == b"x"
            relay.drop(1)

            for dropped in (port, second):
                with pytest.raises(ConnectionRefusedError):
                    connect(dropped)
                socket.create_server((HERE, dropped)).close()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            stays.sendall(b"y")
            assert stays.recv(1) == b"y"


def test_finished_data_is_delivered_after_a_drop(relay: Relay) -> None:
    said = threading.Event()

    def speak(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(b"last words" * 1000)
        connection.close()
        said.set()

    with Service(speak) as service, connect(publish(relay, service.port)) as client:
        client.sendall(b"x")
        assert said.wait(PATIENCE)
        relay.drop(1)
        assert read_all(client) == b"last words" * 1000


def test_shut_down_listener_does_not_spin(relay: Relay) -> None:
    with Service(echo) as service, socket.create_server((HERE, 0)) as listener:
        relay.serve(1, TCP, [listener.fileno()], HERE, service.port)
        listener.shutdown(socket.SHUT_RDWR)
        assert rests(relay.pid)


@pytest.mark.case("A13")
def test_one_port_takes_at_most_half_of_the_flows(launcher: Launcher) -> None:
    """Silent connections to one port do not block another port."""
    _, hard = resource.prlimit(pid_of(launcher.pidfd), resource.RLIMIT_NOFILE)
    if hard < 3 * FLOWS_MOST or resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2 * FLOWS_MOST:
        pytest.skip(f"a hard limit of {hard} open files is below what the flows take")
    soft, own = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(own, 3 * FLOWS_MOST)), own))
    relay = Relay.start(launcher)
    with contextlib.closing(relay), Service(echo) as service, contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.create_server((HERE, 0), backlog=4096))
        busy = publish(relay, silent.getsockname()[1], number=1)
        port = publish(relay, service.port, number=2)
        flood = [stack.enter_context(socket.socket()) for _ in range(FLOWS_MOST // 2 + 200)]
        for one in flood:
            one.connect((HERE, busy))
        with connect(port) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        poll = select.poll()
        for one in flood:
            poll.register(one, select.POLLHUP | select.POLLERR | select.POLLRDHUP)
        deadline = time.monotonic() + PATIENCE
        while len(found := poll.poll(100)) < 200 and time.monotonic() < deadline:
            pass
        assert len(found) == 200
        relay.drop(1)
        again = publish(relay, service.port, number=3)
        with connect(again) as client:
            client.sendall(b"y")
            assert client.recv(1) == b"y"
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, own))


@pytest.mark.parametrize("limit", [40, 41, 42, 43])
def test_clients_are_refused_without_fds_and_others_continue(launcher: Launcher, limit: int) -> None:
    """No descriptor is left for a pipe either, under several limits."""
    resource.prlimit(pid_of(launcher.pidfd), resource.RLIMIT_NOFILE, (limit, limit))
    relay = Relay.start(launcher)
    with Service(echo) as service, contextlib.ExitStack() as stack:
        stack.callback(relay.close)
        port = publish(relay, service.port)
        answered, reset = [], 0
        for _ in range(30):
            try:
                client = stack.enter_context(connect(port))
                client.sendall(b"x")
                assert client.recv(1) == b"x"
                answered.append(client)
            except ConnectionResetError:
                reset += 1
        assert len(answered) >= 10
        assert len(answered) + reset == 30
        assert rests(relay.pid)
        # More than the sockets on the way hold: each direction is left with something under way.
        data = random.Random(2).randbytes(16_000_000)
        answered = answered[:5]
        senders = [threading.Thread(target=client.sendall, args=(data,)) for client in answered]
        for sender in senders:
            sender.start()
        time.sleep(0.5)
        for client, sender in zip(answered, senders, strict=True):
            back = b"".join(_parts(client, len(data)))
            sender.join()
            assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
        with connect(port) as client:
            client.sendall(b"z")
            assert client.recv(1) == b"z"


def test_clients_wait_without_a_spare_fd(launcher: Launcher) -> None:
    resource.prlimit(pid_of(launcher.pidfd), resource.RLIMIT_NOFILE, (40, 40))
    relay = Relay.start(launcher)
    with contextlib.closing(relay), Service(echo) as service, socket.create_server((HERE, 0)) as listener:
        port = publish(relay, service.port, number=1)
        with pytest.raises(OSError, match="Too many open files"):
            relay.serve(2, TCP, [listener.fileno()] * 40, HERE, 1)
        with connect(port) as client:
            client.sendall(b"x")
            assert rests(relay.pid)
            relay.drop(2)
            assert client.recv(1) == b"x"


def test_without_fds_left_a_listener_is_refused(launcher: Launcher) -> None:
    resource.prlimit(pid_of(launcher.pidfd), resource.RLIMIT_NOFILE, (40, 40))
    relay = Relay.start(launcher)
    with contextlib.closing(relay), socket.create_server((HERE, 0)) as listener:
        with pytest.raises(OSError, match="Too many open files"):
            relay.serve(1, TCP, [listener.fileno()] * 40, HERE, 1)
        relay.drop(1)
        relay.serve(1, TCP, [listener.fileno()], HERE, 1)


@pytest.mark.parametrize(("host", "behind"), [(HERE, HERE), ("::1", "::1"), ("0.0.0.0", "::1"), ("::", HERE)])
def test_datagrams_of_several_clients_come_back_to_each(relay: Relay, host: str, behind: str) -> None:
    family = socket.AF_INET6 if ":" in behind else socket.AF_INET
    outside = socket.AF_INET6 if ":" in host else socket.AF_INET
    to = {"0.0.0.0": "127.0.0.2", "::": "::1"}.get(host, host)
    with socket.socket(family, socket.SOCK_DGRAM) as service, contextlib.ExitStack() as stack:
        service.bind((behind, 0))
        service.settimeout(PATIENCE)
        port = publish_udp(relay, service.getsockname()[1], host=host, behind=behind)
        clients = [stack.enter_context(socket.socket(outside, socket.SOCK_DGRAM)) for _ in range(20)]
        for at, client in enumerate(clients):
            client.settimeout(PATIENCE)
            client.connect((to, port))  # an answer from another address does not come
            client.send(b"%d" % at)
        for _ in clients:
            data, sender = service.recvfrom(100)
            service.sendto(data * 2, sender)
        assert [b"%d" % at * 2 for at in range(20)] == [client.recv(100) for client in clients]
        clients[0].send(b"")
        data, sender = service.recvfrom(100)
        assert data == b""
        service.sendto(bytes(60_000), sender)
        assert bytes(60_000) == clients[0].recv(65536)


def test_datagrams_to_an_address_of_both_families(relay: Relay) -> None:
    """A dual-stack socket answers IPv4 clients from the address that they used."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        service.bind((HERE, 0))
        service.settimeout(PATIENCE)
        port = publish_udp(relay, service.getsockname()[1], host="::")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            client.connect(("127.0.0.3", port))
            client.send(b"ask")
            data, sender = service.recvfrom(100)
            service.sendto(data, sender)
            assert client.recv(100) == b"ask"


def _sessions(relay: Relay) -> int:
    return sum("socket:" in os.readlink(path) for path in Path(f"/proc/{relay.pid}/fd").iterdir())


@pytest.mark.usefixtures("needs_sight")
def test_the_oldest_session_makes_room(relay: Relay) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as service, contextlib.ExitStack() as stack:
        service.bind((HERE, 0))
        service.settimeout(PATIENCE)
        port = publish_udp(relay, service.getsockname()[1])
        before = _sessions(relay)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        # From one socket each, or a port that was used before would be the same client's.
        clients = [
            stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(SESSIONS_MOST + 50)
        ]

        def ask(client: socket.socket) -> int:
            client.sendto(b"x", (HERE, port))
            return int(service.recvfrom(10)[1][1])

        first, second, *_ = [ask(client) for client in clients[:SESSIONS_MOST]]
        assert ask(clients[0]) == first
        for client in clients[SESSIONS_MOST:]:
            ask(client)
        assert _sessions(relay) - before == SESSIONS_MOST
        assert ask(clients[0]) == first
        assert ask(clients[1]) != second
        assert _sessions(relay) - before == SESSIONS_MOST
        relay.drop(1)
        assert before - 1 == _sessions(relay)
        assert rests(relay.pid)


@pytest.mark.case("A13")
def test_one_port_takes_no_sessions_of_another(relay: Relay) -> None:
    """Datagrams of many clients to one port end the sessions of that port only."""
    with contextlib.ExitStack() as stack:
        own, flooded = (stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(2))
        for service in (own, flooded):
            service.bind((HERE, 0))
            service.settimeout(PATIENCE)
        port = publish_udp(relay, own.getsockname()[1], number=1)
        busy = publish_udp(relay, flooded.getsockname()[1], number=2)
        quiet = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(20)]

        def ask(client: socket.socket, port: int, service: socket.socket) -> int:
            client.sendto(b"x", (HERE, port))
            return int(service.recvfrom(10)[1][1])

        before = [ask(client, port, own) for client in quiet]
        for _ in range(SESSIONS_MOST + 50):
            with socket.socket(type=socket.SOCK_DGRAM) as client:
                ask(client, busy, flooded)
        assert [ask(client, port, own) for client in quiet] == before
        more = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(20)]
        after = [ask(client, port, own) for client in more]
        assert [ask(client, port, own) for client in more] == after
        assert [ask(client, port, own) for client in quiet] == before


@pytest.mark.usefixtures("needs_sight")
def test_a_silent_session_ends(relay: Relay) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        service.bind((HERE, 0))
        service.settimeout(PATIENCE)
        port = publish_udp(relay, service.getsockname()[1], patience=1)
        before = _sessions(relay)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect((HERE, port))
            client.send(b"x")
            first = service.recvfrom(10)[1]
            assert before + 1 == _sessions(relay)
            end = time.monotonic() + PATIENCE
            while _sessions(relay) > before and time.monotonic() < end:
                time.sleep(0.1)
            assert before == _sessions(relay)
            client.send(b"x")
            assert first != service.recvfrom(10)[1]


def test_a_service_that_is_not_there_yet_gets_later_datagrams(relay: Relay) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reserved:
        reserved.bind((HERE, 0))
        inside = reserved.getsockname()[1]
    port = publish_udp(relay, inside)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service,
    ):
        client.connect((HERE, port))
        for _ in range(3):
            client.send(b"lost")
            time.sleep(0.02)
        assert rests(relay.pid)
        service.bind((HERE, inside))
        service.settimeout(PATIENCE)
        client.send(b"found")
        assert service.recv(100) == b"found"


def test_relay_keeps_no_capabilities(relay: Relay) -> None:
    found = status(relay.pid)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(found[name], 16) == 0, name
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"
    if os.geteuid() == 0:
        assert found["Uid"].split() == ["65534"] * 4
        assert found["Gid"].split() == ["65534"] * 4
        assert found["Groups"] == ""
    else:
        with pytest.raises(PermissionError):
            os.listdir(f"/proc/{relay.pid}/fd")


@pytest.mark.usefixtures("needs_sight")
def test_relay_holds_no_descriptor_of_its_launcher(relay: Relay) -> None:
    held = [os.readlink(path) for path in Path(f"/proc/{relay.pid}/fd").iterdir()]
    assert sum("socket:" in path for path in held) == 1
    assert sum("eventpoll" in path for path in held) == 1
    assert sum(path.endswith("null") for path in held) == 3
    assert len(held) == 5


def test_relay_ends_with_its_socket(launcher: Launcher) -> None:
    relay = Relay.start(launcher)
    with Service(echo) as service, connect(publish(relay, service.port)) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        relay.close()
        relay.close()
        assert gone(relay.pid)
        assert client.recv(1) == b""
    with pytest.raises(ConnectionError):
        relay.drop(1)
    assert Relay.start(launcher).close() is None  # type: ignore[func-returns-value]


def test_relay_ends_with_its_launcher(launcher: Launcher) -> None:
    relay = Relay.start(launcher)
    launcher.kill()
    assert gone(relay.pid)
    with pytest.raises(ConnectionError):
        relay.drop(1)
    relay.close()


@pytest.mark.usefixtures("needs_grip")
def test_dead_relay_is_reported(launcher: Launcher) -> None:
    relay = Relay.start(launcher)
    os.kill(relay.pid, signal.SIGKILL)
    assert gone(relay.pid)
    with pytest.raises(ConnectionError):
        relay.drop(1)
    relay.close()


def test_wrong_sockets_are_refused_and_change_nothing(relay: Relay) -> None:
    with Service(echo) as service, contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        local = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        null = os.open("/dev/null", os.O_RDONLY)
        stack.callback(os.close, null)
        for fd in (silent.fileno(), local.fileno(), datagrams.fileno(), null):
            with pytest.raises(OSError, match="relay"):
                relay.serve(1, TCP, [fd], HERE, service.port)
        with socket.create_server((HERE, 0)) as listener:
            with pytest.raises(OSError, match="relay"):
                relay.serve(1, UDP, [listener.fileno()], HERE, service.port)
            with pytest.raises(OSError, match="relay"):
                relay.serve(1, TCP, [listener.fileno()], HERE, 0)
        with pytest.raises(ValueError, match="address"):
            relay.serve(1, TCP, [], "example.org", 80)
        with connect(publish(relay, service.port)) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"


def test_any_message_does_no_harm(relay: Relay) -> None:
    chance = random.Random(7)
    with Service(echo) as service, socket.create_server((HERE, 0)) as listener:
        for _ in range(2000):
            size = chance.choice([1, 4, 47, 48, 49, 52, 500])
            body = bytearray(chance.randbytes(size))
            body[:4] = struct.pack("<I", chance.choice([0, 1, 1, 2, 3]))[: len(body[:4])]
            if size >= 16:
                body[8:16] = struct.pack("<2I", chance.choice([6, 17, 1]), chance.choice([2, 10, 1]))
            fds = [listener.fileno()] * chance.choice([0, 1, 1, 2, 200])
            native.send(relay._fd, bytes(body), fds)
            os.read(relay._fd, 8)
        relay.drop(1)
        with connect(publish(relay, service.port)) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"


def test_unread_answer_is_not_matched_to_another_request(relay: Relay) -> None:
    native.send(relay._fd, b"no command")
    relay.drop(1)
    with socket.create_server((HERE, 0)) as listener:
        relay.serve(1, TCP, [listener.fileno()], HERE, 1)


def test_many_threads_may_ask(relay: Relay) -> None:
    with Service(echo) as service:
        failures: list[Exception] = []

        def work(number: int) -> None:
            try:
                for _ in range(20):
                    with connect(publish(relay, service.port, number=number)) as client:
                        client.sendall(b"%d" % number)
                        assert b"%d" % number == client.recv(10)
                    relay.drop(number)
            except Exception as error:  # noqa: BLE001  it is looked at below
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures


def test_forked_child_does_not_affect_the_relay(relay: Relay) -> None:
    with Service(echo) as service:
        port = publish(relay, service.port)
        child = os.fork()
        if child == 0:
            relay.forget()
            os._exit(0)
        os.waitpid(child, 0)
        with connect(port) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"


def test_launcher_refuses_other_socket_types(launcher: Launcher) -> None:
    stream, far = socket.socketpair()
    with stream, far:
        for fds in ([], [stream.fileno()], [stream.fileno()] * 2):
            native.send(launcher.socket, request(RequestKind.RELAY), fds)
            record = native.receive(launcher.socket)
            assert record is not None
            assert (record.kind, record.step_name) == (RecordKind.FAILED, "network")
            assert record.errno
