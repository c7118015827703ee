"""Removal of the networks of engines that were killed."""

from __future__ import annotations

import contextlib

from pycontain._kernel.netlink import NETFILTER, ROUTE, Netlink, NetlinkError
from pycontain._networks.firewall import remove_tables
from pycontain._networks.netns_host import put_forwarding_back
from pycontain._networks.wire import links


def remove_networks(owner: str) -> None:
    """Remove the interfaces of a dead owner, its hold on IP forwarding, and last its firewall tables.

    The tables go last, so that no interface is ever up without its rules.

    Raises:
        OSError: The interfaces cannot be listed.
    """
    route = Netlink(ROUTE)
    try:
        for link in list(links.seen_links(route.ask(links.every_link()))):
            if link.name.startswith(links.prefix(owner)):
                with contextlib.suppress(NetlinkError):  # gone with its peer, or with its namespace
                    route.do([links.remove(link.name)])
    finally:
        route.close()
    put_forwarding_back()
    with contextlib.suppress(OSError):  # a kernel without nf_tables
        rules = Netlink(NETFILTER)
        try:
            remove_tables(rules, f"pycontain-{owner}")
        finally:
            rules.close()
