"""Which addresses are whose: subnets of networks on this host, addresses of containers on a network."""

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
"""Where networks without a subnet of their own get theirs."""
_LENGTH = 22
"""A network of these holds 1021 containers; a bridge has 1024 ports (br_private.h)."""
_COUNT = 1 << (_LENGTH - POOL.prefixlen)
_FLOCK = struct.Struct("hhqqi")
_SMALLEST = 29


class Subnets:
    """Subnets that no other engine of this host has, each locked for as long as its engine lives.

    path: the file of the locks, or None in a network namespace of the engine's own.
    in_use: does a route of this host lead there already?
    """

    def __init__(self, path: str | None, in_use: Callable[[IPv4Network | IPv6Network], bool]) -> None:
        self._fd = -1 if path is None else os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._in_use = in_use
        self._mine: list[IPv4Network | IPv6Network] = []
        self._next = secrets.randbelow(_COUNT)
        self._lock = threading.Lock()

    @property
    def held(self) -> list[IPv4Network | IPv6Network]:
        """Those of this engine."""
        return list(self._mine)

    def choose(self) -> IPv4Network:
        """One of the pool.  Raises LimitError when none is free."""
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
        """A certain one.  Raises Conflict where it meets another network's, or a route of the host."""
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
        """Nobody's again."""
        with self._lock, contextlib.suppress(ValueError):
            self._mine.remove(subnet)
            for at in self._slots(subnet):
                if not any(at in self._slots(other) for other in self._mine):
                    self._give_up(at)

    def close(self) -> None:
        """Give all back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _is_mine(self, wanted: IPv4Network | IPv6Network) -> bool:
        return any(wanted.version == one.version and wanted.overlaps(one) for one in self._mine)

    def _slots(self, subnet: IPv4Network | IPv6Network) -> range:
        """The parts of the pool that it covers."""
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
        """Open file description locks (fcntl(2)) on single bytes: they die with the engine's process."""
        if self._fd < 0:
            return True
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, at, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        return True


def private6() -> IPv6Network:
    """A subnet of unique local addresses (RFC 4193), from 40 random bits."""
    prefix = 0xFD << 120 | secrets.randbits(40) << 80
    return IPv6Network((prefix, 64))


class Addresses:
    """The addresses of one network: the first is the gateway's, and none is given again soon."""

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
        """The host's address on it."""
        return self.subnet.network_address + 1

    @property
    def gateway6(self) -> IPv6Interface | None:
        """The host's IPv6 address on it."""
        return None if self.subnet6 is None else self.address6(self.gateway)

    def acquire(self) -> IPv4Address:
        """One that nobody has.  Raises LimitError."""
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
        """A certain one.  Raises ValueError for one that is none of the subnet's, Conflict for one in use."""
        wanted = self.check(text)
        at = int(wanted) - int(self.subnet.network_address)
        with self._lock:
            if at in self._used:
                raise Conflict(f"address {wanted} is already in use")
            self._used.add(at)
        return wanted

    def check(self, text: str) -> IPv4Address:
        """An address that a container may have.  Raises ValueError."""
        wanted = checked_address(text)
        at = int(wanted) - int(self.subnet.network_address)
        if not 1 < at < self.subnet.num_addresses - 1:
            raise ValueError(f"address must be one that a container can have in {self.subnet}, got {wanted}")
        return wanted

    def release(self, address: IPv4Address) -> None:
        """Free again."""
        with self._lock:
            self._used.discard(int(address) - int(self.subnet.network_address))

    def address6(self, address: IPv4Address) -> IPv6Interface:
        """The IPv6 address that goes with it."""
        assert self.subnet6 is not None
        host = int(address) - int(self.subnet.network_address)
        return IPv6Interface((int(self.subnet6.network_address) + host, self.subnet6.prefixlen))


def checked_address(text: str) -> IPv4Address:
    """An IPv4 address.  Raises ValueError."""
    found: IPv4Address | IPv6Address = ip_address(text)
    if not isinstance(found, IPv4Address):
        raise ValueError(f"address must be IPv4, got {text} (hint: the IPv6 address is derived from it)")
    return found
