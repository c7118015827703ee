"""The registry client: challenges, endpoints, tokens, proxies."""

from __future__ import annotations

import email.utils
import http.server
import re
import socket
import threading
import time
from typing import Any

import pytest

from pycontain._registry.challenges import Challenge, parse_challenges
from pycontain._registry.client import Registry as Client
from pycontain._registry.credentials import Credentials
from pycontain._registry.endpoint import Patience, RegistryEndpoint, mirrors
from pycontain._registry.http import Http, origin
from pycontain._registry.tokens import related
from pycontain.errors import AuthError, ImageError, LimitError, PullError, PycontainError
from pycontain.oci import Digest
from tests.support.names import Net
from tests.support.registry import Answer, Registry, Rule, make_image, replies, token

HOME = "registry.example.org"
QUICK = Patience(connect=2, read=2, tries=2, first_pause=0.01, longest_pause=0.05, whole=1)
LOGIN = Credentials(username="ann", password="pass")
NOTHING = Digest.of(b"")

# ---- challenges and realms -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        (['Bearer realm="https://a/t",service="s",scope="x:y:z"'], ("bearer", "https://a/t", "s", "x:y:z")),
        (["bearer REALM=https://a/t"], ("bearer", "https://a/t", "", "")),
        (['Bearer  service="s" , realm = "r"'], ("bearer", "r", "s", "")),
        (['Bearer realm="a,b",scope="x:y:pull,push"'], ("bearer", "a,b", "", "x:y:pull,push")),
        (['Basic realm="x"', 'Bearer realm="r"'], ("bearer", "r", "", "")),
        (['Basic realm="x"'], ("basic", "x", "", "")),
        (["Basic"], ("basic", "", "", "")),
        (["Negotiate abc", 'Digest realm="x"'], None),
        (['Bearer realm="r",service="s", Basic realm="x"'], ("bearer", "r", "s", "")),
        (['Basic realm="x", Bearer realm="r",service="s"'], ("bearer", "r", "s", "")),
        (['Negotiate, Basic realm="x", charset="UTF-8"'], ("basic", "x", "", "")),
        (['Negotiate YWJj==, Bearer realm="r"'], ("bearer", "r", "", "")),
        (['Negotiate YWJj, Basic realm="x"'], ("basic", "x", "", "")),
        ([', , Basic realm="x" , , Digest realm="d", nonce="a, Bearer realm=evil"'], ("basic", "x", "", "")),
        ([r'Basic realm="a \"quoted\", name"'], ("basic", 'a "quoted", name', "", "")),
        (["Basic, Bearer realm=https://a/t,service=s"], ("bearer", "https://a/t", "s", "")),
        (['Bearer realm="r", realm="other"'], ("bearer", "r", "", "")),
        (['Bearer realm="r" service="s"'], ("bearer", "r", "s", "")),
        (['"" (, Basic realm="x"'], ("basic", "x", "", "")),
        ([], None),
        ([""], None),
    ],
)
def test_challenges_are_read(headers: list[str], found: tuple[str, ...] | None) -> None:
    parsed = Challenge.parse(headers)
    assert parsed == (Challenge(*found) if found else None)


def test_parameters_belong_to_the_challenge_before_them() -> None:
    header = 'Digest realm="d", nonce=n, qop="auth, auth-int", Bearer realm="r", Negotiate a+/=='
    assert parse_challenges(header) == [
        ("digest", {"realm": "d", "nonce": "n", "qop": "auth, auth-int"}),
        ("bearer", {"realm": "r"}),
        ("negotiate", {}),
    ]


def test_a_long_challenge_is_read_in_no_time() -> None:
    begun = time.process_time()
    for text in ('a="' * 30000, "a=\\" * 30000, 'a="' + "\\" * 60000, "=" * 60000, "a " * 30000, "a" * 60000):
        Challenge.parse([f"Bearer {text}"])
    assert time.process_time() - begun < 20, "quadratic would be minutes"


@pytest.mark.parametrize(
    ("realm", "registry", "kin"),
    [
        (HOME, HOME, True),
        ("auth.docker.io", "registry-1.docker.io", True),
        ("example.org", HOME, True),
        ("auth.example.org", HOME, True),
        (f"auth.{HOME}", HOME, True),
        ("evilexample.org", HOME, False),
        ("example.org.evil.net", HOME, False),
        ("org", HOME, False),
        ("evil.org", "example.org", False),
        ("auth.example.org", "example.org", False),
        ("evil.co.uk", "example.co.uk", False),
        ("evil.com.au", "example.com.au", False),
        ("10.0.0.2", "10.0.0.1", False),
        ("1.0.0.1", "127.0.0.1", False),
        ("::2", "::1", False),
        ("localhost", "localhost", True),
        ("evil", "localhost", False),
        ("", HOME, False),
    ],
)
def test_related_hosts(realm: str, registry: str, kin: bool) -> None:
    assert related(realm, registry) is kin


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://A.example/x", ("https", "a.example", 443)),
        ("HTTP://a:5000", ("http", "a", 5000)),
        ("https://[::1]:5000/x", ("https", "::1", 5000)),
        ("https://a?x@b", ("https", "a", 443)),
        ("https://a#x@b", ("https", "a", 443)),
    ],
)
def test_contacted_hosts(url: str, found: tuple[str, str, int]) -> None:
    assert origin(url) == found


