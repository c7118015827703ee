"""Authorization headers for a registry's 401 (distribution specification, token authentication)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote_plus, urlencode

from pycontain._registry.challenges import Challenge
from pycontain._registry.endpoint import RegistryEndpoint, trusted_realms
from pycontain._registry.http import Http, addresses, origin
from pycontain.errors import AuthError, ImageError

if TYPE_CHECKING:
    from pycontain._registry.credentials import Credentials

_TOKEN_MOST = 1 << 20
_SHORTEST, _LONGEST = 60, 3600
_MARGIN = 10
_SECOND_LEVEL = frozenset({"co", "com", "org", "net", "gov", "edu", "ac", "or", "ne", "go", "gob", "mil"})


def related(realm_host: str, registry_host: str) -> bool:
    """Return whether a host may receive a registry's credentials: the same host, its parent or a sibling."""
    if realm_host == registry_host:
        return True
    if not registry_host.replace(".", "").strip("0123456789") or ":" in registry_host:
        return False  # an address has no parent domain
    parent = registry_host.partition(".")[2]
    labels = parent.split(".")
    if len(labels) < 2 or (len(labels) == 2 and labels[0] in _SECOND_LEVEL):
        return False
    return realm_host == parent or realm_host.endswith(f".{parent}")


class Tokens:
    """Authorization headers by scope, requested when the registry sends a challenge."""

    def __init__(
        self,
        endpoint: RegistryEndpoint,
        http: Http,
        credentials: Credentials | None,
        problems: Sequence[str] = (),
    ) -> None:
        self._endpoint, self._http, self._credentials = endpoint, http, credentials
        self._problems = problems
        if credentials is not None:
            http.keep(credentials.password, credentials.identity_token)
        self._held: dict[str, tuple[str, float]] = {}
        self._mutex = threading.Lock()

    def header(self, scope: str) -> str | None:
        """Return the cached header of a scope, or None if there is none or it has expired."""
        value, until = self._held.get(scope, ("", 0.0))
        return value if value and time.monotonic() < until else None

    def answer(self, challenge: Challenge | None, scope: str, refused: str | None) -> str:
        """Return the header for a challenge.

        Args:
            challenge: The registry's challenge, or None if it sent none.
            scope: Scope of the request.
            refused: The header that was sent and not accepted, if any.

        Raises:
            AuthError: There are no credentials, or they were not accepted.
        """
        with self._mutex:
            held = self.header(scope)
            if held is not None and held != refused:
                return held  # another thread has requested it meanwhile
            if challenge is None:
                raise self._denied("without a challenge")
            if challenge.scheme == "basic":
                return self._basic(scope, refused)
            if refused is not None and refused.startswith("Bearer ") and held is not None:
                raise self._denied("to these credentials")
            token, seconds = self._ask(challenge, scope)
            self._http.keep(token)
            value = f"Bearer {token}"
            self._held[scope] = value, time.monotonic() + max(seconds - _MARGIN, _MARGIN)
            return value

    def _basic(self, scope: str, refused: str | None) -> str:
        if self._credentials is None or not self._credentials.username or self._credentials.identity_token:
            raise self._denied("without credentials")
        value = self._credentials.basic
        if refused == value:
            raise self._denied("to these credentials")
        self._held[scope] = value, float("inf")
        return value

    def _denied(self, why: str) -> AuthError:
        problems = "".join(f"; {one}" for one in self._problems)
        hint = "pass auth=(username, password) or run `docker login`, and check that the image exists"
        if problems:
            hint = "repair the credential helper or file, or pass auth=(username, password)"
        return AuthError(f"registry {self._endpoint.name} denied access {why}{problems}", hint=hint)

    def _check_realm(self, realm: str) -> bool:
        """Check the URL of a token service; return whether it may receive the credentials.

        Raises:
            AuthError: It may not be used at all.
        """
        registry = origin(self._endpoint.url)
        try:
            scheme, host, _ = origin(realm)
        except ImageError:
            scheme = host = ""
        if scheme not in ("http", "https"):
            raise AuthError(
                f"registry {self._endpoint.name} names a token service that is not a URL: "
                f"{self._http.hidden(realm)[:200]!r}"
            )
        same = host == registry[1]
        if scheme == "http" and not (self._endpoint.insecure and same):
            raise AuthError(f"registry {self._endpoint.name} names a token service without TLS: {host}")
        kin = related(host, registry[1]) or host in trusted_realms()
        for address in addresses(realm):
            if address.is_link_local or address.is_multicast or address.is_unspecified:
                raise AuthError(
                    f"registry {self._endpoint.name} names a token service at the reserved address {address}"
                )
            if not address.is_global and not kin:
                raise AuthError(
                    f"registry {self._endpoint.name} names a token service in a private network: {host}",
                    hint=f"set PYCONTAIN_TRUSTED_REALMS={host} if you trust it",
                )
        return kin

    def _ask(self, challenge: Challenge, scope: str) -> tuple[str, float]:
        kin = self._check_realm(challenge.realm)
        if self._credentials is not None and not kin:
            host = origin(challenge.realm)[1]
            raise AuthError(
                f"registry {self._endpoint.name} names a token service at another site for its credentials: "
                f"{host}",
                hint=f"set PYCONTAIN_TRUSTED_REALMS={host} if you trust it",
            )
        query = [("service", challenge.service)] if challenge.service else []
        scopes = dict.fromkeys([*scope.split(), *challenge.scope.split()])
        if self._credentials is not None and self._credentials.identity_token:
            return self._refresh(challenge.realm, [*query, ("scope", " ".join(scopes))])
        query += [("scope", one) for one in scopes]
        headers = {}
        if self._credentials is not None:
            headers["Authorization"] = self._credentials.basic
        mark = "&" if "?" in challenge.realm else "?"
        url = challenge.realm + (mark + urlencode(query, quote_via=quote_plus) if query else "")
        with self._http.request("GET", url, headers) as response:
            return self._token(response)

    def _refresh(self, realm: str, query: list[tuple[str, str]]) -> tuple[str, float]:
        assert self._credentials is not None
        form = [
            *query,
            ("grant_type", "refresh_token"),
            ("refresh_token", self._credentials.identity_token),
            ("client_id", "pycontain"),
        ]
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        with self._http.request("POST", realm, headers, urlencode(form).encode()) as response:
            return self._token(response)

    def _token(self, response: object) -> tuple[str, float]:
        import urllib3

        assert isinstance(response, urllib3.BaseHTTPResponse)
        if response.status in (400, 401, 403):
            raise self._denied("to these credentials" if self._credentials else "without credentials")
        if response.status != 200:
            raise self._http.error(
                f"the token service of {self._endpoint.name} returned status {response.status}"
            )
        try:
            document = json.loads(self._http.body(response, _TOKEN_MOST, "the token"))
            token = document.get("token") or document["access_token"]
            seconds = document.get("expires_in") or _SHORTEST
            if not isinstance(token, str) or not isinstance(seconds, int | float):
                raise TypeError
            seconds = min(max(float(seconds), _SHORTEST), _LONGEST)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            raise AuthError(f"the token service of {self._endpoint.name} returned no token") from None
        if not token.isascii() or any(ord(char) < 33 for char in token):
            raise AuthError(f"the token service of {self._endpoint.name} returned no token")
        return token, seconds
