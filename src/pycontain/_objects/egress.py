"""Egress: a network that allows connections to given names and addresses only."""

from __future__ import annotations

import secrets
import threading
import weakref
from typing import TYPE_CHECKING

from pycontain._model.targets import Target, target_of
from pycontain._objects.context_manager import ClosingContextManager
from pycontain.errors import LimitError, StateError

if TYPE_CHECKING:
    from pycontain._networks.egress import EgressPolicy, Refused
    from pycontain._networks.network import Bridge
    from pycontain._objects.engine import Engine


MOST_TARGETS = 4096
"""Maximum number of targets; the kernel compares the first packet of a connection with all ranges."""


class Egress(ClosingContextManager):
    """A network that allows connections to given names and address ranges only.

    Use it as `network=Egress.allow('packages.example.org:443', '10.0.0.0/8')`.

    Everything else is rejected at once: other addresses, other names (the name service answers REFUSED),
    IPv6, services of this host, and containers, also those with the same Egress.  The addresses of a name are
    those that the name service returns for it; they stay permitted for at least five minutes.  Answers with
    addresses that are not public are withheld unless a range permits the address.  Targets can be changed
    while containers run.

    Limits: 4096 targets; 256 addresses of one answer, the rest is removed from it; 8192 pairs of address and
    port of a container and 16384 in total, above which the oldest one is rejected until its name is resolved
    again; records of 1024 refused names of a container and 4096 in total, and of 512 refused addresses per
    hour of a container and 16384 of an engine.
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
        """Permit further targets, effective at once.

        Args:
            *targets: Names, addresses or ranges, as in `allow`.

        Raises:
            ValueError: A target is malformed.
            TypeError: A target is not a string.
            LimitError: There are more than 4096 targets.
            StateError: The kernel refused the change; nothing further is permitted.
        """
        found = [target_of(one) for one in targets]
        with self._lock:
            allowed = {**self._targets, **dict.fromkeys(found)}
            if len(allowed) > MOST_TARGETS:
                raise LimitError(f"an Egress must have at most {MOST_TARGETS} targets, got {len(allowed)}")
            self._change(allowed)

    def revoke(self, *targets: str) -> None:
        """Remove targets and cut off their connections, effective at once.

        Args:
            *targets: Permitted targets, as they were written.

        Raises:
            ValueError: A target is not permitted.
            StateError: The kernel refused the change; containers reach nothing until `revoke` or `permit`
                succeeds.
        """
        found = [target_of(one) for one in targets]
        with self._lock:
            for one in found:
                if one not in self._targets:
                    raise ValueError(f"target must be one that this Egress allows, got {one.text!r}")
            self._change({one: None for one in self._targets if one not in found})

    def _change(self, targets: dict[Target, None]) -> None:
        """Change the network of every engine, also after a failure, which leaves `_targets` unchanged."""
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
        """Permitted targets."""
        with self._lock:
            return [one.text for one in self._targets]

    @property
    def refused(self) -> list[Refused]:
        """Names and addresses that containers tried to reach without permission during the last hour."""
        with self._lock:
            policies = [policy for bridge, policy in self._policies.values() if not bridge.gone]
        return [one for policy in policies for one in policy.attempts()]

    def bridge_of(self, engine: Engine) -> Bridge:
        """Return the network of an engine, created on first use."""
        from pycontain._networks.egress import EgressPolicy
        from pycontain._networks.network import Options

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
        """Remove the network; without this it is kept for later containers.

        Raises:
            Conflict: A container is on the network.
            StateError: The kernel did not remove rules of the network.
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
