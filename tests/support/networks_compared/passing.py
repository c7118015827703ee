"""Cases of reachability: between containers, to outside, and to the host."""

from __future__ import annotations

import socket

from tests.support.networks_compared import probe
from tests.support.networks_compared.probe import PORT
from tests.support.networks_compared.sides import On
from tests.support.networks_compared.stage import HOST_PORT, METADATA, SUBNET6, Section, Stage, together

SECTION = Section("Traffic")
case = SECTION.case


@case("container to container on one network", "seen as one")
def on_one_network(stage: Stage) -> str:
    return stage.reach(stage.one, stage.two)


@case(
    "on two networks",
    "TCP refused, UDP unreachable",
    docker="no answer",
    why="refused at once, so that programs fail instead of waiting",
)
def on_two_networks(stage: Stage) -> str:
    return stage.reach(stage.one, stage.three)


@case("on the default network", "seen as four")
def on_the_default_network(stage: Stage) -> str:
    return stage.reach(stage.four, stage.five)


@case(
    "from the default network to another, and back",
    "refused",
    docker="no answer",
    why="refused at once, so that programs fail instead of waiting",
)
def from_the_default_network(stage: Stage) -> str:
    return together([stage.tcp(stage.four, stage.one), stage.tcp(stage.one, stage.four)])


@case("on an internal network", "seen as six")
def on_an_internal_network(stage: Stage) -> str:
    return stage.reach(stage.six, stage.seven)


@case(
    "from an internal network to another, and back",
    "unreachable; refused",
    docker="no answer",
    why="no route to others on an internal network; and back, refused at once",
)
def from_an_internal_network(stage: Stage) -> str:
    return together([stage.tcp(stage.six, stage.one), stage.tcp(stage.one, stage.six)])


@case("container to outside", "seen as host")
def to_outside(stage: Stage) -> str:
    return stage.reach(stage.one, stage.world.address)


@case("default network to outside", "seen as host")
def by_default_to_outside(stage: Stage) -> str:
    return stage.reach(stage.four, stage.world.address)


@case(
    "internal network to outside",
    "unreachable",
    docker="no answer",
    why="there is no route, so that programs fail instead of waiting",
)
def inner_to_outside(stage: Stage) -> str:
    return stage.reach(stage.six, stage.world.address)


@case("no network to outside", "unreachable")
def lone_to_outside(stage: Stage) -> str:
    return stage.reach(stage.lone, stage.world.address)


@case("outside to a container's address, by a route", "no answer")
def from_outside(stage: Stage) -> str:
    return stage.reach(stage.world.pid, stage.one)


@case("host to a container's address", "seen as gateway of red")
def from_host(stage: Stage) -> str:
    return stage.reach(stage.host, stage.one)


@case("host to a container on an internal network", "seen as gateway of inner")
def from_host_to_inner(stage: Stage) -> str:
    return stage.reach(stage.host, stage.six)


@case(
    "container to a service of the host, by the gateway's address",
    "TCP refused, UDP unreachable",
    docker="seen as one",
    why="services of the host need `host_access=True`",
)
def to_gateway(stage: Stage) -> str:
    return stage.reach(stage.one, stage.side.gateway("red"), HOST_PORT)


@case(
    "the same by the host's address outside",
    "refused",
    docker="seen as one",
    why="the same",
)
def to_host(stage: Stage) -> str:
    return stage.tcp(stage.one, stage.world.host, HOST_PORT)


@case(
    "internal network to a service of the host, by the gateway's address",
    "TCP refused, UDP unreachable",
    docker="seen as six",
    why="the same",
)
def inner_to_gateway(stage: Stage) -> str:
    return stage.reach(stage.six, stage.side.gateway("inner"), HOST_PORT)


@case(
    "container to another network's gateway",
    "refused",
    docker="seen as one",
    why="the same",
)
def to_another_gateway(stage: Stage) -> str:
    return stage.tcp(stage.one, stage.side.gateway("blue"), HOST_PORT)


@case("ping of the gateway", "answers")
def ping_of_the_gateway(stage: Stage) -> str:
    return probe.ping(stage.one.pid, stage.side.gateway("red"))


@case("ping of outside", "answers")
def ping_of_outside(stage: Stage) -> str:
    return probe.ping(stage.one.pid, stage.world.address)


@case(
    "container to 169.254.169.254, the metadata service of clouds",
    "refused",
    docker="seen as host",
    why="the metadata service gives out credentials of the machine",
)
def to_metadata(stage: Stage) -> str:
    return stage.tcp(stage.one, METADATA)


@case("after connect, both ways", "seen as three on red; seen as one")
def after_connect(stage: Stage) -> str:
    with stage.connected("red", stage.three):
        address = stage.address(stage.three, "red")
        return f"{stage.reach(stage.three, stage.one)}; {stage.reach(stage.one, address)}"


