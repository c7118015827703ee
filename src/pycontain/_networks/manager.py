"""Networks of one engine: created, found, removed, and cleaned up at the end."""

from __future__ import annotations

import contextlib
import errno
import itertools
import secrets
import threading
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

from pycontain._kernel.pidfd import pid_of
from pycontain._networks.antispoof import AntiSpoof
from pycontain._networks.container_networks import ContainerIdentity, ContainerNetworks
from pycontain._networks.dns.service import NameService
from pycontain._networks.dns.zone import Zone
from pycontain._networks.firewall import Firewall, unsupported
from pycontain._networks.netns_host import NetnsHost
from pycontain._networks.network import Bridge, Options
from pycontain._networks.ports import Publisher
from pycontain._networks.rootless_uplink import RootlessUplink
from pycontain._networks.subnets import Addresses, Subnets, private6
from pycontain._networks.wire import links
from pycontain.errors import Conflict, NotFound

if TYPE_CHECKING:
    from pycontain._kernel.launcher import LauncherPool
    from pycontain._kernel.relay import Relay
    from pycontain._networks.network import NetworkEndpoint

DEFAULT = "bridge"
_NUMBER_DIGITS = 4


class NetworkManager:
    """The networks of one engine.

    Args:
        owner: The engine's name, in hexadecimal digits; names of its interfaces and tables contain it.
        launchers: Launchers in the network namespace that the bridges are made in.
        rootless: Whether that namespace is the engine's own.

    Raises:
        UnsupportedError: The kernel has no nf_tables.
        StartError: No socket could be opened in the namespace.
    """

    def __init__(self, owner: str, launchers: LauncherPool, *, rootless: bool) -> None:
        self._prefix = links.prefix(owner)
        self._numbers = itertools.count(secrets.randbelow(1 << 20))
        self._lock = threading.RLock()
        self._relay: Relay | None = None
        self._containers: list[ContainerNetworks] = []
        self.bridges: dict[str, Bridge] = {}
        try:
            self.netns = NetnsHost(launchers, rootless=rootless)
        except OSError as error:
            if error.errno != errno.EPROTONOSUPPORT:
                raise
            raise unsupported("the kernel has no nf_tables") from error
        try:
            self.firewall = Firewall(self.netns.rules, f"pycontain-{owner}", self._prefix)
            self.antispoof = AntiSpoof(self.netns.rules, f"pycontain-{owner}", self.firewall.stays)
            self.subnets = Subnets(self.netns.locks, self.netns.in_use)
        except BaseException:
            self.netns.forget()
            raise
        self.names = NameService()
        self._uplink = RootlessUplink(self.netns, self._pid()) if rootless else None
        self.publisher = Publisher(self.relay, None if rootless else self.firewall)

    def link_name(self) -> str:
        """Return a name for an interface that this engine has not used recently."""
        return self._prefix + links.digits(next(self._numbers), _NUMBER_DIGITS)

    def relay(self) -> Relay:
        """Return the relay process of published ports, started on first use."""
        from pycontain._kernel.relay import Relay

        with self._lock:
            if self._relay is None:
                with self.netns.launchers.borrow() as launcher:
                    self._relay = Relay.start(launcher)
            return self._relay

    def _pid(self) -> int:
        with self.netns.launchers.borrow() as launcher:
            return pid_of(launcher.pidfd)

    def create(self, options: Options) -> Bridge:
        """Create a network.

        Raises:
            Conflict: The name or the subnet is in use.
            LimitError: No subnet is free.
            UnsupportedError: The host lacks something that the network needs.
        """
        with self._lock:
            if options.name in self.bridges:
                raise Conflict(f"network name {options.name!r} is already in use")
            subnet = options.subnet
            if subnet is None:
                subnet = self.subnets.choose()
            else:
                self.subnets.take(subnet)
            try:
                bridge = self._make(options, subnet)
            except BaseException:
                self.subnets.give_back(subnet)
                raise
            self.bridges[options.name] = bridge
            return bridge

    def _make(self, options: Options, subnet: IPv4Network) -> Bridge:
        subnet6 = options.subnet6 or (private6() if options.ipv6 else None)
        if options.subnet6 is not None and self.netns.in_use(options.subnet6):
            raise Conflict(f"subnet {options.subnet6} overlaps one in use on this host")
        bridge = Bridge(
            options,
            self.link_name(),
            Addresses(subnet, subnet6),
            Zone(options.name),
            self.netns,
            self.firewall,
        )
        if not options.internal:
            if self._uplink is not None:
                self._uplink.open()
            self.firewall.know_host(self.netns.host_addresses())
            for version in (4, 6) if subnet6 is not None else (4,):
                if self.netns.forward(version):
                    self.firewall.keep_closed(version)
        bridge.make()
        return bridge

    def default(self) -> Bridge:
        """Return the default network 'bridge', which has no names, created on first use."""
        with self._lock:
            found = self.bridges.get(DEFAULT)
            return found or self.create(Options(name=DEFAULT, names=False))

    def find(self, name: str) -> Bridge:
        """Return a network of this engine by name.

        Raises:
            NotFound: There is none.
        """
        with self._lock:
            if name == DEFAULT:
                return self.default()
            found = self.bridges.get(name)
        if found is None:
            raise NotFound(f"no network {name!r} in this engine")
        return found

    def remove(self, bridge: Bridge) -> None:
        """Remove a network.

        Raises:
            Conflict: Containers are connected to it.
            NotFound: It is already removed.
        """
        with self._lock, bridge.lock:
            if bridge.gone:
                raise NotFound(f"network {bridge.name} is already removed")
            if bridge.endpoints:
                names = ", ".join(sorted(endpoint.name for endpoint in bridge.endpoints.values()))
                raise Conflict(
                    f"network {bridge.name} is in use by containers: {names}",
                    hint="remove or disconnect them first",
                )
            bridge.unmake()
            self.bridges.pop(bridge.name, None)
            self.subnets.give_back(bridge.addresses.subnet)

    def attach(self, identity: ContainerIdentity) -> ContainerNetworks:
        """Return the networks of a container that has started, empty so far."""
        networks = ContainerNetworks(self, identity)
        with self._lock:
            self.firewall.know_host(self.netns.host_addresses())
            self._containers.append(networks)
        return networks

    def endpoints(self, container: str) -> list[tuple[Bridge, NetworkEndpoint]]:
        """Return the endpoints of a container, including those whose creation was interrupted."""
        with self._lock:
            bridges = list(self.bridges.values())
        return [(one, one.endpoints[container]) for one in bridges if container in one.endpoints]

    def left(self, networks: ContainerNetworks) -> None:
        """Remove the networks of a container that has ended."""
        with self._lock, contextlib.suppress(ValueError):
            self._containers.remove(networks)

    def close(self) -> None:
        """Remove all networks; the containers must have ended."""
        with self._lock:
            left = list(self._containers)
        for networks in left:  # not under our lock, since connect() takes the container's lock first
            networks.container_ended()
        with self._lock:
            for bridge in list(self.bridges.values()):
                with contextlib.suppress(OSError):
                    bridge.unmake()
            self.bridges.clear()
            self.names.close()
            if self._relay is not None:
                self._relay.close()
            if self._uplink is not None:
                self._uplink.close()
            self.netns.put_forwarding_back()
            self.firewall.close()
            self.netns.forget()
            self.subnets.close()

    def forget(self) -> None:
        """Close the fds in a forked child, without a change to the parent's networks."""
        self._lock = threading.RLock()
        self.names.forget()
        if self._relay is not None:
            self._relay.forget()
        if self._uplink is not None:
            self._uplink.close()
        self.netns.forget()
        self.subnets.close()
