"""The name service: answers, forwarding, validation of upstream answers, and shutdown."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from attrs import define, field
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycontain._networks.dns import budget, loop, streams, upstream
from pycontain._networks.dns.service import NameService
from pycontain._networks.dns.zone import Client, Entry, Zone
from tests.support.nameserver import Asked, Nameserver, Respond, Routes, bound, records, silent

_DEADLINE = 20
SERVERS = ("192.0.2.1", "192.0.2.2", "192.0.2.3")
ADDRESS = records(("example.com", "A", "198.51.100.7"))

# ---- what asks ------------------------------------------------------------------------------------------


@define(eq=False)
class Asker:
    """A container's resolver: where the service answers it."""

    client: Client
    host: str
    port: int
    fds: tuple[int, int]

    def udp(self, name: str, kind: str = "A", **options: Any) -> dns.message.Message:
        query = dns.message.make_query(name, kind, **options)
        # The port may have been used by an earlier query, so a late answer may belong to that one.
        return dns.query.udp(query, self.host, _DEADLINE, self.port, ignore_errors=True)

    def tcp(self, name: str, kind: str = "A", **options: Any) -> dns.message.Message:
        return dns.query.tcp(dns.message.make_query(name, kind, **options), self.host, _DEADLINE, self.port)

    def raw(self, wire: bytes) -> bytes:
        with self.datagrams() as sock:
            sock.send(wire)
            return sock.recv(65535)

    def datagrams(self) -> socket.socket:
        sock = socket.socket(type=socket.SOCK_DGRAM)
        sock.settimeout(_DEADLINE)
        sock.connect((self.host, self.port))
        return sock

    def connection(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=_DEADLINE)


def rdata_texts(message: dns.message.Message) -> list[str]:
    assert message.rcode() == dns.rcode.NOERROR
    return [rdata.to_text() for one in message.answer for rdata in one]


def framed(*wires: bytes) -> bytes:
    return b"".join(len(one).to_bytes(2, "big") + one for one in wires)


def unframed(sock: socket.socket) -> bytes:
    """Return the next answer of a connection; b"" at its end."""
    length = int.from_bytes(exactly(sock, 2), "big")
    return exactly(sock, length)


def exactly(sock: socket.socket, count: int) -> bytes:
    came = b""
    while len(came) < count:
        more = sock.recv(count - len(came))
        if not more:
            return b""
        came += more
    return came


@define(eq=False)
class Bench:
    """A service with as many nameservers as a test wants, and clients."""

    path: Path
    routes: Routes = field(factory=lambda: Routes({}))
    _ends: contextlib.ExitStack = field(factory=contextlib.ExitStack)
    _service: NameService | None = None

    @property
    def service(self) -> NameService:
        if self._service is None:
            self._service = NameService(self.routes.open_socket, str(self.path))
            self._ends.callback(self._service.close)
        return self._service

    def nameservers(self, *responds: Respond) -> list[Nameserver]:
        servers = [Nameserver(one) for one in responds]
        for host, server in zip(SERVERS, servers, strict=False):
            self._ends.callback(server.close)
            self.routes.servers[host] = server.address
        self.write(*SERVERS[: len(servers)])
        return servers

    def write(self, *servers: str) -> None:
        self.path.write_text("search example\n" + "".join(f"nameserver {one}\n" for one in servers))

    def asker(self, client: Client | None = None, host: str = "127.0.0.1") -> Asker:
        client = Client(Entry(("own", "0123456789ab"), ("10.1.0.9",))) if client is None else client
        udp, tcp = bound(host)
        port = udp.getsockname()[1]
        fds = udp.detach(), tcp.detach()
        self.service.serve(client, *fds)
        return Asker(client, host, port, fds)

    def close(self) -> None:
        self._ends.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "resolv.conf")
    with contextlib.closing(bench):
        yield bench


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    assert upstream.PATIENCE * upstream.TRIES == 6
    monkeypatch.setattr(upstream, "PATIENCE", 0.2)


@pytest.fixture
def zone() -> Zone:
    zone = Zone("Inner")
    zone.put("1", Entry(("web", "aaaaaaaaaaaa", "shared"), ("10.0.0.2", "fd00::2")))
    zone.put("2", Entry(("DB", "bbbbbbbbbbbb", "shared"), ("10.0.0.3",)))
    return zone


@pytest.fixture
def inner(bench: Bench, zone: Zone) -> Asker:
    """Return a container on one network, which is not connected to the world."""
    client = Client(Entry(("own",), ("10.0.0.4",)), upstream=False)
    client.join(zone)
    return bench.asker(client)


