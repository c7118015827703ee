"""Address of a registry, its mirrors and trusted token services, and the patience with it."""

from __future__ import annotations

import os
import time
from datetime import timedelta

from attrs import evolve, field, frozen

from pycontain._model.sizes import parse_duration, shown
from pycontain.errors import LimitError

_HUB, _HUB_API = "docker.io", "registry-1.docker.io"


@frozen(kw_only=True)
class Patience:
    """Timeouts and retries of an operation with a registry.

    Attributes:
        connect: Seconds for a connection.
        read: Seconds for the next bytes.
        tries: Number of tries of a request without progress.
        first_pause: Seconds before the second try, doubled with each further one.
        longest_pause: Maximum seconds before a try, also for Retry-After.
        whole: Maximum seconds of all pauses of a request.
        slowest: Minimum bytes per second of a transfer.
        grace: Seconds after which that minimum applies.
        timeout: Seconds for all requests together, or None for no limit while there is progress.
        until: End of the timeout on the monotonic clock.
    """

    connect: float = 10
    read: float = 30
    tries: int = 5
    first_pause: float = 0.5
    longest_pause: float = 60
    whole: float = 120
    slowest: int = 1024
    grace: float = 60
    timeout: float | None = None
    until: float = float("inf")

    @classmethod
    def within(cls, timeout: float | timedelta | None, retries: int | None) -> Patience:
        """Return the patience for the arguments of a caller; the timeout starts now.

        Args:
            timeout: Seconds for all requests together, or None for no limit.
            retries: Number of retries of a failed request, or None for 4.

        Raises:
            LimitError: The timeout is not above 0.
            TypeError: A value has another type.
            ValueError: The number of retries is negative.
        """
        found = cls()
        if retries is not None:
            if isinstance(retries, bool) or not isinstance(retries, int):
                raise TypeError(f"retries must be a number, got {shown(retries)}")
            if retries < 0:
                raise ValueError(f"retries must be 0 or more, got {retries}")
            found = evolve(found, tries=retries + 1)
        if timeout is not None:
            seconds = parse_duration(timeout)
            if seconds <= 0:
                raise LimitError(f"timeout must be above 0 seconds, got {shown(timeout)}")
            found = evolve(found, timeout=seconds, until=time.monotonic() + seconds)
        return found

    @property
    def left(self) -> float:
        """Return the seconds until `until`; infinite without a timeout."""
        return max(self.until - time.monotonic(), 0.0)


@frozen(kw_only=True)
class RegistryEndpoint:
    """One registry.

    Attributes:
        name: Name in image references.
        host: Host and port of its API.
        insecure: Whether plain HTTP is used.
        patience: Timeouts and retries.
    """

    name: str
    host: str
    insecure: bool = False
    patience: Patience = field(default=Patience(), eq=False)

    @classmethod
    def of(cls, name: str, *, insecure: bool = False, patience: Patience | None = None) -> RegistryEndpoint:
        """Return the endpoint of a registry, with TLS unless PYCONTAIN_INSECURE_REGISTRIES names it."""
        plain = insecure or name in _listed("PYCONTAIN_INSECURE_REGISTRIES")
        host = _HUB_API if name == _HUB else name
        return cls(name=name, host=host, insecure=plain, patience=patience or Patience())

    @property
    def url(self) -> str:
        """Return the root URL of the API."""
        return f"{'http' if self.insecure else 'https'}://{self.host}"


def mirrors(name: str) -> list[str]:
    """Return the mirrors to try before a registry.

    PYCONTAIN_MIRRORS has the form 'docker.io=mirror.example.org,ghcr.io=other.example.org:5000'.

    Raises:
        ValueError: The variable has another form.
    """
    found = []
    for pair in _listed("PYCONTAIN_MIRRORS"):
        registry, equals, mirror = pair.partition("=")
        if not equals or not registry or not mirror or "/" in mirror:
            raise ValueError(f"PYCONTAIN_MIRRORS must be 'registry=mirror,...', got {shown(pair)}")
        if registry == name:
            found.append(mirror)
    return found


def trusted_realms() -> list[str]:
    """Return the hosts of PYCONTAIN_TRUSTED_REALMS, which may receive credentials of other registries."""
    return _listed("PYCONTAIN_TRUSTED_REALMS")


def _listed(variable: str) -> list[str]:
    return [part.strip() for part in os.environ.get(variable, "").split(",") if part.strip()]
