"""Debuggers and sanitizers of a user's own programs in the default sandbox."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pycontain import Container

pytestmark = pytest.mark.kernel

LEAK = """
#include <stdlib.h>
int main (int argc, char **argv) { if (argc > 1) { volatile char *lost = malloc (17); lost = 0; } return 0; }
"""


@pytest.mark.parametrize("sanitizer", ["address", "leak", "undefined"])
def test_sanitizers_pass_a_correct_program_and_find_a_leak(sanitizer: str, tmp_path: Path) -> None:
    if not shutil.which("gcc"):
        pytest.skip("no gcc on this host")
    (tmp_path / "a.c").write_text(LEAK)
    command = f"gcc -fsanitize={sanitizer} a.c -o a && ./a"
    if subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, check=False).returncode:
        pytest.skip(f"the {sanitizer} sanitizer of gcc does not work on this host, as in user-mode-linux")
    with Container() as container:
        container.path("/workspace/a.c").write_text(LEAK)
        made = container.exec(["gcc", f"-fsanitize={sanitizer}", "a.c", "-o", "a"], workdir="/workspace")
        assert made.returncode == 0, made.stderr
        clean = container.exec(["/workspace/a"])
        assert (clean.returncode, clean.stderr) == (0, "")
        if sanitizer != "undefined":
            leaking = container.exec(["/workspace/a", "leak"])
            assert "17 byte" in leaking.stderr


def test_strace_follows_children() -> None:
    if not shutil.which("strace"):
        pytest.skip("no strace on this host")
    with Container() as container:
        result = container.exec(["strace", "-f", "-e", "trace=execve", "sh", "-c", "/bin/true; exit 3"])
    assert result.returncode == 3
    assert result.stderr.count("execve(") == 2


def test_gdb_shows_a_stack() -> None:
    if not shutil.which("gdb"):
        pytest.skip("no gdb on this host")
    commands = ["-ex", "run", "-ex", "backtrace"]
    with Container() as container:
        script = ["gdb", "-batch", *commands, "--args", "sh", "-c", "kill -SEGV $$"]
        result = container.exec(script, timeout=60)
    assert "SIGSEGV" in result.stdout
    assert "#0 " in result.stdout


def test_the_agent_cannot_be_traced() -> None:
    script = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for request in (16, 0x4206):
    assert libc.ptrace(request, 1, 0, 0) == -1
    print(ctypes.get_errno())
"""
    with Container() as container:
        assert container.exec(["python3", "-c", script], check=True).stdout == "1\n1\n"
