"""Tables for notebooks: every value is escaped and bounded."""

from __future__ import annotations

from typing import Any

import pytest

from pycontain import ExecResult, Image
from pycontain._model.html import table
from pycontain._model.process import Usage

SCRIPT = "<script>alert('1')</script>&"


def _result(stdout: Any) -> ExecResult[Any]:
    usage = Usage(wall=0.5, cpu_user=0.1, cpu_system=0.1)
    return ExecResult([SCRIPT], 1, stdout, SCRIPT, reason="exit", usage=usage, timings={})


def test_names_and_values_are_escaped() -> None:
    shown = table([(SCRIPT, SCRIPT)])
    assert "<script>" not in shown
    assert shown.count("&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt;&amp;") == 2


def test_long_values_are_cut() -> None:
    assert "6000 more characters" in table([("out", "x" * 10000)])
    assert len(table([("out", "x" * 1_000_000)])) < 5000


@pytest.mark.parametrize("stdout", [SCRIPT, SCRIPT.encode(), None, ""])
def test_result_of_a_command_is_escaped(stdout: str | bytes | None) -> None:
    shown = _result(stdout)._repr_html_()
    assert "<script>" not in shown
    assert ("stdout" in shown) is bool(stdout)
    assert "0.500 s" in shown


def test_image_shows_its_command() -> None:
    image = Image(name=SCRIPT, directories=("/nowhere",), command=(SCRIPT,))
    shown = image._repr_html_()
    assert "<script>" not in shown
    assert "command" in shown
    assert "user" not in shown
