"""R04, R05: plain HTTP and TLS certificates of registries."""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from pycontain import Engine, PycontainError
from pycontain._registry import endpoint, http
from pycontain.errors import ImageError
from tests.security.transfers import LOGIN, fresh, pull, push
from tests.support.names import PUBLIC, Net
from tests.support.registry import Registry, replies, token

HOME = "registry.example.org"

# ---- R04: plain HTTP ----------------------------------------------------------------------------------------


@pytest.mark.case("R04")
@pytest.mark.parametrize("port", [443, 80, 5000])
def test_http_registry_is_not_contacted(port: int, net: Net, engine: Engine) -> None:
    server = net.plain(HOME, port)
    server.has(fresh())
    with pytest.raises(ImageError, match=r"registry\.example\.org"):
        pull(engine, f"{HOME}:{port}/pyc/image" if port != 443 else f"{HOME}/pyc/image", auth=LOGIN)
    assert server.asked == []


@pytest.mark.case("R04")
@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["127.0.0.1", PUBLIC], [PUBLIC, "::1"], ["10.0.0.1"]])
@pytest.mark.parametrize("name", [HOME, "localhost"])
def test_loopback_is_no_reason_to_do_without_tls(
    name: str, addresses: list[str], net: Net, engine: Engine
) -> None:
    net.addresses[name] = addresses
    server = net.plain(name, 5000)
    with pytest.raises(ImageError):
        pull(engine, server.has(fresh()), auth=LOGIN)
    assert server.asked == []


