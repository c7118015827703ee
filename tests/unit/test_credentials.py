"""Credentials in the files and helpers of docker and podman, and the registries that they apply to."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pycontain._registry import credentials
from pycontain._registry.credentials import Credentials

HOME = "registry.example.org"
LOGIN = Credentials(username="ann", password="pass")

Config = Callable[[object], Path]


def entry(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Write the one file that is looked at."""
    path = tmp_path / "auth.json"
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(path))

    def write(content: object) -> Path:
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put docker-credential-pyc on the PATH and return the file in which it logs its requests."""

    def make(script: str) -> Path:
        program = tmp_path / "docker-credential-pyc"
        program.write_text(f'#!/bin/sh\nread asked; echo "$1 $asked" >> {tmp_path}/asked\n{script}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return tmp_path / "asked"

    return make


KEYS = {
    HOME: HOME,
    "a scheme": f"https://{HOME}",
    "docker's first version": f"https://{HOME}/v1/",
    "a name space": f"{HOME}/team",
    "a repository": f"{HOME}/team/image",
}


@pytest.mark.parametrize("key", KEYS.values(), ids=list(KEYS))
def test_an_entry_is_found_under_each_of_its_names(key: str, config: Config) -> None:
    config({"auths": {key: entry("ann:pass:word")}})
    assert credentials.find(HOME, "team/image") == Credentials(username="ann", password="pass:word")
    assert credentials.find("other.example.org", "team/image") is None


@pytest.mark.parametrize(
    "key", [f"{HOME}:5000", f"evil.{HOME}", f"{HOME}/tea", f"{HOME}/team/image/more", f"{HOME}/image"]
)
def test_an_entry_of_another_is_not_taken(key: str, config: Config) -> None:
    config({"auths": {key: entry("ann:pass")}})
    assert credentials.find(HOME, "team/image") is None


def test_the_most_particular_entry_counts(config: Config) -> None:
    config({"auths": {HOME: entry("a:1"), f"{HOME}/team": entry("b:2"), f"{HOME}/team/image": entry("c:3")}})
    found = [credentials.find(HOME, name) for name in ("x", "team/x", "team/image")]
    assert [one and one.username for one in found] == ["a", "b", "c"]


@pytest.mark.parametrize("key", ["docker.io", "https://index.docker.io/v1/", "index.docker.io"])
def test_the_hub_has_names_of_its_own(key: str, config: Config) -> None:
    config({"auths": {key: entry("ann:pass")}})
    assert credentials.find("docker.io", "library/debian") == LOGIN


def test_an_identity_token_goes_before_a_password(config: Config) -> None:
    config({"auths": {HOME: {**entry("ann:pass"), "identitytoken": "secret"}}})
    found = credentials.find(HOME, "x")
    assert found == Credentials(username="<token>", identity_token="secret")


@pytest.mark.parametrize(
    "content",
    [[], "x", {"auths": []}, {"auths": {HOME: "x"}}, {"auths": {HOME: {}}}, {"auths": {HOME: {"auth": 7}}}],
)
def test_a_file_of_another_shape_has_no_credentials(
    content: object, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    config(content)
    problems: list[str] = []
    assert credentials.find(HOME, "x", problems) is None
    assert bool(problems) == bool(caplog.records) == (not isinstance(content, dict))


@pytest.mark.parametrize("content", ["", " \n", "{}", "null broken", "{", "[" * 100_000, '{"auths": {}}'])
def test_empty_and_broken_files_are_passed_over(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "containers").mkdir()
    (tmp_path / "containers" / "auth.json").write_text(content)
    (tmp_path / "config.json").write_text(json.dumps({"auths": {HOME: entry("ann:pass")}}))
    problems: list[str] = []
    assert credentials.find(HOME, "x", problems) == LOGIN
    is_broken = bool(content.strip()) and not content.startswith('{"') and content != "{}"
    assert bool(problems) is is_broken
    assert all(one.name == "pycontain.registry" for one in caplog.records)
    assert bool(caplog.records) is is_broken


def test_a_directory_in_place_of_a_file_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path))
    problems: list[str] = []
    assert credentials.find(HOME, "x", problems) is None
    assert "Is a directory" in problems[0]


def test_files_are_asked_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    places = {"XDG_RUNTIME_DIR": "run", "XDG_CONFIG_HOME": "config", "DOCKER_CONFIG": "docker"}
    for variable, name in places.items():
        monkeypatch.setenv(variable, str(tmp_path / name))
    files = ["docker/config.json", "config/containers/auth.json", "run/containers/auth.json"]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(json.dumps({"auths": {HOME: entry(f"{name.split('/')[0]}:x")}}))
        found = credentials.find(HOME, "x")
        assert found is not None
        assert found.username == name.split("/")[0]
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "none"))
    assert credentials.find(HOME, "x") is None


@pytest.mark.parametrize("way", ["credHelpers", "credsStore"])
def test_a_helper_is_asked_for_one_server(way: str, config: Config, helper: Callable[[str], Path]) -> None:
    asked = helper("""echo '{"ServerURL": "x", "Username": "ann", "Secret": "pass"}'""")
    config({way: {HOME: "pyc"} if way == "credHelpers" else "pyc"})
    assert credentials.find(HOME, "team/image") == LOGIN
    assert asked.read_text() == f"get {HOME}\n"


def test_a_helper_gives_an_identity_token(config: Config, helper: Callable[[str], Path]) -> None:
    helper("""echo '{"Username": "<token>", "Secret": "secret"}'""")
    config({"credHelpers": {HOME: "pyc"}})
    assert credentials.find(HOME, "x") == Credentials(username="<token>", identity_token="secret")


def test_a_helper_that_knows_nothing_is_no_failure(config: Config, helper: Callable[[str], Path]) -> None:
    helper("echo 'credentials not found in native keychain'; exit 1")
    config({"credHelpers": {HOME: "pyc"}})
    assert credentials.find(HOME, "x") is None


@pytest.mark.parametrize("script", ["exit 3", "echo x", "echo '[]'", "kill -9 $$"])
def test_a_helper_that_fails_is_named(
    script: str, config: Config, helper: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    helper(script)
    config({"credHelpers": {HOME: "pyc"}})
    problems: list[str] = []
    assert credentials.find(HOME, "x", problems) is None
    assert "docker-credential-pyc" in problems[0]
    assert problems[0] in caplog.text


@pytest.mark.parametrize("way", ["credHelpers", "credsStore"])
@pytest.mark.parametrize("name", ["pyc-absent", "../pyc", ""])
def test_an_absent_helper_is_a_problem(name: str, way: str, config: Config) -> None:
    config({way: {HOME: name} if way == "credHelpers" else name})
    problems: list[str] = []
    assert credentials.find(HOME, "x", problems) is None
    assert bool(problems) is (bool(name) or way == "credHelpers")
