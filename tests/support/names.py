"""Private names and authorities of a test: registries by public names on this machine's loopback.

Names resolve and connections open as usual.  All answers come from here, and no packet leaves the machine.
"""

from __future__ import annotations

import datetime
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
import urllib3.util.connection

from tests.support.registry import Registry

PUBLIC = "93.184.216.34"
"""The default address of every name."""


class Net:
    """Registries under names, and an account of who was asked for and connected to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        self.authority = trustme.CA()
        self.addresses: dict[str, list[str]] = {}
        self.connected: list[tuple[str, int]] = []
        self._ports: dict[tuple[str, int], int] = {}
        self._running: list[Registry] = []
        bundle = directory / "pyc-authority.pem"
        self.authority.cert_pem.write_to_path(str(bundle))
        monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
        monkeypatch.setattr(socket, "getaddrinfo", self._resolve)
        monkeypatch.setattr(urllib3.util.connection, "create_connection", self._connect)
        self._getaddrinfo, self._create = _REAL

    def _resolve(self, host: Any, port: Any, *args: Any, **options: Any) -> Any:
        name = str(host).strip("[]")
        try:
            found = self._getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        except OSError:
            if not any(name == known for known, _ in self._ports) and name not in self.addresses:
                raise
            found = []
            for address in self.addresses.get(name, [PUBLIC]):
                found += self._getaddrinfo(
                    address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
                )
        return found

    def _connect(self, address: tuple[str, int], *args: Any, **options: Any) -> socket.socket:
        """Connect to the registry with this name, to a port of loopback, or fail."""
        host, port = address[0].strip("[]"), address[1]
        self.connected.append((host, port))
        there = self._ports.get((host, port))
        if there is None and host != "127.0.0.1":
            raise OSError(f"the test has no {host}:{port}")
        return self._create(("127.0.0.1", there or port), *args, **options)

    def context(self, *names: str, **options: Any) -> ssl.SSLContext:
        """Return a server's side of TLS."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(*names, **options).configure_cert(context)
        return context

    def registry(
        self, name: str = "127.0.0.1", port: int = 443, *, context: ssl.SSLContext | None = None
    ) -> Registry:
        """Start one with TLS under a name."""
        return self._start(name, port, context or self.context(name))

    def plain(self, name: str = "127.0.0.1", port: int = 80) -> Registry:
        """Start one that speaks plain HTTP."""
        return self._start(name, port, None)

    def _start(self, name: str, port: int, context: ssl.SSLContext | None) -> Registry:
        started = Registry(context).__enter__()
        self._running.append(started)
        if name != "127.0.0.1":
            self._ports[name, port] = started.port
            started.host = name if port in (80, 443) else f"{name}:{port}"
        return started

    def expired(self, *names: str) -> ssl.SSLContext:
        """Return a context with an expired certificate."""
        past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
        return self.context(*names, not_after=past)

    def close(self) -> None:
        for one in self._running:
            one.__exit__()


_REAL = socket.getaddrinfo, urllib3.util.connection.create_connection


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Net]:
    """Provide a private world: no credentials, no proxies, only the names that the test makes."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("PYCONTAIN_MIRRORS", "PYCONTAIN_INSECURE_REGISTRIES", "PYCONTAIN_TRUSTED_REALMS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "pyc-no-credentials"))
    made = Net(monkeypatch, tmp_path)
    yield made
    made.close()
