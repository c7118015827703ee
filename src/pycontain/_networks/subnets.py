"""Allocation of subnets to networks on this host, and of addresses to containers on a network."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import struct
import threading
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_address

from pycontain.errors import Conflict, LimitError

POOL = IPv4Network("10.128.0.0/9")
"""Pool for networks that are created without a subnet."""
_LENGTH = 22
"""Prefix of a subnet of the pool: 1021 containers, for a bridge has 1024 ports (br_private.h)."""
_COUNT = 1 << (_LENGTH - POOL.prefixlen)
_FLOCK = struct.Struct("hhqqi")
_SMALLEST = 29


class Subnets:
    """Subnets of one engine, locked against the other engines of the host while the engine lives.

    Args:
        path: The lock file, or None in a network namespace that only this engine uses.
        in_use: Returns whether a route of the host overlaps a subnet.
    """

    def __init__(self, path: str | None, in_use: Callable[[IPv4Network | IPv6Network], bool]) -> None:
        self._fd = -1 if path is None else os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._in_use = in_use
        self._mine: list[IPv4Network | IPv6Network] = []
        self._next = secrets.randbelow(_COUNT)
        self._lock = threading.Lock()

    @property
    def held(self) -> list[IPv4Network | IPv6Network]:
        """Return the subnets of this engine."""
        return list(self._mine)

    def choose(self) -> IPv4Network:
        """Allocate a subnet of the pool.

        Raises:
            LimitError: None is free.
        """
        with self._lock:
            for _ in range(_COUNT):
                at, self._next = self._next, (self._next + 1) % _COUNT
                found = IPv4Network((int(POOL.network_address) + (at << (32 - _LENGTH)), _LENGTH))
                if self._is_mine(found) or not self._claim(at):
                    continue
                if not self._in_use(found):
                    self._mine.append(found)
                    return found
                self._give_up(at)
        raise LimitError(f"all subnets of {POOL} are in use", hint="remove networks or pass a subnet")

    def take(self, wanted: IPv4Network | IPv6Network) -> None:
        """Allocate the given subnet.

        Raises:
            Conflict: It overlaps another network or a route of the host.
        """
        with self._lock:
            if self._is_mine(wanted) or self._in_use(wanted):
                raise Conflict(f"subnet {wanted} overlaps one in use on this host")
            slots = self._slots(wanted)
            taken = [at for at in slots if self._claim(at)]
            if len(taken) < len(slots):
                for at in taken:
                    self._give_up(at)
                raise Conflict(f"subnet {wanted} overlaps one of another engine")
            self._mine.append(wanted)

    def give_back(self, subnet: IPv4Network | IPv6Network) -> None:
        """Release a subnet; no-op for one that is not allocated."""
        with self._lock, contextlib.suppress(ValueError):
            self._mine.remove(subnet)
            for at in self._slots(subnet):
                if not any(at in self._slots(other) for other in self._mine):
                    self._give_up(at)

    def close(self) -> None:
        """Release all subnets."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _is_mine(self, wanted: IPv4Network | IPv6Network) -> bool:
        return any(wanted.version == one.version and wanted.overlaps(one) for one in self._mine)

    def _slots(self, subnet: IPv4Network | IPv6Network) -> range:
        """Return the numbers of the pool's subnets that it overlaps."""
        if not isinstance(subnet, IPv4Network) or not subnet.overlaps(POOL):
            return range(0)
        first = max(0, int(subnet.network_address) - int(POOL.network_address)) >> (32 - _LENGTH)
        last = min(int(subnet.broadcast_address), int(POOL.broadcast_address)) - int(POOL.network_address)
        return range(first, (last >> (32 - _LENGTH)) + 1)

    def _claim(self, at: int) -> bool:
        return self._set_lock(fcntl.F_WRLCK, at)

    def _give_up(self, at: int) -> None:
        self._set_lock(fcntl.F_UNLCK, at)

    def _set_lock(self, kind: int, at: int) -> bool:
        """Set or clear an open file description lock (fcntl(2)) on one byte; the kernel frees it on exit."""
        if self._fd < 0:
            return True
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, at, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        return True


def private6() -> IPv6Network:
    """Return a subnet of unique local addresses (RFC 4193) with 40 random bits."""
    prefix = 0xFD << 120 | secrets.randbits(40) << 80
    return IPv6Network((prefix, 64))


class Addresses:
    """Addresses of one network: the first is the gateway's, and a released one is reused last."""

    def __init__(self, subnet: IPv4Network, subnet6: IPv6Network | None) -> None:
        if subnet.prefixlen > _SMALLEST:
            raise LimitError(f"subnet must have a prefix of at most {_SMALLEST} bits, got {subnet}")
        self.subnet, self.subnet6 = subnet, subnet6
        self._used: set[int] = {1}
        self._most = min(subnet.num_addresses - 2, 65534)
        self._next = 2
        self._lock = threading.Lock()

    @property
    def gateway(self) -> IPv4Address:
        """Return the host's address on the network."""
        return self.subnet.network_address + 1

    @property
    def gateway6(self) -> IPv6Interface | None:
        """Return the host's IPv6 address on the network."""
        return None if self.subnet6 is None else self.address6(self.gateway)

    def acquire(self) -> IPv4Address:
        """Allocate a free address.

        Raises:
            LimitError: All are in use.
        """
        with self._lock:
            for _ in range(self._most):
                at = self._next
                self._next = 2 if at >= self._most else at + 1
                if at not in self._used:
                    self._used.add(at)
                    return self.subnet.network_address + at
        raise LimitError(
            f"all addresses of subnet {self.subnet} are in use",
            hint="remove containers or use a larger subnet",
        )

    def take(self, text: str) -> IPv4Address:
        """Allocate the given address.

        Raises:
            ValueError: It is not an address for a container in this subnet.
            Conflict: It is in use.
        """
        wanted = self.check(text)
        at = int(wanted) - int(self.subnet.network_address)
        with self._lock:
            if at in self._used:
                raise Conflict(f"address {wanted} is already in use")
            self._used.add(at)
        return wanted

    def check(self, text: str) -> IPv4Address:
        """Parse an address that a container in this subnet can have.

        Raises:
            ValueError: It is not in the subnet, or is the gateway's, the network's or the broadcast address.
        """
        wanted = checked_address(text)
        at = int(wanted) - int(self.subnet.network_address)
        if not 1 < at < self.subnet.num_addresses - 1:
            raise ValueError(f"address must be one that a container can have in {self.subnet}, got {wanted}")
        return wanted

    def release(self, address: IPv4Address) -> None:
        """Release an address."""
        with self._lock:
            self._used.discard(int(address) - int(self.subnet.network_address))

    def address6(self, address: IPv4Address) -> IPv6Interface:
        """Return the IPv6 address derived from an IPv4 address of the network."""
        assert self.subnet6 is not None
        host = int(address) - int(self.subnet.network_address)
        return IPv6Interface((int(self.subnet6.network_address) + host, self.subnet6.prefixlen))


def checked_address(text: str) -> IPv4Address:
    """Parse an IPv4 address.

    Raises:
        ValueError: The text is not an IPv4 address.
    """
    found: IPv4Address | IPv6Address = ip_address(text)
    if not isinstance(found, IPv4Address):
        raise ValueError(f"address must be IPv4, got {text} (hint: the IPv6 address is derived from it)")
    return found
