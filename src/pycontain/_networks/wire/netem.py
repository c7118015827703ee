"""Delay, loss and rate limits (tc-netem(8)) on the bridge port of a container."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from attrs import frozen

from pycontain._kernel.netlink import CREATE, REPLACE, Message, NetlinkError, attribute
from pycontain._networks.wire import links

if TYPE_CHECKING:
    from pycontain._networks.netns_host import NetnsHost

_NEWQDISC, _DELQDISC = 36, 37
_ROOT = 0xFFFFFFFF
_HANDLE = 0x10000
_KIND, _OPTIONS = 1, 2
_RATE, _LATENCY, _JITTER = 6, 10, 11
_WHOLE = 0xFFFFFFFF
_PACKETS = 10_000
_TICK = 64
"""Nanoseconds in a tick of the packet scheduler (PSCHED_SHIFT)."""


class NoNetem(Exception):
    """The kernel lacks sch_netem."""


@frozen(kw_only=True)
class Shape:
    """Parameters of netem.

    Attributes:
        delay: Seconds.
        jitter: Seconds around the delay.
        loss: Share of the packets, 0 to 1.
        rate: Bytes per second; 0 for no limit.
    """

    delay: float = 0
    jitter: float = 0
    loss: float = 0
    rate: int = 0

    def options(self) -> bytes:
        """Return struct tc_netem_qopt with the netlink attributes that later kernels added."""
        delay, jitter = int(self.delay * 1e9), int(self.jitter * 1e9)
        loss = int(self.loss * _WHOLE)
        fixed = struct.pack(
            "=6I", min(delay // _TICK, _WHOLE), _PACKETS, loss, 0, 0, min(jitter // _TICK, _WHOLE)
        )
        more = attribute(_LATENCY, struct.pack("=q", delay)) + attribute(_JITTER, struct.pack("=q", jitter))
        if self.rate:
            more += attribute(_RATE, struct.pack("=IiIi", min(self.rate, _WHOLE), 0, 0, 0))
        return fixed + more


def apply(netns: NetnsHost, link: str, shape: Shape) -> None:
    """Set the shape of the traffic to a container; the default shape removes it.

    Raises:
        NoNetem: The kernel lacks sch_netem.
        NetlinkError: The kernel refused the change.
    """
    index = links.look(netns.route, link).index
    head = struct.pack("=BBHiIII", 0, 0, 0, index, _HANDLE, _ROOT, 0)
    if shape == Shape():
        try:
            netns.route.do([Message(_DELQDISC, head + attribute(_KIND, "netem"))])
        except NetlinkError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL):
                raise
        return
    body = head + attribute(_KIND, "netem") + attribute(_OPTIONS, shape.options())
    try:
        netns.route.do([Message(_NEWQDISC, body, CREATE | REPLACE)])
    except NetlinkError as error:
        if error.errno in (errno.ENOENT, errno.EOPNOTSUPP):
            raise NoNetem(error.strerror) from error
        raise
