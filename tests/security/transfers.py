"""Pulls and pushes with short timeouts, and variants of the library without one of its checks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urljoin

import pytest

from pycontain import Engine
from pycontain._images.progress import Meter
from pycontain._images.pull import Pull
from pycontain._images.push import Push
from pycontain._registry import client, http
from pycontain._registry.credentials import Credentials
from pycontain._registry.endpoint import Patience
from pycontain._state.tables.images import ImageRecord
from pycontain.oci import Digest, Platform, Reference
from tests.support.registry import Made, make_image

QUICK = Patience(
    connect=2, read=0.5, tries=3, first_pause=0.01, longest_pause=0.05, whole=0.5, slowest=1024, grace=0.5
)
USER, PASSWORD = "pyc-user", "pyc-pass-7d1e44"
LOGIN = Credentials(username=USER, password=PASSWORD)


def _quiet(reference: Reference) -> Meter:
    return Meter(reference.familiar, lambda _: None)


def pull(
    engine: Engine,
    reference: str,
    *,
    auth: Credentials | None = None,
    insecure: bool = False,
    patience: Patience = QUICK,
) -> ImageRecord:
    parsed = Reference.parse(reference)
    platform, meter = Platform.host(), _quiet(parsed)
    return Pull(
        engine._session.store, parsed, platform, auth=auth, insecure=insecure, patience=patience, meter=meter
    ).run()


def push(
    engine: Engine,
    digest: Digest,
    reference: str,
    *,
    auth: Credentials | None = None,
    insecure: bool = False,
    patience: Patience = QUICK,
) -> Digest:
    parsed = Reference.parse(reference)
    return Push(
        engine._session.store,
        digest,
        parsed,
        auth=auth,
        insecure=insecure,
        patience=patience,
        meter=_quiet(parsed),
    ).run()


def fresh(size: int = 64, layers: int = 1, **options: Any) -> Made:
    """Return an image that no store has seen."""
    return make_image(*({f"pyc-{at}": os.urandom(size)} for at in range(layers)), **options)


def follow_blindly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: follow redirects to any host with all headers."""

    def followed(self: http.Http, method: str, url: str, headers: Mapping[str, str], body: Any) -> Any:
        for _ in range(5):
            response = self._once(method, url, headers, body)
            target = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or not target:
                return response
            response.close()
            url = urljoin(url, target)
        raise self.error("redirects without end")

    monkeypatch.setattr(http.Http, "_followed", followed)


def own_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: treat every origin as the registry's own."""
    real = http.origin
    monkeypatch.setattr(client, "origin", lambda url: real(url) and "own")
