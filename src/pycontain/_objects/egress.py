"""Egress: a network on which only what is named can be reached."""

from __future__ import annotations

import secrets
import threading
import weakref
from typing import TYPE_CHECKING

from pycontain._model.targets import Target, target_of
from pycontain._objects.context_manager import ClosingContextManager
from pycontain.errors import LimitError, StateError

if TYPE_CHECKING:
    from pycontain._networks.bridge import Bridge
    from pycontain._networks.egress import EgressPolicy, Refused
    from pycontain._objects.engine import Engine


MOST_TARGETS = 4096
"""The kernel judges the first packet of a connection by one range after the other."""


class Egress(ClosingContextManager):
    """A network that reaches only certain names and ranges.

    Use it as `network=Egress.allow('packages.example.org:443', '10.0.0.0/8')`.

    Everything else is refused at once: other addresses, other names (the name service says REFUSED), IPv6,
    services of this host and containers, also those with the same Egress.  A name is what the name service
    says of it, from then on for at least five minutes; one that leads to an address that is not public is
    held back, unless a range allows the address.  It may be changed while containers run, and `refused` has
    what was not allowed.

    Bounds: 4096 targets; of one answer 256 addresses, the rest is left out of it; 8192 addresses by port and
    protocol of a container and 16384 in all, beyond which the oldest is not reached any more until its name
    is asked for again; 1024 refused names of a container and 4096 in all, and 512 refused addresses an hour
    of a container and 16384 of an engine, beyond which later ones are not recorded.
    """

    def __init__(self) -> None:
        self._targets: dict[Target, None] = {}
        self._policies: weakref.WeakKeyDictionary[Engine, tuple[Bridge, EgressPolicy]] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = threading.RLock()

    @classmethod
    def allow(cls, *targets: str) -> Egress:
        """Create an `Egress` that permits only the given targets.

        A target without a port means every port, one without ``/tcp`` or ``/udp`` both protocols.  A range
        never includes metadata services of clouds such as 169.254.169.254.

        Args:
            *targets: names, addresses or ranges, such as ``"example.org:443"``, ``"10.0.0.0/8"`` or
                ``"10.0.0.1:53/udp"``.  ``"*.example.org"`` matches every name below ``example.org``, but not
                ``example.org`` itself.

        Raises:
            ValueError: a target is malformed.
            TypeError: a target is not a string.
            LimitError: there are more than 4096 targets.
        """
        new = cls()
        new.permit(*targets)
        return new

    def permit(self, *targets: str) -> None:
        """Allow more, at once.

        Raises ValueError, TypeError, LimitError above 4096 targets, StateError: nothing more is allowed then.
        """
        found = [target_of(one) for one in targets]
        with self._lock:
            allowed = {**self._targets, **dict.fromkeys(found)}
            if len(allowed) > MOST_TARGETS:
                raise LimitError(f"an Egress must have at most {MOST_TARGETS} targets, got {len(allowed)}")
            self._change(allowed)

    def revoke(self, *targets: str) -> None:
        """Allow these no more, at once: connections that were made are cut off too.

        Raises ValueError for one that is not allowed. Raises StateError where the kernel refuses the change:
        containers reach nothing at all from then on, until `revoke` or `permit` succeeds.
        """
        found = [target_of(one) for one in targets]
        with self._lock:
            for one in found:
                if one not in self._targets:
                    raise ValueError(f"target must be one that this Egress allows, got {one.text!r}")
            self._change({one: None for one in self._targets if one not in found})

    def _change(self, targets: dict[Target, None]) -> None:
        """Change every engine's network, also after one failed; `_targets` is as before then."""
        failed: StateError | None = None
        for bridge, policy in list(self._policies.values()):
            if not bridge.gone:
                try:
                    policy.change(tuple(targets))
                except StateError as error:
                    failed = error
        if failed is not None:
            raise failed
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
            policies = [policy for bridge, policy in self._policies.values() if not bridge.gone]
        return [one for policy in policies for one in policy.attempts()]

    def bridge_of(self, engine: Engine) -> Bridge:
        """The network of it in an engine, made on first use."""
        from pycontain._networks.bridge import Options
        from pycontain._networks.egress import EgressPolicy

        with self._lock:
            found = self._policies.get(engine)
            if found is not None and not found[0].gone:
                return found[0]
            options = Options(name=f"egress-{secrets.token_hex(6)}", names=False, restricted=True)
            bridge = engine._session.network_manager.create(options)
            try:
                policy = EgressPolicy(bridge, tuple(self._targets))
            except BaseException:
                engine._session.network_manager.remove(bridge)
                raise
            bridge.policy = policy
            self._policies[engine] = (bridge, policy)
            return bridge

    def close(self) -> None:
        """Remove its network, which else stays for the next one.

        Raises Conflict while a container has it, StateError where the kernel keeps rules of it.
        """
        with self._lock:
            for engine, (bridge, policy) in list(self._policies.items()):
                if not engine._session.closed:
                    if not bridge.gone:
                        engine._session.network_manager.remove(bridge)
                    policy.close()
                del self._policies[engine]

    def __repr__(self) -> str:
        return f"<Egress {', '.join(self.targets) or 'nothing'}>"
