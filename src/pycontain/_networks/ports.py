"""Published ports: host sockets served by the relay process, and DNAT rules where the kernel has them."""

from __future__ import annotations

import contextlib
import errno
import itertools
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING

from attrs import define, evolve

from pycontain._model.ports import Published
from pycontain._networks.firewall import TCP, UDP
from pycontain.errors import Conflict, StateError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pycontain._kernel.relay import Relay
    from pycontain._networks.firewall import Firewall

_TRIES = 20
_BACKLOG = 4096
_KINDS = {"tcp": (TCP, socket.SOCK_STREAM), "udp": (UDP, socket.SOCK_DGRAM)}
_ABSENT = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


@define(eq=False)
class Bound:
    """Published port with its host port and its target address."""

    wanted: Published
    port: int
    number: int
    target: str

    @property
    def again(self) -> Published:
        """Return the request for the same host port, if it is free or was asked for."""
        return evolve(self.wanted, preferred=self.port)


class Publisher:
    """The published ports of an engine.

    Args:
        get_relay: Returns the relay process, started on first use.
        firewall: The firewall for DNAT rules, or None in a rootless engine.
    """

    def __init__(self, get_relay: Callable[[], Relay], firewall: Firewall | None) -> None:
        self._get_relay = get_relay
        self._firewall = firewall
        self._numbers = itertools.count(1)

    def publish(self, ports: Sequence[Published], target: str) -> list[Bound]:
        """Publish all ports or none.

        Raises:
            Conflict: A host port is in use.
            UnsupportedError: The user may not bind a port.
            StateError: The relay process has ended.
        """
        done: list[Bound] = []
        try:
            for one in ports:
                done.append(self._one(one, target))
        except BaseException:
            self.withdraw(done)
            raise
        return done

    def _one(self, wanted: Published, target: str) -> Bound:
        protocol, kind = _KINDS[wanted.protocol]
        sockets, port = _sockets(wanted, kind)
        bound = Bound(wanted, port, next(self._numbers), target)
        try:
            self._get_relay().serve(
                bound.number, protocol, [one.fileno() for one in sockets], target, wanted.inner
            )
        except ConnectionError as error:
            raise StateError(f"the relay process of published ports has ended: {error}") from error
        finally:
            for one in sockets:
                one.close()
        try:
            self._redirect(bound, gone=False)
        except BaseException:
            self._drop(bound)
            raise
        return bound

    def _redirect(self, bound: Bound, *, gone: bool) -> None:
        """Add or remove the DNAT rule; loopback needs none, since the relay serves local connections."""
        where = bound.wanted.address or "0.0.0.0"
        found = ip_address(where)
        if self._firewall is None or found.version != 4 or found.is_loopback:
            return
        protocol, _ = _KINDS[bound.wanted.protocol]
        self._firewall.redirect(protocol, where, bound.port, bound.target, bound.wanted.inner, gone=gone)

    def _drop(self, bound: Bound) -> None:
        with contextlib.suppress(OSError):
            self._get_relay().drop(bound.number)

    def withdraw(self, ports: Sequence[Bound]) -> None:
        """Unpublish ports; the host ports are free when this returns."""
        for bound in ports:
            with contextlib.suppress(OSError):
                self._redirect(bound, gone=True)
            self._drop(bound)


def _sockets(wanted: Published, kind: int) -> tuple[list[socket.socket], int]:
    """Return bound sockets and their port, for IPv4 and IPv6 if no address was given."""
    for attempt in range(_TRIES):
        opened: list[socket.socket] = []
        asked = wanted.port or (wanted.preferred if attempt == 0 else None) or 0
        try:
            first = _bound(wanted.address or "0.0.0.0", asked, kind)
            opened.append(first)
            port = int(first.getsockname()[1])
            if not wanted.address and (second := _second(port, kind)) is not None:
                opened.append(second)
            return opened, port
        except OSError as error:
            for one in opened:
                one.close()
            if error.errno == errno.EADDRINUSE and wanted.port is None:
                continue  # the kernel chose a port that is free for IPv4 only
            raise _refusal(wanted, error) from error
    raise Conflict("no host port is free for both IPv4 and IPv6")


def _second(port: int, kind: int) -> socket.socket | None:
    try:
        return _bound("::", port, kind)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise


def _bound(address: str, port: int, kind: int) -> socket.socket:
    six = ":" in address
    new = socket.socket(
        socket.AF_INET6 if six else socket.AF_INET, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    )
    try:
        if six:
            new.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            new.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        new.bind((address, port))
        if kind == socket.SOCK_STREAM:
            new.listen(_BACKLOG)
    except BaseException:
        new.close()
        raise
    return new


def _refusal(wanted: Published, error: OSError) -> Exception:
    where = f"{wanted.address or '*'}:{wanted.port}/{wanted.protocol}"
    if error.errno == errno.EADDRINUSE:
        return Conflict(f"host port {where} is already in use", hint="pass None to use a free one")
    if error.errno in (errno.EACCES, errno.EPERM):
        return UnsupportedError(
            f"publishing on {where} by this user",
            hint="use a port at or above net.ipv4.ip_unprivileged_port_start",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return ValueError(f"the address of a published port must be one of this host's, got {wanted.address}")
    return error
