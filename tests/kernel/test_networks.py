"""Networks: reachability, names and addresses between containers."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from ipaddress import ip_address
from pathlib import Path

import pytest

from pycontain import (
    Conflict,
    Container,
    Endpoint,
    Engine,
    Network,
    NotFound,
    Security,
    StateError,
    UnsupportedError,
)
from pycontain._kernel.netlink import ROUTE, Message, Netlink, NetlinkError
from pycontain._networks.dns.zone import Client
from pycontain._networks.wire import links, nft
from tests.kernel.networks import _network_manager, _nothing_is_left, net, root_only
from tests.support.inside import PORT, comes_to_reach, echo, is_cut_off, query, reach, reaches, resolve

__all__ = ["_network_manager", "_nothing_is_left", "net"]


def test_two_on_a_network_reach_each_other_by_every_name(net: Network) -> None:
    with (
        Container(
            network=Endpoint(net, aliases=["db", "Main.DB"]), name="pyc-one", hostname="pyc-called"
        ) as one,
        Container(network=net, name="pyc-two") as two,
        echo(one),
    ):
        assert one.address is not None
        assert one.addresses == {"pyc-net": one.address}
        names = (
            "pyc-one",
            "PYC-One",
            "db",
            "main.db",
            "pyc-called",
            one.id[:12],
            "pyc-one.pyc-net",
            "db.pyc-net",
        )
        for name in names:
            assert resolve(two, name) == {one.address}, name
        assert resolve(two, "db", tcp=True) == {one.address}
        assert resolve(two, "db", "AAAA") == set()
        assert query(two, "db").answer[0].ttl <= 1
        assert reach(two, one.address) == two.address
        assert reach(two, one.address, udp=True) == two.address
        backwards = ".".join(reversed(one.address.split("."))) + ".in-addr.arpa"
        assert resolve(two, backwards, "PTR") == {"pyc-one.pyc-net."}
        assert net.containers == {"pyc-one": one.address, "pyc-two": two.address}


def test_the_first_packet_after_connect_passes(engine: Engine) -> None:
    """A lost first packet costs a second (retransmission).  The bridge port state in sysfs may lag behind."""
    root_only(engine)
    with Network("pyc-often", internal=True) as often, Container() as one:
        for _ in range(100):
            often.connect(one)
            containers = often.inspect()["containers"]
            assert isinstance(containers, dict)
            port = containers[one.id]["link"]
            seen = [
                Path(f"/sys/class/net/{port}/{what}").read_text() for what in ("operstate", "brport/state")
            ]
            assert seen == ["up\n", "3\n"]
            often.disconnect(one)


def test_a_program_inside_finds_another_by_name(net: Network) -> None:
    with Container(network=net, name="pyc-srv") as server, Container(network=net) as client, echo(server):
        where = f"('pyc-srv', {PORT})"
        code = f"import socket; s = socket.create_connection({where}); s.send(b'x'); print(s.recv(99))"
        assert client.exec(["python3", "-c", code], check=True).stdout == f"b'{client.address} x'\n"
        own = client.exec(["getent", "hosts", client.spec.hostname], check=True).stdout.split()
        assert own[0] == client.address


def test_networks_are_apart(net: Network) -> None:
    with (
        Network("pyc-other", internal=True) as other,
        Container(network=net, name="pyc-one") as one,
        Container(network=other, name="pyc-two") as two,
        echo(one),
    ):
        assert one.address is not None
        assert is_cut_off(two, one.address)
        assert resolve(two, "pyc-one") == "REFUSED"


def test_connect_and_disconnect_a_running_container(net: Network) -> None:
    with (
        Network("pyc-other", internal=True) as other,
        Container(network=net, name="pyc-one") as one,
        Container(network=other, name="pyc-two") as two,
        echo(one),
    ):
        address = other.connect(one, aliases=["more"], address=None)
        assert one.addresses == {"pyc-net": one.address, "pyc-other": address}
        assert resolve(two, "pyc-one") == resolve(two, "more") == {address}
        assert resolve(one, "pyc-two") == {two.address}
        assert reaches(two, address)
        with pytest.raises(Conflict):
            other.connect(one)
        other.disconnect(one)
        assert resolve(two, "pyc-one") == resolve(one, "pyc-two") == "REFUSED"
        assert is_cut_off(two, address)
        with pytest.raises(NotFound):
            other.disconnect(one)
        again = other.connect(one)
        assert again != address  # none is given again soon
        assert reaches(two, again)


def test_a_container_on_several_networks(net: Network) -> None:
    with (
        Network("pyc-other", internal=True) as other,
        Container(network=[net, Endpoint(other, aliases=["gate"])], name="pyc-both") as both,
        Container(network=net) as one,
        Container(network=other) as two,
        echo(both),
    ):
        here, there = both.addresses["pyc-net"], both.addresses["pyc-other"]
        assert reaches(one, here)
        assert reaches(two, there)
        assert is_cut_off(one, there)
        assert resolve(one, "pyc-both") == {here}
        assert resolve(two, "gate") == {there}
        assert resolve(both, "pyc-both") == {here, there}


def test_one_alias_of_several(net: Network) -> None:
    with (
        Container(network=Endpoint(net, aliases=["web"])) as one,
        Container(network=Endpoint(net, aliases=["web"])) as two,
    ):
        assert resolve(one, "web") == {one.address, two.address}


def test_fixed_addresses_and_subnets(engine: Engine) -> None:
    with Network("pyc-fixed", subnet="172.31.251.0/28", internal=True) as net:
        assert (net.subnet, net.gateway) == ("172.31.251.0/28", "172.31.251.1")
        with Container(network=Endpoint(net, address="172.31.251.9")) as one:
            assert one.address == "172.31.251.9"
            other = Container(network=Endpoint(net, address="172.31.251.9"))
            with pytest.raises(Conflict):
                other.start()
            other.remove()
        for wrong in ("172.31.251.1", "172.31.251.0", "172.31.251.15", "10.0.0.1", "fd00::1", "x"):
            with pytest.raises(ValueError, match="address"):
                Container(network=Endpoint(net, address=wrong))
        with pytest.raises(Conflict):
            Network("pyc-overlap", subnet="172.31.251.8/29", internal=True)
        with pytest.raises(Conflict):
            Network("pyc-fixed", internal=True)
        containers = [Container(network=net).start() for _ in range(13)]
        assert len({one.address for one in containers}) == 13
        full = Container(network=net)
        with pytest.raises(Exception, match="all addresses"):
            full.start()
        for one in [*containers, full]:
            one.remove()


def test_a_network_in_use_stays(net: Network) -> None:
    with Container(network=net, name="pyc-user"):
        with pytest.raises(Conflict, match="pyc-user"):
            net.remove()
        assert Network.prune() == []
        assert Network.get("pyc-net") == net
    Network("pyc-unused", internal=True)
    assert Network.prune() == ["pyc-net", "pyc-unused"]
    with pytest.raises(NotFound):
        Network.get("pyc-net")
    with pytest.raises(NotFound):
        net.remove()
    with pytest.raises(StateError):
        Container(network=net)


def test_ipv6_only_on_request(net: Network) -> None:
    addresses = "import pathlib; print(pathlib.Path('/proc/net/if_inet6').read_text())"
    with Container(network=net) as one:
        lines = one.exec(["python3", "-c", addresses], check=True).stdout.split("\n")
        assert {line.split()[-1] for line in lines if line} == {"lo"}
    with (
        Network("pyc-six", ipv6="fd12:3456::/64", internal=True) as six,
        Container(network=six, name="pyc-one") as one,
        Container(network=six) as two,
        echo(one, socket.AF_INET6),
    ):
        assert six.subnet6 == "fd12:3456::/64"
        assert resolve(two, "pyc-one", "AAAA") == {"fd12:3456::2"}
        assert reach(two, "fd12:3456::2") == "fd12:3456::3"
        assert resolve(two, f"{'2.' + '0.' * 23}6.5.4.3.2.1.d.f.ip6.arpa", "PTR") == {"pyc-one.pyc-six."}


def test_sharing_another_containers_network(net: Network) -> None:
    with Container(network=net, name="pyc-first") as first, Container(network=net) as third, echo(first):
        for shared in (first, "container:pyc-first", f"container:{first.id[:12]}"):
            with Container(network=shared) as second:
                code = f"import socket; print(socket.create_connection(('127.0.0.1', {PORT})).send(b'x'))"
                assert second.exec(["python3", "-c", code], check=True).stdout == "1\n"
                assert "net" not in second.isolation.namespaces
                assert (
                    second.exec(["getent", "hosts", "pyc-first"], check=True).stdout.split()[0]
                    == first.address
                )
                with pytest.raises(StateError):
                    net.connect(second)
        assert third.address is not None
    with pytest.raises(NotFound):
        Container(network="container:pyc-absent")


def test_the_hosts_network() -> None:
    with Container(network="host") as one:
        assert "net" not in one.isolation.namespaces
        assert one.isolation.network == "host"
        inside = one.exec(["readlink", "/proc/self/ns/net"], check=True).stdout.strip()
        assert inside == os.readlink("/proc/self/ns/net")


def test_network_none_has_only_loopback(container: Container) -> None:
    code = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())"
    )
    container.exec(["python3", "-c", code], check=True)
    devices = container.exec(["cat", "/proc/net/dev"], check=True).stdout
    assert [line.split(":")[0].strip() for line in devices.split("\n")[2:] if ":" in line] == ["lo"]


def test_connect_of_a_container_without_network(engine: Engine, net: Network) -> None:
    root_only(engine)
    with Container(name="pyc-late") as late, Container(network=net) as other, echo(late):
        address = net.connect(late)
        assert resolve(other, "pyc-late") == {address}
        assert reaches(other, address)
        assert late.exec(["getent", "hosts", "pyc-late"], check=True).stdout.split()[0] == address


def test_low_ports_and_ping_need_no_capability(net: Network) -> None:
    code = (
        "import socket; socket.create_server(('', 80)).close()\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1); s.settimeout(5)\n"
        "s.connect((socket.gethostbyname(socket.gethostname()), 0))\n"
        "s.send(bytes([8, 0, 0, 0, 0, 0, 0, 1])); print(s.recv(99)[0])"
    )
    with Container(network=net) as one:
        assert one.exec(["python3", "-c", code], check=True).stdout == "0\n"


def test_restart_and_fork_keep_the_network(net: Network) -> None:
    fixed = str(ip_address(net.gateway) + 100)
    with (
        Container(network=Endpoint(net, address=fixed), name="pyc-again") as one,
        Container(network=net) as other,
    ):
        one.restart()
        assert one.address == fixed
        assert resolve(other, "pyc-again") == {one.address}
        copies = one.fork(2)
        addresses = {copy.address for copy in copies}
        assert len(addresses | {one.address, other.address}) == 4
        for copy in copies:
            assert resolve(other, copy.name) == {copy.address}
            copy.remove()
            assert resolve(other, copy.name) == "REFUSED"


def test_partition_and_heal(net: Network) -> None:
    with (
        Container(network=net) as one,
        Container(network=net) as two,
        Container(network=net) as three,
        echo(one),
    ):
        assert one.address is not None
        try:
            parted = net.partition(one, [two])
        except UnsupportedError as refused:
            pytest.skip(f"{refused.hint}")
        with parted:
            assert is_cut_off(two, one.address)
            assert reaches(three, one.address)
            again = net.partition(two, [one, three])
        assert is_cut_off(two, one.address)
        again.heal()
        assert comes_to_reach(two, one.address)
        with pytest.raises(ValueError, match="in common"):
            net.partition(one, [one, two])


def test_shape(net: Network) -> None:
    with Container(network=net) as one, Container(network=net) as two, echo(one):
        assert one.address is not None
        try:
            net.shape(one, loss=1.0)
        except UnsupportedError as refused:
            pytest.skip(f"{refused.hint}")
        assert is_cut_off(two, one.address)
        net.shape(one, delay="20ms", jitter="1ms", rate="10mbit")
        assert reach(two, one.address) == two.address
        net.shape()
        assert comes_to_reach(two, one.address)


@pytest.mark.parametrize(
    "options",
    [{"loss": 2}, {"delay": -1}, {"delay": "fast"}, {"rate": "much"}, {"jitter": 1}, {"loss": True}],
)
def test_invalid_shapes(net: Network, options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"loss|delay|time|rate|duration"):
        net.shape(**options)  # type: ignore[arg-type]


def test_guarded_container_sends_only_from_its_own_address(net: Network) -> None:
    """A profile with NET_RAW is guarded on the bridge (case N04 tests forged addresses)."""
    try:
        one = Container(network=net, security=Security.DOCKER).start()
    except UnsupportedError as refused:
        pytest.skip(f"{refused.hint}")
    with one, Container(network=net) as two, echo(two):
        assert one.address is not None
        assert two.address is not None
        assert reaches(one, two.address)
        assert is_cut_off(two, one.address)  # the port is closed, but the refusal comes from the container
        assert reach(one, two.address) == one.address


def test_connect_of_a_dead_container_is_refused(net: Network) -> None:
    """A container whose PID 1 died is refused, and leaves nothing on the network."""
    with Container(network=net) as one, Network("pyc-other", internal=True) as other:
        os.kill(one.pid, 9)
        while one.status == "running":
            pass
        with pytest.raises(StateError):
            other.connect(one)
        assert other.containers == {}


def test_an_end_that_was_interrupted_leaves_no_member(
    engine: Engine, net: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Container(network=net).start()
    drop = engine._session.network_manager.names.drop
    interrupts = iter([KeyboardInterrupt])

    def interrupted(client: Client) -> None:
        for one in interrupts:
            raise one
        drop(client)

    monkeypatch.setattr(engine._session.network_manager.names, "drop", interrupted)
    with pytest.raises(KeyboardInterrupt):
        one.remove()
    assert net.containers == {}


def test_batch_continues_after_a_refused_request(engine: Engine, net: Network) -> None:
    route, index = engine._session.network_manager.netns.route, net._bridge.index

    def refused(*messages: Message) -> int:
        with pytest.raises(NetlinkError, match="No such device") as caught:
            route.do(messages)
        return caught.value.at

    def alias() -> str:
        return links.look(route, net._bridge.link).alias

    absent = links.remove("pyc-absent")
    assert refused(links.note(index, "one"), absent, absent, links.note(index, "two")) == 1
    assert alias() == "two"
    assert refused(links.note(index, "three"), absent) == 1
    assert alias() == "three"
    route.do([])
    route.do([links.note(index, "four")])
    assert alias() == "four"


def test_many_at_once(net: Network) -> None:
    made: list[Container] = []
    failed: list[BaseException] = []

    def start() -> None:
        try:
            for _ in range(5):
                made.append(Container(network=net).start())
        except BaseException as error:  # noqa: BLE001  it is asserted below
            failed.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len({one.address for one in made}) == len(made) == 20
    for one in made:
        assert resolve(made[0], one.name) == {one.address}
    for one in reversed(made):
        one.remove()


def test_links_of_a_killed_process_are_collected(engine: Engine, tmp_path: object) -> None:
    root_only(engine)
    code = """
