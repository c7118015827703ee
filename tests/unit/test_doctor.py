"""Output of `doctor`, as text and as JSON."""

from __future__ import annotations

import json

import pytest

from pycontain import __main__ as command
from pycontain._objects.doctor import Check


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    """Return the checks of a host that lacks one feature."""
    found = [
        Check("a container", True, "starts in 2.0 ms"),
        Check("ids", False, "no ranges in /etc/subuid", "sudo usermod --add-subuids 100000-165535 me"),
    ]
    monkeypatch.setattr(command, "examine", lambda _: found)
    return found


def test_missing_features_name_the_command_that_adds_them(
    checks: list[Check], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ok", "a", "container", "starts", "in", "2.0", "ms"]
    assert lines[1].startswith("MISSING  ids")
    assert lines[2].endswith("change it with: sudo usermod --add-subuids 100000-165535 me")


def test_programs_get_json(checks: list[Check], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["doctor", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed[1] == {
        "name": "ids",
        "ok": False,
        "detail": checks[1].detail,
        "command": checks[1].command,
    }


def test_a_host_where_nothing_starts_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "examine", lambda _: [Check("a container", False, "does not start")])
    assert command.main(["doctor"]) == 1
    assert "MISSING" in capsys.readouterr().out


def test_a_check_reads_as_a_line() -> None:
    assert str(Check("ids", False, "none", "do this")) == "ids: none: do this"
    assert str(Check("ids", True, "many")) == "ids: many"
