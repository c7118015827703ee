"""Detection of nftables rules of other programs that drop forwarded packets."""

from __future__ import annotations

import struct

from pycontain._kernel.netlink import DUMP, Message, Netlink, NetlinkError, attributes
from pycontain._networks.wire import nft

_GETCHAIN = 10 << 8 | 4
_FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}
_TABLE, _NAME, _HOOK, _POLICY = 1, 3, 4, 5
_DROP = 0


def chains_that_drop(socket: Netlink) -> tuple[list[str], bool]:
    """Find forward chains whose policy is drop.

    Returns:
        The chains, as "family table chain", and whether Docker's DOCKER-USER chain exists.
    """
    try:
        answers = socket.ask(Message(_GETCHAIN, struct.pack("=BBH", 0, 0, 0), DUMP))
    except NetlinkError:
        return [], False
    found = []
    docker = False
    for answer in answers:
        family, chain = answer.body[0], dict(attributes(answer.body[4:]))
        docker = docker or chain.get(_NAME) == b"DOCKER-USER\0"
        if family not in _FAMILIES or _HOOK not in chain or _POLICY not in chain:
            continue
        hook = dict(attributes(chain[_HOOK])).get(1, b"")
        if hook == struct.pack(">I", nft.FORWARD) and chain[_POLICY] == struct.pack(">I", _DROP):
            table, name = (chain[kind].rstrip(b"\0").decode() for kind in (_TABLE, _NAME))
            found.append(f"{_FAMILIES[family]} {table} {name}")
    return found, docker