# ---- what names mean ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "answer"),
    [
        ("web", "A", ["10.0.0.2"]),
        ("WEB.", "A", ["10.0.0.2"]),
        ("web.inner", "A", ["10.0.0.2"]),
        ("wEb.INNER", "AAAA", ["fd00::2"]),
        ("web", "ANY", ["10.0.0.2", "fd00::2"]),
        ("aaaaaaaaaaaa", "A", ["10.0.0.2"]),
        ("db", "A", ["10.0.0.3"]),
        ("db", "AAAA", []),
        ("db", "MX", []),
        ("db", "TXT", []),
        ("db", "HTTPS", []),
        ("own", "A", ["10.0.0.4"]),
        ("2.0.0.10.in-addr.arpa", "PTR", ["web.Inner."]),
        ("3.0.0.10.IN-ADDR.arpa", "PTR", ["DB.Inner."]),
        ("4.0.0.10.in-addr.arpa", "PTR", ["own."]),
        ("2." + "0." * 27 + "0.d.f.ip6.arpa", "PTR", None),
        ("2." + "0." * 28 + "0.d.f.ip6.arpa", "PTR", ["web.Inner."]),
        ("2.0.0.10.in-addr.arpa", "A", []),
        ("9.0.0.10.in-addr.arpa", "PTR", None),
        ("x.in-addr.arpa", "PTR", None),
        ("0.10.in-addr.arpa", "PTR", None),
        ("other", "A", None),
        ("web.other", "A", None),
        ("inner", "A", None),
        (".", "A", None),
        ("example.com", "A", None),
    ],
)
def test_names_of_networks_and_own_ones_are_answered(
    inner: Asker, name: str, kind: str, answer: list[str] | None
) -> None:
    for ask in (inner.udp, inner.tcp):
        response = ask(name, kind)
        assert response.flags & dns.flags.RA
        if answer is None:
            assert response.rcode() == dns.rcode.REFUSED
        else:
            assert rdata_texts(response) == answer
            assert {one.ttl for one in response.answer} <= {1}


def test_names_out_of_the_world_and_of_own_networks_come_first(bench: Bench, zone: Zone) -> None:
    (server,) = bench.nameservers(records(("web", "A", "198.51.100.7")))
    client = Client(Entry(("own",), ()))
    asker = bench.asker(client)
    assert rdata_texts(asker.udp("web")) == ["198.51.100.7"]
    client.join(zone)
    assert rdata_texts(asker.udp("web")) == ["10.0.0.2"]
    client.leave(zone)
    assert rdata_texts(asker.udp("web")) == ["198.51.100.7"]
    assert rdata_texts(asker.udp("own")) == []
    assert server.asked.qsize() == 2


def test_shared_alias_returns_all_addresses_in_rotation(inner: Asker) -> None:
    answers = []
    for _ in range(4):
        answers.append(rdata_texts(inner.udp("shared")))
        assert rdata_texts(inner.udp("shared", "AAAA")) == ["fd00::2"]
    assert answers == [["10.0.0.2", "10.0.0.3"], ["10.0.0.3", "10.0.0.2"]] * 2


def test_changes_count_from_the_next_query_on(inner: Asker, zone: Zone) -> None:
    zone.put("1", Entry(("web2",), ("10.0.0.5",)))
    assert inner.udp("web").rcode() == dns.rcode.REFUSED
    assert rdata_texts(inner.udp("web2")) == ["10.0.0.5"]
    assert rdata_texts(inner.udp("shared")) == ["10.0.0.3"]
    zone.drop("2")
    zone.drop("2")
    assert inner.udp("shared").rcode() == dns.rcode.REFUSED
    assert inner.udp("3.0.0.10.in-addr.arpa", "PTR").rcode() == dns.rcode.REFUSED
    inner.client.own = Entry(("renamed",), ("10.0.0.6/16",))
    assert rdata_texts(inner.udp("renamed")) == ["10.0.0.6"]


def test_a_client_on_two_networks_hears_of_both(inner: Asker) -> None:
    other = Zone("other")
    other.put("1", Entry(("web",), ("10.9.0.2",)))
    inner.client.join(other)
    assert sorted(rdata_texts(inner.udp("web"))) == ["10.0.0.2", "10.9.0.2"]
    assert rdata_texts(inner.udp("web.other")) == ["10.9.0.2"]


def test_entries_are_addresses() -> None:
    assert Entry(("a.",), ("fd00:0:0::1", "10.0.0.1/8")) == Entry(("a",), ("fd00::1", "10.0.0.1"))
    with pytest.raises(ValueError, match="does not appear"):
        Entry(("a",), ("10.0.0",))


# ---- form -----------------------------------------------------------------------------------------------


def test_an_answer_too_long_for_a_datagram_is_asked_by_tcp(inner: Asker, zone: Zone) -> None:
    for at in range(60):
        zone.put(f"many{at}", Entry(("many",), (f"10.2.0.{at}",)))
    plain = inner.udp("many")
    assert plain.flags & dns.flags.TC
    assert not plain.answer
    assert inner.udp("many", payload=600).flags & dns.flags.TC
    for whole in (inner.udp("many", payload=4096), inner.tcp("many")):
        assert not whole.flags & dns.flags.TC
        assert len(rdata_texts(whole)) == 60


def test_edns_is_answered_with_edns(inner: Asker) -> None:
    assert inner.udp("web").edns == -1
    assert inner.udp("web", use_edns=0).edns == 0
    query = dns.message.make_query("web", "A", use_edns=1)
    assert dns.message.from_wire(inner.raw(query.to_wire())).rcode() == dns.rcode.BADVERS


