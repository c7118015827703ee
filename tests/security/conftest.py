"""Fixtures of the cases: a canary on the host, root file systems, and the record of outcomes by case."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain import Engine, Image
from tests.support.images import directory, file, oci_layout, tar


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every case `kernel`, and skip `full` ones unless PYC_SECURITY_FULL is set."""
    for item in items:
        if "/security/" not in str(item.path):
            continue
        item.add_marker(pytest.mark.kernel)
        item.add_marker(pytest.mark.security)
        if item.get_closest_marker("full") and not os.environ.get("PYC_SECURITY_FULL"):
            item.add_marker(pytest.mark.skip(reason="part of the full set (make security)"))


class Canary:
    """A tree of the host that must not be read or changed.  `check` returns changes."""

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
        """Return the differences from the recorded state."""
        now = self._state()
        return sorted(name for name in {*now, *self._before} if now.get(name) != self._before.get(name))


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    """Provide a canary and check that it is untouched at the end."""
    tmp_path.chmod(0o755)
    one = Canary(tmp_path / "canary")
    yield one
    assert not one.check()


def kept(engine: Engine) -> dict[str, int]:
    """Return the disk usage of a store's files, without the database, which grows independently."""
    found = {}
    for top in ("blobs", "layers", "partial"):
        for place, _, names in os.walk(os.path.join(engine._session.roots.data, top)):
            for name in names:
                path = os.path.join(place, name)
                found[path] = os.lstat(path).st_blocks
    for name in os.listdir(engine._session.owner.live):
        found[os.path.join(engine._session.owner.live, name)] = 0
    return found


def whole(engine: Engine, top: Path) -> None:
    """Check that fsck is clean, a normal image still works, and the disk space is released."""
    assert engine.fsck() == []
    layers = [tar([directory("a"), file("a/b", b"x")]), tar([file("a/.wh.b"), file("c", b"y")])]
    normal = Image.from_oci_layout(oci_layout(layers).write(top / "normal"), engine=engine)
    assert [sorted(os.listdir(one)) for one in normal.directories] == [["a", "c"], ["a"]]
    assert engine.fsck() == []
    for image in engine.images:
        image.remove(force=True)
    engine.sweep()
    assert kept(engine) == {}


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Engine]:
    """Provide an engine with its own store, and check that it is complete and empty at the end."""
    tmp_path.chmod(0o755)
    engine = Engine(tmp_path / "store")
    assert engine._session.store
    try:
        yield engine
        whole(engine, tmp_path)
    finally:
        engine.close()
