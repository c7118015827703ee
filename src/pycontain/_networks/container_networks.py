"""The networks of a live container: its interfaces, names and published ports."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING

from attrs import frozen

from pycontain._kernel.netlink import ROUTE, Netlink, NetlinkError
from pycontain._kernel.netns import SocketSpec
from pycontain._kernel.pidfd import wait_dead
from pycontain._networks.dns.zone import Client, Entry
from pycontain._networks.wire import links
from pycontain.errors import NotFound, StartError, StateError

if TYPE_CHECKING:
    from pycontain._model.ports import Published
    from pycontain._networks.manager import NetworkManager
    from pycontain._networks.network import Bridge, NetworkEndpoint
    from pycontain._networks.ports import Bound

RESOLVER = "127.0.0.11"
"""Address of the name service inside containers, the same as Docker's."""
_QUIET = socket.SOCK_NONBLOCK
_POLLS, _PAUSE = 500, 0.002
"""Number of polls until an interface is operational, and seconds between two."""


@frozen
class AttachSpec:
    """A network to connect a container to, with its options there."""

    bridge: Bridge
    aliases: tuple[str, ...] = ()
    address: str | None = None
    preferred: str | None = None
    """Address to use if it is free and `address` is None: that of the container's last run."""


@frozen(kw_only=True)
class ContainerIdentity:
    """Container to connect, with what its networks need to know of it.

    Attributes:
        container: Id.
        name: Name, which resolves on its networks.
        hostname: Host name, which resolves on its networks.
        pid: Its init process, on the host.
        pidfd: A pidfd of that process; owned by the receiver.
        groups: Number of group ids that its user namespace maps.
        raw: Whether it may send raw packets, so that it needs anti-spoofing rules.
        is_shared: Returns whether other containers use its network namespace.
        servers: Nameservers instead of the host's.
    """

    container: str
    name: str
    hostname: str
    pid: int
    pidfd: int
    groups: int
    raw: bool
    is_shared: Callable[[], bool]
    servers: tuple[str, ...] = ()


