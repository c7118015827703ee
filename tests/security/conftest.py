"""What the cases share: a host with a canary on it, root file systems, and the account of what was shown."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every case wants a real kernel; `full` ones run where the whole set is asked for."""
    for item in items:
        if "/security/" not in str(item.path):
            continue
        item.add_marker(pytest.mark.kernel)
        item.add_marker(pytest.mark.security)
        if item.get_closest_marker("full") and not os.environ.get("PYC_SECURITY_FULL"):
            item.add_marker(pytest.mark.skip(reason="part of the full set (make security)"))


class Canary:
    """A tree of the host that nothing may touch or read.  `check` says what happened to it."""

    SECRET = "canary-3c0e5b1d"

    def __init__(self, top: Path) -> None:
        self.top = top
        (top / "inner").mkdir(parents=True)
        for name in ("secret", "inner/secret"):
            (top / name).write_text(self.SECRET)
            (top / name).chmod(0o644)
        (top / "link").symlink_to("secret")
        self._before = self._state()

    def _state(self) -> dict[str, tuple[object, ...]]:
        found: dict[str, tuple[object, ...]] = {}
        for path in (self.top, *sorted(self.top.rglob("*"))):
            seen = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(seen.st_mode) else ""
            found[str(path)] = (
                seen.st_mode,
                seen.st_uid,
                seen.st_gid,
                seen.st_nlink,
                seen.st_mtime_ns,
                seen.st_size,
                tuple(os.listxattr(path, follow_symlinks=False)),
                content,
            )
        return found

    def check(self) -> list[str]:
        """What is not as it was."""
        now = self._state()
        return sorted(name for name in {*now, *self._before} if now.get(name) != self._before.get(name))


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    """A canary, found untouched at the end."""
    tmp_path.chmod(0o755)
    one = Canary(tmp_path / "canary")
    yield one
    assert not one.check()
