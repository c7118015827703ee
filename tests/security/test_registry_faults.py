"""R06: a registry that stalls, drips, breaks off, lies about lengths, or never ends its answer."""

from __future__ import annotations

import gzip
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import urllib3

from pycontain import Engine, PycontainError
from pycontain._registry import client, http, wire
from pycontain._registry.endpoint import Patience
from pycontain.errors import ImageError
from pycontain.oci import Digest
from tests.security.transfers import LOGIN, fresh, pull, push
from tests.support.names import Net
from tests.support.registry import Answer, Made, Registry, Rule, replies

FULL = bool(os.environ.get("PYC_SECURITY_FULL"))
HOME = "registry.example.org"
SHORT = Patience(
    connect=0.3, read=0.3, tries=2, first_pause=0.01, longest_pause=0.05, whole=0.2, slowest=1024, grace=0.3
)
WITHIN = 8.0
"""Seconds that any of it may take: tries of tries, and a machine that has other things to do."""
MEMORY = 48 << 20


def _memory(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def cost(net: Net, work: Callable[[], object]) -> tuple[float, int]:
    """Return seconds and peak bytes of memory; connections are cut if it takes far too long."""
    Path("/proc/self/clear_refs").write_text("5")
    before, begun = _memory("VmRSS"), time.monotonic()
    rescue = threading.Timer(WITHIN + 1, net.close)
    rescue.start()
    try:
        with pytest.raises(PycontainError):
            work()
    finally:
        past = time.monotonic() - begun
        rescue.cancel()
        rescue.join()
    return past, _memory("VmHWM") - before


def goes_on(head: bytes, again: bytes, pause: float = 0) -> Rule:
    """Return a rule that sends a beginning, then a piece again and again."""

    def rule(answer: Answer) -> None:
        answer.wfile.write(head)
        answer.until_gone(again, pause)

    return rule


_OK = b"HTTP/1.1 200 OK\r\n"
_LONG = _OK + b"Content-Length: 1000000\r\n\r\n"
_CHUNKED = _OK + b"Transfer-Encoding: chunked\r\n\r\n"
_BLOCK = b"a" * 65536
_BOMB = gzip.compress(bytes(256 << 20), 9)

ENDLESS: dict[str, Rule] = {
    "no answer": goes_on(b"", b"", 0.1),
    "status, dripping": goes_on(b"HTTP/1.1 200 ", b"O", 0.05),
    "status, without end": goes_on(b"HTTP/1.1 200 ", _BLOCK),
    "headers, dripping": goes_on(_OK + b"X: ", b"a", 0.05),
    "headers, without end": goes_on(_OK, b"X: " + b"a" * 1000 + b"\r\n"),
    "a header, without end": goes_on(_OK + b"X: ", _BLOCK),
    "continued for ever": goes_on(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "continued with headers": goes_on(b"", b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n"),
    "continued, dripping": goes_on(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.05),
    "body, stalled": goes_on(_LONG, b"", 0.1),
    "body, dripping": goes_on(_LONG, b"a", 0.05),
    "body, without end": goes_on(_OK + b"\r\n", _BLOCK),
    "body of 404": goes_on(b"HTTP/1.1 404 No\r\n\r\n", _BLOCK),
    "body of 500": goes_on(b"HTTP/1.1 500 No\r\n\r\n", _BLOCK),
    "body of 403, dripping": goes_on(b"HTTP/1.1 403 No\r\n\r\n", b"a", 0.05),
    "body of 401": goes_on(b'HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm="x"\r\n\r\n', _BLOCK),
    "body of a redirect": goes_on(b"HTTP/1.1 302 No\r\nLocation: /x\r\n\r\n", _BLOCK),
    "body of a redirect, dripping": goes_on(b"HTTP/1.1 302 No\r\nLocation: /x\r\n\r\n", b"a", 0.05),
    "chunks of one": goes_on(_CHUNKED, b"1\r\na\r\n" * 1000),
    "a chunk's length, dripping": goes_on(_CHUNKED, b"0", 0.05),
    "a chunk's length, without end": goes_on(_CHUNKED, _BLOCK.replace(b"a", b"0")),
    "a chunk's extension, dripping": goes_on(_CHUNKED + b"5;", b"a", 0.05),
    "a chunk's extension, without end": goes_on(_CHUNKED + b"5;", _BLOCK),
    "a chunk of 2^63": goes_on(_CHUNKED + b"7fffffffffffffff\r\n", _BLOCK),
    "a chunk of less than nothing": goes_on(_CHUNKED + b"-5\r\n", _BLOCK),
    "trailers, without end": goes_on(_CHUNKED + b"1\r\na\r\n0\r\n", b"X: y\r\n" * 1000),
    "trailers, dripping": goes_on(_CHUNKED + b"1\r\na\r\n0\r\n", b"X: y\r\n", 0.05),
    "length of 10^4 digits": goes_on(_OK + b"Content-Length: " + b"9" * 10000 + b"\r\n\r\n", _BLOCK),
    "two lengths": goes_on(_OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", b"a", 0.05),
    "compressed": goes_on(_OK + b"Content-Encoding: gzip\r\n\r\n" + _BOMB, b"", 0.1),
    "compressed twice": goes_on(
        _OK + b"Content-Encoding: gzip, gzip\r\n\r\n" + gzip.compress(_BOMB), b"", 0.1
    ),
    "not HTTP": goes_on(b"220 ready\r\n", _BLOCK),
}


def _attack(place: str, rule: Rule, net: Net, engine: Engine) -> Callable[[], object]:
    home = net.registry(HOME)
    image = fresh()
    reference = home.has(image)
    if place == "token":
        home.challenge, home.accepted = f'Bearer realm="https://{HOME}/token"', set()
        home.on("GET", "/token", rule)
    elif place == "upload":
        digest = pull(engine, net.registry("source.example.com").has(image)).digest
        home.blobs.clear()
        home.on("PATCH", "/", rule)
        return lambda: push(engine, digest, f"{HOME}/pyc/pushed", patience=SHORT)
    else:
        home.on("GET", f"/v2/.*/{place}/", rule)
    return lambda: pull(engine, reference, auth=LOGIN, patience=SHORT)


_PLACES = ("manifests", "blobs", "token", "upload")


@pytest.mark.case("R06")
@pytest.mark.parametrize("rule", list(ENDLESS))
@pytest.mark.parametrize("place", _PLACES)
def test_endless_answers_are_ended(place: str, rule: str, net: Net, engine: Engine) -> None:
    if not FULL and place != ("manifests", "blobs")[list(ENDLESS).index(rule) % 2]:
        pytest.skip("part of the full set (make security)")
    seconds, memory = cost(net, _attack(place, ENDLESS[rule], net, engine))
    assert seconds < WITHIN
    assert memory < MEMORY


@pytest.mark.control("R06")
@pytest.mark.parametrize("rule", ["headers, dripping", "continued for ever", "trailers, without end"])
def test_unwatched_socket_would_be_detected(
    rule: str, net: Net, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    unwatched = {"http": urllib3.HTTPConnectionPool, "https": urllib3.HTTPSConnectionPool}
    monkeypatch.setattr(wire, "classes", lambda patience: unwatched)
    monkeypatch.setattr("tests.security.test_registry_faults.WITHIN", 2)
    seconds, _ = cost(net, _attack("manifests", ENDLESS[rule], net, engine))
    assert seconds > 2


@pytest.mark.control("R06")
def test_unbounded_body_would_be_detected(net: Net, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def body(self: http.Http, response: Any, most: int, what: str) -> bytes:
        data = bytearray()
        for chunk in self.chunks(response, 65536):
            data += chunk
            if len(data) > 4 * MEMORY:
                break
        return bytes(data)

    monkeypatch.setattr(http.Http, "body", body)
    _, memory = cost(net, _attack("manifests", ENDLESS["body, without end"], net, engine))
    assert memory > MEMORY


# ---- storms -------------------------------------------------------------------------------------------------

AFTER = {
    "nothing": "",
    "a year": "31536000",
    "10^30": "1" + "0" * 30,
    "10^5000": "1" + "0" * 5000,
    "negative": "-5",
    "a date far off": "Fri, 31 Dec 9999 23:59:59 GMT",
    "a date beyond": "Fri, 31 Dec 99999 23:59:59 GMT",
    "a date long past": "Thu, 01 Jan 1970 00:00:00 GMT",
    "a date with an odd zone": "Fri, 31 Dec 2038 23:59:59 +9999",
    "no date": "Fri, 99 Foo 2038 99:99:99 GMT",
    "other digits": "\u00b2\u00b3",
    "not a number": "nan",
}


@pytest.mark.case("R06")
@pytest.mark.parametrize("after", AFTER.values(), ids=list(AFTER))
@pytest.mark.parametrize("status", [429, 503])
def test_endless_refusals_end_soon(status: int, after: str, net: Net, engine: Engine) -> None:
    rule = replies(status, Retry_After=after) if after else replies(status)
    seconds, _ = cost(net, _attack(("manifests", "blobs")[status == 503], rule, net, engine))
    assert seconds < WITHIN


@pytest.mark.case("R06")
@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_temporary_refusal_is_retried(status: int, net: Net, engine: Engine) -> None:
    home, image = net.registry(HOME), fresh()
    for path in ("manifests", "blobs"):
        home.on("GET", f"/v2/.*/{path}/", replies(status, Retry_After="9"), times=1)
    assert pull(engine, home.has(image), patience=SHORT).digest == image.digest


@pytest.mark.case("R06")
@pytest.mark.parametrize("place", ["manifests", "blobs", "token"])
@pytest.mark.parametrize("where", ["itself", "on and on", "to and fro"])
def test_redirects_without_end_are_left(place: str, where: str, net: Net, engine: Engine) -> None:
    other = net.registry("other.example.org")
    there = {"itself": "", "on and on": "x", "to and fro": f"https://other.example.org/v2/a/{place}/"}[where]
    other.on("GET", "/", replies(302, Location=f"https://{HOME}/v2/a/{place}/x"))
    rule: Rule = lambda answer: answer.reply(302, Location=there or answer.path)  # noqa: E731
    seconds, _ = cost(net, _attack(place, rule, net, engine))
    assert seconds < WITHIN
    assert len(net.connected) < 60


# ---- transfers that break off, and lie ----------------------------------------------------------------------


def _content(engine: Engine, image: Made) -> None:
    """Check that the stored content equals the source, byte for byte."""
    for name in (*image.layers, str(image.digest)):
        data = Path(engine._session.store.blob_path(Digest(name))).read_bytes()
        assert Digest.of(data) == name


class Breaking:
    """A rule that serves a layer in pieces, one per connection, with a configurable handling of Range."""

    def __init__(self, data: bytes, at: list[int], ranged: str) -> None:
        self.data, self.at, self.ranged = data, at, ranged

    def __call__(self, answer: Answer) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", answer.headers.get("Range", ""))
        start, size = int(asked[1]) if asked else 0, len(self.data)
        end = next((one for one in self.at if one > start), size)
        status, header = "206 Partial", f"Content-Range: bytes {start}-{size - 1}/{size}\r\n"
        if self.ranged == "earlier":
            start = max(0, start - 1000)
            header = f"Content-Range: bytes {start}-{size - 1}/{size}\r\n"
        elif self.ranged == "unsaid":
            header = ""
        if not asked or self.ranged == "ignored":
            status, header, start = "200 OK", "", 0
        head = f"HTTP/1.1 {status}\r\n{header}Content-Length: {size - start}\r\n\r\n"
        answer.raw(head.encode() + self.data[start:end])


_STEADY = Patience(first_pause=0.001, longest_pause=0.001, tries=4)


def _broken(net: Net, engine: Engine, ranged: str, count: int) -> tuple[Made, Registry]:
    home, image = net.registry(HOME), fresh(60_000)
    data = image.blobs[image.layers[0]]
    at = [len(data) * part // count for part in range(1, count)]
    home.on("GET", f"/v2/.*/blobs/{image.layers[0]}", Breaking(data, at, ranged))
    home.has(image)
    return image, home


@pytest.mark.case("R06")
@pytest.mark.parametrize("ranged", ["kept", "ignored", "earlier", "unsaid"])
def test_a_transfer_that_breaks_at_every_part_goes_on(ranged: str, net: Net, engine: Engine) -> None:
    image, home = _broken(net, engine, ranged, 100 if FULL else 20)
    assert pull(engine, f"{HOME}/pyc/image", patience=_STEADY).digest == image.digest
    assert len([one for one in home.asked if "Range" in one.headers]) >= 19
    _content(engine, image)


@pytest.mark.case("R06")
@pytest.mark.parametrize("ranged", ["kept", "ignored"])
def test_the_next_pull_goes_on_where_one_was_given_up(ranged: str, net: Net, engine: Engine) -> None:
    home, image = net.registry(HOME), fresh(60_000)
    data, path = image.blobs[image.layers[0]], f"/v2/.*/blobs/{image.layers[0]}"
    home.on("GET", path, Breaking(data, [30_000], "kept"), times=1)
    home.on("GET", path, lambda answer: answer.reset(), times=4)
    home.on("GET", path, Breaking(data, [], ranged))
    reference = home.has(image)
    with pytest.raises(PycontainError):
        pull(engine, reference, patience=SHORT)
    assert pull(engine, reference, patience=SHORT).digest == image.digest
    assert home.asked[-1].headers["Range"] == "bytes=30000-"
    _content(engine, image)


LIES: dict[str, Callable[[bytes], bytes]] = {
    "length too long": lambda data: (
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(data) + 9) + data[:-1]
    ),
    "length too short": lambda data: (
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(data) - 9) + data
    ),
    "length that is none": lambda data: b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n" + data[:-1],
    "no length": lambda data: b"HTTP/1.1 200 OK\r\n\r\n" + data[:-1],
    "more than announced": lambda data: b"HTTP/1.1 200 OK\r\n\r\n" + data + b"more",
    "other bytes": lambda data: b"HTTP/1.1 200 OK\r\n\r\n" + bytes(len(data)),
    "one bit": lambda data: b"HTTP/1.1 200 OK\r\n\r\n" + data[:-1] + bytes([data[-1] ^ 1]),
    "a part unasked": lambda data: (
        b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 7-%d/%d\r\n\r\n" % (len(data) - 1, len(data))
        + data[7:]
    ),
    "nothing": lambda data: b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "204": lambda data: b"HTTP/1.1 204 None\r\n\r\n",
    "compressed": lambda data: b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + data,
    "other text of one meaning": lambda data: b"HTTP/1.1 200 OK\r\n\r\n" + data.replace(b'": ', b'" :', 1),
}


def _lied(lie: str, part: str, net: Net, engine: Engine) -> tuple[Made, str]:
    home, image = net.registry(HOME), fresh(3000)
    layer = image.layers[0]
    name = layer if part == "layer" else next(one for one in image.blobs if one != layer)
    data = image.manifest if part == "manifest" else image.blobs[name]
    path = "/v2/.*/manifests/sha256" if part == "manifest" else f"/v2/.*/blobs/{name}"
    home.on("GET", path, lambda answer: answer.raw(LIES[lie](data)))
    home.has(image)
    return image, f"{HOME}/pyc/image@{image.digest}"


@pytest.mark.case("R06")
@pytest.mark.parametrize(
    ("lie", "part"),
    [
        (lie, part)
        for lie in LIES
        for part in ("layer", "config", "manifest")
        if (lie, part) != ("other text of one meaning", "layer")  # a layer has no other text
    ],
)
def test_wrong_content_is_never_taken(lie: str, part: str, net: Net, engine: Engine) -> None:
    image, reference = _lied(lie, part, net, engine)
    with pytest.raises(PycontainError):
        pull(engine, reference, patience=SHORT)
    assert engine._session.store.record(image.digest) is None
    for name in image.blobs:
        if engine._session.store.has_blob(Digest(name)):
            assert Digest.of(Path(engine._session.store.blob_path(Digest(name))).read_bytes()) == name


@pytest.mark.control("R06")
def test_content_that_is_not_compared_would_be_seen(
    net: Net, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Digest, "matches", lambda self, hasher: True)
    image, reference = _lied("other text of one meaning", "manifest", net, engine)
    assert pull(engine, reference, patience=SHORT).digest != image.digest


@pytest.mark.control("R06")
def test_unchecked_range_would_be_detected(net: Net, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_range_start", lambda text, asked: asked)
    _broken(net, engine, "earlier", 20)
    with pytest.raises(ImageError):
        pull(engine, f"{HOME}/pyc/image", patience=_STEADY)


# ---- manifests that lie about themselves --------------------------------------------------------------------


@pytest.mark.case("R06")
@pytest.mark.parametrize(
    "digest", ["sha256:" + "0" * 64, "sha512:" + "0" * 128, "sha256:../../x", "sha256:" + "A" * 64]
)
def test_a_tags_digest_that_is_not_its_own_is_refused(digest: str, net: Net, engine: Engine) -> None:
    home, image = net.registry(HOME), fresh()
    home.has(image)
    home.on("GET", "/v2/.*/manifests/", replies(200, image.manifest, Docker_Content_Digest=digest))
    with pytest.raises(PycontainError):
        pull(engine, f"{HOME}/pyc/image", patience=SHORT)
