"""One network: a bridge with its subnet, its names and its endpoints."""

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
from pycontain._networks.firewall import Firewall, NetworkRules
from pycontain._networks.subnets import Addresses
from pycontain._networks.wire import links
from pycontain.errors import Conflict, StateError, UnsupportedError

if TYPE_CHECKING:
    from pycontain._networks.container_networks import AttachSpec
    from pycontain._networks.dns.zone import Zone
    from pycontain._networks.egress import EgressPolicy
    from pycontain._networks.netns_host import NetnsHost

MTU = 1500


@frozen(kw_only=True)
class Options:
    """Options of a network.

    Attributes:
        name: Unique in the engine.
        subnet: IPv4 subnet, or None for one of the pool.
        subnet6: IPv6 subnet, or None for a random one if `ipv6`.
        ipv6: Whether containers get IPv6 addresses.
        internal: Whether there is no route outside.
        host: Whether services of the host are reachable.
        names: Whether containers resolve each other's names.
        restricted: Whether an `Egress` limits what containers can reach.
        mtu: Bytes.
        labels: Labels, for the caller's use.
    """

    name: str
    subnet: IPv4Network | None = None
    subnet6: IPv6Network | None = None
    ipv6: bool = False
    internal: bool = False
    host: bool = False
    names: bool = True
    restricted: bool = False
    mtu: int = MTU
    labels: Mapping[str, str] = field(factory=dict)


@define(eq=False)
class NetworkEndpoint:
    """A container on a network.

    Attributes:
        container: Id of the container.
        name: Name of the container.
        address: IPv4 address on the network.
        address6: IPv6 address on the network, if it has IPv6.
        aliases: Further names on this network.
        port: Name of the interface on the bridge.
        inner: Name of the interface in the container.
        index: Index of the interface in the container.
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
        """Return the MAC address, derived from the IPv4 address so that ARP caches stay valid on reuse."""
        return mac_of(self.address)


def mac_of(address: IPv4Address) -> bytes:
    """Return a locally administered MAC address that contains an IPv4 address."""
    return b"\x02\x50" + address.packed


@define(eq=False)
class Bridge:
    """Network that exists on the host; callers hold its lock, except before it is published."""

    options: Options
    link: str
    addresses: Addresses
    zone: Zone
    netns: NetnsHost
    firewall: Firewall
    created: float = field(factory=time.time)
    index: int = 0
    gone: bool = False
    policy: EgressPolicy | None = None
    endpoints: dict[str, NetworkEndpoint] = field(factory=dict)
    lock: threading.RLock = field(factory=threading.RLock)

    @property
    def name(self) -> str:
        """Return the network's name."""
        return self.options.name

    @property
    def rules(self) -> NetworkRules:
        """Return the network as the firewall enforces it."""
        subnets: list[IPv4Network | IPv6Network] = [self.addresses.subnet]
        if self.addresses.subnet6 is not None:
            subnets.append(self.addresses.subnet6)
        return NetworkRules(
            bridge=self.link,
            subnets=tuple(subnets),
            outside=not self.options.internal,
            host=self.options.host,
            restricted=self.options.restricted,
        )

    def make(self) -> None:
        """Create the rules, then the link, so that the link is never without rules.

        Raises:
            UnsupportedError: The kernel lacks bridges or a part of nf_tables.
            OSError: The kernel refused an operation.
        """
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
        """Return settings that disable unused IPv6 and ignore redirects and router advertisements."""
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
        """Remove the link and the rules.  Idempotent."""
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
        """Reserve an endpoint with an address for a container.

        Raises:
            Conflict: The container is on the network already, or the address is in use.
            StateError: The network is removed.
            LimitError: All addresses are in use.
            ValueError: The address is not one of the network's.
        """
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
        """Release the endpoint and its address; no-op if it is already released."""
        with self.lock:
            if self.endpoints.get(endpoint.container) is endpoint:
                del self.endpoints[endpoint.container]
                self.addresses.release(endpoint.address)
