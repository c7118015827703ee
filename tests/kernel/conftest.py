"""What the kernel tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pycontain import Container, Engine
from pycontain._engine import default_engine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this directory needs a real kernel."""
    for item in items:
        if "/kernel/" in str(item.path):
            item.add_marker(pytest.mark.kernel)


@pytest.fixture
def engine() -> Engine:
    """The engine of this run."""
    return default_engine()


@pytest.fixture
def container() -> Iterator[Container]:
    """An idle container with the defaults."""
    with Container() as one:
        yield one


@pytest.fixture
def needs_memory(engine: Engine) -> None:
    """Skip where no cgroup limits memory."""
    if not engine.cgroups.layout.has("memory"):
        pytest.skip("no memory controller is delegated to this user")


@pytest.fixture
def needs_pids(engine: Engine) -> None:
    """Skip where no cgroup limits processes."""
    if not engine.cgroups.layout.has("pids"):
        pytest.skip("no pids controller is delegated to this user")


@pytest.fixture
def needs_freezer(engine: Engine) -> None:
    """Skip where no v2 tree freezes."""
    if engine.cgroups.unified is None:
        pytest.skip("no cgroup v2 tree is delegated to this user")