class ContainerNetworks:
    """The networks of one live container, from its start to its end."""

    def __init__(self, manager: NetworkManager, identity: ContainerIdentity) -> None:
        self._manager = manager
        self._identity = identity
        self._inner: Netlink | None = None
        self._ended = self._over = False
        self._used: tuple[tuple[AttachSpec, ...], tuple[Published, ...]] = (), ()
        self._lock = threading.RLock()
        self.endpoints: dict[Bridge, NetworkEndpoint] = {}
        self.bound: list[Bound] = []
        self.client = Client(
            own=Entry(names=(identity.hostname,), addresses=()), upstream=False, servers=identity.servers
        )

    def connect(self, attachment: AttachSpec) -> NetworkEndpoint:
        """Connect the container to a network; packets and names work when this returns.

        On an error everything is undone.

        Raises:
            Conflict: It is on this network already, or the address is in use.
            StateError: The container has ended, or the network is removed.
            LimitError: The network has no free address.
            ValueError: The address is not one of the network's.
            StartError: The kernel refused an operation.
        """
        bridge = attachment.bridge
        with self._lock:
            if self._ended:
                raise StateError(f"container {self._identity.name} is not running")
            endpoint = bridge.admit(
                self._identity.container, self._identity.name, self._manager.link_name(), attachment
            )
            try:
                self._link(bridge, endpoint)
            except BaseException as error:
                self._unlink(bridge, endpoint)
                if isinstance(error, NetlinkError | StartError):
                    raise self._failure(bridge, error) from error
                raise
            self.endpoints[bridge] = endpoint
            if bridge.options.names:
                bridge.zone.put(self._identity.container, self._entry(endpoint))
                self.client.join(bridge.zone)
            self._update_names()
            return endpoint

    def _failure(self, bridge: Bridge, error: NetlinkError | StartError) -> Exception:
        if error.errno == errno.ESRCH or wait_dead(self._identity.pidfd, 0):
            return StateError(f"container {self._identity.name} is not running")
        hint = "use a second network: a bridge has 1024 ports" if error.errno == errno.EXFULL else None
        return StartError(
            f"container {self._identity.name} cannot be connected to network {bridge.name}: {error}",
            step="network",
            errno=error.errno or 0,
            hint=hint,
        )

    def _entry(self, endpoint: NetworkEndpoint) -> Entry:
        identity = self._identity
        addresses = [str(endpoint.address)]
        if endpoint.address6 is not None:
            addresses.append(str(endpoint.address6.ip))
        return Entry(
            names=(identity.name, identity.container[:12], *endpoint.aliases, identity.hostname),
            addresses=tuple(addresses),
        )

    def _link(self, bridge: Bridge, endpoint: NetworkEndpoint) -> None:
        inner = self._enter(bridge)
        taken = {other.inner for other in self.endpoints.values()}
        endpoint.inner = next(name for at in range(1024) if (name := f"eth{at}") not in taken)
        peer = links.Peer(self._identity.pid, endpoint.inner, endpoint.mac, bridge.options.mtu)
        route = bridge.netns.route
        if self._identity.raw:
            self._manager.antispoof.admit(bridge, endpoint)
        route.do([links.pair(endpoint.port, peer), links.join(endpoint.port, bridge.index)])
        if wait_dead(self._identity.pidfd, 0):
            raise StateError(
                f"container {self._identity.name} is not running"
            )  # the pid may be reused already
        if bridge.options.restricted:
            route.do([links.isolate(links.look(route, endpoint.port).index)])
        endpoint.index = links.look(inner, endpoint.inner).index
        addresses = bridge.addresses
        steps = [
            links.raise_link(endpoint.index, link_local=True),
            links.assign(endpoint.index, IPv4Interface((endpoint.address, addresses.subnet.prefixlen))),
        ]
        if endpoint.address6 is not None:
            steps.append(links.assign(endpoint.index, endpoint.address6))
        if not bridge.options.internal:
            steps.append(links.default_route(endpoint.index, addresses.gateway.packed, endpoint.index))
            if addresses.gateway6 is not None:
                steps.append(links.default_route(endpoint.index, addresses.gateway6.packed, endpoint.index))
        inner.do(steps)
        _await_port(route, endpoint.port)

    def _enter(self, bridge: Bridge) -> Netlink:
        """Write the namespace's defaults for new interfaces; on the first call, open sockets in it too."""
        settings = {
            "ipv6/conf/default/disable_ipv6": str(int(bridge.addresses.subnet6 is None)),
            "ipv6/conf/default/addr_gen_mode": "0",  # link_local of antispoof.py
            "ipv6/conf/default/accept_ra": "0",
            "ipv6/conf/default/accept_redirects": "0",
            "ipv4/conf/all/accept_redirects": "0",
            "ipv4/conf/default/accept_redirects": "0",
        }
        if self._inner is not None:
            bridge.netns.within(self._identity.pidfd, [], settings)
            return self._inner
        settings["ipv4/ip_unprivileged_port_start"] = "0"
        settings["ipv4/ping_group_range"] = f"0 {self._identity.groups - 1}"
        wanted = [
            SocketSpec(socket.AF_NETLINK, socket.SOCK_RAW, ROUTE),
            SocketSpec(socket.AF_INET, socket.SOCK_DGRAM | _QUIET, 0, RESOLVER, 53),
            SocketSpec(socket.AF_INET, socket.SOCK_STREAM | _QUIET, 0, RESOLVER, 53, 64),
        ]
        netlink, udp, tcp = bridge.netns.within(self._identity.pidfd, wanted, settings)
        self._inner = Netlink(ROUTE, netlink)
        try:
            self._manager.names.serve(self.client, udp, tcp)
        except Exception:
            os.close(udp)
            os.close(tcp)
            raise
        return self._inner

    def _unlink(self, bridge: Bridge, endpoint: NetworkEndpoint) -> None:
        try:
            bridge.netns.route.do([links.remove(endpoint.port)])
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
        finally:
            self._leave(bridge, endpoint)

    def _leave(self, bridge: Bridge, endpoint: NetworkEndpoint) -> None:
        bridge.zone.drop(self._identity.container)
        self._manager.antispoof.dismiss(endpoint)
        bridge.dismiss(endpoint)

    def disconnect(self, bridge: Bridge) -> None:
        """Disconnect the container from a network; its address there is unreachable when this returns.

        On an error it is still connected, and the call can be repeated.

        Raises:
            NotFound: It is not on this network.
        """
        with self._lock:
            endpoint = self.endpoints.get(bridge)
            if endpoint is None:
                raise NotFound(f"container {self._identity.name} is not on network {bridge.name}")
            bound: list[Bound] = []
            if self.bound and self.bound[0].target == str(endpoint.address):
                bound, self.bound = self.bound, []
                self._manager.publisher.withdraw(bound)
            self.client.leave(bridge.zone)
            self._unlink(bridge, endpoint)
            self.endpoints.pop(bridge, None)
            self._update_names()
            if bound:
                # Move the published ports to another network with a route outside, if there is one.
                with contextlib.suppress(StateError):
                    self.publish([one.again for one in bound])

    def _update_names(self) -> None:
        bridges = list(self.endpoints)
        addresses = [address for one in self.endpoints.values() for address in self._entry(one).addresses]
        self.client.own = Entry(names=(self._identity.hostname,), addresses=tuple(addresses))
        self.client.upstream = any(not one.options.internal for one in bridges)
        # The gateway of rootless networks is in the engine's own namespace, not on this host.
        hosts = [] if self._manager.netns.rootless else [one for one in bridges if one.options.host]
        self.client.host = tuple(str(one.addresses.gateway) for one in hosts)
        policies = [one.policy.of(self._identity.container) for one in bridges if one.policy is not None]
        self.client.policy = policies[0] if policies else None

    def publish(self, ports: Sequence[Published]) -> None:
        """Publish ports of the container, by its address on the first network that is not internal.

        Raises:
            Conflict: A host port is in use.
            StateError: All of its networks are internal.
        """
        with self._lock:
            bridge, endpoint = self._target()
            route = bridge.netns.route
            # Hairpin mode, so that it can connect to its own published port by the host's address.
            route.do([links.reflect(links.look(route, endpoint.port).index)])
            self.bound += self._manager.publisher.publish(ports, str(endpoint.address))

    def _target(self) -> tuple[Bridge, NetworkEndpoint]:
        for bridge, endpoint in self.endpoints.items():
            if not bridge.options.internal:
                return bridge, endpoint
        raise StateError(
            f"container {self._identity.name} is on internal networks only",
            hint="connect it to a network that is not internal to publish ports",
        )

    @property
    def addresses(self) -> Mapping[str, str]:
        """Return the container's address on each network, by network name."""
        with self._lock:
            return {bridge.name: str(endpoint.address) for bridge, endpoint in self.endpoints.items()}

    def used(self) -> tuple[tuple[AttachSpec, ...], tuple[Published, ...]]:
        """Return the current or last networks and published ports, for a restart with the same ones."""
        with self._lock:
            if not self._ended:
                attachments = (
                    AttachSpec(bridge, endpoint.aliases, preferred=str(endpoint.address))
                    for bridge, endpoint in self.endpoints.items()
                )
                self._used = tuple(attachments), tuple(one.again for one in self.bound)
            return self._used

    def container_ended(self) -> None:
        """Release everything after the container has ended.

        Its interfaces disappear with its namespace; if other containers share that, they are removed here.
        Idempotent, and can be repeated after an interrupt.
        """
        with self._lock:
            self.used()
            self._ended = True
            if self._over:
                return
            self._manager.publisher.withdraw(self.bound)
            self.bound = []
            if self._inner is not None:
                self._manager.names.drop(self.client)
                self._inner.close()
            self.endpoints = {}
            drop = self._unlink if self._identity.is_shared() else self._leave
            for bridge, endpoint in self._manager.endpoints(self._identity.container):
                drop(bridge, endpoint)
            self._manager.left(self)
            self._over = True  # a restarted container can use the same id from here on
            os.close(self._identity.pidfd)

    def forget(self) -> None:
        """Close the fds in a forked child, without a change to the parent's networks."""
        self._lock = threading.RLock()
        self._ended = True
        if not self._over:
            self._over = True
            os.close(self._identity.pidfd)
        if self._inner is not None:
            with contextlib.suppress(OSError):
                os.close(self._inner.detach())


def _await_port(route: Netlink, port: str) -> None:
    """Wait until a bridge port forwards packets.

    The kernel notices in a deferred work item (linkwatch) that the peer is up. Since Linux 6.8 a request
    for the link runs it at once. On older kernels this polls, for a bounded time, since the guest may have
    taken its end down again.
    """
    for _ in range(_POLLS):
        if links.look(route, port).operates:
            return
        time.sleep(_PAUSE)
