"""F18: damage to files of the store is found, reported and repaired."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from pycontain import Engine, Image, ImageError, PathError
from pycontain.oci import Digest
from tests.support import stores
from tests.support.served import digest_of
from tests.support.stores import PICTURES, A, B, Site

Harm: TypeAlias = Callable[[Path], None]

_A, _B = PICTURES["a"], PICTURES["b"]
_CONFIG_OF_A = digest_of(_A.config)
_BASE, _MIDDLE = _A.blob_names[0], _A.blob_names[1]


@pytest.fixture
def where(tmp_path: Path) -> Iterator[Site]:
    with stores.site(tmp_path) as found:
        yield found


@pytest.fixture
def root(tmp_path: Path, where: Site) -> Path:
    """Return a store with two images that share their lowest layer."""
    root = tmp_path / "store"
    with Engine(root) as engine:
        Image.load(where.archive, engine=engine)
    return root


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    kept = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _no_json(path: Path) -> None:
    path.write_bytes(b"{" * path.stat().st_size)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path) -> None:
    kept = path.with_name("kept")
    path.rename(kept)
    path.symlink_to(kept)


HARMS: dict[str, Harm] = {
    "a bit": _flip,
    "gone": lambda path: path.unlink(),
    "cut": _cut,
    "empty": _empty,
    "no JSON": _no_json,
    "a directory": _directory,
    "a link": _link,
}
BLOBS = {"manifest": _A.digest, "configuration": _CONFIG_OF_A, "layer": _MIDDLE, "shared layer": _BASE}
_UNSEEN_BY_PULL = {"a bit", "no JSON", "a directory", "a link"}
"""Harm to a layer's content that a pull does not read, because its tree is there."""


def _blob(root: Path, digest: str) -> Path:
    return root / "data/blobs/sha256" / digest.partition(":")[2]


def _good(engine: Engine, *names: str) -> None:
    for name in names:
        image = Image.get(name, engine=engine)
        picture = _A if name == A else _B
        assert image.digest == picture.digest
        assert picture.wrong(image.directories) == []


def _brought_again(engine: Engine, where: Site) -> None:
    """Check that a load and a pull repair the store and both images."""
    Image.load(where.archive, engine=engine)
    Image.pull(where.pulled, insecure=True, engine=engine)
    assert engine.fsck() == []
    _good(engine, A, B)


@pytest.mark.case("F18")
@pytest.mark.parametrize("harm", list(HARMS))
@pytest.mark.parametrize("blob", list(BLOBS))
def test_damaged_content_is_named_and_repaired(blob: str, harm: str, root: Path, where: Site) -> None:
    HARMS[harm](_blob(root, BLOBS[blob]))
    with Engine(root) as engine:
        (line,) = engine.fsck()
        assert line.startswith(f"blob {BLOBS[blob]} (of ")
        assert _A.digest in line
        assert (_B.digest in line) == (blob == "shared layer")
        _good(engine, B)
        (repaired,) = engine.fsck(repair=True)
        assert repaired == f"{line}; removed"
        _brought_again(engine, where)


@pytest.mark.case("F18")
@pytest.mark.parametrize("harm", list(HARMS))
@pytest.mark.parametrize("blob", list(BLOBS))
def test_damaged_content_is_repaired_by_a_pull(blob: str, harm: str, root: Path, where: Site) -> None:
    """A pull or load repairs damage that it meets, without fsck."""
    if harm in ("a directory", "a link") or ("layer" in blob and harm in _UNSEEN_BY_PULL):
        pytest.skip("a pull does not read this: fsck does")
    HARMS[harm](_blob(root, BLOBS[blob]))
    with Engine(root) as engine:
        _brought_again(engine, where)


@pytest.mark.case("F18")
@pytest.mark.parametrize("by", ["pull", "load"])
@pytest.mark.parametrize("harm", ["a bit", "no JSON"])
def test_damaged_content_of_a_missing_tree_comes_again(by: str, harm: str, root: Path, where: Site) -> None:
    HARMS[harm](_blob(root, _MIDDLE))
    with Engine(root) as engine:
        chain = engine._session.store.parts(Digest(_A.digest))[1][0]
        shutil.rmtree(root / "data/layers" / chain.hex)
        if by == "pull":
            Image.pull(where.pulled, insecure=True, engine=engine)
        else:
            Image.load(where.archive, engine=engine)
        assert engine.fsck() == []
        _good(engine, A, B)


def _new_mode(tree: Path) -> None:
    (tree / "part2/file1").chmod(0o600)


def _more(tree: Path) -> None:
    (tree / "part2/more").write_text("")