@pytest.mark.case("R04")
@pytest.mark.parametrize(
    "listed",
    [
        "example.org",
        f"{HOME}:5001",
        "127.0.0.1",
        "*",
        f"evil{HOME}:5000",
        f"http://{HOME}:5000",
        HOME.upper(),
    ],
)
def test_another_registrys_exception_is_not_this_ones(
    listed: str, net: Net, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYCONTAIN_INSECURE_REGISTRIES", listed)
    server = net.plain(HOME, 5000)
    with pytest.raises(ImageError):
        pull(engine, server.has(fresh()), auth=LOGIN)
    assert server.asked == []


@pytest.mark.case("R04")
def test_listed_registry_is_contacted_by_http(
    net: Net, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYCONTAIN_INSECURE_REGISTRIES", f"other.example.org, {HOME}:5000")
    image, server = fresh(), net.plain(HOME, 5000)
    assert pull(engine, server.has(image)).digest == image.digest


@pytest.mark.case("R04")
def test_insecure_registry_does_not_make_its_mirror_insecure(
    net: Net, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYCONTAIN_MIRRORS", f"{HOME}=mirror.example.net:5000")
    image, server, mirror = fresh(), net.plain(HOME), net.plain("mirror.example.net", 5000)
    mirror.has(image)
    assert pull(engine, server.has(image), insecure=True).digest == image.digest
    assert mirror.asked == []


@pytest.mark.control("R04")
def test_client_that_trusts_loopback_would_be_detected(
    net: Net, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2026-92543: any address of loopback switches TLS off."""
    real = endpoint.RegistryEndpoint.of.__func__  # type: ignore[attr-defined]

    def of(cls: Any, /, name: str, **options: object) -> endpoint.RegistryEndpoint:
        local = any(address.is_loopback for address in http.addresses(f"https://{name}"))
        made: endpoint.RegistryEndpoint = real(cls, name, **{**options, "insecure": local})
        return made

    monkeypatch.setattr(endpoint.RegistryEndpoint, "of", classmethod(of))
    net.addresses[HOME] = ["127.0.0.1", PUBLIC]
    image, server = fresh(), net.plain(HOME, 5000)
    assert pull(engine, server.has(image)).digest == image.digest
    assert server.asked


# ---- R05: certificates --------------------------------------------------------------------------------------


def _self_signed(net: Net, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert(name).configure_cert(context)
    return context


def _old(net: Net, name: str) -> ssl.SSLContext:
    context = net.context(name)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


BAD: dict[str, Callable[[Net, str], ssl.SSLContext]] = {
    "expired": lambda net, name: net.expired(name),
    "unknown authority": _self_signed,
    "wrong name": lambda net, name: net.context("registry.example.com"),
    "name above": lambda net, name: net.context("example.org"),
    "wildcard too wide": lambda net, name: net.context("*.org"),
    "TLS 1.1": _old,
}


def _attempt(path: str, net: Net, engine: Engine, bad: Callable[[Net, str], ssl.SSLContext]) -> Registry:
    """Run the operation that contacts a registry with a bad certificate, and return that registry."""
    if path in ("manifest", "push"):
        server = net.registry(HOME, context=bad(net, HOME))
        image = fresh()
        if path == "manifest":
            pull(engine, server.has(image), auth=LOGIN)
        else:
            digest = pull(engine, net.registry("source.example.com").has(image)).digest
            push(engine, digest, f"{HOME}/pyc/pushed", auth=LOGIN)
        return server
    if path == "mirror":
        server, image = net.registry("mirror.example.org", context=bad(net, "mirror.example.org")), fresh()
        server.has(image)
        pull(engine, net.registry(HOME).has(image))
        return server
    name = f"{path}.{HOME}"
    home, server, image = net.registry(HOME), net.registry(name, context=bad(net, name)), fresh()
    server.has(image)
    server.on("GET", "/token", token("pyc-token"))
    if path == "redirect":
        home.on("GET", "/v2/.*/blobs/", lambda answer: answer.reply(307, Location=server.url + answer.path))
    elif path == "token":
        home.challenge, home.accepted = f'Bearer realm="https://{name}/token"', {"Bearer pyc-token"}
    else:
        home.on("POST", "/", replies(202, Location=f"https://{name}/v2/pyc/pushed/blobs/uploads/u0"))
        server.uploads["u0"] = bytearray()
        digest = pull(engine, net.registry("source.example.com").has(image)).digest
        push(engine, digest, f"{HOME}/pyc/pushed", auth=LOGIN)
        return server
    pull(engine, home.has(image), auth=LOGIN)
    return server


@pytest.mark.case("R05")
@pytest.mark.parametrize("bad", list(BAD))
@pytest.mark.parametrize("path", ["manifest", "redirect", "token", "push", "upload"])
def test_nothing_goes_over_a_connection_that_is_not_trusted(
    path: str, bad: str, net: Net, engine: Engine
) -> None:
    servers: list[Registry] = []
    real = net.registry
    net.registry = lambda *args, **options: servers.append(real(*args, **options)) or servers[-1]  # type: ignore
    with pytest.raises(ImageError, match=r"no trusted connection to https://.*example\.org"):
        _attempt(path, net, engine, BAD[bad])
    bad_one = [one for one in servers if one.host in (HOME, f"{path}.{HOME}")][-1]
    assert bad_one.asked == []


@pytest.mark.case("R05")
@pytest.mark.parametrize("bad", ["expired", "unknown authority", "wrong name"])
def test_untrusted_mirror_is_skipped(
    bad: str, net: Net, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYCONTAIN_MIRRORS", f"{HOME}=mirror.example.org")
    assert _attempt("mirror", net, engine, BAD[bad]).asked == []


@pytest.mark.case("R05")
def test_insecure_is_no_tls_rather_than_unverified_tls(net: Net, engine: Engine) -> None:
    server = net.registry(HOME, 80, context=_self_signed(net, HOME))
    with pytest.raises(PycontainError):
        pull(engine, server.has(fresh()), insecure=True)
    assert server.asked == []


@pytest.mark.case("R05")
def test_redirect_from_http_to_tls_is_verified(net: Net, engine: Engine) -> None:
    home, image = net.plain(HOME), fresh()
    other = net.registry("cdn.example.net", context=_self_signed(net, "cdn.example.net"))
    other.has(image)
    home.on("GET", "/v2/.*/blobs/", lambda answer: answer.reply(307, Location=other.url + answer.path))
    with pytest.raises(ImageError, match="no trusted connection"):
        pull(engine, home.has(image), insecure=True)
    assert other.asked == []


@pytest.mark.case("R05")
def test_authorities_of_docker_and_podman_apply_only_to_their_host(
    net: Net, engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    private, contexts = trustme.CA(), {}
    for name in (HOME, "other.example.org"):
        contexts[name] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        private.issue_cert(name).configure_cert(contexts[name])
    (tmp_path / HOME).mkdir()
    private.cert_pem.write_to_path(str(tmp_path / HOME / "ca.crt"))
    monkeypatch.setattr(http, "_CERTIFICATES", (str(tmp_path),))
    image = fresh()
    home = net.registry(HOME, context=contexts[HOME])
    assert pull(engine, home.has(image)).digest == image.digest
    other = net.registry("other.example.org", context=contexts["other.example.org"])
    with pytest.raises(ImageError, match="no trusted connection"):
        pull(engine, other.has(fresh()))


def _unverified(host: str) -> ssl.SSLContext:
    context = ssl._create_unverified_context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
    return context


@pytest.mark.control("R05")
@pytest.mark.parametrize(
    ("path", "bad"),
    [*(("manifest", bad) for bad in BAD), *((path, "expired") for path in ("redirect", "token", "push"))],
)
@pytest.mark.filterwarnings("ignore:Unverified HTTPS")
def test_client_without_verification_would_be_detected(
    path: str, bad: str, net: Net, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_context", _unverified)
    assert _attempt(path, net, engine, BAD[bad]).asked