def test_non_queries_get_an_error_or_no_answer(inner: Asker, bench: Bench) -> None:
    query = dns.message.make_query("web", "A", id=7)
    wire = query.to_wire()
    two = wire[:4] + b"\0\2" + wire[6:] + wire[12:]
    update = wire[:2] + bytes([dns.opcode.UPDATE << 3]) + wire[3:]
    looped = wire[:12] + b"\xc0\x0c" + wire[-4:]
    for bad, code in (
        (two, dns.rcode.FORMERR),
        (wire[:4] + b"\0\0" + wire[6:], dns.rcode.FORMERR),
        (wire[:-1], dns.rcode.FORMERR),
        (wire + b"x", dns.rcode.FORMERR),
        (looped, dns.rcode.FORMERR),
        (update, dns.rcode.NOTIMP),
        (dns.message.make_query("web", "AXFR", id=7).to_wire(), dns.rcode.REFUSED),
    ):
        answer = dns.message.from_wire(inner.raw(bad))
        assert (answer.id, answer.rcode()) == (7, code)
        assert answer.flags & dns.flags.QR
    response = dns.message.make_response(query).to_wire()
    with inner.datagrams() as sock:
        for nothing in (b"", b"x", wire[:11], response):
            sock.send(nothing)
        sock.send(wire)
        assert rdata_texts(dns.message.from_wire(sock.recv(512))) == ["10.0.0.2"]
    assert not bench.service.errors


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_bytes_of_any_kind_do_no_harm(inner: Asker, bench: Bench, data: st.DataObject) -> None:
    proper = dns.message.make_query("web", "A", use_edns=0, id=1).to_wire()
    mutated = st.tuples(st.integers(0, len(proper) - 1), st.integers(0, 255)).map(
        lambda one: proper[: one[0]] + bytes([one[1]]) + proper[one[0] + 1 :]
    )
    wires = data.draw(st.lists(st.binary(max_size=80) | mutated, max_size=5))
    raw = data.draw(st.binary(max_size=80))
    with inner.datagrams() as sock, inner.connection() as connection:
        for wire in wires:
            sock.send(wire)
        connection.sendall(framed(*wires) + raw)
    assert rdata_texts(inner.udp("web")) == ["10.0.0.2"]
    assert rdata_texts(inner.tcp("web")) == ["10.0.0.2"]
    assert not bench.service.errors


def test_bytes_of_any_kind_from_nameservers_do_no_harm(bench: Bench) -> None:
    mess: list[bytes] = []

    def respond(server: Nameserver, asked: Asked) -> list[bytes]:
        answer = ADDRESS(server, asked)
        return [*mess, *(asked.wire[:2] + one for one in mess), *answer]

    bench.nameservers(respond)
    asker = bench.asker()

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.binary(max_size=60), max_size=6))
    def check(wires: list[bytes]) -> None:
        mess[:] = wires
        asker.udp("example.com")  # whatever begins as an answer does may be one
        mess.clear()
        assert rdata_texts(asker.udp("example.com")) == ["198.51.100.7"]

    check()


# ---- connections ----------------------------------------------------------------------------------------


def test_a_connection_has_many_queries_in_pieces(inner: Asker) -> None:
    wires = [
        dns.message.make_query(name, "A", id=at).to_wire() for at, name in enumerate(["web", "db"] * 100)
    ]
    with inner.connection() as sock:
        whole = framed(*wires)
        for at in range(0, len(whole), 7):
            sock.send(whole[at : at + 7])
        sock.shutdown(socket.SHUT_WR)
        got = {dns.message.from_wire(unframed(sock)).id for _ in wires}
        assert got == set(range(200))
        assert sock.recv(1) == b""


