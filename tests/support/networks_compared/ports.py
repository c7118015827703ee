"""Cases of published ports."""

from __future__ import annotations

from tests.support.networks_compared import probe
from tests.support.networks_compared.probe import PORT
from tests.support.networks_compared.sides import Ports
from tests.support.networks_compared.stage import Section, Stage, together

SECTION = Section("Published ports")
case = SECTION.case
OUTER = 8080
BOTH: Ports = {PORT: OUTER, f"{PORT}/udp": OUTER}


@case("from the host's loopback", "seen as gateway of red")
def from_loopback(stage: Stage) -> str:
    with stage.guest("server", "red", ports=BOTH):
        return stage.reach(stage.host, "127.0.0.1", OUTER)


@case(
    "from the host, by its address",
    "seen as gateway of red",
    docker="seen as host",
    why="the relay carries it, as from loopback",
)
def from_host(stage: Stage) -> str:
    with stage.guest("server", "red", ports=BOTH):
        return stage.reach(stage.host, stage.world.host, OUTER)


@case("from the host's IPv6 loopback", "seen as gateway of red")
def from_loopback6(stage: Stage) -> str:
    with stage.guest("server", "red", ports=BOTH):
        return stage.tcp(stage.host, "::1", OUTER)


@case("from outside", "seen as outside")
def from_outside(stage: Stage) -> str:
    with stage.guest("server", "red", ports=BOTH):
        return stage.reach(stage.world.pid, stage.world.host, OUTER)


@case("of a container on the default network, from outside", "seen as outside")
def by_default(stage: Stage) -> str:
    with stage.guest("server", "bridge", ports=BOTH):
        return stage.reach(stage.world.pid, stage.world.host, OUTER)


@case(
    "from a container of its network, by the host's address",
    "seen as gateway of red",
    docker="TCP seen as gateway of red, UDP no answer",
    why="dockerd's proxy answers UDP from another address than the target",
)
def from_a_neighbour(stage: Stage) -> str:
    with stage.guest("server", "red", ports=BOTH):
        return stage.reach(stage.one, stage.world.host, OUTER)


@case("from a container of its network, by the gateway's address", "seen as gateway of red")
def by_the_gateway(stage: Stage) -> str:
    with stage.guest("server", "red", ports=BOTH):
        return stage.reach(stage.one, stage.side.gateway("red"), OUTER)


@case(
    "from a container of another network, by the host's address",
    "seen as gateway of red",
    docker="TCP seen as gateway of red, UDP no answer",
    why="dockerd's proxy answers UDP from another address than the target",
)
def from_another_network(stage: Stage) -> str:
    with stage.guest("server", "red", ports=BOTH):
        return stage.reach(stage.three, stage.world.host, OUTER)


@case(
    "from the default network, by the host's address",
    "seen as gateway of red",
    docker="TCP seen as gateway of red, UDP no answer",
    why="dockerd's proxy answers UDP from another address than the target",
)
def from_the_default_network(stage: Stage) -> str:
    with stage.guest("server", "red", ports=BOTH):
        return stage.reach(stage.four, stage.world.host, OUTER)


@case(
    "from an internal network, by the host's address",
    "unreachable",
    docker="no answer",
    why="there is no route, so that programs fail instead of waiting",
)
def from_an_internal_network(stage: Stage) -> str:
    with stage.guest("server", "red", ports=BOTH):
        return stage.reach(stage.six, stage.world.host, OUTER)


@case(
    "from the container itself, by the host's address",
    "seen as gateway of red",
    docker="TCP seen as gateway of red, UDP no answer",
    why="dockerd's proxy answers UDP from another address than the target",
)
def from_itself(stage: Stage) -> str:
    with stage.guest("server", "red", ports=BOTH) as server:
        return stage.reach(server, stage.world.host, OUTER)


@case("on a free port", "seen as gateway of red")
def free(stage: Stage) -> str:
    with stage.guest("server", "red", ports={PORT: None}) as server:
        return stage.tcp(stage.host, "127.0.0.1", stage.side.port(server, PORT))