@pytest.mark.parametrize(
    "url",
    [
        *("", "a", "//a", "/a", "https:", "https:a", "https://", "https:///a", "https:\\\\a", " https://a"),
        *(
            "https://a@b/",
            "https://@b/",
            "https://a\\@b/",
            "https://a\\.b/",
            "https://a%2eb/",
            "https://a b/",
        ),
        *("https://a\t/", "https://a\n", "https://a:/x", "https://a:x/", "https://a:65536/", "https://[::1/"),
        *("https://\u00e4/", "https://\uff45vil/", "https://[::1]a/", "https://[fe80::1%25eth0]/"),
    ],
)
def test_ambiguous_url_is_rejected(url: str) -> None:
    with pytest.raises(ImageError):
        origin(url)


# ---- endpoints -----------------------------------------------------------------------------------------


def test_the_hub_answers_elsewhere() -> None:
    assert RegistryEndpoint.of("docker.io").url == "https://registry-1.docker.io"
    assert RegistryEndpoint.of("localhost:5000").url == "https://localhost:5000"


def test_mirrors_are_a_registrys_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCONTAIN_MIRRORS", " docker.io=a.example, ghcr.io=b:5000,docker.io=c ")
    assert mirrors("docker.io") == ["a.example", "c"]
    assert mirrors("quay.io") == []
    for wrong in ("docker.io", "=a", "docker.io=", "docker.io=https://a/"):
        monkeypatch.setenv("PYCONTAIN_MIRRORS", wrong)
        with pytest.raises(ValueError, match="PYCONTAIN_MIRRORS"):
            mirrors("docker.io")


# ---- pauses --------------------------------------------------------------------------------------------


def _after(text: str) -> float:
    class Response:
        headers = {"Retry-After": text}

    patience = Patience(longest_pause=60)
    return Http(patience)._asked(Response())  # type: ignore[arg-type]


def test_retry_after_is_a_number_or_a_date() -> None:
    assert _after("7") == 7
    assert _after("7000") == 60
    assert 25 < _after(email.utils.formatdate(time.time() + 30, usegmt=True)) <= 30
    assert _after(email.utils.formatdate(time.time() + 9000, usegmt=True)) == 60
    assert _after(email.utils.formatdate(time.time() - 30, usegmt=True)) == 0
    for text in ("", "x", "-1", "1.5", "1e9", "\u00b2", "Mon", "0" * 70000, "1," * 30000, "(" * 30000):
        assert 0 <= _after(text) <= 60


# ---- tokens --------------------------------------------------------------------------------------------


@pytest.fixture
def home(net: Net) -> Registry:
    """Return a registry that takes the token 'one' and gives it at /token."""
    made = net.registry(HOME)
    made.challenge, made.accepted = f'Bearer realm="https://{HOME}/token",service="s"', {"Bearer one"}
    made.on("*", "/token", token("one"))
    made.has(make_image({"a": b"b"}), "a/b")
    return made


def _asked(home: Registry) -> int:
    return sum(one.path.startswith("/token") for one in home.asked)


def _client(**options: Any) -> Client:
    return Client(RegistryEndpoint.of(HOME, patience=QUICK), "a/b", **{"auth": LOGIN, **options})


