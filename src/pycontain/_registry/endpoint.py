"""Where a registry answers, and who else is trusted with what belongs to it."""

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
    """How long strangers are waited for.

    connect, read: seconds for a connection and for the next bytes.  tries: requests without progress.
    first_pause: seconds before the second of them, doubled with each.  longest_pause: seconds at most,
    whatever Retry-After says.  whole: seconds for all pauses of one request.  slowest: bytes a second
    below which a transfer of over `grace` seconds is given up.  timeout: seconds for all requests together,
    until the monotonic clock shows `until`; None: as long as they make progress.
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
        """Return the patience that a caller asks for, from now on.

        Args:
            timeout: Seconds for everything, or None.
            retries: How often a request that fails is repeated, or None for 4 times.

        Raises:
            LimitError, TypeError, ValueError: One of them has no meaning.
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
        """Seconds until `until`; infinite without a timeout."""
        return max(self.until - time.monotonic(), 0.0)


@frozen(kw_only=True)
class Endpoint:
    """One registry: its name in references, the host that answers for it, plain HTTP or TLS."""

    name: str
    host: str
    insecure: bool = False
    patience: Patience = field(default=Patience(), eq=False)

    @classmethod
    def of(cls, name: str, *, insecure: bool = False, patience: Patience | None = None) -> Endpoint:
        """TLS, unless the caller or PYCONTAIN_INSECURE_REGISTRIES names exactly this registry."""
        plain = insecure or name in _listed("PYCONTAIN_INSECURE_REGISTRIES")
        host = _HUB_API if name == _HUB else name
        return cls(name=name, host=host, insecure=plain, patience=patience or Patience())

    @property
    def url(self) -> str:
        """The root of its API."""
        return f"{'http' if self.insecure else 'https'}://{self.host}"


def mirrors(name: str) -> list[str]:
    """Hosts to ask before a registry: PYCONTAIN_MIRRORS, 'docker.io=mirror.example,ghcr.io=other:5000'.

    Raises ValueError for text that is not of this form.
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
    """Hosts that may be told credentials of other registries: PYCONTAIN_TRUSTED_REALMS."""
    return _listed("PYCONTAIN_TRUSTED_REALMS")


def _listed(variable: str) -> list[str]:
    return [part.strip() for part in os.environ.get(variable, "").split(",") if part.strip()]
