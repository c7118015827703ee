"""Foreign programs that a test starts and stops by pid: registry, docker, podman, skopeo."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

PATIENCE = 30.0


def needs(*programs: str) -> None:
    """Skip where one of these is not installed."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def free_port() -> int:
    """Return a free port of the loopback interface."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def run(*command: str | Path, env: dict[str, str] | None = None, data: bytes | None = None) -> str:
    """Run a program and return its output; a failure shows all of it."""
    whole = [str(part) for part in command]
    done = subprocess.run(
        whole, input=data, capture_output=True, check=False, timeout=300, env={**os.environ, **(env or {})}
    )
    assert done.returncode == 0, f"{whole}: {done.stderr.decode()[-2000:]}{done.stdout.decode()[-1000:]}"
    return done.stdout.decode()


@contextlib.contextmanager
def _program(
    command: list[str], log: Path, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    with open(log, "wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**os.environ, **(env or {})}
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise AssertionError(f"nothing listens on {port}: {log.read_text()[-1000:]}")


@frozen
class Served:
    """A registry: 'localhost:port', and the certificate authority that vouches for it, if it has TLS."""

    name: str
    authority: Path | None


PASSWORDS = "pyc:$2y$05$tgvwE6g8UY/WZxo3QWnmAe5GZhAy4/mAkVF6YztqjwTxaJrBgECWi\n"
USER, PASSWORD = "pyc", "open sesame"


@contextlib.contextmanager
def registry(directory: Path, *, tls: bool = False, htpasswd: str | None = None) -> Iterator[Served]:
    """Provide Debian's docker-registry on the loopback interface."""
    needs("docker-registry")
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    lines = [
        "version: 0.1",
        "log: {level: error, accesslog: {disabled: true}}",
        f"storage: {{filesystem: {{rootdirectory: {directory / 'data'}}}, delete: {{enabled: true}}}}",
        f"http: {{addr: '127.0.0.1:{port}'}}",
    ]
    authority = None
    if tls:
        import trustme

        made = trustme.CA()
        authority = directory / "ca.crt"
        made.cert_pem.write_to_path(str(authority))
        own = made.issue_cert("localhost", "127.0.0.1")
        own.private_key_pem.write_to_path(str(directory / "key.pem"))
        own.cert_chain_pems[0].write_to_path(str(directory / "cert.pem"))
        lines[3] = (
            f"http: {{addr: '127.0.0.1:{port}', tls: {{certificate: {directory / 'cert.pem'}, "
            f"key: {directory / 'key.pem'}}}}}"
        )
    if htpasswd is not None:
        (directory / "htpasswd").write_text(htpasswd)
        lines.append(f"auth: {{htpasswd: {{realm: pyc, path: {directory / 'htpasswd'}}}}}")
    (directory / "config.yml").write_text("\n".join(lines) + "\n")
    log = directory / "log"
    with _program(["docker-registry", "serve", str(directory / "config.yml")], log) as process:
        _await_port(port, process, log)
        yield Served(f"localhost:{port}", authority)


@contextlib.contextmanager
def docker(directory: Path, authority: Path | None = None, *, networks: bool = False) -> Iterator[list[str]]:
    """Provide the beginning of a docker command line for a private daemon.

    networks: it has them, and writes rules; only in a network namespace of its own.
    """
    needs("dockerd", "docker")
    if os.geteuid() != 0:
        pytest.skip("dockerd needs root")
    directory.mkdir(parents=True, exist_ok=True)
    host = f"unix://{directory}/sock"
    command = ["dockerd", "--data-root", str(directory / "data"), "--exec-root", str(directory / "exec")]
    command += ["--host", host, "--pidfile", str(directory / "pid")]
    if not networks:
        command += ["--bridge=none", "--iptables=false", "--ip6tables=false"]
    trusted = {"SSL_CERT_FILE": str(authority)} if authority is not None else {}
    log = directory / "log"
    client = ["docker", "--host", host, "--config", str(directory / "config")]
    with _program(command, log, trusted):
        until = time.monotonic() + PATIENCE
        while subprocess.run([*client, "info"], capture_output=True, check=False).returncode:
            if time.monotonic() > until:
                pytest.skip(f"dockerd does not come up here: {log.read_text()[-200:]!r}")
            time.sleep(0.1)
        yield client


def podman(directory: Path) -> list[str]:
    """Return the beginning of a podman command line for a private store."""
    needs("podman")
    return [
        "podman",
        "--root",
        str(directory / "root"),
        "--runroot",
        str(directory / "run"),
        "--tmpdir",
        str(directory / "tmp"),
        "--storage-driver",
        "vfs",
    ]
