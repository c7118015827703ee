"""HTTP client for one registry: verified TLS, checked redirects, bounded retries."""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from pycontain.errors import ImageError, PullError

if TYPE_CHECKING:
    import urllib3

    from pycontain._registry.endpoint import Patience

_REDIRECTS = 5
_REPEATED = frozenset({408, 429, 500, 502, 503, 504})
_PASSED_MOST = 65536
_SHORTEST_SECRET = 4
_AGENT = "pycontain"
_TLS_HINT = "set SSL_CERT_FILE to trust another authority, or pass insecure=True for plain HTTP"
_URL = re.compile(r"([a-zA-Z]+)://([a-zA-Z0-9._-]+|\[[a-fA-F0-9:.]+\])(?::([0-9]{1,5}))?(?=[/?#]|\Z)")
_CERTIFICATES = ("/etc/containers/certs.d", "/etc/docker/certs.d")


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL.

    Parsers can disagree on the host: 'https://evil\\@registry/' is at evil for urllib3 and at registry for
    urllib.parse. So user information, escapes and other special characters are refused.

    Raises:
        ImageError: The text is not a URL of this restricted form.
    """
    match = _URL.match(url)
    if match is None or int(match[3] or 0) > 65535:
        raise ImageError(f"not a URL: {url[:200]!r}")
    scheme = match[1].lower()
    return scheme, match[2].strip("[]").lower(), int(match[3] or 0) or (443 if scheme == "https" else 80)


def _context(host: str) -> ssl.SSLContext:
    """Return a context with the system's CAs, SSL_CERT_FILE, and the CAs of docker and podman for a host."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for directory in _CERTIFICATES:
        place = os.path.join(directory, host)
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(place)):
                if name.endswith(".crt"):
                    context.load_verify_locations(os.path.join(place, name))
    return context


def _new_pool(url: str, key: tuple[str, str, int], patience: Patience) -> urllib3.PoolManager:
    import urllib3

    from pycontain._registry.wire import classes

    options: dict[str, Any] = {"maxsize": 8, "retries": False}
    if key[0] == "https":
        options |= {"ssl_context": _context(urlsplit(url).netloc)}
    proxy = urllib.request.getproxies().get(key[0])
    made = (
        urllib3.ProxyManager(proxy, **options)
        if proxy and not urllib.request.proxy_bypass(key[1])
        else urllib3.PoolManager(**options)
    )
    made.pool_classes_by_scheme = classes(patience)
    return made


