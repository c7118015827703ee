"""The start of the interpreter for calls: its deadline and its module path."""

from __future__ import annotations

import contextlib
import sys
import threading
import time

import pytest

from pycontain import CallError, CommandTimeout, Container
from pycontain._objects.zygote import make
from pycontain._python import host

pytest.importorskip("cloudpickle", reason="pycontain[call] is not installed")


def test_timeout_covers_the_start_of_the_interpreter() -> None:
    with Container() as container:
        container.exec("printf '#!/bin/sh\nsleep 100' > /tmp/python; chmod +x /tmp/python", shell=True)
        zygote = make(container, (), "/tmp/python")
        begun = time.monotonic()
        with pytest.raises(CommandTimeout):
            zygote.call(int, timeout=0.5)
        assert time.monotonic() - begun < 5


def test_timeout_covers_the_wait_for_another_start() -> None:
    with Container() as container:
        container.exec("printf '#!/bin/sh\nsleep 100' > /tmp/python; chmod +x /tmp/python", shell=True)
        zygote = make(container, (), "/tmp/python")

        def wait() -> None:
            with contextlib.suppress(CommandTimeout):
                zygote.call(int, timeout=3)

        first = threading.Thread(target=wait)
        first.start()
        time.sleep(0.3)
        begun = time.monotonic()
        with pytest.raises(CommandTimeout):
            zygote.call(int, timeout=0.3)
        assert time.monotonic() - begun < 2
        first.join()


def test_interpreter_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_HELLO_PATIENCE", 0.5)
    with Container() as container:
        container.exec("printf '#!/bin/sh\nsleep 100' > /tmp/python; chmod +x /tmp/python", shell=True)
        with pytest.raises(CallError, match="not prepared in time"):
            container.zygote(python="/tmp/python")


def test_packages_and_paths_of_the_interpreter_are_there(container: Container) -> None:
    plain = container.exec([sys.executable, "-c", "import sys; print('\\n'.join(sys.path))"]).stdout.split()
    inside = container.call(lambda: sys.path)
    assert [one for one in plain if "-packages" in one] == [one for one in inside if "-packages" in one]
    with Container(env={"PYTHONPATH": "/opt/lib:relative"}) as other:
        assert other.call(lambda: sys.path[0]) == "/opt/lib"
        assert "relative" not in other.call(lambda: sys.path)
