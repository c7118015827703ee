"""One network: a bridge, its subnet, its names, and who is on it."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from pycontain._kernel.netlink import NetlinkError
from pycontain._networks import links
from pycontain._networks.firewall import Firewall, NetworkRules
from pycontain._networks.subnets import Addresses
from pycontain.errors import Conflict, StateError, UnsupportedError

if TYPE_CHECKING:
    from pycontain._networks.container_networks import AttachSpec
    from pycontain._networks.netns_host import NetnsHost
    from pycontain._networks.policy import Guide
    from pycontain._networks.zone import Zone

MTU = 1500


@frozen(kw_only=True)
class Options:
    """What a network is asked to be.

    names: do containers find each other by name?  guided: `Egress` says what they may reach, alone.
    """

    name: str
    subnet: IPv4Network | None = None
    subnet6: IPv6Network | None = None
    ipv6: bool = False
    internal: bool = False
    host: bool = False
    names: bool = True
    guided: bool = False
    mtu: int = MTU
    labels: Mapping[str, str] = field(factory=dict)


@define(eq=False)
class NetworkEndpoint:
    """A container on a network.

    port: the interface on the bridge.  inner, index: the interface inside.
    """

    container: str
    name: str
    address: IPv4Address
    address6: IPv6Interface | None
    aliases: tuple[str, ...]
    port: str
    inner: str = ""
    index: int = 0

    @property
    def mac(self) -> bytes:
        """Follows from the address: who is given one again is known by the same."""
        return mac_of(self.address)


def mac_of(address: IPv4Address) -> bytes:
    """A locally administered address of an interface."""
    return b"\x02\x50" + address.packed


@define(eq=False)
class Bridge:
    """A network that stands.  Everything here is called with its lock held, or before anybody knows it."""

    options: Options
    link: str
    addresses: Addresses
    zone: Zone
    netns: NetnsHost
    firewall: Firewall
    created: float = field(factory=time.time)
    index: int = 0
    gone: bool = False
    policy: Guide | None = None
    endpoints: dict[str, NetworkEndpoint] = field(factory=dict)
    lock: threading.RLock = field(factory=threading.RLock)

    @property
    def name(self) -> str:
        """The network's name."""
        return self.options.name

    @property
    def rules(self) -> NetworkRules:
        """What the firewall is to know of it."""
        subnets: list[IPv4Network | IPv6Network] = [self.addresses.subnet]
        if self.addresses.subnet6 is not None:
            subnets.append(self.addresses.subnet6)
        return NetworkRules(
            bridge=self.link,
            subnets=tuple(subnets),
            outside=not self.options.internal,
            host=self.options.host,
            policy=self.options.guided,
        )

    def make(self) -> None:
        """Rules first, then the link: it is never there without them.  Raises UnsupportedError, OSError."""
        self.firewall.open(self.rules)
        try:
            self._make_link()
        except BaseException as error:
            self.unmake()
            if isinstance(error, NetlinkError) and error.errno == errno.EOPNOTSUPP:
                raise UnsupportedError("bridges", hint="use a kernel with bridge and veth") from error
            raise

    def _make_link(self) -> None:
        route, addresses = self.netns.route, self.addresses
        gateway = IPv4Interface((addresses.gateway, addresses.subnet.prefixlen))
        route.do([links.bridge(self.link, mac_of(addresses.gateway), self.options.mtu)])
        self.index = links.look(route, self.link).index
        self.netns.set(self._settings())
        steps = [
            links.note(self.index, f"pycontain network {self.name}"),
            links.raise_link(self.index, link_local=addresses.subnet6 is not None),
            links.assign(self.index, gateway),
        ]
        if addresses.gateway6 is not None:
            steps.append(links.assign(self.index, addresses.gateway6))
        route.do(steps)

    def _settings(self) -> dict[str, str]:
        """IPv6 off means off, and nobody on it tells the host where to send what."""
        off = self.addresses.subnet6 is None
        v4, v6 = f"ipv4/conf/{self.link}", f"ipv6/conf/{self.link}"
        return {
            f"{v6}/disable_ipv6": str(int(off)),
            f"{v6}/accept_ra": "0",
            f"{v6}/accept_redirects": "0",
            f"{v4}/accept_redirects": "0",
            f"{v4}/send_redirects": "0",
            f"{v4}/route_localnet": "0",
            f"{v4}/rp_filter": "1",
        }

    def unmake(self) -> None:
        """Link and rules go.  Idempotent."""
        self.gone = True
        for step in (self._remove_link, lambda: self.firewall.shut(self.rules)):
            try:
                step()
            except NetlinkError as error:
                if error.errno not in (errno.ENODEV, errno.ENOENT):
                    raise

    def _remove_link(self) -> None:
        self.netns.route.do([links.remove(self.link)])

    def admit(self, container: str, name: str, port: str, attachment: AttachSpec) -> NetworkEndpoint:
        """A place on it for a container.  Raises Conflict, StateError, LimitError, ValueError."""
        with self.lock:
            if self.gone:
                raise StateError(f"network {self.name} is removed")
            if container in self.endpoints:
                raise Conflict(f"container {name} is already on network {self.name}")
            chosen = self._chosen(attachment)
            six = self.addresses.address6(chosen) if self.addresses.subnet6 is not None else None
            endpoint = self.endpoints[container] = NetworkEndpoint(
                container, name, chosen, six, attachment.aliases, port
            )
            return endpoint

    def _chosen(self, attachment: AttachSpec) -> IPv4Address:
        if attachment.address is not None:
            return self.addresses.take(attachment.address)
        if attachment.preferred is not None:
            with contextlib.suppress(Conflict, ValueError):
                return self.addresses.take(attachment.preferred)
        return self.addresses.acquire()

    def dismiss(self, endpoint: NetworkEndpoint) -> None:
        """Its place is free."""
        with self.lock:
            if self.endpoints.get(endpoint.container) is endpoint:
                del self.endpoints[endpoint.container]
                self.addresses.release(endpoint.address)