import os, sys
from pycontain import Container, Engine, Network
engine = Engine(sys.argv[1])
net = Network("pyc-lost", engine=engine)
one = Container(network=net, engine=engine, ports={80: None}).start()
print(net.inspect()["link"], net.subnet, one.port(80), flush=True)
os.kill(os.getpid(), 9)
"""
    with (
        Network("pyc-mine", internal=True) as mine,
        Container(network=mine) as one,
        Container(network=mine) as two,
    ):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
        link, subnet, port = done.stdout.split()
        route = Netlink(ROUTE)
        assert link in [seen.name for seen in links.seen_links(route.ask(links.every_link()))]
        with Engine(str(tmp_path)) as following:
            assert link not in [seen.name for seen in links.seen_links(route.ask(links.every_link()))]
            with (
                Network("pyc-lost", subnet=subnet, engine=following) as again,
                Container(network=again, engine=following, ports={80: int(port)}) as here,
            ):
                assert here.port(80) == int(port)
        route.close()
        with echo(one):
            assert one.address is not None
            assert reaches(two, one.address)


_STRANGERS = """
import subprocess
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
from pycontain import Engine
def reported(engine):
    return [line for line in engine.doctor() if line.startswith("forwarding for networks")]
with Engine() as engine:
    print(reported(engine))
    rules = "add table ip filter\\nadd chain ip filter DOCKER-USER\\n"
    rules += "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }"
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    print(reported(engine))
"""


def test_doctor_knows_rules_of_others_that_drop(engine: Engine, tmp_path: Path) -> None:
    root_only(engine)
    if shutil.which("nft") is None:
        pytest.skip("no nft")
    command = ["unshare", "-n", sys.executable, "-c", _STRANGERS]
    environment = {**os.environ, "PYCONTAIN_ROOT": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    before, after = done.stdout.splitlines()
    assert before == "[]"
    assert "ip filter FORWARD" in after
    assert "iptables -I DOCKER-USER" in after


def test_external_network_needs_masquerade(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root_only(engine)
    monkeypatch.setattr(nft, "masquerade", lambda: nft._expression("pyc-none"))
    with Engine(tmp_path) as bare:
        with pytest.raises(UnsupportedError, match="masquerade") as refused:
            Network("pyc-out", engine=bare)
        assert "internal=True" in str(refused.value.hint)
        assert Network.list(engine=bare) == []
        with Network("pyc-in", internal=True, engine=bare):
            pass


def test_forked_child_releases_its_copies(net: Network) -> None:
    with Container(network=net, name="pyc-kept") as one, Container(network=net) as two:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                from pycontain import Network as Again

                code = 0 if Again.list() == [] else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert resolve(two, "pyc-kept") == {one.address}
