"""Published ports: sockets on the host, carried by the relay, and redirected by the kernel where it can."""

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
    """A port that is published: where."""

    wanted: Published
    port: int
    number: int
    target: str

    @property
    def again(self) -> Published:
        """The same port of the host: certainly where it was asked for, else where it is free."""
        return evolve(self.wanted, preferred=self.port)


class Publisher:
    """The published ports of an engine.  get_relay: starts the relay on first use."""

    def __init__(self, get_relay: Callable[[], Relay], firewall: Firewall | None) -> None:
        self._get_relay = get_relay
        self._firewall = firewall
        self._numbers = itertools.count(1)

    def publish(self, ports: Sequence[Published], target: str) -> list[Bound]:
        """Publish them all or none.  Raises Conflict for one that is taken, UnsupportedError, StateError."""
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
        """Not for loopback: nobody else's packets come there."""
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
        """They are free again when this returns."""
        for bound in ports:
            with contextlib.suppress(OSError):
                self._redirect(bound, gone=True)
            self._drop(bound)


def _sockets(wanted: Published, kind: int) -> tuple[list[socket.socket], int]:
    """Bound sockets, of both families where no address was given, and their port."""
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
                continue  # free for IPv4, but not for IPv6
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
