"""The OCI distribution protocol, as far as images take it: manifests, blobs, uploads.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from attrs import frozen

from pycontain._registry import credentials as files
from pycontain._registry.challenges import Challenge
from pycontain._registry.endpoint import Endpoint
from pycontain._registry.http import Http, origin
from pycontain._registry.tokens import Tokens
from pycontain.errors import AuthError, DigestMismatch, ImageError, NotFound, PullError, PycontainError
from pycontain.oci import Digest, MediaType
from pycontain.oci.document import MANIFEST_MOST

if TYPE_CHECKING:
    import urllib3

    from pycontain._registry.credentials import Credentials

_ACCEPT = ", ".join(
    (MediaType.OCI_INDEX, MediaType.DOCKER_LIST, MediaType.OCI_MANIFEST, MediaType.DOCKER_MANIFEST)
)
_ERROR_MOST = 65536
_CHUNK = 1 << 20
_AUTHORIZED_AGAIN = 3


@frozen
class Fetched:
    """A manifest or index as a registry gave it, and what the registry calls it."""

    raw: bytes
    content_type: str

    @property
    def digest(self) -> Digest:
        """The sha256 of the bytes."""
        return Digest.of(self.raw)


class Registry:
    """One repository of a registry.

    push: ask for the right to write as well.  error: the kind of what is raised when the registry
    cannot be talked to.  Raises AuthError, NotFound, DigestMismatch besides.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        repository: str,
        *,
        auth: Credentials | None = None,
        push: bool = False,
        error: type[ImageError] = PullError,
    ) -> None:
        self.endpoint, self.repository = endpoint, repository
        self._scope = f"repository:{repository}:{'pull,push' if push else 'pull'}"
        self._http = Http(endpoint.patience, error)
        self._problems: list[str] = []
        known = auth or files.find(endpoint.name, repository, self._problems)
        self._tokens = Tokens(endpoint, self._http, known, self._problems)
        self._error = error

    def __enter__(self) -> Registry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What failed in between may have read documents of the registry's, which say what it likes."""
        self._http.close()
        while error is not None:
            if isinstance(error, PycontainError):
                error.args = tuple(
                    self._http.shown(part) if isinstance(part, str) else part for part in error.args
                )
            error = error.__cause__ or error.__context__

    def _url(self, *parts: str) -> str:
        return "/".join((self.endpoint.url, "v2", self.repository, *parts))

    @contextlib.contextmanager
    def _request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        scope: str | None = None,
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """A request with what authority it takes, to the registry itself alone."""
        wanted = scope or self._scope
        own = origin(url) == origin(self.endpoint.url)
        for attempt in range(_AUTHORIZED_AGAIN):
            sent = dict(headers or {})
            authority = self._tokens.header(wanted) if own else None
            if authority is not None:
                sent["Authorization"] = authority
            with self._http.request(method, url, sent, body) as response:
                if response.status != 401 or not own:
                    yield response
                    return
                challenge = Challenge.parse(response.headers.getlist("WWW-Authenticate"))
            if attempt + 1 == _AUTHORIZED_AGAIN:
                break
            self._tokens.answer(challenge, wanted, authority)
        raise AuthError(f"registry {self.endpoint.name} denied access to {self.repository}{self._because}")

    @property
    def _because(self) -> str:
        """Why there are no credentials, where that is the files' or a helper's fault."""
        return "".join(f"; {one}" for one in self._problems)

    def _failed(self, response: urllib3.BaseHTTPResponse, what: str) -> ImageError:
        """What a status of 400 and above means; the registry's own words are cut to what is readable."""
        said = ""
        with contextlib.suppress(ImageError):
            text = self._http.body(response, _ERROR_MOST, "the error").decode("utf-8", "replace")
            said = "".join(char if char.isprintable() else " " for char in self._http.hidden(text))[
                :300
            ].strip()
        tried = f" ({self._http.tried})" if self._http.tried else ""
        message = f"{self.endpoint.name} answers {response.status} for {what}{tried}"
        message += f": {said}" if said else ""
        if response.status == 403:
            return AuthError(message + self._because)
        return self._error(message)

    # ---- reading ------------------------------------------------------------------------------------------

    def manifest(self, reference: str | Digest) -> Fetched:
        """A manifest or index by tag or digest; by digest it is verified.  Raises NotFound."""
        what = f"{self.repository}{'@' if isinstance(reference, Digest) else ':'}{reference}"
        with self._request("GET", self._url("manifests", reference), {"Accept": _ACCEPT}) as response:
            if response.status == 404:
                raise NotFound(
                    f"registry {self.endpoint.name} has no {what}{self._because}",
                    hint="pass auth=(username, password) if it is private",
                )
            if response.status != 200:
                raise self._failed(response, what)
            content_type = response.headers.get("Content-Type", "")
            told = response.headers.get("Docker-Content-Digest")
            raw = self._http.body(response, MANIFEST_MOST, f"the manifest of {what}")
        named = [Digest(reference)] if isinstance(reference, Digest) else []
        if told and told.startswith(("sha256:", "sha512:")):
            named.append(Digest(told))
        for digest in named:
            hasher = digest.hasher()
            hasher.update(raw)
            if not digest.matches(hasher):
                raise DigestMismatch(f"the manifest of {what} is not {digest}")
        return Fetched(raw, content_type)

    def has_manifest(self, digest: Digest) -> bool:
        """Does the repository have it?"""
        with self._request("HEAD", self._url("manifests", digest), {"Accept": _ACCEPT}) as response:
            return response.status == 200

    def has_blob(self, digest: Digest) -> bool:
        """Does the repository have it?"""
        with self._request("HEAD", self._url("blobs", digest)) as response:
            if response.status in (200, 404):
                return response.status == 200
            raise self._failed(response, f"{self.repository}@{digest}")

    def blob(self, digest: Digest, start: int = 0) -> Generator[bytes]:
        """The bytes of a blob from `start` on, as they come; not verified here.

        A registry that cannot begin in the middle is read from the beginning, and that much dropped.
        """
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self._request("GET", self._url("blobs", digest), headers) as response:
            if response.status == 404:
                raise self._error(f"{self.endpoint.name} has no {self.repository}@{digest}")
            if response.status not in (200, 206):
                raise self._failed(response, f"{self.repository}@{digest}")
            skip = start
            if response.status == 206:
                skip = start - _range_start(response.headers.get("Content-Range", ""), start)
                if skip < 0:
                    raise self._error(f"{self.endpoint.name} sent another range than was asked for")
            for chunk in self._http.chunks(response, _CHUNK):
                if skip >= len(chunk):
                    skip -= len(chunk)
                    continue
                yield chunk[skip:] if skip else chunk
                skip = 0

    # ---- writing ------------------------------------------------------------------------------------------

    def mount(self, digest: Digest, source: str) -> bool:
        """Let the repository have a blob that another of the same registry has; was it to be had so?"""
        query = urlencode({"mount": digest, "from": source})
        scope = f"{self._scope} repository:{source}:pull"
        with self._request("POST", self._url("blobs", "uploads", "?" + query), scope=scope) as response:
            if response.status == 201:
                return True
            place = response.headers.get("Location")
            if response.status != 202 or not place:
                return False
        with contextlib.suppress(ImageError):
            url = self._place(place)
            if origin(url) == origin(self.endpoint.url):  # what is elsewhere is not ours to delete
                with self._request("DELETE", url):
                    pass
        return False

    def _place(self, location: str) -> str:
        """Where an upload goes on: the same origin, or one that an unencrypted eye does not see more of."""
        url = self._http.reached(self._url(""), location)
        if origin(url)[0] == "http" and not self.endpoint.insecure:
            raise self._error(f"the registry {self.endpoint.name} sends uploads to plain HTTP: refused")
        return url

    def upload(self, digest: Digest, size: int, read: Callable[[int, int], bytes], chunk: int) -> None:
        """Send a blob in chunks.  read: `chunk` bytes from an offset on."""
        what = f"{self.repository}@{digest}"
        with self._request("POST", self._url("blobs", "uploads", "")) as response:
            if response.status != 202:
                raise self._failed(response, what)
            place = self._place(response.headers.get("Location", ""))
        at = 0
        while at < size:
            data = read(at, min(chunk, size - at))
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Range": f"{at}-{at + len(data) - 1}",
                "Content-Length": str(len(data)),
            }
            with self._request("PATCH", place, headers, data) as response:
                if response.status not in (202, 204):
                    raise self._failed(response, what)
                place = self._place(response.headers.get("Location", place))
            at += len(data)
        url = place + ("&" if "?" in place else "?") + urlencode({"digest": digest})
        with self._request("PUT", url, {"Content-Length": "0"}) as response:
            if response.status != 201:
                raise self._failed(response, what)

    def put_manifest(self, reference: str, raw: bytes, media_type: str) -> None:
        """Let a tag or digest mean this manifest."""
        url = self._url("manifests", reference)
        with self._request("PUT", url, {"Content-Type": media_type}, raw) as response:
            if response.status != 201:
                raise self._failed(response, f"{self.repository}:{reference}")


def _range_start(text: str, asked: int) -> int:
    """Of a Content-Range, 'bytes 5-9/10'; one that says nothing is taken to be what was asked for."""
    digits = text.removeprefix("bytes").strip().partition("-")[0]
    return int(digits[:19]) if digits.isascii() and digits.isdigit() else asked