def test_token_is_reused_until_it_expires(home: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    real, later = time.monotonic, 0.0
    monkeypatch.setattr("pycontain._registry.tokens.time.monotonic", lambda: real() + later)
    with _client() as client:
        client.manifest("latest")
        client.manifest("latest")
        assert _asked(home) == 1
        later = 301
        client.manifest("latest")
        assert _asked(home) == 2


def test_a_token_that_is_refused_is_not_asked_for_without_end(home: Registry) -> None:
    home.accepted = set()
    with _client() as client, pytest.raises(AuthError):
        client.manifest("latest")
    assert _asked(home) <= 2


def test_token_is_only_for_its_scope(home: Registry) -> None:
    """A loan names another repository: its token is another one, and neither serves for the other."""
    given = iter(["one", "two", "three"])
    home._rules.clear()
    home.on("*", "/token", lambda answer: token(next(given))(answer))
    home.accepted = {"Bearer one", "Bearer two"}
    with _client(push=True) as client:
        client.has_blob(NOTHING)
        client.mount(NOTHING, "other/lender")
        client.has_blob(NOTHING)
    scopes = [one.query["scope"] for one in home.asked if one.path.startswith("/token")]
    assert scopes == [
        ["repository:a/b:pull,push"],
        ["repository:a/b:pull,push", "repository:other/lender:pull"],
    ]
    sent = {(one.method, one.authorization) for one in home.asked if one.authorization != LOGIN.basic}
    assert {("HEAD", "Bearer one"), ("POST", "Bearer two")} <= sent
    assert ("HEAD", "Bearer two") not in sent


def test_scope_of_a_challenge_is_requested_unchanged(home: Registry) -> None:
    home.challenge += ',scope="repository:a/b:pull repository:x:y&z=1#"'
    with _client() as client:
        client.manifest("latest")
    asked = next(one for one in home.asked if one.path.startswith("/token"))
    assert asked.query == {"service": ["s"], "scope": ["repository:a/b:pull", "repository:x:y&z=1#"]}


def test_an_identity_token_is_exchanged_in_a_body(home: Registry) -> None:
    secret = "a&b=c d"
    with _client(auth=Credentials(username="<token>", identity_token=secret)) as client:
        client.manifest("latest")
    asked = next(one for one in home.asked if one.path.startswith("/token"))
    assert (asked.method, asked.path, asked.authorization) == ("POST", "/token", None)
    assert b"grant_type=refresh_token&refresh_token=a%26b%3Dc+d" in asked.body


SECONDS = {"none": None, "nought": 0, "negative": -5, "little": 1, "huge": 10**400, "no number": "x"}


@pytest.mark.parametrize("seconds", SECONDS.values(), ids=list(SECONDS))
def test_how_long_a_token_lasts_is_a_number_or_the_token_is_none(seconds: object, home: Registry) -> None:
    home._rules.clear()
    home.on("*", "/token", token("one", seconds))
    with _client() as client:
        if isinstance(seconds, str) or seconds == 10**400:
            with pytest.raises(AuthError):
                client.manifest("latest")
        else:
            client.manifest("latest")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "true", "1e999"])
def test_odd_numbers_of_seconds_are_no_reason_to_ask_for_ever(text: str, home: Registry) -> None:
    home._rules.clear()
    home.on("*", "/token", replies(200, b'{"token": "one", "expires_in": %s}' % text.encode()))
    with _client() as client:
        try:
            client.manifest("latest")
        except PycontainError:
            pass
    assert _asked(home) <= 3


# ---- proxies -------------------------------------------------------------------------------------------


def _tunnel(there: Registry) -> Rule:
    """Return a rule that serves CONNECT as a proxy, to the only registry."""
    import select
    import socket

    def rule(answer: Answer) -> None:
        answer.close_connection = True
        with socket.create_connection(("127.0.0.1", there.port)) as beyond:
            answer.wfile.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            sides = {answer.connection: beyond, beyond: answer.connection}
            while True:
                for one in select.select(list(sides), [], [], 5)[0]:
                    data = one.recv(65536)
                    if not data:
                        return
                    sides[one].sendall(data)

    return rule


