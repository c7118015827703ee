"""Inspect's own checks of a sandbox provider pass on the one in examples/inspect_sandbox.py."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
CHECKS = """
import sys
from collections.abc import AsyncIterator

import pytest
from inspect_ai.util._sandbox.self_check import *  # noqa: F403
from inspect_sandbox import PycontainSandbox

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def sandbox_env() -> AsyncIterator[PycontainSandbox]:
    environments = await PycontainSandbox.sample_init("task", None, {})
    sandbox = environments["default"]
    # The default image has the host's adduser, which asks PAM, and an /etc without PAM's configuration.
    rules = sandbox.container.path("/etc/pam.d", user="root")
    rules.mkdir()
    (rules / "chfn").write_text("auth required pam_permit.so\\naccount required pam_permit.so\\n")
    try:
        yield sandbox
    finally:
        await PycontainSandbox.sample_cleanup("task", None, environments, False)
"""


@pytest.mark.skipif(importlib.util.find_spec("inspect_ai") is None, reason="inspect-ai is not installed")
def test_checks_of_inspect_pass(tmp_path: Path) -> None:
    (tmp_path / "test_checks.py").write_text(CHECKS)
    paths = [str(ROOT / "examples"), str(ROOT / "src")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider", "test_checks.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYCONTAIN_ROOT": str(tmp_path / "root")},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-10_000:]