class Http:
    """Connections of one operation.

    Args:
        patience: Timeouts and retries.
        error: Class of the errors that are raised; they never contain a header or a secret.
    """

    def __init__(self, patience: Patience, error: type[ImageError] = PullError) -> None:
        self._patience = patience
        self._kind = error
        self._secrets: set[str] = set()
        self._pools: dict[tuple[str, str, int], urllib3.PoolManager] = {}
        self._mutex = threading.Lock()
        self._last = threading.local()

    def _pool(self, url: str) -> urllib3.PoolManager:
        key = origin(url)
        with self._mutex:  # else two threads could each make one, and one of them would leak
            if key not in self._pools:
                self._pools[key] = _new_pool(url, key, self._patience)
            return self._pools[key]

    def keep(self, *secrets: str) -> None:
        """Register secrets that must not appear in errors, even if a server echoes them."""
        self._secrets.update(secret for secret in secrets if len(secret) >= _SHORTEST_SECRET)

    def hidden(self, text: str) -> str:
        """Return a text with the secrets replaced."""
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def shown(self, text: str) -> str:
        """Return a text without secrets, and with escapes in place of a server's control characters."""
        return "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode()
            for char in self.hidden(text)
        )

    def error(self, message: str, *, hint: str | None = None) -> ImageError:
        """Return an error without secrets."""
        return self._kind(self.shown(message), hint=hint)

    @property
    def tried(self) -> str:
        """Return the number and time of tries of this thread's last request, or '' for a single try."""
        return getattr(self._last, "tried", "")

    def close(self) -> None:
        """Close every connection now; `clear` only drops references, which an exception may still hold."""
        for manager in self._pools.values():
            keys = manager.pools.keys()
            for key in keys:
                manager.pools[key].close()
            manager.clear()

    def _once(self, method: str, url: str, headers: Mapping[str, str], body: Any) -> urllib3.BaseHTTPResponse:
        import urllib3

        left = self._patience.left
        if not left:
            raise TimeoutError
        wait = urllib3.Timeout(connect=min(self._patience.connect, left), read=min(self._patience.read, left))
        sent = {"User-Agent": _AGENT, "Accept-Encoding": "identity", **headers}
        self.keep(headers.get("Authorization", "").rpartition(" ")[2])
        return self._pool(url).request(
            method, url, headers=sent, body=body, timeout=wait, redirect=False, preload_content=False
        )

    def _followed(
        self, method: str, url: str, headers: Mapping[str, str], body: Any
    ) -> urllib3.BaseHTTPResponse:
        """Send a request and follow redirects; Authorization is not sent to another origin."""
        sent, first = dict(headers), origin(url)
        for _ in range(_REDIRECTS + 1):
            response = self._once(method, url, sent, body)
            if response.status == 401 and origin(url) != first:
                response.close()  # only challenges of the registry itself are answered
                raise self.error(f"{_place(url)} denied access after a redirect of the registry")
            target = response.headers.get("Location")
            if (
                response.status not in (301, 302, 303, 307, 308)
                or not target
                or method not in ("GET", "HEAD")
            ):
                return response
            self._pass_over(response)
            there = self.reached(url, target)
            if origin(there)[0] == "http" and origin(url)[0] == "https":
                raise self.error(f"{_place(url)} redirects to an origin without TLS")
            if origin(there) != origin(url):
                sent.pop("Authorization", None)
            url = there
        raise self.error(f"{_place(url)} redirects without end")

    def _pass_over(self, response: urllib3.BaseHTTPResponse) -> None:
        """Read the body of a redirect if it is short, so that the connection can be reused."""
        with contextlib.suppress(ImageError):
            self.body(response, _PASSED_MOST, "a redirect")
        response.close()  # no-op when the body was read fully

    def reached(self, url: str, target: str) -> str:
        """Return the absolute URL of a Location header.

        Raises:
            ImageError: It is not a URL of HTTP, or at a reserved address.
        """
        try:
            there = urljoin(url, target)
            if origin(there)[0] not in ("http", "https"):
                raise ValueError
        except (ValueError, ImageError):
            raise self.error(
                f"{_place(url)} redirects to a target that is not a URL of HTTP: "
                f"{self.hidden(target)[:200]!r}"
            ) from None
        if origin(there) != origin(url):
            _refuse_link_local(there, self.error)
        return there

    @contextlib.contextmanager
    def request(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, body: Any = None
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """Send a request, with retries, and yield the response.

        Args:
            method: HTTP method.
            url: URL.
            headers: Headers.
            body: Bytes, or a function that returns a new iterator of bytes for each try.

        Raises:
            ImageError: There was no response, or an invalid redirect.
        """
        import urllib3

        patience, begun, waited = self._patience, time.monotonic(), 0.0
        response: urllib3.BaseHTTPResponse | None = None
        for attempt in range(1, patience.tries + 1):
            pause = min(patience.first_pause * 2 ** (attempt - 1), patience.longest_pause)
            pause *= 1 + random.random() / 4
            failure: Exception | None = None
            response = None
            try:
                given = body() if callable(body) else body
                response = self._followed(method, url, headers or {}, given)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                failure = error
            self._last.tried = tried = _tried(attempt, time.monotonic() - begun)
            if response is not None and response.status not in _REPEATED:
                break
            if response is not None:
                pause = max(pause, self._asked(response))
            last = attempt == patience.tries or waited + pause > patience.whole or pause >= patience.left
            if failure is not None and (last or not _may_pass(failure)):
                raise self._unreachable(url, failure, tried) from None
            if last:
                break
            if response is not None:
                response.close()
            waited += pause
            time.sleep(pause)
        assert response is not None
        try:
            yield response
        finally:
            response.close()

    def _unreachable(self, url: str, failure: Exception, tried: str) -> ImageError:
        """Return the error of a request without a response: its cause and the number of tries."""
        import urllib3

        patience, suffix = self._patience, f" ({tried})" if tried else ""
        if patience.timeout is not None and not patience.left:
            return self.error(
                f"{_place(url)} did not answer within timeout={patience.timeout:g} seconds{suffix}",
                hint="use a longer timeout",
            )
        cause = _innermost(failure)
        if isinstance(failure, urllib3.exceptions.SSLError) or isinstance(cause, ssl.SSLError):
            return self.error(
                f"no trusted connection to {_place(url)}: {self._reason(failure)}", hint=_TLS_HINT
            )
        return self.error(f"{_place(url)} does not answer: {self._reason(failure)}{suffix}")

    def _asked(self, response: urllib3.BaseHTTPResponse) -> float:
        """Return the seconds of a Retry-After header (RFC 9110, 10.2.3), a number or a date."""
        text = response.headers.get("Retry-After", "")
        if text.isascii() and text.isdigit():
            return min(float(text[:9]), self._patience.longest_pause)
        if text:
            from email.utils import parsedate_to_datetime

            with contextlib.suppress(ValueError, TypeError, OverflowError):
                return max(
                    0.0,
                    min(parsedate_to_datetime(text).timestamp() - time.time(), self._patience.longest_pause),
                )
        return 0.0

    def body(self, response: urllib3.BaseHTTPResponse, most: int, what: str) -> bytes:
        """Read a small body.

        Raises:
            ImageError: It is larger than `most` bytes or takes longer than the patience's grace.
        """
        data, begun = bytearray(), time.monotonic()
        for chunk in self.chunks(response, 65536):
            data += chunk
            if len(data) > most:
                raise self.error(f"{what} is larger than {most} bytes")
            if time.monotonic() - begun > self._patience.grace:
                raise self.error(f"{what} took longer than {self._patience.grace} seconds")
        return bytes(data)

    def chunks(self, response: urllib3.BaseHTTPResponse, size: int) -> Iterator[bytes]:
        """Yield a body in chunks.

        Raises:
            ImageError: The transfer stalls, is too slow, or ends early.
        """
        import urllib3

        got = 0
        while True:
            try:
                chunk = response.read1(size)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise self.error(f"the transfer broke off: {self._reason(error)}") from None
            if not chunk:
                break
            got += len(chunk)
            yield chunk
            if not self._patience.left:
                raise self.error(f"the transfer took longer than timeout={self._patience.timeout:g} seconds")
        length = response.headers.get("Content-Length", "")
        if length.isascii() and length.isdigit() and int(length[:19]) != got:
            raise self.error(f"the transfer ended after {got} of {length[:19]} bytes")

    def _reason(self, error: Exception) -> str:
        """Return the innermost cause as text; the outer exceptions contain URLs, which may have secrets."""
        cause = _innermost(error)
        if isinstance(cause, socket.gaierror):
            return f"its host name cannot be resolved: {cause.strerror}"
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused"
        if isinstance(cause, TimeoutError) and not str(cause).startswith("slower"):
            return "timed out"
        text = str(cause).rpartition(">: ")[2]
        return f"{type(cause).__name__}: {self.hidden(text)[:200]}" if text else type(cause).__name__


def _innermost(error: BaseException) -> BaseException:
    while True:
        inner = getattr(error, "reason", None) or error.__cause__ or error.__context__
        if not isinstance(inner, BaseException):
            return error
        error = inner


def _may_pass(failure: Exception) -> bool:
    """Return whether a repeat may succeed: not without trust, nor for an unknown host name."""
    import urllib3

    cause = _innermost(failure)
    if isinstance(cause, socket.gaierror):
        return cause.errno == socket.EAI_AGAIN
    return not isinstance(failure, urllib3.exceptions.SSLError)


def _tried(count: int, seconds: float) -> str:
    return f"{count} tries in {seconds:.1f} seconds" if count > 1 else ""


def _place(url: str) -> str:
    """Return a URL without its query, which is a secret in signed URLs."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"[:300]


def _refuse_link_local(url: str, kind: Callable[[str], ImageError]) -> None:
    """Raise the error for a host at a link-local address, where clouds serve credentials."""
    for address in addresses(url):
        if address.is_link_local or address.is_multicast or address.is_unspecified:
            raise kind(f"{_place(url)} is at the reserved address {address}")


def addresses(url: str) -> list[Any]:
    """Return the addresses of the host of a URL; empty if it does not resolve."""
    import ipaddress

    _, host, port = origin(url)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    result = []
    for entry in found:
        address = ipaddress.ip_address(str(entry[4][0]).partition("%")[0])
        result.append(getattr(address, "ipv4_mapped", None) or address)
    return result
