"""Client for the OCI distribution protocol: manifests, blobs and uploads.

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
from pycontain._registry.endpoint import RegistryEndpoint
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
    """Manifest or index as received, with the media type that the registry declared."""

    raw: bytes
    content_type: str

    @property
    def digest(self) -> Digest:
        """Return the sha256 digest of the bytes."""
        return Digest.of(self.raw)


class Registry:
    """One repository of a registry.

    Methods raise AuthError if access is denied and `error` for other failures of the registry.

    Args:
        endpoint: The registry.
        repository: Path of the repository.
        auth: Credentials, or None for those of the user's files.
        push: Request a token for writing too.
        error: Class of the errors for failures of the registry.
    """

    def __init__(
        self,
        endpoint: RegistryEndpoint,
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
        """Close the connections and remove secrets from errors, for documents of a registry can echo them."""
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
        """Send a request; credentials are only sent to the registry's own origin."""
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
        """Return the problems of credential files and helpers, as the end of a message."""
        return "".join(f"; {one}" for one in self._problems)

    def _failed(self, response: urllib3.BaseHTTPResponse, what: str) -> ImageError:
        """Return the error for a status of 400 and above, with the printable start of the response."""
        said = ""
        with contextlib.suppress(ImageError):
            text = self._http.body(response, _ERROR_MOST, "the error").decode("utf-8", "replace")
            said = "".join(char if char.isprintable() else " " for char in self._http.hidden(text))[
                :300
            ].strip()
        tried = f" ({self._http.tried})" if self._http.tried else ""
        message = f"registry {self.endpoint.name} sent status {response.status} for {what}{tried}"
        message += f": {said}" if said else ""
        if response.status == 403:
            return AuthError(message + self._because)
        return self._error(message)

    # ---- Reading ------------------------------------------------------------------------------------------

    def manifest(self, reference: str | Digest) -> Fetched:
        """Fetch a manifest or index by tag or digest, and verify it against a digest.

        Raises:
            NotFound: The registry has no such manifest.
            DigestMismatch: The content has another digest.
        """
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
            declared = response.headers.get("Docker-Content-Digest")
            raw = self._http.body(response, MANIFEST_MOST, f"the manifest of {what}")
        named = [Digest(reference)] if isinstance(reference, Digest) else []
        if declared and declared.startswith(("sha256:", "sha512:")):
            named.append(Digest(declared))
        for digest in named:
            hasher = digest.hasher()
            hasher.update(raw)
            if not digest.matches(hasher):
                raise DigestMismatch(f"the manifest of {what} is not {digest}")
        return Fetched(raw, content_type)

    def has_manifest(self, digest: Digest) -> bool:
        """Return whether the repository has a manifest."""
        with self._request("HEAD", self._url("manifests", digest), {"Accept": _ACCEPT}) as response:
            return response.status == 200

    def has_blob(self, digest: Digest) -> bool:
        """Return whether the repository has a blob."""
        with self._request("HEAD", self._url("blobs", digest)) as response:
            if response.status in (200, 404):
                return response.status == 200
            raise self._failed(response, f"{self.repository}@{digest}")

    def blob(self, digest: Digest, start: int = 0) -> Generator[bytes]:
        """Yield the bytes of a blob from an offset on, unverified.

        If the registry ignores the Range header, the bytes before the offset are skipped.
        """
        headers = {"Range": f"bytes={start}-"} if start else {}
        with self._request("GET", self._url("blobs", digest), headers) as response:
            if response.status == 404:
                raise self._error(f"registry {self.endpoint.name} has no {self.repository}@{digest}")
            if response.status not in (200, 206):
                raise self._failed(response, f"{self.repository}@{digest}")
            skip = start
            if response.status == 206:
                skip = start - _range_start(response.headers.get("Content-Range", ""), start)
                if skip < 0:
                    raise self._error(f"registry {self.endpoint.name} sent another range than requested")
            for chunk in self._http.chunks(response, _CHUNK):
                if skip >= len(chunk):
                    skip -= len(chunk)
                    continue
                yield chunk[skip:] if skip else chunk
                skip = 0

    # ---- Writing ------------------------------------------------------------------------------------------

    def mount(self, digest: Digest, source: str) -> bool:
        """Mount a blob from another repository of the registry; return whether that worked."""
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
            if origin(url) == origin(self.endpoint.url):  # an upload at another origin is not ours to cancel
                with self._request("DELETE", url):
                    pass
        return False

    def _place(self, location: str) -> str:
        """Return the URL of an upload.

        Raises:
            ImageError: It is not a URL of HTTP, or has no TLS where the registry has.
        """
        url = self._http.reached(self._url(""), location)
        if origin(url)[0] == "http" and not self.endpoint.insecure:
            raise self._error(f"registry {self.endpoint.name} redirects the upload to an origin without TLS")
        return url

    def upload(self, digest: Digest, size: int, read: Callable[[int, int], bytes], chunk: int) -> None:
        """Upload a blob in chunks.

        Args:
            digest: Digest of the blob.
            size: Bytes of the blob.
            read: Returns bytes at an offset, of a length.
            chunk: Bytes of one request.
        """
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
        """Upload a manifest under a tag or digest."""
        url = self._url("manifests", reference)
        with self._request("PUT", url, {"Content-Type": media_type}, raw) as response:
            if response.status != 201:
                raise self._failed(response, f"{self.repository}:{reference}")


def _range_start(text: str, asked: int) -> int:
    """Return the offset of a Content-Range , or the requested one if it is malformed."""
    digits = text.removeprefix("bytes").strip().partition("-")[0]
    return int(digits[:19]) if digits.isascii() and digits.isdigit() else asked
