"""Name options of a container: extra_hosts, dns, dns_search, and the name of the host."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from pycontain import Container, Engine, Network
from pycontain._model.names import NameOptions, search_domains
from tests.kernel.networks import _network_manager, _nothing_is_left, net, outside, root_only, world

__all__ = ["_network_manager", "_nothing_is_left", "net", "outside", "world"]

_LOOK = "import socket, sys; print(sorted({one[4][0] for one in socket.getaddrinfo(sys.argv[1], 1)}))"


def _look(container: Container, name: str) -> str:
    return str(container.exec(["python3", "-c", _LOOK, name], timeout=30).stdout).strip()


def _read(container: Container, path: str) -> str:
    return container.path(path).read_text()


@pytest.mark.parametrize("network", ["none", "host"])
@pytest.mark.parametrize(
    "given", [{"db.example.org": "10.9.8.7"}, ["db.example.org:10.9.8.7"], ["db.example.org=10.9.8.7"]]
)
def test_extra_hosts_are_known(network: str, given: Any) -> None:
    with Container(network=network, extra_hosts=given) as one:
        assert _look(one, "db.example.org") == "['10.9.8.7']"
        assert "10.9.8.7 db.example.org\n" in _read(one, "/etc/hosts")


def test_extra_hosts_on_a_network_and_ipv6(net: Network) -> None:
    with Container(network=net, extra_hosts={"six": "[::1]"}) as one:
        assert _look(one, "six") == "['::1']"
    with Container(network=net) as other:
        assert "six" not in _read(other, "/etc/hosts")


def test_search_domains_complete_names(net: Network) -> None:
    with (
        Container(network=net, name="pyc-db"),
        Container(network=net, dns_search=[net.name, "example.org"]) as one,
    ):
        assert f"search {net.name} example.org\n" in _read(one, "/etc/resolv.conf")
        assert "nameserver 127.0.0.11\n" in _read(one, "/etc/resolv.conf")


def test_search_domains_are_the_hosts_by_default(
    outside: Network, net: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pycontain._runtime.compile._of_host", lambda: b"search corp.example.org\n")
    with Container(network=outside) as one, Container(network=net) as inner:
        assert "search corp.example.org\n" in _read(one, "/etc/resolv.conf")
        assert "search" not in _read(inner, "/etc/resolv.conf")
    with Container(network=outside, dns_search=[]) as without:
        assert "search" not in _read(without, "/etc/resolv.conf")


def test_dns_on_the_hosts_network_is_in_its_resolv_conf() -> None:
    with Container(network="host", dns=["192.0.2.1", "192.0.2.2"], dns_search="example.org") as one:
        assert _read(one, "/etc/resolv.conf") == (
            "nameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch example.org\n"
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dns": "192.0.2.1"}, "must come with a network"),
        ({"dns_search": "example.org"}, "must come with a network"),
        ({"dns": "example.org", "network": "host"}, "dns must have IPv4 or IPv6 addresses"),
        ({"dns": ["192.0.2.1"] * 4, "network": "host"}, "at most 3 nameservers"),
        ({"dns_search": "a b", "network": "host"}, "dns_search must have names"),
        ({"dns_search": "a\nnameserver 6.6.6.6", "network": "host"}, "dns_search must have names"),
        ({"extra_hosts": {"a\n6.6.6.6 b": "10.0.0.1"}}, "extra_hosts must have names"),
        ({"extra_hosts": {"a": "10.0.0.1 evil"}}, "extra_hosts must have IPv4 or IPv6 addresses"),
        ({"extra_hosts": ["a"]}, "extra_hosts must have entries such as 'name:address'"),
        ({"extra_hosts": {"a": "host-gateway"}}, "host_access=True"),
    ],
)
def test_options_without_an_effect_or_a_meaning(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Container(**options)


def test_dns_on_an_internal_network(net: Network) -> None:
    with pytest.raises(ValueError, match="a network that has a route outside"):
        Container(network=net, dns="192.0.2.1")
    with Container(network=net) as one, pytest.raises(ValueError, match="with a shared network"):
        Container(network=f"container:{one.name}", dns="192.0.2.1")


@pytest.mark.parametrize("given", [7, {"a": 7}, [7], "a:10.0.0.1"])
def test_extra_hosts_of_another_type(given: Any) -> None:
    with pytest.raises(TypeError, match="extra_hosts must"):
        Container(extra_hosts=given)


def test_host_has_a_name_where_it_is_reachable(engine: Engine, outside: Network) -> None:
    root_only(engine)
    with Network("pyc-host", host_access=True) as network, Container(network=network) as one:
        gateway = str(ip_network(network.subnet)[1])
        for name in ("host.containers.internal", "host.docker.internal"):
            assert _look(one, name) == f"['{gateway}']"
        with Container(network=network, extra_hosts={"me": "host-gateway"}) as other:
            assert _look(other, "me") == f"['{gateway}']"
    with Container(network=outside) as other:
        assert _look(other, "host.containers.internal") == ""
    with Container(network="host") as same:
        assert _look(same, "host.containers.internal") == "['127.0.0.1']"


def test_search_domains_are_read_as_glibc_does() -> None:
    assert search_domains(b"domain a.example\nsearch b.example c.example.\n") == ("b.example", "c.example")
    assert search_domains(b"search a;b \xff ok.example\n") == ("ok.example",)
    assert NameOptions.of(None, None, ".").search == ()
