"""Cases of programs inside: their view of the network, and their rights."""

from __future__ import annotations

from pathlib import Path

from tests.support.networks_compared.sides import Guest
from tests.support.networks_compared.stage import Section, Stage

SECTION = Section("Inside")
case = SECTION.case


@case("interfaces on one network", "lo, eth0")
def interfaces(stage: Stage) -> str:
    return _interfaces(stage, stage.one)


@case("interfaces on two", "lo, eth0, eth1")
def interfaces_of_two(stage: Stage) -> str:
    with stage.guest("between", "red", "blue") as between:
        return _interfaces(stage, between)


@case("interfaces without a network", "lo")
def interfaces_of_none(stage: Stage) -> str:
    return _interfaces(stage, stage.lone)


@case("interfaces in the host's network", "the host's")
def interfaces_of_the_host(stage: Stage) -> str:
    with stage.guest("guest", "host") as guest:
        return "the host's" if stage.world.link in _interfaces(stage, guest) else "others"


@case("MTU", "1500")
def mtu(stage: Stage) -> str:
    words = stage.run(stage.one, "ip", "link", "show", "eth0").split()
    return words[words.index("mtu") + 1]


@case("way out", "by gateway of red")
def way_out(stage: Stage) -> str:
    return _way_out(stage, stage.one)


@case(
    "way out on an internal network",
    "none",
    docker="by gateway of inner",
    why="no route leads outside",
)
def way_out_of_inner(stage: Stage) -> str:
    return _way_out(stage, stage.six)


@case(
    "way out on two networks",
    "by gateway of red",
    docker="by gateway of blue",
    why="the first one given; dockerd takes the first by name",
)
def way_out_of_two(stage: Stage) -> str:
    with stage.guest("between", "red", "blue") as between:
        return _way_out(stage, between)


@case("IPv6 addresses on a network without it", "none")
def no_ipv6(stage: Stage) -> str:
    lines = stage.run(stage.one, "ip", "-6", "addr", "show", "eth0").split()
    return "some" if "inet6" in lines else "none"


@case(
    "/etc/hosts",
    "no address",
    docker="hostname and address",
    why="the name service answers for the hostname, and follows connect and disconnect",
)
def hosts_file(stage: Stage) -> str:
    words = [line.split() for line in stage.run(stage.one, "cat", "/etc/hosts").splitlines()]
    wanted = [stage.address(stage.one), stage.one.id[:12]]
    return "hostname and address" if wanted in words else "no address"


@case(
    "hostname in the host's network",
    "its own",
    docker="the host's",
    why="the UTS namespace is not shared",
)
def hostname(stage: Stage) -> str:
    with stage.guest("guest", "host") as guest:
        own = Path("/proc/sys/kernel/hostname").read_text().strip()
        return "the host's" if stage.run(guest, "hostname") == own else "its own"


@case("port 80, as an unprivileged user", "bound")
def low_port(stage: Stage) -> str:
    with stage.guest("server", "red") as server:
        code, _ = stage.side.run(server, "httpd", "-p", "80", user=1000)
        return "refused" if code else "bound"


@case(
    "port 80 without a network, as an unprivileged user",
    "refused",
    docker="bound",
    why="the setting is made only with a network; ports from 1024 are free",
)
def low_port_of_none(stage: Stage) -> str:
    with stage.guest("server", "none") as server:
        code, _ = stage.side.run(server, "httpd", "-p", "80", user=1000)
        return "refused" if code else "bound"


@case(
    "ping by a raw socket, as root",
    "refused",
    docker="answers",
    why="no CAP_NET_RAW in `Security.SANDBOX`; ping works by sockets that need none",
)
def raw_ping(stage: Stage) -> str:
    code, _ = stage.side.run(stage.one, "ping", "-c1", "-W2", stage.address(stage.two))
    return "refused" if code else "answers"


@case("an address for itself", "refused")
def own_choice(stage: Stage) -> str:
    code, _ = stage.side.run(stage.one, "ip", "addr", "add", "10.1.1.1/24", "dev", "eth0")
    return "refused" if code else "done"


@case("forwarding", "refused")
def forwarding(stage: Stage) -> str:
    code, _ = stage.side.run(stage.one, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    return "refused" if code else "done"


def _interfaces(stage: Stage, guest: Guest) -> str:
    lines = stage.run(guest, "cat", "/proc/net/dev").splitlines()[2:]
    names = [line.split(":")[0].strip() for line in lines]
    return ", ".join(sorted(names, key=lambda name: (name != "lo", name)))


def _way_out(stage: Stage, guest: Guest) -> str:
    for line in stage.run(guest, "ip", "route").splitlines():
        if line.startswith("default via "):
            return f"by {stage.who(line.split()[2])}"
    return "none"
