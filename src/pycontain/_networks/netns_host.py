"""The network namespace that holds an engine's bridges: the host's, or a rootless engine's own."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING

from pycontain._kernel.netlink import NETFILTER, ROUTE, Netlink
from pycontain._kernel.netns import SocketSpec, open_sockets
from pycontain._networks.wire import links
from pycontain._state.locks import lock_within
from pycontain._state.paths import private_directory
from pycontain.errors import StartError, UnsupportedError

if TYPE_CHECKING:
    from pycontain._kernel.launcher import LauncherPool

_RUN = "/run/pycontain"
"""Directory of the host, not of a store: all engines share subnets and IP forwarding."""
_RAW = socket.SOCK_RAW


class NetnsHost:
    """The network namespace of the bridges: netlink sockets in it, its settings and the subnets in use.

    Args:
        launchers: Launchers in that namespace.
        rootless: Whether it is the engine's own namespace, which no other process of the host is in.
    """

    def __init__(self, launchers: LauncherPool, *, rootless: bool) -> None:
        self.launchers = launchers
        self.rootless = rootless
        self._forwarding: dict[int, int] = {}
        if rootless:
            wanted = [SocketSpec(socket.AF_NETLINK, _RAW, kind) for kind in (ROUTE, NETFILTER)]
            try:
                route, rules = self.within(-1, wanted, {})
            except StartError as error:
                raise OSError(error.errno, str(error)) from error
            self.route, self.rules = Netlink(ROUTE, route), Netlink(NETFILTER, rules)
        else:
            self.route, self.rules = Netlink(ROUTE), Netlink(NETFILTER)

    def within(self, pidfd: int, wanted: Sequence[SocketSpec], settings: Mapping[str, str]) -> list[int]:
        """Write settings in the network namespace of a process, then open sockets in it.

        Args:
            pidfd: The process, or -1 for the namespace of the bridges.
            wanted: The sockets.
            settings: Paths below /proc/sys/net and values.

        Returns:
            The fds of the sockets.

        Raises:
            StartError: The namespace, a setting or a socket failed.
        """
        with self.launchers.borrow() as launcher:
            return open_sockets(launcher, pidfd, wanted, settings)

    def set(self, settings: Mapping[str, str]) -> None:
        """Write settings below /proc/sys/net in this namespace.

        Raises:
            StartError: A setting failed in a rootless engine.
            OSError: A setting failed on the host.
        """
        if self.rootless:
            self.within(-1, [], settings)
            return
        for path, value in settings.items():
            try:
                with open(f"/proc/sys/net/{path}", "w") as file:
                    file.write(value)
            except FileNotFoundError:  # the kernel lacks the protocol
                continue

    def host_addresses(self) -> frozenset[IPv4Address | IPv6Address]:
        """Return the host's addresses, which the uplink of a rootless engine reaches; empty if privileged."""
        if not self.rootless:
            return frozenset()
        host = Netlink(ROUTE)
        try:
            found = frozenset(links.seen_addresses(host.ask(links.every_address())))
        finally:
            host.close()
        return frozenset(one for one in found if not one.is_loopback)

    @property
    def locks(self) -> str | None:
        """Return the file in which the engines of this host lock subnets, or None if rootless."""
        return None if self.rootless else os.path.join(private_directory(_RUN), "subnets")

    def in_use(self, subnet: IPv4Network | IPv6Network) -> bool:
        """Return whether a route of this namespace, other than a default route, overlaps the subnet."""
        family = socket.AF_INET if subnet.version == 4 else socket.AF_INET6
        first = subnet.network_address.packed
        for route in links.seen_routes(self.route.ask(links.routes(family))):
            if (route.length < 8 and subnet.version == 4) or (route.length < 16 and subnet.version == 6):
                continue
            length = min(route.length, subnet.prefixlen)
            shift = len(first) * 8 - length
            if int.from_bytes(route.destination) >> shift == int.from_bytes(first) >> shift:
                return True
        return False

    def forward(self, version: int) -> bool:
        """Enable IP forwarding; the last engine of the host restores it.

        Returns:
            Whether it was off before, so that the firewall must drop everything else that is forwarded.

        Raises:
            UnsupportedError: The host refuses the setting.
        """
        setting = _FORWARDING[version]
        if self.rootless:
            self.set({setting: "1"})
            return False
        fd = self._forwarding.get(version)
        if fd is None:
            note = _note(version)
            fd = self._forwarding[version] = os.open(note, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            lock_within(fd, fcntl.LOCK_SH, note)
            if _read(setting) == "0":
                os.pwrite(fd, b"1", 0)
                try:
                    self.set({setting: "1"})
                except OSError as error:
                    raise UnsupportedError(
                        f"forwarding of IPv{version} packets ({error})",
                        hint=f"allow this process to write /proc/sys/net/{setting}",
                    ) from error
        return os.pread(fd, 1, 0) == b"1"

    def put_forwarding_back(self) -> None:
        """Restore IP forwarding unless another engine uses it."""
        for version, fd in self._forwarding.items():
            _put_back(version, fd)

    def forget(self) -> None:
        """Close the fds, which releases the locks on IP forwarding."""
        for fd in self._forwarding.values():
            os.close(fd)
        self._forwarding.clear()
        self.route.close()
        self.rules.close()


_FORWARDING = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}


def _note(version: int) -> str:
    """Return the file that records whether we enabled forwarding here; engines that use it lock it."""
    return os.path.join(private_directory(_RUN), f"forwarding{version}-{os.stat('/proc/self/ns/net').st_ino}")


def put_forwarding_back() -> None:
    """Restore IP forwarding for engines that were killed, unless another engine uses it."""
    for version in _FORWARDING:
        try:
            fd = os.open(_note(version), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            _put_back(version, fd)
        finally:
            os.close(fd)


def _put_back(version: int, fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.pread(fd, 1, 0) == b"1":
            with open(f"/proc/sys/net/{_FORWARDING[version]}", "w") as file:
                file.write("0")
            os.ftruncate(fd, 0)
    except OSError:
        pass  # another engine holds the lock


def _read(setting: str) -> str:
    try:
        with open(f"/proc/sys/net/{setting}") as file:
            return file.read().strip()
    except OSError:
        return ""
