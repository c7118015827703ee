"""Credentials for registries, from the files and helpers of docker and podman."""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import field, frozen

from pycontain._model.sizes import shown
from pycontain._state.paths import home_directory, xdg_directory

_HUB_KEY = "https://index.docker.io/v1/"
_HELPER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}")
_HELPER_PATIENCE = 30
_FILE_MOST = 1 << 20
_log = logging.getLogger("pycontain.registry")


@frozen(kw_only=True)
class Credentials:
    """User name and secret; the secret does not appear in the repr."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @classmethod
    def of(cls, auth: object) -> Credentials | None:
        """Return the credentials of an `auth` argument.

        Raises:
            TypeError: It is neither None nor a pair of strings.
            ValueError: A part is empty or has characters that RFC 7617 forbids.
        """
        if auth is None or isinstance(auth, Credentials):
            return auth
        if not isinstance(auth, tuple) or len(auth) != 2 or not all(isinstance(part, str) for part in auth):
            raise TypeError("auth must be (username, password)")
        username, password = auth
        if not username or not password:
            raise ValueError("auth must be (username, password), neither of them empty")
        if ":" in username or any(ord(char) < 32 for char in username + password):
            raise ValueError("auth must not have a colon in the username, nor control characters")
        return cls(username=username, password=password)

    @property
    def basic(self) -> str:
        """Return the value of an Authorization header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class _Unusable(Exception):
    """File, entry or helper that cannot be used, with the reason."""


def find(registry: str, repository: str, problems: list[str] | None = None) -> Credentials | None:
    """Find credentials for a repository in the user's files.

    If REGISTRY_AUTH_FILE is set, only that file is read; otherwise podman's auth.json, then docker's
    config.json. The first file with credentials is used. Unusable files and helpers are logged as warnings,
    not raised, so that public images can still be pulled.

    Args:
        registry: Name of the registry.
        repository: Path of the repository.
        problems: List to which the problems are appended, for the error of an image that needs credentials.
    """
    for path in _files():
        try:
            found = _in_file(path, _content(path), registry, repository)
        except _Unusable as error:
            _log.warning("credentials for %s are not used: %s", registry, error)
            if problems is not None:
                problems.append(str(error))
            continue
        if found is not None:
            return found
    return None


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(_FILE_MOST + 1)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except (OSError, ValueError) as error:
        raise _Unusable(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > _FILE_MOST:
        raise _Unusable(f"{path} is larger than {_FILE_MOST} bytes")
    return data


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
    if not data.strip():
        return None
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise _Unusable(f"{path} is not a JSON document") from None
    if not isinstance(document, dict):
        raise _Unusable(f"{path} is not a JSON object")
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
    """Return the keys to look up in a file, the most specific first (containers-auth.json(5))."""
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
            raise _Unusable(f"{path}: the entry of {key} is malformed") from None
        if colon:
            return Credentials(username=username, password=password.rstrip("\0"))
    name, secret = entry.get("username"), entry.get("password")
    if isinstance(name, str) and isinstance(secret, str) and name:
        return Credentials(username=name, password=secret)
    return None


def _ask_helper(name: str, server: str) -> Credentials | None:
    """Run docker-credential-NAME, whose output is never logged; return None if it has no credentials."""
    if not _HELPER.fullmatch(name):
        raise _Unusable(f"credential helper must have a plain name, got {shown(name)}")
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
        raise _Unusable(f"the credential helper {program} is not installed") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        why = (
            f"no answer in {_HELPER_PATIENCE} seconds"
            if isinstance(error, subprocess.TimeoutExpired)
            else error
        )
        raise _Unusable(f"the credential helper {program} failed: {why}") from None
    if done.returncode:
        if b"not found" in done.stdout or b"not found" in done.stderr:
            return None
        raise _Unusable(f"the credential helper {program} failed with status {done.returncode}")
    try:
        answer = json.loads(done.stdout)
        username, secret = answer["Username"], answer["Secret"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _Unusable(f"the credential helper {program} returned no credentials") from None
    if username == "<token>":
        return Credentials(username=username, identity_token=str(secret))
    return Credentials(username=str(username), password=str(secret))