def test_client_that_does_not_read_is_throttled(
    bench: Bench, zone: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "BURST", 3600.0)
    client = Client(Entry(("own",), ("10.0.0.4",)), upstream=False)
    client.join(zone)
    inner = bench.asker(client)
    for at in range(1000):
        zone.put(f"many{at}", Entry(("many",), (f"10.2.{at // 250}.{at % 250}",)))
    padding = dns.edns.GenericOption("65001", bytes(3000))
    wire = framed(dns.message.make_query("many", "A", use_edns=0, options=[padding]).to_wire(max_size=65535))
    with inner.connection() as sock:
        sent = 0
        while sent < 64 << 20 and select.select([], [sock], [], 1)[1]:
            sent += sock.send((wire * 2)[sent % len(wire) :][:4096], socket.MSG_DONTWAIT)
        assert sent < 64 << 20
        assert rdata_texts(inner.udp("web")) == ["10.0.0.2"]
        for _ in range(min(sent // len(wire), 20)):
            assert len(unframed(sock)) > 16000


def test_answers_on_their_way_come_after_the_client_said_all(bench: Bench) -> None:
    bench.nameservers(ADDRESS)
    asker = bench.asker()
    with asker.connection() as sock:
        sock.sendall(framed(dns.message.make_query("example.com", "A").to_wire()))
        sock.shutdown(socket.SHUT_WR)
        assert rdata_texts(dns.message.from_wire(unframed(sock))) == ["198.51.100.7"]
        assert sock.recv(1) == b""


def test_more_queries_than_may_be_on_their_way_wait_in_the_connection(bench: Bench) -> None:
    bench.nameservers(ADDRESS)
    asker = bench.asker()
    wires = [dns.message.make_query("example.com", "A", id=at).to_wire() for at in range(200)]
    with asker.connection() as sock:
        sock.sendall(framed(*wires))
        sock.shutdown(socket.SHUT_WR)
        answers = [dns.message.from_wire(unframed(sock)) for _ in wires]
        assert {one.id for one in answers} == set(range(200))
        assert all(rdata_texts(one) for one in answers)
        assert sock.recv(1) == b""


def test_a_connection_has_so_many_queries_on_their_way(bench: Bench) -> None:
    bench.nameservers(silent)
    asker = bench.asker()
    own, other = (framed(dns.message.make_query(name, "A").to_wire()) for name in ("own", "example.com"))
    with asker.connection() as sock:
        sock.sendall(own)
        assert unframed(sock)
        sock.sendall(other * 200)
        for _ in range(2):  # the one that is answered second came after all these
            assert rdata_texts(asker.udp("own"))
        assert bench.routes.opened == 64


def test_idle_connections_are_closed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loop.IDLE == 10
    monkeypatch.setattr(loop, "IDLE", 0.3)
    asker = bench.asker()
    with asker.connection() as idle, asker.connection() as drip:
        begun = time.monotonic()
        drip.send(b"\0")
        assert idle.recv(1) == drip.recv(1) == b""
        assert 0.2 < time.monotonic() - begun < _DEADLINE


def test_connections_are_bounded(inner: Asker) -> None:
    wire = framed(dns.message.make_query("web", "A").to_wire())
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(inner.connection()) for _ in range(streams.MOST_CONNECTIONS)]
        for sock in kept:
            sock.sendall(wire)
            assert unframed(sock)
        with inner.connection() as over:
            begun = time.monotonic()
            assert over.recv(1) == b""
            assert time.monotonic() - begun < loop.IDLE / 2
        kept.pop().close()
        again = stack.enter_context(inner.connection())
        with contextlib.suppress(ConnectionError):
            again.sendall(wire)
            assert unframed(again)
        assert rdata_texts(inner.udp("web")) == ["10.0.0.2"]


# ---- asking the world -----------------------------------------------------------------------------------


def test_queries_are_forwarded_as_they_are_but_for_the_id(bench: Bench) -> None:
    (server,) = bench.nameservers(records(("a", "TXT", '"x"')))
    asker = bench.asker()
    option = dns.edns.GenericOption("65001", b"kept")
    wire = dns.message.make_query("a", "TXT", use_edns=0, payload=777, options=[option], id=99).to_wire()
    for stream in (False, True):
        if stream:
            with asker.connection() as sock:
                sock.sendall(framed(wire))
                answer = unframed(sock)
        else:
            answer = asker.raw(wire)
        assert answer[:2] == wire[:2]
        assert rdata_texts(dns.message.from_wire(answer)) == ['"x"']
        asked = server.next()
        assert asked.stream is stream
        assert asked.wire[2:] == wire[2:]


def test_ids_and_ports_are_new_for_each_query(bench: Bench) -> None:
    (server,) = bench.nameservers(ADDRESS)
    asker = bench.asker()
    for _ in range(50):
        asker.udp("example.com", id=5)
    asked = [server.next() for _ in range(50)]
    assert len({one.wire[:2] for one in asked}) > 40
    assert len({one.sender[1] for one in asked}) > 25


def _with_id(wire: bytes, change: int) -> bytes:
    return bytes([wire[0] ^ change]) + wire[1:]


def _spoofs(server: Nameserver, asked: Asked) -> list[bytes]:
    """Return forged answers (wrong id, question or port), followed by the true one."""
    (lie,) = records(("example.com", "A", "203.0.113.66"))(server, asked)
    query = dns.message.make_query("example.org", "A", id=asked.message.id)
    other = records(("example.com", "A", "203.0.113.66"))(server, Asked(query.to_wire(), False, None))
    kind = dns.message.make_query("example.com", "AAAA", id=asked.message.id)
    others = records(("example.com", "A", "203.0.113.66"))(server, Asked(kind.to_wire(), False, None))
    echo = asked.wire
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        if not asked.stream:
            sock.sendto(lie, asked.sender)
    return [_with_id(lie, 1), *other, *others, echo, lie[:11], *ADDRESS(server, asked)]


def test_answers_to_other_questions_are_discarded(bench: Bench) -> None:
    bench.nameservers(_spoofs)
    asker = bench.asker()
    for _ in range(20):
        assert rdata_texts(asker.udp("example.com")) == ["198.51.100.7"]


@pytest.mark.usefixtures("quick")
def test_a_stream_with_a_wrong_answer_is_left(bench: Bench) -> None:
    bench.nameservers(lambda server, asked: [_with_id(ADDRESS(server, asked)[0], 1)], ADDRESS)
    assert rdata_texts(bench.asker().tcp("example.com")) == ["198.51.100.7"]


def test_answers_spelled_otherwise_are_answers(bench: Bench) -> None:
    def lower(server: Nameserver, asked: Asked) -> list[bytes]:
        return [ADDRESS(server, asked)[0].replace(b"ExAmPlE", b"example")]

    bench.nameservers(lower)
    assert dns.message.from_wire(
        bench.asker().raw(dns.message.make_query("ExAmPlE.com", "A").to_wire())
    ).answer


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_the_next_server_is_asked_where_one_says_nothing(bench: Bench, transport: str) -> None:
    first, second = bench.nameservers(silent, ADDRESS)
    asker = bench.asker()
    assert rdata_texts(getattr(asker, transport)("example.com")) == ["198.51.100.7"]
    assert first.next()
    assert second.next()


@pytest.mark.usefixtures("quick")
def test_a_late_answer_is_one(bench: Bench) -> None:
    late: list[Asked] = []

    def slow(server: Nameserver, asked: Asked) -> list[bytes]:
        late.append(asked)
        return []

    def other(server: Nameserver, asked: Asked) -> list[bytes]:
        first.udp.sendto(ADDRESS(first, late[0])[0], late[0].sender)
        return []

    first, _ = bench.nameservers(slow, other)
    assert rdata_texts(bench.asker().udp("example.com")) == ["198.51.100.7"]


@pytest.mark.usefixtures("quick")
def test_single_server_is_retried(bench: Bench) -> None:
    seen: list[Asked] = []

    def second_time(server: Nameserver, asked: Asked) -> list[bytes]:
        seen.append(asked)
        return ADDRESS(server, asked) if len(seen) == 2 else []

    bench.nameservers(second_time)
    assert rdata_texts(bench.asker().udp("example.com")) == ["198.51.100.7"]
    assert seen[0] == seen[1]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("servers", [0, 1, 2, 3])
def test_silence_is_servfail(bench: Bench, transport: str, servers: int) -> None:
    bench.nameservers(*[silent] * servers)
    asker = bench.asker()
    begun = time.monotonic()
    response = getattr(asker, transport)("example.com")
    assert response.rcode() == dns.rcode.SERVFAIL
    if servers:
        assert time.monotonic() - begun > 0.5


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_servers_that_are_not_there_are_passed_over_at_once(bench: Bench, transport: str) -> None:
    dead, alive = bench.nameservers(ADDRESS, ADDRESS)
    gone_udp, gone_tcp = bound("127.0.0.1")
    bench.routes.servers[SERVERS[0]] = gone_udp.getsockname()
    gone_udp.close()
    gone_tcp.close()
    begun = time.monotonic()
    assert rdata_texts(getattr(bench.asker(), transport)("example.com")) == ["198.51.100.7"]
    assert time.monotonic() - begun < upstream.PATIENCE
    assert dead.asked.empty()
    assert alive.next()


def _unable(server: Nameserver, asked: Asked) -> list[bytes]:
    response = dns.message.make_response(asked.message)
    response.set_rcode(dns.rcode.SERVFAIL)
    return [response.to_wire()]


def _headers(server: Nameserver, asked: Asked) -> list[bytes]:
    return [asked.wire[:2] + b"\x80\x01" + bytes(8)]


@pytest.mark.parametrize("unable", [_unable, _headers])
def test_another_server_is_asked_where_one_is_not_able(bench: Bench, unable: Respond) -> None:
    bench.nameservers(unable, ADDRESS)
    assert rdata_texts(bench.asker().udp("example.com")) == ["198.51.100.7"]


def test_where_none_is_able_the_client_hears_that(bench: Bench) -> None:
    first, second = bench.nameservers(_unable, _unable)
    assert bench.asker().udp("example.com").rcode() == dns.rcode.SERVFAIL
    assert first.next()
    assert second.next()


def test_a_truncated_answer_is_handed_on_and_asked_by_tcp(bench: Bench) -> None:
    def truncated(server: Nameserver, asked: Asked) -> list[bytes]:
        response = dns.message.make_response(asked.message)
        response.flags |= dns.flags.TC
        return ADDRESS(server, asked) if asked.stream else [response.to_wire()]

    bench.nameservers(truncated)
    asker = bench.asker()
    assert asker.udp("example.com").flags & dns.flags.TC
    assert rdata_texts(asker.tcp("example.com")) == ["198.51.100.7"]


def test_an_answer_longer_than_the_client_takes_is_truncated(bench: Bench) -> None:
    bench.nameservers(records(*[("example.com", "A", f"198.51.100.{at}") for at in range(60)]))
    asker = bench.asker()
    assert asker.udp("example.com").flags & dns.flags.TC
    assert len(rdata_texts(asker.udp("example.com", payload=4096))) == 60


def test_a_changed_resolv_conf_is_read_again(bench: Bench) -> None:
    first, second = bench.nameservers(ADDRESS, ADDRESS)
    asker = bench.asker()
    bench.write(SERVERS[0])
    assert rdata_texts(asker.udp("example.com"))
    bench.write("rubbish", SERVERS[1])
    assert rdata_texts(asker.udp("example.com"))
    assert (first.asked.qsize(), second.asked.qsize()) == (1, 1)
    bench.path.unlink()
    assert asker.udp("example.com").rcode() == dns.rcode.SERVFAIL


def test_resolv_conf_is_read_as_others_read_it(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(
        "# nameserver 9.9.9.9\nnameserver\nnameserver ::1 x\n nameserver 127.0.0.53\nnameserver no\n"
    )
    found = upstream.Servers(str(path)).now()
    assert [one.address[:2] for one in found] == [("::1", 53), ("127.0.0.53", 53)]
    path.write_text("".join(f"nameserver 10.0.0.{at}\n" for at in range(5)))
    assert len(upstream.Servers(str(path)).now()) == 3


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_client_has_nameservers_of_its_own(bench: Bench, transport: str) -> None:
    first, second = bench.nameservers(ADDRESS, ADDRESS)
    bench.write(SERVERS[0])
    own = Client(Entry(("own",), ("10.0.0.4",)), servers=(SERVERS[1],))
    for client, asked in ((own, second), (None, first)):
        assert rdata_texts(getattr(bench.asker(client), transport)("example.com"))
        assert asked.asked.qsize() == 1


def test_internal_network_forwards_no_queries(bench: Bench, zone: Zone) -> None:
    (server,) = bench.nameservers(ADDRESS)
    client = Client(Entry(("own",), ("10.0.0.4",)), upstream=False)
    asker = bench.asker(client)
    assert asker.udp("example.com").rcode() == dns.rcode.REFUSED
    assert asker.tcp("single").rcode() == dns.rcode.REFUSED
    assert server.asked.empty()
    client.upstream = True
    assert rdata_texts(asker.udp("single"))  # names without a dot are asked like others
    assert bench.routes.opened == server.asked.qsize() == 1


def test_queries_on_their_way_are_bounded(bench: Bench) -> None:
    assert loop.MOST_FORWARDS == 256
    (server,) = bench.nameservers(silent)
    asker = bench.asker()
    with asker.datagrams() as sock:
        for at in range(257):
            sock.send(dns.message.make_query("example.com", "A", id=at).to_wire())
            server.next()  # no buffer is to overflow
        begun = time.monotonic()
        answer = dns.message.from_wire(sock.recv(512))
        assert (answer.id, answer.rcode()) == (0, dns.rcode.SERVFAIL)
        assert time.monotonic() - begun < 1


def test_client_with_most_pending_queries_loses_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_SHARE", resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
    (server,) = bench.nameservers(silent)
    greedy, modest = bench.asker(), bench.asker()
    with greedy.datagrams() as much, modest.datagrams() as little:
        for at, sock in enumerate((little, much, much, much, little)):
            sock.send(dns.message.make_query("example.com", "A", id=at).to_wire())
            server.next()
        begun = time.monotonic()
        answer = dns.message.from_wire(much.recv(512))
        assert (answer.id, answer.rcode()) == (1, dns.rcode.SERVFAIL)
        assert time.monotonic() - begun < 1


def test_failure_to_open_a_socket_is_servfail(bench: Bench) -> None:
    bench.nameservers(ADDRESS)
    bench.routes.servers.clear()  # connect raises KeyError
    assert bench.asker().udp("example.com").rcode() == dns.rcode.SERVFAIL
    assert "KeyError" in bench.service.errors[0]


# ---- policies -------------------------------------------------------------------------------------------


@define
class Rules:
    """A policy that allows names with this suffix, and these of their addresses."""

    ending: str = "example.com"
    addresses: tuple[str, ...] = ("198.51.100.7",)
    seen: list[tuple[str, list[str], int]] = field(factory=list)
    denied: list[str] = field(factory=list)
    raises: bool = False

    def allows(self, name: str) -> bool:
        return name.endswith(self.ending)

    def learned(self, name: str, addresses: list[str], ttl: int) -> list[str]:
        self.seen.append((name, addresses, ttl))
        if self.raises:
            raise LookupError("learned")
        return [one for one in addresses if one in self.addresses]

    def refused(self, name: str) -> None:
        self.denied.append(name)


Ruled = Callable[..., tuple[Asker, Rules, Nameserver]]


@pytest.fixture
def ruled(bench: Bench, zone: Zone) -> Ruled:
    def make(respond: Respond, **rules: Any) -> tuple[Asker, Rules, Nameserver]:
        (server,) = bench.nameservers(respond)
        policy = Rules(**rules)
        client = Client(Entry(("own",), ("10.0.0.4",)), policy=policy)
        client.join(zone)
        return bench.asker(client), policy, server

    return make


def test_forbidden_name_is_refused_and_recorded(ruled: Ruled) -> None:
    asker, policy, server = ruled(ADDRESS)
    assert asker.udp("Evil.example.org").rcode() == dns.rcode.REFUSED
    assert asker.tcp("evil.example.org", "TXT").rcode() == dns.rcode.REFUSED
    assert asker.udp("com.", "NS").rcode() == dns.rcode.REFUSED
    assert policy.denied == ["evil.example.org", "evil.example.org", "com"]
    assert server.asked.empty()
    assert rdata_texts(asker.udp("web")) == ["10.0.0.2"]
    assert not policy.seen


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_addresses_are_returned_after_the_policy_has_learned_them(ruled: Ruled, transport: str) -> None:
    answer = [("Example.com", "A", f"198.51.100.{at}") for at in (6, 7, 8)]
    asker, policy, _ = ruled(records(*answer, ttl=33))
    assert rdata_texts(getattr(asker, transport)("EXAMPLE.com")) == ["198.51.100.7"]
    assert policy.seen == [("example.com", ["198.51.100.6", "198.51.100.7", "198.51.100.8"], 33)]


def test_other_families_are_returned_only_if_learned(ruled: Ruled) -> None:
    asker, policy, _ = ruled(records(("example.com", "AAAA", "2001:db8::1")))
    assert rdata_texts(asker.udp("example.com", "AAAA")) == []
    policy.addresses = ("2001:db8::1",)
    assert rdata_texts(asker.udp("example.com", "AAAA")) == ["2001:db8::1"]


def test_addresses_behind_an_alias_are_learned_and_strays_are_not(ruled: Ruled) -> None:
    asker, policy, _ = ruled(
        records(
            ("example.com", "CNAME", "a.example.net."),
            ("a.example.net", "CNAME", "b.example.net."),
            ("b.example.net", "A", "198.51.100.7"),
            ("stray.example.net", "A", "198.51.100.8"),
            ("example.com", "HTTPS", "1 . ipv4hint=198.51.100.9"),
        ),
        addresses=("198.51.100.7", "198.51.100.8", "198.51.100.9"),
    )
    assert rdata_texts(asker.udp("example.com")) == ["a.example.net.", "b.example.net.", "198.51.100.7"]
    assert policy.seen == [("example.com", ["198.51.100.7"], 60)]


def test_no_address_comes_beside_the_answer(ruled: Ruled) -> None:
    def glue(_: Nameserver, asked: Asked) -> list[bytes]:
        response = dns.message.make_response(asked.message)
        response.answer = [dns.rrset.from_text("example.com.", 60, "IN", "MX", "1 mx.example.com.")]
        response.additional = [dns.rrset.from_text("mx.example.com.", 60, "IN", "A", "198.51.100.9")]
        return [response.to_wire()]

    asker, _, _ = ruled(glue)
    response = asker.udp("example.com", "MX")
    assert rdata_texts(response) == ["1 mx.example.com."]
    assert not response.additional


def test_a_truncated_answer_is_filtered_too(ruled: Ruled) -> None:
    def cut(server: Nameserver, asked: Asked) -> list[bytes]:
        (wire,) = records(*[("example.com", "A", f"198.51.100.{at}") for at in (7, 8)])(server, asked)
        return [wire[:2] + bytes([wire[2] | 2]) + wire[3:-3]]

    asker, _, _ = ruled(cut)
    response = asker.udp("example.com")
    assert response.flags & dns.flags.TC
    assert not response.answer


def test_a_policy_that_raises_is_servfail(ruled: Ruled, bench: Bench) -> None:
    asker, policy, _ = ruled(ADDRESS, raises=True)
    assert asker.udp("example.com").rcode() == dns.rcode.SERVFAIL
    assert list(bench.service.errors) == ["LookupError: learned"]
    policy.raises = False
    assert rdata_texts(asker.udp("example.com")) == ["198.51.100.7"]


# ---- life -----------------------------------------------------------------------------------------------


def test_a_dropped_client_has_its_sockets_closed_and_others_go_on(bench: Bench) -> None:
    bench.nameservers(silent)
    first, second = bench.asker(), bench.asker()
    assert rdata_texts(first.udp("own")) == ["10.1.0.9"]
    with first.connection() as sock, first.datagrams() as waiting:
        sock.sendall(framed(dns.message.make_query("example.com", "A").to_wire()))
        waiting.send(dns.message.make_query("example.com", "A").to_wire())
        bench.service.drop(first.client)
        with contextlib.suppress(ConnectionError):
            assert sock.recv(1) == b""
    for fd in first.fds:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
    bench.service.drop(first.client)
    assert rdata_texts(second.udp("own")) == ["10.1.0.9"]


def test_a_client_is_dropped_when_the_thread_is_done_with_it(bench: Bench) -> None:
    asking, released = threading.Event(), threading.Event()

    class Slow(Rules):
        def allows(self, name: str) -> bool:
            asking.set()
            return not released.wait(_DEADLINE)

    asker = bench.asker(Client(Entry((), ()), policy=Slow()))
    dropping = threading.Thread(target=bench.service.drop, args=(asker.client,))
    with asker.datagrams() as sock:
        sock.send(dns.message.make_query("a", "A").to_wire())
        assert asking.wait(_DEADLINE)
        dropping.start()
        dropping.join(0.2)
        assert dropping.is_alive()
        assert all(_is_open(fd) for fd in asker.fds)
        released.set()
        dropping.join(_DEADLINE)
        assert not any(_is_open(fd) for fd in asker.fds)


def test_a_client_may_come_again(bench: Bench) -> None:
    asker = bench.asker()
    with pytest.raises(ValueError, match="already"):
        bench.service.serve(asker.client, *asker.fds)
    bench.service.drop(asker.client)
    assert rdata_texts(bench.asker(asker.client).udp("own")) == ["10.1.0.9"]


def test_a_policy_may_drop_its_client(bench: Bench) -> None:
    dropped = threading.Event()

    class Deadly(Rules):
        def refused(self, name: str) -> None:
            bench.service.drop(asker.client)
            dropped.set()

    asker = bench.asker(Client(Entry(("own",), ()), policy=Deadly()))
    other = bench.asker()
    with asker.datagrams() as sock, contextlib.suppress(ConnectionError):
        sock.send(dns.message.make_query("a", "A").to_wire())
        sock.send(dns.message.make_query("a", "A").to_wire())
    assert dropped.wait(_DEADLINE)
    assert rdata_texts(other.udp("own")) == ["10.1.0.9"]
    assert not bench.service.errors


def test_non_sockets_stay_with_the_caller(bench: Bench) -> None:
    udp, tcp = bound("127.0.0.1")
    with udp, tcp, open(os.devnull) as file:
        client = Client(Entry((), ()))
        with pytest.raises(OSError, match="non-socket"):
            bench.service.serve(client, udp.fileno(), file.fileno())
        bench.service.serve(client, os.dup(udp.fileno()), os.dup(tcp.fileno()))


def test_closed_service_refuses_clients(bench: Bench) -> None:
    before = set(os.listdir("/proc/self/fd"))
    asker = bench.asker()
    assert rdata_texts(asker.tcp("own"))
    bench.service.close()
    bench.service.close()
    bench.service.drop(asker.client)
    with pytest.raises(RuntimeError, match="closed"):
        bench.service.serve(asker.client, -1, -1)
    assert {fd for fd in set(os.listdir("/proc/self/fd")) - before if _is_open(int(fd))} == set()


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    beginning = """
import atexit, os, socket, sys, threading
from pycontain._networks.dns.service import NameService
from pycontain._networks.dns.zone import Client, Entry
def serve(service):
    tcp = socket.create_server(("127.0.0.1", 0)); udp = socket.socket(type=socket.SOCK_DGRAM)
    udp.bind(tcp.getsockname()); address = tcp.getsockname(); client = Client(Entry(("own",), ("10.0.0.1",)))
    service.serve(client, udp.detach(), tcp.detach())
    return client, address
def ask(address):
    import dns.query, dns.message
    query = dns.message.make_query("own", "A")
    return dns.query.tcp(query, address[0], port=address[1], timeout=20).answer[0][0]
"""
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", beginning + code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def test_an_interpreter_ends_with_its_service_open_or_closed_at_exit() -> None:
    done = _run(
        "s = NameService(); atexit.register(lambda: (s.close(), print(threading.active_count())));"
        " print(ask(serve(s)[1]))"
    )
    assert (done.stdout, done.stderr) == ("10.0.0.1\n1\n", "")
    done = _run("s = NameService(); print(ask(serve(s)[1]))")
    assert (done.stdout, done.stderr) == ("10.0.0.1\n", "")


def test_the_wire_is_loaded_by_the_thread_that_needs_it() -> None:
    done = _run(
        "s = NameService(); print('dns' in sys.modules); _, address = serve(s);"
        " client = socket.create_connection(address); client.sendall(bytes([0, 12]) + bytes(12));"
        " client.recv(1); print('dns' in sys.modules); s.close()"
    )
    assert done.stdout == "False\nTrue\n"


def test_a_forked_child_forgets_and_its_parent_goes_on() -> None:
    done = _run(
        """
before = set(os.listdir("/proc/self/fd"))
s = NameService(); client, address = serve(s); ask(address)
held = socket.create_connection(address)
held.sendall(bytes([0, 12]) + bytes(12)); held.recv(14)  # it is accepted
s._lock.acquire()
pid = os.fork()
if not pid:
    s.forget(); held.close(); s.forget(); s.close(); s.drop(client)
    print(sorted(set(os.listdir("/proc/self/fd")) - before) or "nothing left", flush=True)
    t = NameService(); print(ask(serve(t)[1]), flush=True); t.close()
    os._exit(0)
s._lock.release()
os.waitpid(pid, 0)
print(ask(address)); s.drop(client); s.close()
"""
    )
    assert done.stdout == "nothing left\n10.0.0.1\n10.0.0.1\n"


@pytest.mark.parametrize("forwarded", [False, True])
def test_many_queries_are_answered(bench: Bench, forwarded: bool) -> None:
    bench.nameservers(ADDRESS)
    asker = bench.asker()
    count, window = (1000, 20) if forwarded else (10000, 50)
    wire = dns.message.make_query("example.com" if forwarded else "own", "A", use_edns=0).to_wire()
    with asker.datagrams() as sock:
        begun = time.monotonic()
        for _ in range(window):
            sock.send(wire)
        for _ in range(count - window):
            assert sock.recv(512)[:2] == wire[:2]
            sock.send(wire)
        for _ in range(window):
            sock.recv(512)
    took = time.monotonic() - begun
    print(f"\n{count / took:.0f} queries a second, {'forwarded' if forwarded else 'own'}")
