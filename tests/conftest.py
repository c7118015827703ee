"""Fixtures of every suite: a private store for the run, and a check for leaks after each kernel test."""

from __future__ import annotations

import collections
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.account import pytest_runtest_makereport, pytest_sessionfinish
from tests.support.mounts import our_mounts
from tests.support.names import net
from tests.support.roots import make_root

if TYPE_CHECKING:
    from pycontain import Engine

__all__ = ["net", "pytest_runtest_makereport", "pytest_sessionfinish"]

_PATIENCE = 5.0
"""Seconds after a test in which its traces have to be gone."""

_ROOT = tempfile.mkdtemp(prefix="pyc-test-")
os.environ["PYCONTAIN_ROOT"] = _ROOT


@pytest.fixture(scope="session", autouse=True)
def _store() -> Iterator[None]:
    yield
    from pycontain._runtime.session import close_all

    close_all()


def pytest_unconfigure() -> None:
    """Remove the store, also in the xdist controller, which runs no tests."""
    shutil.rmtree(_ROOT, ignore_errors=True)


def _cgroups() -> set[str]:
    from pycontain._objects.engine import default_engine

    engine = default_engine()
    bases = {
        f"{path}/pycontain/{engine._session.owner.name}"
        for path in engine._session.cgroups.layout.legacy.values()
    }
    if engine._session.cgroups.unified:
        bases.add(engine._session.cgroups.unified)
    found: set[str] = set()
    for base in bases:
        for directory, names, _ in os.walk(base):
            found.update(os.path.join(directory, name) for name in names)
    waiting = {child.group.name for child in engine._session.launchers.precloned()}
    return {
        path
        for path in found
        if not path.endswith(engine._session.owner.name) and not waiting & {*path.split("/")}
    }


def _fds() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
    return found


def _held_fds() -> int:
    """Count sockets, pidfds and cgroup files; each launcher has one socket and one pidfd."""
    kinds = ("socket:", "pidfd", "cgroup")
    return sum(any(kind in path for kind in kinds) for path in _fds().values())


def _snapshot() -> dict[str, Any]:
    from pycontain._objects.engine import default_engine

    engine = default_engine()
    engine._session.warm.discard()
    engine.settle()
    return {
        "mounts": our_mounts(),
        "cgroups": _cgroups(),
        "containers": os.listdir(engine._session.owner.live),
        "fds": _held_fds() - 2 * len(engine._session.launchers) - len(engine._session.cgroups.held),
    }


@pytest.fixture
def engine() -> Engine:
    """Return the default engine of this run."""
    from pycontain._objects.engine import default_engine

    return default_engine()


@pytest.fixture
def needs_memory(engine: Engine) -> None:
    """Skip where no cgroup limits memory."""
    if not engine._session.cgroups.layout.has("memory"):
        pytest.skip("no memory controller is delegated to this user")


@pytest.fixture
def needs_pids(engine: Engine) -> None:
    """Skip where no cgroup limits processes."""
    if not engine._session.cgroups.layout.has("pids"):
        pytest.skip("no pids controller is delegated to this user")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a root file system with busybox and the directories that the engine needs."""
    return make_root(tmp_path / "rootfs")


@pytest.fixture(autouse=True)
def leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compare mounts, cgroups, directories and fds before and after each kernel test."""
    if request.node.get_closest_marker("kernel") is None:
        yield
        return
    from pycontain import Container

    with Container() as container:  # launcher, cleanup helper and first exec cgroup exist before the count
        container.exec(["true"])
        # The process that watches for Ctrl-C is made by the first command of another thread.
        thread = threading.Thread(target=container.exec, args=(["true"],))
        thread.start()
        thread.join()
    before = _snapshot()
    yield
    # The watches of disk and kernel memory open sockets and files for a moment: only what stays is a leak.
    deadline = time.monotonic() + _PATIENCE
    while (left := _difference(before, _snapshot())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def _difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return what differs, by kind: before and after, and of cgroups those that were added.

    An exec may use up an exec cgroup that was made in advance, so a missing cgroup is no difference.
    """
    left = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    left["cgroups"] = after["cgroups"] - before["cgroups"]
    return {name: found for name, found in left.items() if found}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the number of skips by reason."""
    reasons: collections.Counter[str] = collections.Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason.removeprefix("Skipped: ")] += 1
    terminalreporter.write_sep("-", "skips by reason")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:4d}  {reason}")
    terminalreporter.write_line(f"{sum(reasons.values()):4d}  skipped in all")
