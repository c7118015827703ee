"""Images generated in Python, and a registry on the loopback interface that serves them.

The contents of an image are known byte for byte, so a test can check a store without
asking the store.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import random
import tarfile
import threading
import time
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_TIME = 1_700_000_000
_PIECE = 16384

Files = Mapping[str, bytes]
"""Path to content.  A name ending in '/' is a directory; '.wh.x' removes x, as in OCI layers."""


def digest_of(data: bytes) -> str:
    """Return the digest in the notation of registries."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def some_files(seed: int, count: int = 6, size: int = 12_000) -> dict[str, bytes]:
    """Return incompressible files below their own directory."""
    source = random.Random(seed)
    found = {f"part{seed}/": b""}
    for at in range(count):
        found[f"part{seed}/file{at}"] = source.randbytes(size // (at + 1))
    return found


def _archive(files: Files) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name.rstrip("/"))
            member.mtime = _TIME
            if name.endswith("/"):
                member.type, member.mode = tarfile.DIRTYPE, 0o755
            elif content.startswith(b"->"):
                member.type, member.linkname = tarfile.SYMTYPE, content[2:].decode()
                content = b""
            else:
                member.mode = 0o755 if name.startswith("bin/") else 0o644
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


class Picture:
    """An image: its documents and layers, and the files that it should show."""

    def __init__(self, layers: Sequence[Files], label: str = "") -> None:
        plain = [_archive(files) for files in layers]
        packed = [gzip.compress(data, 1, mtime=0) for data in plain]
        self.layers = list(layers)
        config = {
            "architecture": _MACHINES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {"Labels": {"label": label}},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(data) for data in plain]},
        }
        self.config = json.dumps(config, sort_keys=True).encode()
        document = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": {"mediaType": _CONFIG, "digest": digest_of(self.config), "size": len(self.config)},
            "layers": [
                {"mediaType": _LAYER, "digest": digest_of(data), "size": len(data)} for data in packed
            ],
        }
        self.manifest = json.dumps(document, sort_keys=True).encode()
        self.digest = digest_of(self.manifest)
        self.blobs = {digest_of(data): data for data in (self.config, self.manifest, *packed)}
        self.blob_names = [digest_of(data) for data in packed]

    def wrong(self, directories: Sequence[str]) -> list[str]:
        """Return missing and wrong files of unpacked layers, the uppermost first."""
        bad = []
        for directory, files in zip(directories, reversed(self.layers), strict=True):
            for name, content in files.items():
                path = Path(directory, name)
                if name.endswith("/") or ".wh." in name or content.startswith(b"->"):
                    continue
                if not path.is_file() or path.read_bytes() != content:
                    bad.append(str(path))
        return bad

    def serve_as(self, repository: str) -> dict[str, bytes]:
        """Return the answers of a registry by path."""
        answers = {f"/v2/{repository}/blobs/{name}": data for name, data in self.blobs.items()}
        for reference in ("latest", self.digest):
            answers[f"/v2/{repository}/manifests/{reference}"] = self.manifest
        return answers


def write_archive(path: Path, pictures: Mapping[str, Picture]) -> None:
    """Write an OCI layout as a tar, as `docker load` and `Image.load` accept."""
    blobs: dict[str, bytes] = {}
    entries = []
    for name, picture in pictures.items():
        blobs |= picture.blobs
        entries.append(
            {
                "mediaType": _MANIFEST,
                "digest": picture.digest,
                "size": len(picture.manifest),
                "annotations": {"io.containerd.image.name": name},
            }
        )
    members = {f"blobs/sha256/{digest[7:]}": data for digest, data in blobs.items()}
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries}
    members["index.json"] = json.dumps(index).encode()
    members["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    path.write_bytes(_archive(members))


class Served:
    """A registry for as long as a `with` lasts.  pause: seconds between pieces of a blob."""

    def __init__(self, pictures: Mapping[str, Picture], pause: float = 0.0) -> None:
        self._answers: dict[str, bytes] = {}
        for repository, picture in pictures.items():
            self._answers |= picture.serve_as(repository)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self._answers, pause))
        self._server.daemon_threads = True
        self.name = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Served:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(answers: Mapping[str, bytes], pause: float) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            data = answers.get(self.path, b"{}" if self.path == "/v2/" else None)
            begin = self.headers.get("Range", "").removeprefix("bytes=").rstrip("-")
            start = int(begin) if begin.isdigit() else 0
            self.send_response(404 if data is None else 206 if start else 200)
            data = (data or b"")[start:]
            if "/manifests/" in self.path:
                self.send_header("Content-Type", _MANIFEST)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/*")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            for at in range(0, len(data), _PIECE):
                try:
                    self.wfile.write(data[at : at + _PIECE])
                except OSError:  # the puller was killed
                    self.close_connection = True
                    return
                if pause:
                    time.sleep(pause)

    return Handler


def busybox_files() -> dict[str, bytes]:
    """Return a layer that commands can be run from; empty where the host has no static busybox."""
    if not os.path.exists("/bin/busybox"):
        return {}
    files = {f"{name}/": b"" for name in ("bin", "etc", "proc", "dev", "tmp", "sys")}
    files["bin/busybox"] = Path("/bin/busybox").read_bytes()
    return files | {f"bin/{name}": b"->busybox" for name in ("sh", "cat", "true", "echo")}
