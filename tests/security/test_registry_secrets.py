"""R07: secrets do not appear in errors, logs or files, in success and in every failure."""

from __future__ import annotations

import base64
import json
import logging
import os
import stat
import subprocess
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pycontain import Engine, PycontainError
from pycontain._registry import http
from pycontain._registry.client import Registry as Client
from pycontain._registry.credentials import Credentials
from pycontain._registry.endpoint import RegistryEndpoint
from tests.security.transfers import LOGIN, PASSWORD, QUICK, fresh, pull, push
from tests.support.names import Net
from tests.support.registry import Answer, Registry, replies, token

HOME = "registry.example.org"
IDENTITY = Credentials(username="<token>", identity_token="pyc-identity-51c0")
TOKEN = "pyc-bearer-90ab"
SECRETS = (PASSWORD, LOGIN.basic[6:], IDENTITY.identity_token, TOKEN, "pyc-helper-77f2", "pyc-proxy-1e1e")


def spilled(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


class Watch:
    """A record of output and logs, and of arguments and environments of processes, while it is open."""

    def __init__(self, caplog: pytest.LogCaptureFixture, store: Path) -> None:
        self._caplog, self._store = caplog, store
        self.said: list[str] = []
        self._seen: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        """Record arguments and environments of child processes repeatedly."""
        while not self._ended.wait(0.005):
            for pid in _children():
                for name in ("cmdline", "environ"):
                    try:
                        self._seen.add(Path(f"/proc/{pid}/{name}").read_text(errors="replace"))
                    except OSError:
                        continue

    def failed(self, work: Callable[[], object]) -> BaseException:
        """Return an error in every form in which it may be shown."""
        with pytest.raises(PycontainError) as caught:
            work()
        error: BaseException | None = caught.value
        self.said.append("".join(traceback.format_exception(caught.value)))
        while error is not None:
            self.said += [str(error), repr(error), repr(error.args), repr(vars(error))]
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        return caught.value

    def found(self, *, paths: bool = True) -> list[str]:
        """Return the secrets in output, logs and files.

        paths: also where urllib3's log for debugging names what was asked for, as a server had it.
        """
        self._ended.set()
        self._thread.join()
        self.said += self._seen
        self.said += [
            record.getMessage() + repr(vars(record))
            for record in self._caplog.records
            if paths or (record.name, record.levelno) != ("urllib3.connectionpool", logging.DEBUG)
        ]
        self.said += [_read(path) for path in self._store.rglob("*")]
        return spilled("\n".join(self.said))


def _children() -> Iterator[str]:
    """Return the child processes by proc_tid_children(5), which costs little beside the work under test."""
    for task in Path("/proc/self/task").iterdir():
        try:
            yield from (task / "children").read_text().split()
        except OSError:
            continue


def _read(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return str(path)
        if path.name.startswith("store.db"):
            # By another process: a descriptor that this one closes would drop SQLite's locks on the file.
            content = subprocess.run(["cat", path], capture_output=True, check=True).stdout
        else:
            content = b"".join(_data(path))
        return str(path) + content.decode("latin-1")
    except (OSError, subprocess.CalledProcessError):
        return str(path)


def _data(path: Path) -> Iterator[bytes]:
    """Yield the data of a file without its holes, which other tests leave gigabytes of."""
    with path.open("rb") as file:
        end = 0
        while True:
            try:
                begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:  # ENXIO: no data is left
                return
            end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            yield os.pread(file.fileno(), end - begin, begin)


@pytest.fixture
def watch(caplog: pytest.LogCaptureFixture, engine: Engine) -> Watch:
    caplog.set_level(logging.DEBUG)
    return Watch(caplog, Path(engine._session.roots.data))


def _bearer(net: Net) -> Registry:
    home = net.registry(HOME)
    home.challenge, home.accepted = f'Bearer realm="https://{HOME}/token",service="pyc"', {f"Bearer {TOKEN}"}
    home.on("*", "/token", token(TOKEN))
    return home


@pytest.mark.case("R07")
@pytest.mark.parametrize("auth", [LOGIN, IDENTITY], ids=["password", "identity"])
def test_success_leaves_no_secret(auth: Credentials, net: Net, engine: Engine, watch: Watch) -> None:
    home, image = _bearer(net), fresh()
    digest = pull(engine, home.has(image), auth=auth).digest
    home.blobs.clear()
    push(engine, digest, f"{HOME}/pyc/pushed:1", auth=auth)
    assert watch.found() == []


def _echo(status: int) -> Callable[[Answer], object]:
    """Return a debugging proxy or a hostile registry that repeats the request in its answer."""
    return lambda answer: answer.reply(status, f"{answer.asked.authorization} {answer.asked.body!r}".encode())


def _echo_in(status: int, header: str) -> Callable[[Answer], object]:
    return lambda answer: answer.reply(status, b"", **{header: f"http://{answer.asked.authorization}/"})


FAILURES: dict[str, Callable[[Answer], object]] = {
    "400 that echoes": _echo(400),
    "403 that echoes": _echo(403),
    "500 that echoes": _echo(500),
    "404": replies(404),
    "redirect that echoes": _echo_in(307, "Location"),
    "challenge that echoes": _echo_in(401, "WWW_Authenticate"),
    "status that echoes": lambda answer: answer.raw(f"{answer.asked.authorization}\r\n\r\n".encode()),
    "version that echoes": lambda answer: answer.raw(
        f"HTTP/1.1 {(answer.asked.authorization or '').split()[-1]} x\r\n\r\n".encode()
    ),
    "chunk that echoes": lambda answer: answer.raw(
        f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{answer.asked.authorization}\r\n".encode()
    ),
    "reset": lambda answer: answer.reset(),
    "headers that are none": lambda answer: answer.raw(
        f"HTTP/1.1 400 No\r\nA: b\r\n{answer.asked.authorization}\r\nC: d\r\n\r\n".encode()
    ),
    "two lengths that echo": lambda answer: answer.raw(
        f"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: {answer.asked.authorization}\r\n\r\n".encode()
    ),
    "a type that echoes": lambda answer: answer.reply(
        200, b"{}", Content_Type=f"application/{answer.asked.authorization}"
    ),
    "a document that echoes": lambda answer: answer.reply(
        200, f'{{"schemaVersion": "{answer.asked.authorization}"}}'.encode()
    ),
    "a range that echoes": lambda answer: answer.reply(
        206, b"x", Content_Range=f"{answer.asked.authorization}"
    ),
    "a way that echoes": lambda answer: answer.reply(
        307, Location=f"/{(answer.asked.authorization or '').replace(' ', '/')}"
    ),
    "a digest that echoes": lambda answer: answer.reply(
        200, b"{}", Docker_Content_Digest=f"sha256:{answer.asked.authorization}"
    ),
    "realm that echoes": lambda answer: answer.reply(
        401, WWW_Authenticate=f'Bearer realm="ftp://{answer.asked.authorization}"'
    ),
}


@pytest.mark.case("R07")
@pytest.mark.parametrize("scheme", ["basic", "bearer"])
@pytest.mark.parametrize("failure", list(FAILURES))
def test_failure_spills_no_secret(failure: str, scheme: str, net: Net, engine: Engine, watch: Watch) -> None:
    home = _bearer(net)
    if scheme == "basic":
        home.challenge, home.accepted = 'Basic realm="pyc"', {LOGIN.basic}
    for path in ("manifests", "blobs"):

        def rule(answer: Answer) -> None:
            assert home.accepted is not None
            if answer.asked.authorization in home.accepted:
                FAILURES[failure](answer)
            else:
                answer.reply(401, WWW_Authenticate=home.challenge)

        home.on("*", f"/v2/.*/{path}/", rule)
        reference = home.has(fresh())
        watch.failed(lambda reference=reference: pull(engine, reference, auth=LOGIN))  # type: ignore[misc]
        home._rules.pop(-1)
    assert watch.found(paths=failure != "a way that echoes") == []


@pytest.mark.case("R07")
@pytest.mark.parametrize("auth", [LOGIN, IDENTITY], ids=["password", "identity"])
@pytest.mark.parametrize("failure", [400, 401, 403, 404, 500, 302])
def test_failing_token_service_leaks_no_secret(
    failure: int, auth: Credentials, net: Net, engine: Engine, watch: Watch
) -> None:
    home = net.registry(HOME)
    home.challenge, home.accepted = f'Bearer realm="https://{HOME}/token"', set()
    home.on("*", "/token", _echo(failure) if failure != 302 else _echo_in(302, "Location"))
    watch.failed(lambda: pull(engine, home.has(fresh()), auth=auth))
    assert watch.found() == []


@pytest.mark.case("R07")
def test_a_password_in_a_proxys_url_is_not_shown(
    net: Net, engine: Engine, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://user:pyc-proxy-1e1e@proxy.example.org:3128")
    proxy, home = net.plain("proxy.example.org", 3128), net.registry(HOME)
    watch.failed(lambda: pull(engine, home.has(fresh()), auth=LOGIN))
    proxy.on("CONNECT", "", replies(407))
    watch.failed(lambda: pull(engine, home.has(fresh()), auth=LOGIN))
    assert all(one.authorization is None for one in proxy.asked)
    os.environ.pop("https_proxy")  # our own environment may have it, and children their copy
    assert watch.found() == []


HELPERS = {
    "success": ("", 0),
    "no JSON": ("pyc-helper-77f2", 0),
    "no secret": ('{"Username": "pyc-helper-77f2"}', 0),
    "a failure": ("pyc-helper-77f2", 1),
    "a list": ('["pyc-helper-77f2"]', 0),
}


@pytest.mark.case("R07")
@pytest.mark.parametrize("helper", list(HELPERS))
def test_output_of_a_credential_helper_is_not_shown(
    helper: str, net: Net, engine: Engine, watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, status = HELPERS[helper]
    text = text or json.dumps({"Username": "pyc-user", "Secret": "pyc-helper-77f2"})
    (tmp_path / "answer").write_text(text)
    program = tmp_path / "docker-credential-pyc"
    program.write_text(
        f"#!/bin/sh\ncat {tmp_path}/answer\ncat {tmp_path}/answer >&2\nsleep 0.05\nexit {status}\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "auth.json").write_text(json.dumps({"credHelpers": {HOME: "pyc"}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    home = net.registry(HOME)
    home.challenge, home.accepted = 'Basic realm="pyc"', set()
    watch.failed(lambda: pull(engine, home.has(fresh())))
    assert watch.found() == []


@pytest.mark.case("R07")
@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"auths": {HOME: {"auth": base64.b64encode(PASSWORD.encode()).decode() + "!"}}}),
        json.dumps({"auths": {HOME: {"auth": base64.b64encode(b"\xff" + PASSWORD.encode()).decode()}}}),
        f'{{"auths": {{"{HOME}": {{"password": "{PASSWORD}"',
        json.dumps([PASSWORD]),
        json.dumps({"credHelpers": {HOME: f"../{PASSWORD}"[:3]}}),
    ],
)
def test_a_damaged_file_of_credentials_is_not_shown(
    text: str, net: Net, engine: Engine, watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "auth.json").write_text(text)
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    home = net.registry(HOME)
    home.challenge, home.accepted = 'Basic realm="pyc"', set()
    error = watch.failed(lambda: pull(engine, home.has(fresh())))
    assert "auth.json" in str(error) or "credential helper" in str(error)
    assert watch.found() == []


@pytest.mark.case("R07")
def test_no_value_shows_its_secret(net: Net) -> None:
    endpoint = RegistryEndpoint.of(HOME, patience=QUICK)
    with Client(endpoint, "pyc/image", auth=LOGIN) as registry:
        held = registry._tokens
        held._held["x"] = f"Bearer {TOKEN}", 0.0
        values = [LOGIN, IDENTITY, endpoint, registry, held, registry._http, [LOGIN], {"a": IDENTITY}]
        assert spilled(" ".join(f"{one!r} {one!s} {one}" for one in values)) == []


@pytest.mark.case("R07")
@pytest.mark.parametrize(
    "auth", [(PASSWORD,), ("u", PASSWORD, "x"), PASSWORD, ("a:b", PASSWORD), ("u", PASSWORD + "\n"), ("u", 7)]
)
def test_credentials_that_cannot_be_meant_are_not_shown(auth: object) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        Credentials.of(auth)
    assert spilled(f"{caught.value} {caught.value!r}") == []


@pytest.mark.control("R07")
def test_secret_in_an_error_would_be_detected(
    net: Net, engine: Engine, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http.Http, "hidden", lambda self, text: text)
    home = net.registry(HOME)
    home.challenge, home.accepted = 'Basic realm="pyc"', set()
    home.on(
        "GET",
        "/",
        lambda answer: (
            _echo(400)(answer)
            if answer.asked.authorization
            else answer.reply(401, WWW_Authenticate=home.challenge)
        ),
    )
    watch.failed(lambda: pull(engine, home.has(fresh()), auth=LOGIN))
    assert watch.found()


@pytest.mark.control("R07")
def test_secret_in_log_store_or_argument_would_be_detected(
    engine: Engine, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess

    for at, spill in enumerate(("log", "store", "argument")):
        del watch.said[:]
        path = Path(engine._session.roots.data) / f"pyc-spill-{at}"
        if spill == "log":
            logging.getLogger("pyc").debug("%s", PASSWORD)
        elif spill == "store":
            path.write_text(PASSWORD)
        else:
            watch = Watch(watch._caplog, watch._store)
            subprocess.run(["sh", "-c", "sleep 0.2", PASSWORD], check=True)
        assert watch.found() == [PASSWORD], spill
        watch._caplog.clear()
        path.unlink(missing_ok=True)