@case(
    "after disconnect",
    "TCP refused, UDP unreachable",
    docker="no answer",
    why="refused at once, so that programs fail instead of waiting",
)
def after_disconnect(stage: Stage) -> str:
    with stage.connected("red", stage.three):
        assert stage.reach(stage.three, stage.one) == "seen as three on red"
    return stage.reach(stage.three, stage.one)


@case("an existing connection, after disconnect", "no answer")
def connection_after_disconnect(stage: Stage) -> str:
    with stage.guest("stayer", "red") as stayer, stage.guest("leaver", "red", "blue") as leaver:
        with probe.socket_in(stayer.pid, socket.SOCK_STREAM) as server:
            server.listen()
            mine = probe.connected(leaver.pid, stage.address(stayer), server.getsockname()[1])
            accepted, _ = server.accept()
        with mine, accepted:
            stage.side.disconnect("red", leaver)
            accepted.settimeout(probe.PATIENCE)
            try:
                mine.send(b"hello")
                return f"receives {accepted.recv(9)!r}"
            except OSError as error:
                return probe.failure(error)


@case("outside, after disconnect from the only network", "unreachable")
def outside_after_disconnect(stage: Stage) -> str:
    with stage.guest("leaver", "red") as leaver:
        stage.side.disconnect("red", leaver)
        return stage.reach(leaver, stage.world.address)


@case("outside, after disconnect from the network with the default route, on a second one", "seen as host")
def outside_by_the_second(stage: Stage) -> str:
    with stage.guest("leaver", "red", "blue") as leaver:
        stage.side.disconnect("red", leaver)
        return stage.reach(leaver, stage.world.address)


@case("from two networks at once", "seen as between; seen as between on blue; seen as host")
def from_two_networks(stage: Stage) -> str:
    with stage.guest("between", "red", "blue") as between:
        targets = (stage.address(stage.one), stage.address(stage.three), stage.world.address)
        return "; ".join(stage.reach(between, one) for one in targets)


@case(
    "from one neighbour to the other, through a container on both networks",
    "refused",
    docker="no answer",
    why="refused at once, so that programs fail instead of waiting",
)
def no_passage(stage: Stage) -> str:
    with stage.guest("between", "red", "blue"):
        return stage.tcp(stage.one, stage.three)


@case("outside, on an internal network and another", "seen as host")
def inner_and_outer(stage: Stage) -> str:
    with stage.guest("between", "inner", "blue") as between:
        return stage.reach(between, stage.world.address)


@case("IPv6 on a network that has it, by TCP and UDP", "seen as vier")
def with_ipv6(stage: Stage) -> str:
    with (
        stage.network("six", subnet6=SUBNET6),
        stage.guest("vier", "six") as vier,
        stage.guest("acht", "six") as acht,
    ):
        own, there = (stage.side.address6(one, "six") for one in (vier, acht))
        with probe.echo(acht.pid, port=PORT + 1, family=socket.AF_INET6):
            seen = [probe.comes_to_reach(vier.pid, there, PORT + 1, udp=udp) for udp in (False, True)]
    return "seen as vier" if seen == [own, own] else str(seen)


@case("a container in another's namespace, by its loopback", "seen as loopback")
def shared_loopback(stage: Stage) -> str:
    with stage.guest("guest", "container:one") as guest:
        return stage.reach(guest, "127.0.0.1")


@case("another's namespace: its neighbours, and the address that they see", "seen as one")
def shared_namespace(stage: Stage) -> str:
    with stage.guest("guest", "container:one") as guest:
        return stage.reach(guest, stage.two)


@case("another's namespace: names", "two")
def shared_names(stage: Stage) -> str:
    with stage.guest("guest", "container:one") as guest:
        return stage.resolve(guest, "two")


@case("the host's namespace: services of its loopback", "seen as loopback")
def hosts_loopback(stage: Stage) -> str:
    with stage.guest("guest", "host") as guest:
        return stage.reach(guest, "127.0.0.1", HOST_PORT)


@case("the host's namespace: containers", "seen as gateway of red")
def hosts_containers(stage: Stage) -> str:
    with stage.guest("guest", "host") as guest:
        return stage.reach(guest, stage.one)


@case("no network: its own loopback", "seen as loopback")
def own_loopback(stage: Stage) -> str:
    return stage.reach(stage.lone, "127.0.0.1")


@case("fixed address", "seen as fixed")
def fixed(stage: Stage) -> str:
    with (
        stage.network("square", subnet="10.99.7.0/24"),
        stage.guest("fixed", On("square", address="10.99.7.77")) as fixed,
        stage.guest("near", "square") as near,
    ):
        assert stage.address(fixed) == "10.99.7.77"
        return stage.reach(fixed, near)
