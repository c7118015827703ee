"""What a dead engine left of its networks: interfaces, forwarding; its rules went with its socket."""

from __future__ import annotations

import contextlib

from pycontain._kernel.netlink import ROUTE, Netlink, NetlinkError
from pycontain._networks import links
from pycontain._networks.domain import put_forwarding_back


def remove_links(owner: str) -> None:
    """Remove every interface of an owner, and its share in forwarding.

    Raises OSError where they cannot even be listed.
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