TREES: dict[str, Harm] = {
    "a byte": lambda tree: _flip(tree / "part2/file0"),
    "a mode": _new_mode,
    "a file gone": lambda tree: (tree / "part2/file3").unlink(),
    "a file more": _more,
    "a time": lambda tree: os.utime(tree / "part2/file2", (1, 1)),
    "no tree": shutil.rmtree,
    "no directory of it": lambda tree: shutil.rmtree(tree.parent),
}


@pytest.mark.case("F18")
@pytest.mark.parametrize("harm", list(TREES))
def test_a_damaged_tree_is_named_and_repaired(harm: str, root: Path, where: Site) -> None:
    with Engine(root) as engine:
        chain = engine._session.store.parts(Digest(_A.digest))[1][0]
        TREES[harm](root / "data/layers" / chain.hex / "fs")
        (line,) = engine.fsck()
        assert line.startswith(f"layer {chain} (of {_A.digest}): ")
        _good(engine, B)
        if harm.startswith("no "):
            with pytest.raises(ImageError, match="pull or load"):
                Image.get(A, engine=engine)
        else:
            engine.fsck(repair=True)
        _brought_again(engine, where)


@pytest.mark.case("F18")
@pytest.mark.parametrize("name", ["layers", "blobs", "blobs/sha256", "partial", "live"])
def test_a_missing_directory(name: str, root: Path, where: Site) -> None:
    shutil.rmtree(root / "data" / name)
    with Engine(root) as engine:
        kinds = {line.split()[0] for line in engine.fsck()}
        assert kinds == {"layers": {"layer"}, "blobs": {"blob"}, "blobs/sha256": {"blob"}}.get(name, set())
        _brought_again(engine, where)


@pytest.mark.case("F18")
def test_permissions_that_let_others_in(root: Path) -> None:
    with Engine(root) as engine:
        assert engine.fsck() == []
        (root / "data/layers").chmod(0o755)
        (line,) = engine.fsck()
        assert line == f"permissions {root}/data/layers: open to others: 755"
    with Engine(root) as engine:  # closed again by the next engine
        assert engine.fsck() == []


@pytest.mark.case("F18")
@pytest.mark.parametrize("name", ["blobs", "layers"])
def test_a_directory_of_another_user(name: str, root: Path, engine: Engine) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(root / "data" / name, 12345, 12345)
    with Engine(root) as own, pytest.raises(PathError, match="directory that this user owns") as caught:
        own.fsck()
    assert caught.value.path == f"{root}/data/{name}"


def _half(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))


def _garbage(path: Path) -> None:
    path.write_bytes(b"garbage " * 4096)


RECORDS: dict[str, Harm] = {
    "garbage": _garbage,
    "half": _half,
    "cut": lambda path: os.truncate(path, 8192),
}


@pytest.mark.case("F18")
@pytest.mark.parametrize("harm", list(RECORDS))
def test_damaged_records_are_made_anew(harm: str, root: Path, where: Site) -> None:
    RECORDS[harm](root / "data/store.db")
    with Engine(root) as engine:
        with pytest.raises(ImageError, match=r"fsck\(repair=True\)"):
            Image.list(engine=engine)
        (line,) = engine.fsck()
        assert line.startswith(f"records {root}/data/store.db: ")
        (repaired,) = engine.fsck(repair=True)
        assert _A.digest in repaired
        assert _B.digest in repaired
        assert repaired.endswith("; removed")
        assert {image.digest for image in engine.images} == {_A.digest, _B.digest}
        assert [image.name for image in engine.images if not image.name.startswith("sha256:")] == []
        assert engine.fsck() == []
        _brought_again(engine, where)


@pytest.mark.case("F18")
def test_records_without_a_byte_are_a_store_without_images(root: Path, where: Site) -> None:
    """An empty database is the state after a kill before the first record, so it counts as a new store."""
    os.truncate(root / "data/store.db", 0)
    with Engine(root) as engine:
        assert engine.images == []
        _brought_again(engine, where)


@pytest.mark.control("F18")
def test_untouched_store_is_complete(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pycontain._images import fsck

    with Engine(root) as engine:
        assert engine.fsck() == []
        _flip(_blob(root, _MIDDLE))
        assert len(engine.fsck()) == 1
        monkeypatch.setattr(fsck, "blob_problem", lambda *arguments: None)
        assert len(engine.fsck()) == 1  # the tree is compared with content that is read to the end
        monkeypatch.setattr(fsck, "_tree_problem", lambda *arguments: None)
        assert engine.fsck() == []  # so it is these two that see it
