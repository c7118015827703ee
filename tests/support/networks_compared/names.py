"""Cases of names."""

from __future__ import annotations

from pycontain._networks.container_networks import RESOLVER
from tests.support.networks_compared import probe
from tests.support.networks_compared.sides import Guest, On
from tests.support.networks_compared.stage import OUTSIDE_NAME, SUBNET6, Section, Stage

SECTION = Section("Names")
case = SECTION.case


@case("a container's name, on its network", "one")
def by_name(stage: Stage) -> str:
    return stage.resolve(stage.two, "one")


@case("its short id", "plain")
def by_short_id(stage: Stage) -> str:
    with stage.guest("plain", On("red"), hostname="otherwise") as plain:
        return stage.resolve(stage.two, plain.id[:12])


@case("its alias", "one")
def by_alias(stage: Stage) -> str:
    return stage.resolve(stage.two, "uno")


@case("its name followed by the network's name", "one")
def by_qualified_name(stage: Stage) -> str:
    return stage.resolve(stage.two, "one.red")


@case("its name in capitals", "one")
def in_capitals(stage: Stage) -> str:
    return stage.resolve(stage.two, "ONE")


@case("a name of another network", "not found")
def of_another_network(stage: Stage) -> str:
    return stage.resolve(stage.two, "three")


@case("an alias of another network", "not found")
def alias_of_another_network(stage: Stage) -> str:
    return stage.resolve(stage.two, "tres")


@case("a container's name, on the default network", "not found")
def on_the_default_network(stage: Stage) -> str:
    return stage.resolve(stage.four, "five")


@case("an alias that two containers have", "twin, two")
def shared_alias(stage: Stage) -> str:
    with stage.guest("twin", On("red", aliases=("both",))):
        return stage.resolve(stage.one, "both")


@case("its own name", "one")
def own_name(stage: Stage) -> str:
    return stage.resolve(stage.one, "one")


@case("its hostname", "plain")
def hostname(stage: Stage) -> str:
    with stage.guest("plain", On("red"), hostname="otherwise") as plain:
        return stage.resolve(plain, "otherwise")


@case("its hostname, looked up by another", "plain")
def hostname_of_another(stage: Stage) -> str:
    with stage.guest("plain", On("red"), hostname="otherwise"):
        return stage.resolve(stage.one, "otherwise")


@case("localhost", "loopback")
def localhost(stage: Stage) -> str:
    return stage.resolve(stage.one, "localhost")


@case("the name of an address on its network", "one.red")
def reverse(stage: Stage) -> str:
    return stage.run(stage.two, "getent", "hosts", stage.address(stage.one)).split()[-1]


@case("AAAA of a name that has only IPv4", "NOERROR, 0 records")
def no_aaaa(stage: Stage) -> str:
    return probe.query(stage.two.pid, RESOLVER, "one", "AAAA")


@case("MX of a container's name", "NOERROR, 0 records")
def no_mx(stage: Stage) -> str:
    return probe.query(stage.two.pid, RESOLVER, "one", "MX")


@case("nameserver of a user network", RESOLVER)
def nameserver(stage: Stage) -> str:
    return _nameservers(stage, stage.one)


@case(
    "nameserver of the default network",
    "127.0.0.11",
    docker="outside",
    why="the same on all networks: the name service forwards, and adopts changes of the host's nameservers",
)
def default_nameserver(stage: Stage) -> str:
    return _nameservers(stage, stage.four)


@case("a name of the host's nameserver, on a user network", "the outside's answer")
def forwarded(stage: Stage) -> str:
    return stage.resolve(stage.one, OUTSIDE_NAME)


@case("the same on the default network", "the outside's answer")
def forwarded_by_default(stage: Stage) -> str:
    return stage.resolve(stage.four, OUTSIDE_NAME)


@case(
    "the same on an internal network",
    "REFUSED, 0 records",
    docker="no answer",
    why="neither forwards queries there; a refusal avoids the wait",
)
def forwarded_inside(stage: Stage) -> str:
    return probe.query(stage.six.pid, RESOLVER, OUTSIDE_NAME)


@case("a container's name on an internal network", "seven")
def named_inside(stage: Stage) -> str:
    return stage.resolve(stage.six, "seven")


@case("a name that does not exist", "NXDOMAIN, 0 records")
def unknown(stage: Stage) -> str:
    return probe.query(stage.one.pid, RESOLVER, "absent.example")


@case("a container's name that the host's nameserver also has", "pyc.example")
def shadowed(stage: Stage) -> str:
    with stage.guest(OUTSIDE_NAME, On("red")):
        return stage.resolve(stage.one, OUTSIDE_NAME)


@case("a name after its container has ended", "not found")
def after_the_end(stage: Stage) -> str:
    with stage.guest("short", On("red")):
        assert stage.resolve(stage.one, "short") == "short"
    return stage.resolve(stage.one, "short")


@case("a name after connect: its own, and its alias", "four on red; four on red")
def after_connect(stage: Stage) -> str:
    with stage.connected("red", stage.four, aliases=("quattuor",)):
        return "; ".join(stage.resolve(stage.one, name) for name in ("four", "quattuor"))


@case(
    "names of the network, looked up by a container connected from the default one",
    "one; the outside's answer",
)
def names_for_the_connected(stage: Stage) -> str:
    with stage.connected("red", stage.four):
        return "; ".join(stage.resolve(stage.four, name) for name in ("one", OUTSIDE_NAME))


@case("a name after disconnect", "not found")
def after_disconnect(stage: Stage) -> str:
    with stage.connected("red", stage.three):
        assert stage.resolve(stage.one, "three") == "three on red"
    return stage.resolve(stage.one, "three")


@case("names of both, looked up by a container on two networks", "one; three")
def on_two_networks(stage: Stage) -> str:
    with stage.guest("between", "red", "blue") as between:
        return "; ".join(stage.resolve(between, name) for name in ("one", "three"))


@case("its name, looked up on each of its two networks", "between; between on blue")
def asked_on_two_networks(stage: Stage) -> str:
    with stage.guest("between", "red", "blue"):
        return "; ".join(stage.resolve(one, "between") for one in (stage.one, stage.three))


@case("addresses of a name on a network with IPv6", "both")
def with_ipv6(stage: Stage) -> str:
    with (
        stage.network("six", subnet6=SUBNET6),
        stage.guest("vier", "six") as vier,
        stage.guest("acht", "six") as acht,
    ):
        lines = stage.run(acht, "getent", "ahosts", "vier").splitlines()
        found = {line.split()[0] for line in lines}
        return "both" if found == {stage.address(vier), stage.side.address6(vier, "six")} else str(found)


def _nameservers(stage: Stage, guest: Guest) -> str:
    lines = stage.run(guest, "cat", "/etc/resolv.conf").splitlines()
    return ", ".join(stage.who(line.split()[1]) for line in lines if line.startswith("nameserver"))
