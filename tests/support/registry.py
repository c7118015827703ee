"""A scripted registry that records its requests.

It implements pull and push of the distribution protocol.  Rules that a test adds by `on` come first and
control the answer down to the bytes on the wire.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import io
import json
import re
import socket
import socketserver
import ssl
import tarfile
import threading
from collections.abc import Callable, Mapping
from email.message import Message
from typing import Any
from urllib.parse import parse_qs, urlsplit

from attrs import field, frozen

from pycontain.oci import Digest, MediaType, Platform

_OWN_PATH = re.compile(r"/v2/(.+?)/(manifests|blobs)/(.*)")


@frozen
class Made:
    """An image as bytes: a manifest, and its content by digest."""

    manifest: bytes
    blobs: Mapping[str, bytes]
    layers: tuple[str, ...]

    @property
    def digest(self) -> Digest:
        return Digest.of(self.manifest)


def _layer(files: Mapping[str, bytes]) -> bytes:
    """Return a tar archive with no time and no owner in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def make_image(*layers: Mapping[str, bytes], urls: tuple[str, ...] = ()) -> Made:
    """Return an image of these files.  urls: other places that its layers name."""
    blobs: dict[str, bytes] = {}
    described, diffs = [], []
    for files in layers:
        archive = _layer(files)
        packed = gzip.compress(archive, 1, mtime=0)
        diffs.append(str(Digest.of(archive)))
        described.append(_describe(blobs, packed, MediaType.OCI_LAYER + "+gzip", urls))
    config = {
        "architecture": Platform.host().architecture,
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diffs},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MediaType.OCI_MANIFEST,
        "config": _describe(blobs, json.dumps(config).encode(), MediaType.OCI_CONFIG, ()),
        "layers": described,
    }
    return Made(json.dumps(manifest).encode(), blobs, tuple(one["digest"] for one in described))


def _describe(blobs: dict[str, bytes], data: bytes, media_type: str, urls: tuple[str, ...]) -> dict[str, Any]:
    digest = str(Digest.of(data))
    blobs[digest] = data
    return {"mediaType": media_type, "digest": digest, "size": len(data), **({"urls": urls} if urls else {})}


@frozen
class Asked:
    """One request."""

    method: str
    path: str
    headers: Message = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def authorization(self) -> str | None:
        return self.headers.get("Authorization")

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query)


class Answer(http.server.BaseHTTPRequestHandler):
    """One connection; rules write to it."""

    protocol_version = "HTTP/1.1"
    server: _Listener
    asked: Asked

    def log_message(self, format: str, *args: Any) -> None:
        """Discard log messages."""

    def _dispatch(self) -> None:
        if "100-continue" in self.headers.get("Expect", ""):
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked = Asked(self.command, self.path, self.headers, body)
        self.server.registry.answer(self)

    def __getattr__(self, name: str) -> Any:
        """Return the handler of every method."""
        if name.startswith("do_"):
            return self._dispatch
        raise AttributeError(name)

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send a complete answer; header `Content_Type` becomes 'Content-Type'."""
        self.send_response(status)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Length": str(len(body)), **named}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def raw(self, data: bytes) -> None:
        """Send raw bytes and close the connection."""
        self.close_connection = True
        self.wfile.write(data)
        self.wfile.flush()

    def reset(self) -> None:
        """Reset the connection (RST)."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close_connection = True

    def until_gone(self, data: bytes, pause: float = 0) -> None:
        """Send a piece repeatedly until the client has gone or the test ends."""
        self.close_connection = True
        while not self.server.registry.ended.wait(pause) and self.server.registry.sent < 1 << 30:
            self.wfile.write(data)
            self.server.registry.sent += len(data)


Rule = Callable[[Answer], object]


