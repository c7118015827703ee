"""Messages beside results: the log, warnings, and tables of a notebook."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from pycontain import Container


def test_starts_and_ends_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="pycontain")
    with Container(name="pyc-logged") as container:
        container.exec(["sh", "-c", "exit 3 # secret"])
        with container.popen(["true"]) as process:
            process.wait()
        with pytest.raises(subprocess.TimeoutExpired):
            container.exec(["sleep", "60"], timeout=0.1)
    lines = [record.getMessage() for record in caplog.records if record.name == "pycontain"]
    assert lines[0].startswith("container pyc-logged started in ")
    assert lines[1:] == [
        "command sh in container pyc-logged ended with 3: exit",
        "command true in container pyc-logged ended with 0: exit",
        "command sleep in container pyc-logged ended with -9: timeout",
        "container pyc-logged ended: cancelled (it was removed)",
    ]


def test_memory_limit_is_logged(caplog: pytest.LogCaptureFixture, needs_memory: None) -> None:
    caplog.set_level(logging.DEBUG, logger="pycontain")
    with Container(memory="32M") as container:
        if container.exec(["python3", "-c", "bytearray(1 << 30)"]).reason != "oom":
            pytest.skip("no cgroup of this host limits memory")
    assert any(record.getMessage().endswith("ended with -9: oom") for record in caplog.records)


def test_logging_is_not_imported() -> None:
    run = "import sys, pycontain\nwith pycontain.Container() as c: c.exec(['true'])"
    code = f"{run}\nprint('logging' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("end", "warned"), [("", True), ("c.remove()", False), ("pycontain.Engine().close()", True)]
)
def test_container_left_running_at_exit_is_warned_of(end: str, warned: bool) -> None:
    code = f"import pycontain\nc = pycontain.Container(name='pyc-left').start()\n{end}"
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, check=True
    )
    assert ("ResourceWarning: container pyc-left was still running at exit" in done.stderr) is warned


def test_container_shows_a_table(container: Container) -> None:
    assert container.name in container._repr_html_()
    assert "running" in container._repr_html_()
