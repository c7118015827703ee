"""Sparse files: holes are preserved in every copy and archive, and cost no time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from pycontain import Container, Image, PathError, Volume

GIB = 1 << 30
LAYOUT = ((0, b"first"), (3 << 20, b"x" * 5000), (GIB // 2 + 7, b"middle"))

MAKE = rf"""
import os
os.makedirs("/root/t/sub/" + "long" * 40)
def make(name, parts, size):
    with open(name, "wb") as file:
        for offset, data in parts:
            file.seek(offset)
            file.write(data)
        file.truncate(size)
make("/root/t/parts", {LAYOUT!r}, {GIB})
make("/root/t/hollow", (), {GIB})
make("/root/t/end", (({GIB} - 3, b"end"),), {GIB})
make("/root/t/sub/" + "long" * 40 + "/deep", ((1 << 20, b"deep"),), 1 << 28)
make("/root/t/many", [(at * 8192, b"y") for at in range(3000)], 3000 * 8192)
make("/root/t/small", (), 5000)
os.link("/root/t/parts", "/root/t/sub/twin")
"""


@pytest.fixture
def sparse(container: Container) -> Container:
    """Return a container with sparse files below /root/t."""
    container.exec(["python3", "-c", MAKE], check=True, timeout=120)
    return container


def _digest(path: Path) -> str:
    """Return the digest of a file's data with their offsets, so that holes need not be read."""
    digest = hashlib.sha256(str(path.stat().st_size).encode())
    with path.open("rb", buffering=0) as file:
        at, size = 0, path.stat().st_size
        while at < size:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            for place in range(start, at, 4096):
                block = os.pread(file.fileno(), 4096, place)
                if block.strip(b"\0"):
                    digest.update(b"%d" % place + block.rstrip(b"\0"))
    return digest.hexdigest()


def _check(top: Path, expected: dict[str, str] | None = None) -> dict[str, str]:
    """Check that every file of the tree has the same holes and data as before."""
    paths = [path for path in sorted(top.rglob("*")) if path.is_file()]
    assert len(paths) == 7
    for path in paths:
        assert path.stat().st_blocks * 512 <= (64 << 20 if path.name == "many" else 1 << 20), path
    with (top / "parts").open("rb") as file:
        for offset, data in LAYOUT:
            file.seek(offset)
            assert file.read(len(data)) == data
    assert (top / "hollow").stat().st_size == (top / "end").stat().st_size == GIB
    assert (top / "small").read_bytes() == bytes(5000)
    assert (top / "parts").stat().st_ino == (top / "sub" / "twin").stat().st_ino
    found = {str(path.relative_to(top)): _digest(path) for path in paths}
    assert expected is None or found == expected
    return found


def test_copies_keep_holes(sparse: Container, tmp_path: Path) -> None:
    began = time.monotonic()
    sparse.copy_out("/root/t", tmp_path / "one")
    digests = _check(tmp_path / "one")
    sparse.copy_in(tmp_path / "one", "/root/u")
    (tmp_path / "two").mkdir()
    sparse.copy_out("/root/u/.", tmp_path / "two")
    _check(tmp_path / "two", digests)
    used = sparse.exec(["du", "-sm", "/root/u"], check=True).stdout.split()[0]
    assert int(used) < 64
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("name", ["parts", "hollow", "end", "small"])
def test_a_single_file_keeps_its_holes(sparse: Container, tmp_path: Path, name: str) -> None:
    sparse.copy_out(f"/root/t/{name}", tmp_path / "one")
    sparse.copy_in(tmp_path / "one", "/root/again")
    sparse.copy_out("/root/again", tmp_path / "two")
    assert (tmp_path / "one").stat().st_blocks * 512 < 1 << 20
    assert (tmp_path / "two").stat().st_blocks * 512 < 1 << 20
    assert _digest(tmp_path / "one") == _digest(tmp_path / "two")
    used = sparse.exec(["du", "-k", "/root/again"], check=True).stdout.split()[0]
    assert int(used) < 1024


def test_holes_count_against_max_bytes(sparse: Container, tmp_path: Path) -> None:
    for source in ("/root/t/hollow", "/root/t"):
        with pytest.raises(PathError, match=r"allowed|more than"):
            sparse.copy_out(source, tmp_path / "out", max_bytes="500M")
    assert os.listdir(tmp_path) == []


def test_a_file_of_a_tebibyte_is_copied_in_and_refused_on_the_way_out(
    container: Container, tmp_path: Path
) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "tree").mkdir()
    os.link(tmp_path / "huge", tmp_path / "tree" / "huge")
    for source in ("huge", "tree"):
        container.copy_in(tmp_path / source, f"/root/{source}")
        with pytest.raises(PathError, match=r"allowed|more than"):
            container.copy_out(f"/root/{source}", tmp_path / "out")
    container.copy_out("/root/tree", tmp_path / "out", max_bytes=2 << 40)
    assert (tmp_path / "out" / "huge").stat().st_blocks < 2048


def test_exported_archives_are_read_by_others(sparse: Container, tmp_path: Path) -> None:
    sparse.export(tmp_path / "archive.tar")
    assert (tmp_path / "archive.tar").stat().st_size < GIB
    with tarfile.open(tmp_path / "archive.tar") as archive:
        assert archive.getmember("root/t/parts").size == GIB
    (tmp_path / "gnu").mkdir()
    command = ["tar", "-xf", str(tmp_path / "archive.tar"), "-C", str(tmp_path / "gnu"), "root/t"]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    sparse.copy_out("/root/t", tmp_path / "ours")
    _check(tmp_path / "gnu" / "root" / "t", _check(tmp_path / "ours"))


@pytest.mark.usefixtures("needs_idmap")
def test_volumes_keep_holes(tmp_path: Path, container: Container) -> None:
    engine = container._engine
    with Volume(engine=engine) as first, Volume(engine=engine) as second:
        with Container(volumes={"/root/t": first}, engine=engine) as c:
            c.exec(
                ["python3", "-c", MAKE.replace("os.makedirs(", "os.makedirs(exist_ok=True, name=")],
                check=True,
            )
            c.copy_out("/root/t", tmp_path / "one")
        first.backup(tmp_path / "backup.tar")
        assert (tmp_path / "backup.tar").stat().st_size < 128 << 20
        second.restore(tmp_path / "backup.tar")
        with Container(volumes={"/root/t": second}, engine=engine) as c:
            c.copy_out("/root/t", tmp_path / "two")
    _check(tmp_path / "two", _check(tmp_path / "one"))


def test_committed_layers_keep_holes(tmp_path: Path, container: Container) -> None:
    engine = container._engine
    (tmp_path / "root" / "bin").mkdir(parents=True)
    container.exec(["python3", "-c", MAKE], check=True)
    container.copy_out("/root/t", tmp_path / "root" / "t")
    digests = _check(tmp_path / "root" / "t")
    image = Image.from_rootfs(tmp_path / "root", copy=True, engine=engine)
    (layer,) = image.directories
    _check(Path(layer) / "t", digests)
