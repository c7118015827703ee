"""R01 to R03: hosts that get credentials, with a registry that tries to redirect them."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

import pytest

from pycontain import Engine, PycontainError
from pycontain._registry import http, tokens
from pycontain._registry.credentials import Credentials
from pycontain.errors import AuthError, ImageError
from tests.security.transfers import LOGIN, PASSWORD, follow_blindly, fresh, own_everything, pull, push
from tests.support.names import Net
from tests.support.registry import Registry, Rule, replies, token

HOME, OTHER = "registry.example.org", "evil.example.net"
IDENTITY = Credentials(username="<token>", identity_token="pyc-identity-51c0")


def once_known(rule: Rule) -> Rule:
    """Return a rule that answers authenticated requests and challenges others."""
    asks = replies(401, WWW_Authenticate='Basic realm="pyc"')
    return lambda answer: (rule if answer.asked.authorization else asks)(answer)


def credentials_sent(*registries: Registry) -> list[str]:
    """Return all secrets that these registries received, in any field."""
    found = []
    for registry in registries:
        for one in registry.asked:
            text = f"{one.path} {one.headers} {one.body!r}"
            if any(
                secret in text
                for secret in ("Authorization", LOGIN.basic[6:], PASSWORD, IDENTITY.identity_token)
            ):
                found.append(text)
    return found


def locked(net: Net, name: str = HOME, port: int = 443) -> Registry:
    """Return a registry that accepts only LOGIN, by Basic."""
    registry = net.registry(name, port)
    registry.accepted, registry.challenge = {LOGIN.basic}, 'Basic realm="pyc"'
    return registry


# ---- R01: content from elsewhere ----------------------------------------------------------------------------


def _foreign(net: Net, engine: Engine, challenge: str) -> tuple[Registry, Registry]:
    home, other = locked(net), net.registry(OTHER)
    other.on("*", "/", replies(401, WWW_Authenticate=challenge))
    reference = home.has(fresh(urls=(f"https://{OTHER}/layer",)))
    home.blobs.clear()
    with pytest.raises(ImageError):
        pull(engine, reference, auth=LOGIN)
    return home, other


CHALLENGES = {
    "basic": 'Basic realm="x"',
    "bearer": f'Bearer realm="https://{OTHER}/token",service="x"',
    "bearer at home": f'Bearer realm="https://{HOME}/token",service="x"',
    "both": f'Basic realm="x", Bearer realm="https://{OTHER}/token"',
}


@pytest.mark.case("R01")
@pytest.mark.parametrize("challenge", CHALLENGES.values(), ids=list(CHALLENGES))
def test_urls_of_layers_are_never_contacted(challenge: str, net: Net, engine: Engine) -> None:
    home, other = _foreign(net, engine, challenge)
    assert home.authorizations()
    assert other.asked == []


@pytest.mark.case("R01")
@pytest.mark.parametrize("challenge", CHALLENGES.values(), ids=list(CHALLENGES))
def test_storage_that_challenges_gets_no_credentials(challenge: str, net: Net, engine: Engine) -> None:
    home, other = locked(net), net.registry(OTHER)
    other.on("*", "/", replies(401, WWW_Authenticate=challenge))
    home.on("GET", "/v2/.*/blobs/", once_known(replies(307, Location=f"https://{OTHER}/layer")))
    with pytest.raises(ImageError):
        pull(engine, home.has(fresh()), auth=LOGIN)
    assert other.asked
    assert credentials_sent(other) == []
    assert not any(one.path.startswith("/token") for one in home.asked)


@pytest.mark.case("R01")
def test_a_token_of_the_storage_is_not_shown_to_the_registry(net: Net, engine: Engine) -> None:
    home, other = net.registry(HOME), net.registry(OTHER)
    other.on("GET", "/token", token("pyc-poison"))
    other.on("GET", "/layer", replies(401, WWW_Authenticate=CHALLENGES["bearer"]))
    home.on("GET", "/v2/.*/blobs/", replies(307, Location=f"https://{OTHER}/layer"))
    with pytest.raises(ImageError):
        pull(engine, home.has(fresh()))
    assert home.authorizations() == []


@pytest.mark.case("R01")
def test_mirror_gets_no_credentials_of_the_registry(
    net: Net, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, mirror = locked(net), net.registry("mirror.example.net")
    for challenge in (CHALLENGES["basic"], f'Bearer realm="https://{HOME}/token"'):
        mirror.on("*", "/", replies(401, WWW_Authenticate=challenge), times=1)
    monkeypatch.setenv("PYCONTAIN_MIRRORS", f"{HOME}=mirror.example.net")
    pull(engine, home.has(fresh()), auth=LOGIN)
    assert mirror.asked
    assert credentials_sent(mirror) == []


@pytest.mark.control("R01")
def test_client_that_uses_layer_urls_would_be_detected(
    net: Net, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, other = locked(net), net.registry(OTHER)
    home.on("GET", "/v2/.*/blobs/", replies(307, Location=f"https://{OTHER}/layer"))
    follow_blindly(monkeypatch)
    with pytest.raises(ImageError):
        pull(engine, home.has(fresh()), auth=LOGIN)
    assert credentials_sent(other)


# ---- R02: redirects -----------------------------------------------------------------------------------------

STATUSES = (301, 302, 303, 307, 308)
ELSEWHERE = {
    "host": f"https://{OTHER}/x",
    "port": f"https://{HOME}:8443/x",
    "scheme": f"http://{HOME}/x",
    "no scheme": f"//{OTHER}/x",
    "upper case": f"HTTPS://{OTHER.upper()}/x",
    "userinfo": f"https://{HOME}@{OTHER}/x",
    "userinfo and port": f"https://{HOME}:443@{OTHER}/x",
    "backslash": f"https://{OTHER}\\@{HOME}/x",
    "backslash in the name": f"https://{OTHER}\\.{HOME}/x",
    "percent": f"https://{OTHER.replace('evil', '%65vil')}/x",
    "tab": f"https://{OTHER}\t@{HOME}/x",
    "trailing dot": f"https://{HOME}./x",
    "half a literal": f"https://[{OTHER}/x",
    "port that is none": f"https://{HOME}:99999/x",
    "file": "file:///etc/passwd",
    "ftp": f"ftp://{OTHER}/x",
    "gopher": f"gopher://{OTHER}/x",
    "link-local": "https://169.254.169.254/latest/meta-data",
    "link-local as a number": "https://2852039166/latest/meta-data",
    "link-local in hexadecimal": "https://0xa9fea9fe/latest",
    "link-local mapped": "https://[::ffff:169.254.169.254]/latest",
    "link-local behind percent": "https://169.254.169.%3254/latest",
    "link-local of IPv6": "https://[fe80::1]/latest",
    "nowhere": "https://0.0.0.0/x",
}


def _elsewhere(net: Net) -> list[Registry]:
    return [net.registry(OTHER), net.registry(HOME, 8443), net.plain(HOME), net.registry(f"{HOME}.")]


@pytest.mark.case("R02")
@pytest.mark.parametrize(
    ("where", "what"), [(where, ("manifests", "blobs")[at % 2]) for at, where in enumerate(ELSEWHERE)]
)
def test_redirect_carries_no_secret(where: str, what: str, net: Net, engine: Engine) -> None:
    home, others = locked(net), _elsewhere(net)
    status = STATUSES[list(ELSEWHERE).index(where) % len(STATUSES)]
    reference = home.has(fresh())
    home.on("GET", f"/v2/.*/{what}/", once_known(replies(status, Location=ELSEWHERE[where])))
    with pytest.raises(PycontainError):
        pull(engine, reference, auth=LOGIN)
    assert home.authorizations()
    assert credentials_sent(*others) == []
    assert [one for one in net.connected if one[0] not in (HOME, OTHER, f"{HOME}.")] == []
    assert others[2].asked == []


@pytest.mark.case("R02")
@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("where", ["host", "port"])
def test_every_redirect_serves_content_without_secrets(
    where: str, status: int, net: Net, engine: Engine
) -> None:
    home, image = locked(net), fresh()
    other = net.registry(*((OTHER, 443) if where == "host" else (HOME, 8443)))
    other.has(image)
    reference = home.has(image)
    moved = other.url + "{}"
    home.on(
        "GET",
        "/v2/.*/blobs/",
        once_known(lambda answer: answer.reply(status, Location=moved.format(answer.path))),
    )
    assert pull(engine, reference, auth=LOGIN).digest == image.digest
    assert len(other.asked) == 2
    assert credentials_sent(other) == []


@pytest.mark.case("R02")
def test_secrets_do_not_come_back_on_the_way_home(net: Net, engine: Engine) -> None:
    home, other = locked(net), net.registry(OTHER)
    home.on("GET", "/v2/.*/manifests/", once_known(replies(302, Location=f"https://{OTHER}/back")))
    other.on("GET", "/back", replies(302, Location=f"https://{HOME}/loot"))
    with pytest.raises(PycontainError):
        pull(engine, home.has(fresh()), auth=LOGIN)
    assert next(one.authorization for one in home.asked if one.path == "/loot") is None


def _pushed(net: Net, engine: Engine, location: str) -> tuple[Registry, list[Registry]]:
    source, home = net.registry("source.example.com"), locked(net)
    others = _elsewhere(net)
    image = fresh()
    digest = pull(engine, source.has(image)).digest
    home.on("POST", "/v2/.*/uploads/", once_known(replies(202, Location=location)))
    net.connected.clear()
    with pytest.raises(PycontainError):
        push(engine, digest, f"{HOME}/pyc/pushed:1", auth=LOGIN)
    return home, others


@pytest.mark.case("R02")
@pytest.mark.parametrize("where", list(ELSEWHERE))
def test_redirected_upload_carries_no_secret(where: str, net: Net, engine: Engine) -> None:
    home, others = _pushed(net, engine, ELSEWHERE[where])
    assert home.authorizations()
    assert credentials_sent(*others) == []
    assert [one for one in net.connected if one[0] not in (HOME, OTHER, f"{HOME}.")] == []
    assert others[2].asked == []


@pytest.mark.case("R02")
def test_a_lent_layer_is_not_deleted_elsewhere(net: Net, engine: Engine) -> None:
    home, other = locked(net), net.registry(OTHER)
    image = fresh()
    digest = pull(engine, home.has(image, "pyc/lender"), auth=LOGIN).digest
    home.blobs.clear()
    home.on("POST", r"/v2/.*/uploads/\?mount", replies(202, Location=f"https://{OTHER}/victim"))
    push(engine, digest, f"{HOME}/pyc/borrower:1", auth=LOGIN)
    assert other.asked == []


@pytest.mark.control("R02")
@pytest.mark.parametrize("where", ["host", "port", "scheme", "no scheme", "upper case"])
def test_client_that_follows_any_redirect_would_be_detected(
    where: str, net: Net, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow_blindly(monkeypatch)
    home, others = locked(net), _elsewhere(net)
    home.on("GET", "/v2/.*/manifests/", once_known(replies(307, Location=ELSEWHERE[where])))
    with pytest.raises(PycontainError):
        pull(engine, home.has(fresh()), auth=LOGIN)
    assert credentials_sent(*others)


@pytest.mark.control("R02")
@pytest.mark.parametrize("where", ["backslash", "link-local behind percent"])
def test_ambiguous_url_would_be_detected(
    where: str, net: Net, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "origin", _as_the_standard_library_reads)
    home, other = locked(net), net.registry(OTHER)
    home.on("GET", "/v2/.*/manifests/", once_known(replies(307, Location=ELSEWHERE[where])))
    with pytest.raises(PycontainError):
        pull(engine, home.has(fresh()), auth=LOGIN)
    assert credentials_sent(other) or ("169.254.169.254", 443) in net.connected


def _as_the_standard_library_reads(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


@pytest.mark.control("R02")
def test_upload_that_keeps_its_secret_would_be_detected(
    net: Net, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_everything(monkeypatch)
    _, others = _pushed(net, engine, ELSEWHERE["host"])
    assert credentials_sent(*others)


# ---- R03: realms --------------------------------------------------------------------------------------------

REALMS = {
    "plain HTTP at home": f"http://{HOME}/token",
    "plain HTTP on loopback": "http://127.0.0.1/token",
    "loopback": "https://127.0.0.1/token",
    "loopback by name": "https://localhost/token",
    "loopback of IPv6": "https://[::1]/token",
    "private": "https://10.0.0.1/token",
    "private by name": "https://inner.example.com/token",
    "metadata": "http://169.254.169.254/latest/meta-data",
    "metadata over TLS": "https://169.254.169.254/latest/meta-data",
    "metadata as a number": "https://2852039166/token",
    "metadata behind percent": "https://169.254.169.%3254/token",
    "metadata below home": f"https://metadata.{HOME}/token",
    "unrelated": f"https://{OTHER}/token",
    "unrelated and short": "https://org/token",
    "a suffix that is none": "https://evilexample.org/token",
    "home as a label": f"https://{HOME}.{OTHER}/token",
    "userinfo": f"https://{HOME}@{OTHER}/token",
    "userinfo with a password": f"https://{HOME}:443@{OTHER}/token",
    "empty userinfo": f"https://@{HOME}/token",
    "backslash": f"https://{OTHER}\\.example.org/token",
    "percent": f"https://{OTHER}%2f.example.org/token",
    "file": "file:///etc/passwd",
    "no scheme": f"//{OTHER}/token",
    "nothing": "",
    "half a literal": "https://[::1/token",
    "a port that is none": f"https://{HOME}:x/token",
    "other letters": "https://registry.ex\u00e4mple.org/token",
}


def _realm(net: Net, engine: Engine, realm: str, auth: Credentials | None) -> list[Registry]:
    net.addresses |= {
        "inner.example.com": ["10.1.2.3"],
        "localhost": ["127.0.0.1"],
        f"metadata.{HOME}": ["169.254.169.254"],
    }
    home = net.registry(HOME)
    home.challenge, home.accepted = f'Bearer realm="{realm}",service="pyc"', set()
    others = [
        net.registry(name)
        for name in (OTHER, "org", "evilexample.org", f"{HOME}.{OTHER}", "localhost", "inner.example.com")
    ]
    others += [net.plain(HOME), net.plain("127.0.0.1")]
    with pytest.raises(PycontainError):
        pull(engine, home.has(fresh()), auth=auth)
    assert not [one for one in net.connected if one[0].startswith(("169.", "10.", "fe80", "metadata"))]
    return others


@pytest.mark.case("R03")
@pytest.mark.parametrize(
    ("realm", "auth"),
    [(realm, (LOGIN, IDENTITY)[at % 2]) for at, realm in enumerate(REALMS.values())],
    ids=list(REALMS),
)
def test_credentials_are_not_sent_to_unrelated_hosts(
    realm: str, auth: Credentials, net: Net, engine: Engine
) -> None:
    others = _realm(net, engine, realm, auth)
    assert credentials_sent(*others) == []
    assert net.connected == [(HOME, 443)]


@pytest.mark.case("R03")
@pytest.mark.parametrize(
    "realm", [text for name, text in REALMS.items() if name.startswith(("loop", "private", "meta", "half"))]
)
def test_not_even_without_credentials_is_an_inner_host_asked(realm: str, net: Net, engine: Engine) -> None:
    _realm(net, engine, realm, None)
    assert net.connected == [(HOME, 443)]


@pytest.mark.case("R03")
@pytest.mark.parametrize(
    ("status", "auth"), [(302, LOGIN), (307, LOGIN), (303, IDENTITY), (308, IDENTITY)], ids=str
)
def test_redirecting_token_service_gets_no_secret(
    auth: Credentials, status: int, net: Net, engine: Engine
) -> None:
    home, service, other = net.registry(HOME), net.registry("auth.example.org"), net.registry(OTHER)
    home.challenge, home.accepted = 'Bearer realm="https://auth.example.org/token"', set()
    service.on("*", "/token", replies(status, Location=f"https://{OTHER}/token"))
    other.on("*", "/", token("x"))
    with pytest.raises(PycontainError):
        pull(engine, home.has(fresh()), auth=auth)
    assert credentials_sent(service)
    assert credentials_sent(other) == []


@pytest.mark.case("R03")
@pytest.mark.parametrize(
    "realm", [f"https://{HOME}/token", "https://auth.example.org/token", f"https://auth.{HOME}/token"]
)
def test_related_token_service_gets_credentials(realm: str, net: Net, engine: Engine) -> None:
    home = net.registry(HOME)
    service = home if f"//{HOME}" in realm else net.registry(realm.split("/")[2])
    home.challenge, home.accepted = f'Bearer realm="{realm}",service="pyc"', {"Bearer pyc-token"}
    service.on("GET", "/token", token("pyc-token"))
    image = fresh()
    assert pull(engine, home.has(image), auth=LOGIN).digest == image.digest
    asked = next(one for one in service.asked if one.path.startswith("/token"))
    assert asked.authorization == LOGIN.basic
    assert asked.query == {"service": ["pyc"], "scope": ["repository:pyc/image:pull"]}


@pytest.mark.case("R03")
def test_named_realm_gets_credentials(net: Net, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    home, other = net.registry(HOME), net.registry(OTHER)
    home.challenge, home.accepted = f'Bearer realm="https://{OTHER}/token"', {"Bearer pyc-token"}
    other.on("POST", "/token", token("pyc-token"))
    monkeypatch.setenv("PYCONTAIN_TRUSTED_REALMS", OTHER)
    image = fresh()
    assert pull(engine, home.has(image), auth=IDENTITY).digest == image.digest
    assert other.asked[0].authorization is None
    assert IDENTITY.identity_token.encode() in other.asked[0].body


@pytest.mark.case("R03")
def test_http_token_service_must_be_the_registry_host(net: Net, engine: Engine) -> None:
    home, other = net.plain(HOME), net.plain("auth.example.org")
    home.challenge, home.accepted = 'Bearer realm="http://auth.example.org/token"', set()
    with pytest.raises(AuthError):
        pull(engine, home.has(fresh()), auth=LOGIN, insecure=True)
    assert other.asked == []


@pytest.mark.case("R03")
@pytest.mark.parametrize(
    "value", ["a\r\nX-Injected: 1", "a b", "\u00e4", "", "a\x00", 7, None, ["a"], "x" * (1 << 21)]
)
def test_a_token_that_is_no_header_is_refused(value: object, net: Net, engine: Engine) -> None:
    home = net.registry(HOME)
    home.challenge, home.accepted = f'Bearer realm="https://{HOME}/token"', set()
    home.on("GET", "/token", replies(200, json.dumps({"token": value}).encode()))
    with pytest.raises(ImageError):
        pull(engine, home.has(fresh()), auth=LOGIN)
    assert not any("X-Injected" in one.headers for one in home.asked)


@pytest.mark.control("R03")
@pytest.mark.parametrize("realm", ["unrelated", "loopback by name", "private by name", "home as a label"])
def test_unchecked_realm_would_be_detected(
    realm: str, net: Net, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens.Tokens, "_check_realm", lambda self, realm: True)
    net.addresses["inner.example.com"] = ["10.1.2.3"]
    home, other = net.registry(HOME), net.registry(REALMS[realm].split("/")[2])
    home.challenge, home.accepted = f'Bearer realm="{REALMS[realm]}"', set()
    with pytest.raises(PycontainError):
        pull(engine, home.has(fresh()), auth=LOGIN)
    assert credentials_sent(other)


@pytest.mark.control("R03")
def test_connection_to_metadata_would_be_detected(
    net: Net, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens.Tokens, "_check_realm", lambda self, realm: True)
    home = net.registry(HOME)
    home.challenge, home.accepted = f'Bearer realm="{REALMS["metadata"]}"', set()
    with pytest.raises(PycontainError):
        pull(engine, home.has(fresh()))
    assert ("169.254.169.254", 80) in net.connected