@case(
    "bound to 127.0.0.1: from loopback, outside and a container", "seen as gateway of red; refused; refused"
)
def bound_to_loopback(stage: Stage) -> str:
    with stage.guest("server", "red", ports={PORT: f"127.0.0.1:{OUTER}"}):
        return "; ".join(
            (
                stage.tcp(stage.host, "127.0.0.1", OUTER),
                stage.tcp(stage.world.pid, stage.world.host, OUTER),
                stage.tcp(stage.one, stage.world.host, OUTER),
            )
        )


@case("bound to the host's address: from loopback and outside", "refused; seen as outside")
def bound_to_address(stage: Stage) -> str:
    with stage.guest("server", "red", ports={PORT: f"{stage.world.host}:{OUTER}"}):
        here = stage.tcp(stage.host, "127.0.0.1", OUTER)
        return f"{here}; {stage.tcp(stage.world.pid, stage.world.host, OUTER)}"


@case("bound to an address that the host does not have", "refused")
def bound_elsewhere(stage: Stage) -> str:
    return stage.refuses_to_start("red", ports={PORT: f"203.0.113.77:{OUTER}"})


@case("a range", "seen as outside")
def in_a_range(stage: Stage) -> str:
    with stage.guest("server", "red", ports={f"{PORT - 1}-{PORT + 1}": f"{OUTER - 1}-{OUTER + 1}"}):
        return stage.tcp(stage.world.pid, stage.world.host, OUTER)


@case("one port inside on two of the host", "seen as outside")
def twice(stage: Stage) -> str:
    with stage.guest("server", "red", ports={PORT: OUTER, f"{PORT}/tcp": OUTER + 1}):
        return together([stage.tcp(stage.world.pid, stage.world.host, OUTER + at) for at in (0, 1)])


@case("without a listener inside", "refused")
def without_a_server(stage: Stage) -> str:
    with stage.guest("server", "red", ports={PORT + 5: OUTER}):
        return stage.tcp(stage.world.pid, stage.world.host, OUTER)


@case("that another container has", "refused")
def taken(stage: Stage) -> str:
    with stage.guest("server", "red", ports=BOTH):
        return stage.refuses_to_start("red", ports=BOTH)


@case("that a program of the host has", "refused")
def taken_by_a_program(stage: Stage) -> str:
    with probe.echo(stage.host, port=OUTER):
        return stage.refuses_to_start("red", ports={PORT: OUTER})


@case("again, after its container has ended", "done")
def again(stage: Stage) -> str:
    with stage.guest("server", "red", ports=BOTH):
        pass
    return stage.refuses_to_start("red", ports=BOTH)


@case("from the host's loopback and outside, after its container has ended", "refused")
def after_the_end(stage: Stage) -> str:
    with stage.guest("server", "red", ports=BOTH):
        pass
    host = stage.world.host
    return together([stage.tcp(stage.host, "127.0.0.1", OUTER), stage.tcp(stage.world.pid, host, OUTER)])


@case("after the container has changed to another network", "seen as outside")
def after_a_change(stage: Stage) -> str:
    with stage.guest("server", "red", ports=BOTH) as server:
        stage.side.connect("blue", server)
        stage.side.disconnect("red", server)
        return stage.reach(stage.world.pid, stage.world.host, OUTER)


@case(
    "from an internal network",
    "refused",
    docker="done",
    why="dockerd ignores the option silently",
)
def of_an_internal_network(stage: Stage) -> str:
    return stage.refuses_to_start("inner", ports=BOTH)


@case(
    "without a network",
    "refused",
    docker="done",
    why="the same",
)
def of_none(stage: Stage) -> str:
    return stage.refuses_to_start("none", ports=BOTH)


@case(
    "in the host's network",
    "refused",
    docker="done",
    why="the same",
)
def of_the_host(stage: Stage) -> str:
    return stage.refuses_to_start("host", ports=BOTH)


@case("in another container's namespace", "refused")
def of_another(stage: Stage) -> str:
    return stage.refuses_to_start("container:one", ports=BOTH)