class _Listener(socketserver.ThreadingMixIn, socketserver.TCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, registry: Registry, context: ssl.SSLContext | None) -> None:
        self.registry, self._context = registry, context
        self.open: dict[threading.Thread, socket.socket] = {}
        super().__init__(("127.0.0.1", 0), Answer)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for the connection and register it first."""
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), daemon=True
        )
        self.open[thread] = request
        thread.start()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Start TLS in the connection's thread, so that a client that refuses it blocks no other."""
        request.settimeout(20)
        if self._context is None:
            super().finish_request(request, client_address)
            return
        with self._context.wrap_socket(request, server_side=True) as wrapped:
            self.open[threading.current_thread()] = wrapped
            super().finish_request(wrapped, client_address)

    def end(self) -> None:
        """End every connection and its thread, so that they do not look like leaks of the library."""
        self.shutdown()
        self.server_close()
        for thread, connection in self.open.items():
            while thread.is_alive():
                with contextlib.suppress(OSError, ValueError):
                    connection.shutdown(socket.SHUT_RDWR)
                thread.join(0.1)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect early, which many tests cause."""


class Registry:
    """See the module.  `with` starts it; `asked` has every request in order."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._listener = _Listener(self, context)
        self.scheme = "https" if context is not None else "http"
        self.port: int = self._listener.server_address[1]
        self.host = f"127.0.0.1:{self.port}"
        self.asked: list[Asked] = []
        self.manifests: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.uploads: dict[str, bytearray] = {}
        self.challenge = ""
        self.accepted: set[str] | None = None
        self.ended = threading.Event()
        self.sent = 0
        self._rules: list[tuple[str, re.Pattern[str], Rule, list[int]]] = []
        self._mutex = threading.Lock()

    def __enter__(self) -> Registry:
        threading.Thread(target=self._listener.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._listener.end()

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}"

    def has(self, image: Made, repository: str = "pyc/image", tag: str = "latest") -> str:
        """Serve an image and return the reference to pull it by."""
        self.blobs |= image.blobs
        self.manifests |= {tag: image.manifest, str(image.digest): image.manifest}
        return f"{self.host}/{repository}:{tag}"

    def on(self, method: str, pattern: str, rule: Rule, times: int = 1 << 30) -> None:
        """Answer the first `times` requests with this path prefix by a rule."""
        self._rules.append((method, re.compile(pattern), rule, [times]))

    def authorizations(self) -> list[str]:
        """Return the credentials that were received, in headers and bodies."""
        return [one.authorization for one in self.asked if one.authorization is not None]

    # ---- answering ----------------------------------------------------------------------------------------

    def answer(self, answer: Answer) -> None:
        with self._mutex:
            self.asked.append(answer.asked)
            rule = self._rule(answer.asked)
        if rule is not None:
            rule(answer)
        elif self.accepted is not None and answer.asked.authorization not in self.accepted:
            answer.reply(401, WWW_Authenticate=self.challenge)
        else:
            self.serve(answer)

    def _rule(self, asked: Asked) -> Rule | None:
        for method, pattern, rule, left in self._rules:
            if method in ("*", asked.method) and pattern.match(asked.path) and left[0] > 0:
                left[0] -= 1
                return rule
        return None

    def serve(self, answer: Answer) -> None:
        """Serve the request as a correct registry."""
        match = _OWN_PATH.match(urlsplit(answer.path).path)
        if match is None:
            answer.reply(404)
        elif match[2] == "manifests":
            self._manifest(answer, match[3])
        elif match[3].startswith("uploads/"):
            self._upload(answer, match[1], match[3].removeprefix("uploads/"))
        else:
            self._blob(answer, match[3])

    def _manifest(self, answer: Answer, name: str) -> None:
        if answer.command == "PUT":
            self.manifests[name] = answer.asked.body
            answer.reply(201)
        elif name in self.manifests:
            answer.reply(200, self.manifests[name], Content_Type=MediaType.OCI_MANIFEST)
        else:
            answer.reply(404)

    def _blob(self, answer: Answer, name: str) -> None:
        data = self.blobs.get(name)
        if data is None:
            answer.reply(404)
            return
        asked = re.fullmatch(r"bytes=(\d+)-", answer.headers.get("Range", ""))
        if asked is None:
            answer.reply(200, data)
        else:
            start = int(asked[1])
            answer.reply(206, data[start:], Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")

    def _upload(self, answer: Answer, repository: str, name: str) -> None:
        if answer.command == "POST":
            name = f"u{len(self.uploads)}"
            self.uploads[name] = bytearray()
            answer.reply(202, Location=f"/v2/{repository}/blobs/uploads/{name}")
        elif answer.command == "DELETE":
            answer.reply(204)
        else:
            self.uploads[name] += answer.asked.body
            if answer.command == "PATCH":
                answer.reply(202, Location=answer.path)
                return
            digest = answer.asked.query["digest"][0]
            data = bytes(self.uploads.pop(name))
            known = f"sha256:{hashlib.sha256(data).hexdigest()}" == digest
            self.blobs |= {digest: data} if known else {}
            answer.reply(201 if known else 400)


# ---- rules that several tests want ----------------------------------------------------------------------


def replies(status: int, body: bytes = b"", **headers: str) -> Rule:
    """Return a rule that always gives this answer."""
    return lambda answer: answer.reply(status, body, **headers)


def token(value: str, seconds: object = 300) -> Rule:
    """Return a token service."""
    return replies(200, json.dumps({"token": value, "expires_in": seconds}).encode())
