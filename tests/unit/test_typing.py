"""Types of the public names as a type checker sees them."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pycontain import Container, ExecResult, run
from pycontain._objects.run import RunOptions
from pycontain._objects.signatures import ExecOptions

PROGRAM = Path(__file__).with_name("typed_program.py")


def test_a_program_is_checked_by_mypy_strict(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--cache-dir", str(tmp_path)]
    done = subprocess.run([*command, str(PROGRAM)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("function", "options"), [(Container.exec, ExecOptions), (run, RunOptions)])
def test_overloads_have_every_option(function: Callable[..., object], options: type) -> None:
    taken = inspect.signature(function).parameters
    named = {name for name, one in taken.items() if one.kind is one.KEYWORD_ONLY} - {"text"}
    assert named <= set(options.__annotations__)
    if "options" not in taken:
        assert named == set(options.__annotations__)


def test_results_can_be_parametrized() -> None:
    assert ExecResult[str].__origin__ is ExecResult  # type: ignore[attr-defined]