def test_a_proxy_of_tls_learns_the_host_and_no_more(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    home, proxy = net.registry(HOME), net.plain("proxy.example.net", 3128)
    home.challenge, home.accepted = 'Basic realm="x"', {LOGIN.basic}
    home.has(make_image({"a": b"b"}), "a/b")
    proxy.on("CONNECT", "", _tunnel(home))
    monkeypatch.setenv("https_proxy", "http://proxy.example.net:3128")
    with _client() as client:
        client.manifest("latest")
    assert home.authorizations() == [LOGIN.basic]
    assert {one.path for one in proxy.asked} == {f"{HOME}:443"}
    assert proxy.authorizations() == []
    assert {host for host, _ in net.connected} == {"proxy.example.net"}


def test_a_proxy_that_answers_itself_is_not_taken_for_the_registry(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = net.plain("proxy.example.net", 3128)
    monkeypatch.setenv("https_proxy", "http://proxy.example.net:3128")
    for answer in (
        replies(407),
        replies(302, Location="https://evil.example.net/"),
        replies(401, WWW_Authenticate='Basic realm="x"'),
        replies(200, b"x" * 100),
    ):
        proxy.on("CONNECT", "", answer, times=QUICK.tries)
        with _client() as client, pytest.raises(ImageError):
            client.manifest("latest")
    assert proxy.authorizations() == []


def test_no_proxy_is_heeded(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    home, proxy = net.registry(HOME), net.plain("proxy.example.net", 3128)
    home.has(make_image({"a": b"b"}), "a/b")
    monkeypatch.setenv("https_proxy", "http://proxy.example.net:3128")
    monkeypatch.setenv("no_proxy", ".example.org")
    with _client() as client:
        client.manifest("latest")
    assert proxy.asked == []


# ---- what a registry may leave out ---------------------------------------------------------------------


def test_methods_and_headers_are_those_of_the_specification(net: Net) -> None:
    home, image = net.registry(HOME), make_image({"a": b"b"})
    home.has(image, "a/b")
    with _client(auth=None) as client:
        assert client.manifest("latest").raw == image.manifest
        assert client.has_manifest(image.digest)
        assert not client.has_manifest(NOTHING)
        assert client.has_blob(Digest(image.layers[0]))
        assert not client.has_blob(NOTHING)
        client.upload(NOTHING, 0, lambda at, size: b"", 8)
        client.upload(Digest.of(b"abc"), 3, lambda at, size: b"abc"[at : at + size], 2)
    assert home.blobs[str(Digest.of(b"abc"))] == b"abc"
    first = home.asked[0]
    assert "application/vnd.oci.image.index.v1+json" in first.headers["Accept"]
    assert first.headers["Accept-Encoding"] == "identity"
    assert [one.method for one in home.asked] == [
        *("GET", "HEAD", "HEAD", "HEAD", "HEAD", "POST", "PUT", "POST", "PATCH", "PATCH", "PUT")
    ]
    ranges = [one.headers["Content-Range"] for one in home.asked if one.method == "PATCH"]
    assert ranges == ["0-1", "2-2"]


def test_a_connection_serves_again_and_ends_with_the_work(net: Net) -> None:
    home, image = net.registry(HOME), make_image({"a": b"b"})
    home.has(image, "a/b")
    with _client(auth=None) as client:
        for _ in range(5):
            client.manifest("latest")
        assert b"".join(client.blob(Digest(image.layers[0])))
        held = client._http
    assert len(net.connected) == 1
    assert all(not manager.pools for manager in held._pools.values())


# ---- errors that name the cause ----------------------------------------------------------------------------


def _refused(name: str, **options: Any) -> PycontainError:
    endpoint = RegistryEndpoint.of(name, insecure=options.pop("insecure", True), patience=Patience(**options))
    with pytest.raises(PullError) as caught, Client(endpoint, "a/b") as client:
        client.manifest("latest")
    return caught.value


_ONCE = {"tries": 1, "first_pause": 0.01}


def test_a_refused_connection_is_named_with_the_tries() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        name = f"127.0.0.1:{bound.getsockname()[1]}"
        error = _refused(name, tries=3, first_pause=0.01)
        assert re.search(r"does not answer: connection refused \(3 tries in \d\.\d seconds\)", str(error))
        assert "tries" not in str(_refused(name, **_ONCE))


@pytest.mark.parametrize(("number", "tries"), [(socket.EAI_NONAME, 1), (socket.EAI_AGAIN, 3)])
def test_an_unknown_host_is_named(number: int, tries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def resolve(*args: Any, **_: Any) -> Any:
        asked.append(args)
        raise socket.gaierror(number, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    error = _refused("registry.invalid", tries=3, first_pause=0.01)
    assert "host name cannot be resolved: Name or service not known" in str(error)
    assert len(asked) == tries


def test_a_silent_registry_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        name = f"127.0.0.1:{silent.getsockname()[1]}"
        error = _refused(name, read=0.1, tries=2, first_pause=0.01)
        assert re.search(r"does not answer: timed out \(2 tries", str(error))
        begun = time.monotonic()
        patience = Patience.within(0.3, None)
        endpoint = RegistryEndpoint.of(name, insecure=True, patience=patience)
        with (
            pytest.raises(PullError, match=r"within timeout=0\.3 seconds"),
            Client(endpoint, "a/b") as client,
        ):
            client.manifest("latest")
        assert time.monotonic() - begun < 5


def test_a_registry_without_tls_is_named() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as plain:
        threading.Thread(target=plain.serve_forever, daemon=True).start()
        error = _refused(f"127.0.0.1:{plain.server_port}", insecure=False, tries=2, first_pause=0.01)
        plain.shutdown()
    assert "no trusted connection" in str(error)
    assert "insecure=True" in str(error)


@pytest.mark.parametrize("value", [-1, 1.5, "3", True])
def test_retries_are_a_number(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="retries must be"):
        Patience.within(None, value)


def test_a_timeout_is_above_zero() -> None:
    assert Patience.within(None, 2) == Patience(tries=3)
    with pytest.raises(LimitError, match="timeout must be above 0"):
        Patience.within(0, None)


def test_control_characters_of_a_server_are_escaped(net: Net) -> None:
    home = net.registry(HOME)
    home.on("GET", "/", replies(307, Location=f"https://{HOME}/\x1b[31mred\x9b2J"))
    with pytest.raises(ImageError, match="redirects without end") as caught, _client() as client:
        client.manifest("latest")
    assert str(caught.value).isprintable()
