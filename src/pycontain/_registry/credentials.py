"""Who the user is to a registry: what docker, podman and their helpers keep."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import field, frozen

from pycontain._model.sizes import shown
from pycontain._state.paths import home_directory, xdg_directory
from pycontain.errors import AuthError

_HUB_KEY = "https://index.docker.io/v1/"
_HELPER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}")
_HELPER_PATIENCE = 30
_FILE_MOST = 1 << 20


@frozen(kw_only=True)
class Credentials:
    """A user's name and secret; a secret is in no text that this makes."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @classmethod
    def of(cls, auth: object) -> Credentials | None:
        """From what a caller gives: (username, password), or None.  Raises TypeError, ValueError."""
        if auth is None or isinstance(auth, Credentials):
            return auth
        if not isinstance(auth, tuple) or len(auth) != 2 or not all(isinstance(part, str) for part in auth):
            raise TypeError("auth is (username, password)")
        username, password = auth
        if not username or not password:
            raise ValueError("auth must be (username, password), neither of them empty")
        if ":" in username or any(ord(char) < 32 for char in username + password):
            raise ValueError("a username has no colon, and neither part a control character")
        return cls(username=username, password=password)

    @property
    def basic(self) -> str:
        """The value of an Authorization header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


def find(registry: str, repository: str) -> Credentials | None:
    """What the user's files have for a registry: the first file that knows it.

    REGISTRY_AUTH_FILE alone where it is set; else podman's auth.json, then docker's config.json.
    Raises AuthError for a file that cannot be read or a helper that fails.
    """
    for path in _files():
        try:
            with open(path, "rb") as file:
                data = file.read(_FILE_MOST + 1)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise AuthError(f"cannot read {path}: {error.strerror}") from error
        found = _in_file(path, data, registry, repository)
        if found is not None:
            return found
    return None


def _files() -> Iterator[str]:
    own = os.environ.get("REGISTRY_AUTH_FILE")
    if own:
        yield own
        return
    runtime = xdg_directory("XDG_RUNTIME_DIR")
    if runtime:
        yield os.path.join(runtime, "containers", "auth.json")
    config = xdg_directory("XDG_CONFIG_HOME") or os.path.join(home_directory(), ".config")
    yield os.path.join(config, "containers", "auth.json")
    docker = os.environ.get("DOCKER_CONFIG") or os.path.join(home_directory(), ".docker")
    yield os.path.join(docker, "config.json")


def _in_file(path: str, data: bytes, registry: str, repository: str) -> Credentials | None:
    try:
        document = json.loads(data[:_FILE_MOST])
    except (ValueError, RecursionError):
        raise AuthError(f"{path} is no JSON document") from None
    if not isinstance(document, dict):
        raise AuthError(f"{path} is no JSON object")
    keys = _keys(registry, repository)
    helpers = _mapping(document, "credHelpers")
    for key in keys:
        if isinstance(helpers.get(key), str):
            return _ask_helper(helpers[key], _server(key))
    auths = _mapping(document, "auths")
    store = document.get("credsStore")
    for key in keys:
        entry = auths.get(key)
        if isinstance(store, str) and store and (entry is not None or key in (registry, _HUB_KEY)):
            return _ask_helper(store, _server(key))
        if isinstance(entry, dict):
            found = _entry(path, key, entry)
            if found is not None:
                return found
    return None


def _keys(registry: str, repository: str) -> list[str]:
    """The names under which a file may have it, the most particular first (containers-auth.json(5))."""
    parts = repository.split("/")
    keys = [f"{registry}/{'/'.join(parts[:count])}" for count in range(len(parts), 0, -1)]
    keys += [registry, f"https://{registry}", f"https://{registry}/v1/", f"https://{registry}/v2/"]
    if registry == "docker.io":
        keys += [_HUB_KEY, "index.docker.io"]
    return keys


def _server(key: str) -> str:
    return _HUB_KEY if key == "docker.io" else key


def _mapping(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = document.get(name)
    return value if isinstance(value, dict) else {}


def _entry(path: str, key: str, entry: Mapping[str, Any]) -> Credentials | None:
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return Credentials(username="<token>", identity_token=token)
    encoded = entry.get("auth")
    if isinstance(encoded, str) and encoded:
        try:
            username, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise AuthError(f"{path}: the entry of {key} is malformed") from None
        if colon:
            return Credentials(username=username, password=password.rstrip("\0"))
    name, secret = entry.get("username"), entry.get("password")
    if isinstance(name, str) and isinstance(secret, str) and name:
        return Credentials(username=name, password=secret)
    return None


def _ask_helper(name: str, server: str) -> Credentials | None:
    """Run docker-credential-NAME; what it writes is never shown.  None where it knows nothing."""
    if not _HELPER.fullmatch(name):
        raise AuthError(f"not the name of a credential helper: {shown(name)}")
    program = f"docker-credential-{name}"
    try:
        done = subprocess.run(
            [program, "get"],
            input=server.encode(),
            capture_output=True,
            timeout=_HELPER_PATIENCE,
            check=False,
        )
    except FileNotFoundError:
        raise AuthError(f"the credential helper {program} is not installed") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AuthError(f"the credential helper {program} failed: {type(error).__name__}") from None
    if done.returncode:
        if b"not found" in done.stdout or b"not found" in done.stderr:
            return None
        raise AuthError(f"the credential helper {program} ended with {done.returncode}")
    try:
        answer = json.loads(done.stdout)
        username, secret = answer["Username"], answer["Secret"]
    except (ValueError, KeyError, TypeError):
        raise AuthError(f"the credential helper {program} gave no credentials") from None
    if username == "<token>":
        return Credentials(username=username, identity_token=str(secret))
    return Credentials(username=str(username), password=str(secret))
