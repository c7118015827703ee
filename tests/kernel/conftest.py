"""Fixtures of the kernel tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain import Bind, Container, Engine, StartError


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this directory `kernel`."""
    for item in items:
        if "/kernel/" in str(item.path):
            item.add_marker(pytest.mark.kernel)


@pytest.fixture
def container() -> Iterator[Container]:
    """Provide an idle container with the defaults."""
    with Container() as one:
        yield one


@pytest.fixture
def needs_freezer(engine: Engine) -> None:
    """Skip where no v2 tree freezes."""
    if engine._session.cgroups.unified is None:
        pytest.skip("no cgroup v2 tree is delegated to this user")


@pytest.fixture
def needs_idmap(engine: Engine, tmp_path: Path) -> None:
    """Skip where root cannot idmap a bind into the container's ids; rootless starts need no id map."""
    if not engine._session.features.privileged:
        return
    try:
        Container(mounts={"/data": Bind(tmp_path, idmap=True)}).start().remove()
    except StartError as refused:
        if refused.step != "mount id map":
            raise
        pytest.skip("the file system of this kernel cannot be idmapped")
