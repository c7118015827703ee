"""Cases of requests that an engine refuses."""

from __future__ import annotations

from tests.support.networks_compared.sides import On
from tests.support.networks_compared.stage import Section, Stage

SECTION = Section("Refused options")
case = SECTION.case
SQUARE = "10.99.7.0/24"


def _with_subnet(stage: Stage, subnet: str) -> str:
    def make() -> None:
        with stage.network("odd", subnet=subnet):
            pass

    return stage.refusal(make)


@case("a subnet that another network has", "refused")
def same_subnet(stage: Stage) -> str:
    with stage.network("square", subnet=SQUARE):
        return _with_subnet(stage, SQUARE)


@case("a subnet that contains another network's", "refused")
def wider_subnet(stage: Stage) -> str:
    with stage.network("square", subnet=SQUARE):
        return _with_subnet(stage, "10.99.0.0/16")


@case("a subnet within another network's", "refused")
def narrower_subnet(stage: Stage) -> str:
    with stage.network("square", subnet=SQUARE):
        return _with_subnet(stage, "10.99.7.128/25")


@case(
    "a subnet of the host's own",
    "refused",
    docker="done",
    why="the host would lose its neighbours",
)
def subnet_of_the_host(stage: Stage) -> str:
    return _with_subnet(stage, stage.world.host.rpartition(".")[0] + ".0/24")


@case("a subnet beside another", "done")
def subnet_beside(stage: Stage) -> str:
    with stage.network("square", subnet=SQUARE):
        return _with_subnet(stage, "10.99.8.0/24")


@case("a network's name again", "refused")
def same_name(stage: Stage) -> str:
    return stage.refusal(lambda: stage.side.network("red"))


@case("a network called 'host'", "refused")
def reserved_name(stage: Stage) -> str:
    return stage.refusal(lambda: stage.side.network("host"))


@case(
    "a network's name with a slash",
    "refused",
    docker="done",
    why="names are part of host names",
)
def odd_name(stage: Stage) -> str:
    return stage.refusal(lambda: stage.side.network("od/d"))


@case("an address that another container has", "refused")
def same_address(stage: Stage) -> str:
    there = On("square", address="10.99.7.77")
    with stage.network("square", subnet=SQUARE), stage.guest("fixed", there):
        return stage.refuses_to_start(there)


@case("an address again, after its container has ended", "done")
def address_again(stage: Stage) -> str:
    there = On("square", address="10.99.7.77")
    with stage.network("square", subnet=SQUARE):
        with stage.guest("fixed", there):
            pass
        return stage.refuses_to_start(there)


@case("the gateway's address", "refused")
def gateways_address(stage: Stage) -> str:
    with stage.network("square", subnet=SQUARE):
        return stage.refuses_to_start(On("square", address=stage.side.gateway("square")))


@case("an address of another subnet", "refused")
def address_elsewhere(stage: Stage) -> str:
    with stage.network("square", subnet=SQUARE):
        return stage.refuses_to_start(On("square", address="10.99.8.77"))


@case(
    "a fixed address where the engine chose the subnet",
    "done",
    docker="refused",
    why="supported",
)
def address_in_a_chosen_subnet(stage: Stage) -> str:
    return stage.refuses_to_start(On("red", address=stage.side.gateway("red").rpartition(".")[0] + ".99"))


@case(
    "a fixed address on the default network",
    "done",
    docker="refused",
    why="supported",
)
def address_by_default(stage: Stage) -> str:
    start = stage.side.gateway("bridge").rpartition(".")[0]
    return stage.refuses_to_start(On("bridge", address=f"{start}.99"))


@case(
    "an alias on the default network",
    "done",
    docker="refused",
    why="accepted without effect: containers on that network are not found by name",
)
def alias_by_default(stage: Stage) -> str:
    return stage.refuses_to_start(On("bridge", aliases=("quattuor",)))


@case("a network that does not exist", "refused")
def unknown_network(stage: Stage) -> str:
    return stage.refuses_to_start("nowhere")


@case("removing a network that a container is on", "refused")
def in_use(stage: Stage) -> str:
    return stage.refusal(lambda: stage.side.remove_network("red"))


@case("removing the default network", "refused")
def default_network(stage: Stage) -> str:
    return stage.refusal(lambda: stage.side.remove_network("bridge"))


@case("removing a network that does not exist", "refused")
def unknown(stage: Stage) -> str:
    return stage.refusal(lambda: stage.side.remove_network("nowhere"))


@case("connecting to a network that it is on", "refused")
def connected_twice(stage: Stage) -> str:
    return stage.refusal(lambda: stage.side.connect("red", stage.one))


@case("disconnecting from a network that it is not on", "refused")
def not_connected(stage: Stage) -> str:
    return stage.refusal(lambda: stage.side.disconnect("blue", stage.one))


@case("connecting a container in the host's network", "refused")
def connecting_the_host(stage: Stage) -> str:
    with stage.guest("guest", "host") as guest:
        return stage.refusal(lambda: stage.side.connect("red", guest))


@case("connecting a container in another's namespace", "refused")
def connecting_a_guest(stage: Stage) -> str:
    with stage.guest("guest", "container:one") as guest:
        return stage.refusal(lambda: stage.side.connect("blue", guest))


@case(
    "connecting a container without a network",
    "done",
    docker="refused",
    why="`'none'` only means that no network is connected yet",
)
def connecting_none(stage: Stage) -> str:
    with stage.guest("guest", "none") as guest:
        return stage.refusal(lambda: stage.side.connect("red", guest))


@case("the namespace of a container that does not exist", "refused")
def namespace_of_an_absent_container(stage: Stage) -> str:
    return stage.refuses_to_start("container:absent")
