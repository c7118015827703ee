"""P01 to P06: layers whose names, links, marks or metadata point out of their directory."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from pycontain import Engine, Image, ImageError
from tests.security import layer_attacks, weak
from tests.security.conftest import Canary
from tests.support.images import device, directory, file, hard, oci_layout, symlink, tar

CASES = ("P01", "P02", "P03", "P04", "P05", "P06")


def _bring(engine: Engine, top: Path, *layers: bytes) -> Image:
    return Image.from_oci_layout(oci_layout(layers).write(top / "layout"), engine=engine)


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.case(case)) for case in CASES])
def test_nothing_outside_is_touched(case: str, shop: Engine, tmp_path: Path) -> None:
    assert layer_attacks.of(case)
    assert layer_attacks.wrong(shop, tmp_path, case) == {}


# P03 has no such control: layers are separate directories, so a link of one does not affect the next.
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.control(case)) for case in CASES if case != "P03"]
)
def test_build_without_controls_would_be_detected(case: str) -> None:
    assert weak.run("unpacker", "tests.security.layer_attacks:hurt", case)


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.control(case)) for case in CASES[:5]])
def test_the_same_archives_do_reach_the_canary_through_tarfile(case: str, tmp_path: Path) -> None:
    reached = []
    for at, name in enumerate(layer_attacks.of(case)):
        canary = Canary(tmp_path / str(at) / "canary")
        for layer in layer_attacks.ATTACKS[name].layers(str(canary.top)):
            with tarfile.open(fileobj=io.BytesIO(tar(layer))) as archive:
                try:
                    archive.extraction_filter = lambda member, _: member
                    archive.extractall(tmp_path / str(at) / "rootfs")
                except (OSError, ValueError, KeyError, tarfile.TarError):
                    continue
        if canary.check():
            reached.append(name)
    assert reached


@pytest.mark.case("P01", "P02", "P05")
def test_entries_inside_are_at_their_names(shop: Engine, tmp_path: Path) -> None:
    entries = [
        directory("real"),
        symlink("link", "/real"),
        file("/absolute//./file", b"1"),
        file("link/below", b"2", mode=0o600, mtime=5),
        symlink("dangling", "/none/none", mtime=7),
    ]
    image = _bring(shop, tmp_path, tar(entries))
    top = Path(image.directories[0])
    assert (top / "absolute" / "file").read_bytes() == b"1"
    assert sorted(os.listdir(top / "real")) == ["below"]
    found = os.lstat(top / "real" / "below")
    assert (found.st_mode & 0o7777, found.st_mtime) == (0o600, 5)
    assert os.readlink(top / "dangling") == "/none/none"
    assert os.lstat(top / "dangling").st_mtime == 7


@pytest.mark.case("P04")
def test_hard_links_are_files_of_the_same_layer(shop: Engine, tmp_path: Path) -> None:
    entries = [directory("a"), file("a/one", b"1"), hard("two", "/a/one"), hard("a/three", "./two")]
    top = Path(_bring(shop, tmp_path, tar(entries)).directories[0])
    assert len({os.lstat(top / name).st_ino for name in ("a/one", "two", "a/three")}) == 1
    assert os.lstat(top / "two").st_nlink == 3


@pytest.mark.case("P06")
def test_marks_leave_the_layers_below_as_they_are(shop: Engine, tmp_path: Path) -> None:
    below = [directory("a"), file("a/b"), directory("d"), file("d/e"), file("f")]
    above = [file("a/.wh.b"), file("d/.wh..wh..opq"), file("d/new"), file(".wh.f"), file(".wh.none")]
    image = _bring(shop, tmp_path, tar(below), tar(above))
    lower = Path(image.directories[-1])
    assert sorted(os.path.relpath(path, lower) for path in lower.rglob("*")) == ["a", "a/b", "d", "d/e", "f"]


@pytest.mark.case("P06")
def test_an_opaque_root_hides_all_below(shop: Engine, tmp_path: Path) -> None:
    image = _bring(shop, tmp_path, tar([file("a")]), tar([file("b"), file(".wh..wh..opq")]), tar([file("c")]))
    assert [os.listdir(one) for one in image.directories] == [["c"], ["b"]]


@pytest.mark.case("P06")
def test_whiteout_spares_entries_of_its_own_layer(shop: Engine, tmp_path: Path) -> None:
    image = _bring(shop, tmp_path, tar([file("a", b"old")]), tar([file("a", b"new"), file(".wh.a")]))
    assert (Path(image.directories[0]) / "a").read_bytes() == b"new"


@pytest.mark.case("P06")
def test_overlayfs_marks_come_only_from_whiteouts(shop: Engine, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="0/0"):
        _bring(shop, tmp_path, tar([device("a", 0, 0)]))
