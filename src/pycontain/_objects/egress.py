"""Egress: a network on which only what is named can be reached."""

from __future__ import annotations

import secrets
import threading
import weakref
from typing import TYPE_CHECKING

from pycontain._model.targets import Target, target_of
from pycontain._objects.closing import Closing

if TYPE_CHECKING:
    from pycontain._engine import Engine
    from pycontain._networks.bridge import Bridge
    from pycontain._networks.policy import Guide, Refused


class Egress(Closing):
    """A way out to certain names and ranges: `network=Egress.allow('pypi.org:443', '10.0.0.0/8')`.

    Everything else is refused at once: other addresses, other names (the name service says REFUSED), IPv6,
    services of this host and containers, also those with the same Egress.  A name is what the name service
    says of it, from then on for at least five minutes; one that leads to an address that is not public is
    held back, unless a range allows the address.  It may be changed while containers run, and tells what
    was refused.
    """

    def __init__(self) -> None:
        self._targets: dict[Target, None] = {}
        self._guides: weakref.WeakKeyDictionary[Engine, tuple[Bridge, Guide]] = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()

    @classmethod
    def allow(cls, *targets: str) -> Egress:
        """One that allows these: 'example.org:443', '*.example.org', '10.0.0.0/8', '10.0.0.1:53/udp'.

        Without a port every one, without '/tcp' or '/udp' both.  '*.' is for every name below, not for the
        name itself.  Where clouds tell secrets, as at 169.254.169.254, is not in any wider range.

        Raises ValueError, TypeError.
        """
        new = cls()
        new.permit(*targets)
        return new

    def permit(self, *targets: str) -> None:
        """Allow more, at once.  Raises ValueError, TypeError."""
        found = [target_of(one) for one in targets]
        with self._lock:
            self._change({**self._targets, **dict.fromkeys(found)})

    def revoke(self, *targets: str) -> None:
        """Allow these no more, at once: connections that were made are cut off too.

        Raises ValueError for one that is not allowed.
        """
        found = [target_of(one) for one in targets]
        with self._lock:
            for one in found:
                if one not in self._targets:
                    raise ValueError(f"{one.text!r} was not allowed")
            self._change({one: None for one in self._targets if one not in found})

    def _change(self, targets: dict[Target, None]) -> None:
        """What holds is told last: a change that fails may be made again."""
        for bridge, guide in list(self._guides.values()):
            if not bridge.gone:
                guide.change(tuple(targets))
        self._targets = targets

    @property
    def targets(self) -> list[str]:
        """What is allowed."""
        with self._lock:
            return [one.text for one in self._targets]

    @property
    def refused(self) -> list[Refused]:
        """What containers tried and was not allowed, in the last hour."""
        with self._lock:
            guides = [guide for bridge, guide in self._guides.values() if not bridge.gone]
        return [one for guide in guides for one in guide.attempts()]

    def bridge_of(self, engine: Engine) -> Bridge:
        """The network of it in an engine, made on first use."""
        from pycontain._networks.bridge import Options
        from pycontain._networks.policy import Guide

        with self._lock:
            found = self._guides.get(engine)
            if found is not None and not found[0].gone:
                return found[0]
            options = Options(name=f"egress-{secrets.token_hex(6)}", names=False, guided=True)
            bridge = engine.fabric.create(options)
            try:
                guide = Guide(bridge, tuple(self._targets))
            except BaseException:
                engine.fabric.remove(bridge)
                raise
            bridge.policy = guide
            self._guides[engine] = (bridge, guide)
            return bridge

    def close(self) -> None:
        """Remove its network, which else stays for the next one.  Conflict while a container has it."""
        with self._lock:
            for engine, (bridge, guide) in list(self._guides.items()):
                if not bridge.gone and not engine.closed:
                    engine.fabric.remove(bridge)
                    guide.close()
            self._guides.clear()

    def __repr__(self) -> str:
        return f"<Egress {', '.join(self.targets) or 'nothing'}>"
