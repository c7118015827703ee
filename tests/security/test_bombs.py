"""P09 to P11: archives, trees and headers that expand far beyond their size."""

from __future__ import annotations

import io
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain import Engine, Image, ImageError
from pycontain._images.bounds import LayerLimits
from tests.security import bombs
from tests.security.bombs import GIB, sparse_header, squeeze
from tests.security.conftest import kept, whole
from tests.support.images import (
    END,
    Entry,
    directory,
    extended,
    file,
    hard,
    header,
    oci_layout,
    octal,
    padded,
    record,
    sha256,
    symlink,
    tar,
)

MEMORY = 300 << 20
SECONDS = 10.0
"""Seconds for one archive of headers.  Generous, because the test machine is shared."""


def _rootfs(engine: Engine, top: Path, data: bytes) -> Image:
    path = top / "archive"
    path.write_bytes(data)
    return Image.from_rootfs(path, engine=engine)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Engine]:
    """Provide an engine with tight bounds."""
    tmp_path.chmod(0o755)
    limits = LayerLimits(size=1 << 20, entries=100)
    with Engine(tmp_path / "store", layer_limits=limits) as engine:
        yield engine
        whole(engine, tmp_path)


# ---- P09 --------------------------------------------------------------------------------------------------


@pytest.mark.case("P09")
@pytest.mark.parametrize("kind", ["gzip", "zstd", "xz"])
def test_ten_gibibytes_of_zeros_stop_at_the_default_bounds(kind: str, shop: Engine, tmp_path: Path) -> None:
    (tmp_path / "bomb").write_bytes(bombs.zeros(kind, 10 * GIB))
    found = bombs.measured("load", tmp_path / "store", tmp_path / "bomb")
    assert "more than 250 times" in found["outcome"]
    assert found["memory"] < MEMORY
    assert kept(shop) == {}


@pytest.mark.case("P09")
def test_a_layer_that_is_a_bomb_leaves_nothing(shop: Engine, tmp_path: Path) -> None:
    bomb = bombs.zeros("gzip", GIB)
    plain = {"rootfs": {"type": "layers", "diff_ids": [sha256(b"")]}, "architecture": "amd64", "os": "linux"}
    layout = oci_layout([bomb], config=plain).write(tmp_path / "layout")
    with pytest.raises(ImageError, match="more than 250 times"):
        Image.from_oci_layout(layout, engine=shop)
    shop.sweep()
    assert kept(shop) == {}


@pytest.mark.case("P09")
@pytest.mark.parametrize("kind", ["gzip", "zstd", "xz"])
def test_byte_bound_is_exact(kind: str, small: Engine, tmp_path: Path) -> None:
    fits = (1 << 20) - len(END) - 512
    _rootfs(small, tmp_path, squeeze(kind, tar([file("a", bytes(fits))])))
    with pytest.raises(ImageError, match="larger than 1048576 bytes"):
        _rootfs(small, tmp_path, squeeze(kind, tar([file("a", bytes(fits + 512))])))


@pytest.mark.case("P09")
def test_a_bomb_inside_of_a_bomb_is_no_layer(shop: Engine, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="checksum"):
        _rootfs(shop, tmp_path, squeeze("gzip", bombs.zeros("gzip", GIB)))


@pytest.mark.case("P09")
def test_an_archive_of_images_is_bounded_like_a_layer(shop: Engine, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="more than 250 times"):
        Image.load(io.BytesIO(bombs.zeros("gzip", 2 * GIB)), engine=shop)


@pytest.mark.case("P09")
@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_million_empty_members_end(kind: str, shop: Engine, tmp_path: Path) -> None:
    (tmp_path / "many").write_bytes(squeeze(kind, tar([])) + squeeze(kind, b"") * ((1 << 20) + 10))
    found = bombs.measured("load", tmp_path / "store", tmp_path / "many")
    assert "members" in found["outcome"]
    assert found["memory"] < MEMORY
    assert found["seconds"] < 60


@pytest.mark.control("P09")
def test_a_bomb_within_the_bounds_is_unpacked(tmp_path: Path) -> None:
    bomb = bombs.zeros("gzip", 300 << 20)
    with pytest.raises(ImageError), Engine(tmp_path / "strict") as engine:
        _rootfs(engine, tmp_path, bomb)
    with Engine(tmp_path / "lax", layer_limits=LayerLimits(ratio=100_000)) as engine:
        image = _rootfs(engine, tmp_path, bomb)
        assert image.size == 300 << 20
        assert sum(kept(engine).values()) * 512 > 200 << 20
        image.remove()


@pytest.mark.control("P09", "P11")
def test_memory_that_is_used_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "bomb").write_bytes(bombs.zeros("gzip", 400 << 20))
    assert bombs.measured("peer", tmp_path / "bomb")["memory"] > MEMORY


# ---- P10 --------------------------------------------------------------------------------------------------

_LONG = "n" * 255
_DEEP = 255
"""Directories above a file: 256 parts are the most that a name has."""
TREES: dict[str, list[Entry]] = {
    "deep": [file("a/" * _DEEP + "f")],
    "deep, often": [file(f"{at}/" + "a/" * (_DEEP - 1) + "f") for at in range(20)],
    "deep, by name": [directory("a/" * at) for at in range(1, _DEEP)],
    "long names": [file(f"{_LONG[:250]}{at:05}") for at in range(500)],
    "a path of 4095 bytes": [file("/".join([_LONG] * 15) + "/" + "n" * 254)],
}
TOO_MUCH: dict[str, list[Entry]] = {
    "2000 deep": [file("a/" * 2000 + "f")],
    "257 deep": [file("a/" * (_DEEP + 1) + "f")],
    "a name of 256 bytes": [file("n" * 256)],
    "a path of 4097 bytes": [file("/".join([_LONG] * 16) + "/n")],
    "a path of 100000 bytes": [file("a/" * 50_000)],
    "a link of 5000 bytes": [symlink("a", "a/" * 2500)],
    "a circle of links": [symlink("a", "b"), symlink("b", "a"), file("a/c")],
    "a long chain of links": [*(symlink(f"l{at}", f"l{at + 1}") for at in range(60)), file("l0/x")],
}


@pytest.mark.case("P10")
@pytest.mark.parametrize("name", list(TREES))
def test_odd_trees_are_unpacked_and_removed(name: str, shop: Engine, tmp_path: Path) -> None:
    begun = time.monotonic()
    image = _rootfs(shop, tmp_path, tar(TREES[name]))
    assert image.directories
    assert time.monotonic() - begun < 30


@pytest.mark.case("P10")
@pytest.mark.parametrize("name", list(TOO_MUCH))
def test_paths_that_no_system_has_are_refused(name: str, shop: Engine, tmp_path: Path) -> None:
    with pytest.raises(ImageError) as refused:
        _rootfs(shop, tmp_path, tar(TOO_MUCH[name]))
    assert "died" not in str(refused.value)


def _empty_files(count: int) -> bytes:
    """Return headers that differ only in their digits, with sums adjusted from the first."""
    first = bytearray(header("d000/f0000000", b"0"))
    base = sum(first) - sum(first[148:156]) + 8 * ord(" ") - 10 * ord("0")
    out = bytearray()
    for at in range(count):
        digits = f"{at // 1000 % 1000:03}{at:07}".encode()
        first[1:4], first[6:13] = digits[:3], digits[3:]
        first[148:156] = b"%06o\0 " % (base + sum(digits))
        out += first
    return bytes(out) + END


@pytest.mark.case("P10")
@pytest.mark.parametrize("count", [50_000, pytest.param(1_000_000, marks=pytest.mark.full)])
def test_many_empty_files(count: int, shop: Engine, tmp_path: Path) -> None:
    begun = time.monotonic()
    image = _rootfs(shop, tmp_path, squeeze("zstd", _empty_files(count)))
    assert sum(len(names) for _, _, names in os.walk(image.directories[0])) == count
    assert time.monotonic() - begun < count / 1000
    image.remove()


@pytest.mark.case("P10")
@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.full)])
def test_many_hard_links(count: int, shop: Engine, tmp_path: Path) -> None:
    entries = [file("a", b"x"), *(hard(f"l{at}", "a") for at in range(count))]
    most = os.pathconf(tmp_path, "PC_LINK_MAX")
    if count >= most:
        with pytest.raises(ImageError, match="Too many links"):
            _rootfs(shop, tmp_path, tar(entries))
    else:
        image = _rootfs(shop, tmp_path, tar(entries))
        assert os.stat(f"{image.directories[0]}/a").st_nlink == count + 1


@pytest.mark.case("P10")
def test_entry_bound_is_exact(small: Engine, tmp_path: Path) -> None:
    _rootfs(small, tmp_path, tar([file(f"{at}") for at in range(100)]))
    with pytest.raises(ImageError, match="more entries than allowed"):
        _rootfs(small, tmp_path, tar([file(f"{at}") for at in range(101)]))


@pytest.mark.control("P10")
def test_more_entries_are_unpacked_where_they_may(shop: Engine, tmp_path: Path) -> None:
    assert _rootfs(shop, tmp_path, tar([file(f"{at}") for at in range(101)])).directories


# ---- P11 --------------------------------------------------------------------------------------------------

_A = bytes(file("a", b"x"))
_ENDLESS = b"".join(
    padded(octal(at, 12) + octal(0, 12)).ljust(504, b"\0")[:504] + b"\1" + bytes(7)
    for at in range(70_000 // 21)
)


def _fields(**fields: bytes) -> bytes:
    """Return a header with raw bytes in one field and a correct checksum."""
    offsets = {"mode": 100, "uid": 108, "gid": 116, "size": 124, "mtime": 136}
    return header("a", b"0", fields={offsets[name]: value for name, value in fields.items()})


HEADERS: dict[str, bytes] = {
    "a PAX header of 1 GiB": header("x", b"x", GIB) + _A,
    "a PAX header of 1 MiB and one": extended(b"1" * ((1 << 20) + 1)) + _A,
    "a global header of 1 GiB": header("g", b"g", GIB) + _A,
    "a GNU name of 1 GiB": header("L", b"L", GIB) + _A,
    "a GNU link of 1 GiB": header("K", b"K", GIB) + _A,
    "a chain of PAX headers": extended(record("path", "b")) * 100 + _A,
    "a chain of global headers": extended(record("comment", "b"), b"g") * 100 + _A,
    "10^7 sparse regions": extended(
        record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.realsize", "9")
    )
    + header("a", b"0", 512)
    + padded(b"10000000\n"),
    "65537 listed regions": extended(
        record("GNU.sparse.size", "9") + record("GNU.sparse.map", ",".join(["0,0"] * 65_537))
    )
    + _A,
    "GNU regions without end": sparse_header("a", 9, [(0, 0)], more=True) + _ENDLESS,
    "regions over each other": sparse_header("a", 1 << 20, [(4096, 512), (0, 512)]) + bytes(1024),
    "a region past the end": sparse_header("a", 100, [(0, 512)]) + bytes(512),
    "an exabyte of holes": sparse_header("a", 1 << 60, []),
    "a sparse offset without a size": extended(record("GNU.sparse.size", "9") + record("GNU.sparse.offset", "1")) + _A,
    "a negative size": _fields(size=b"\xff" * 12),
    "a size of 2^62": _fields(size=octal(1 << 62, 12)),
    "a size of 2^94": _fields(size=b"\xbf" + b"\xff" * 11),
    "a size that is no number": _fields(size=b"12x45678901\0"),
    "a PAX size that is negative": extended(record("size", "-1")) + _A,
    "a PAX size of 2^64": extended(record("size", str(1 << 64))) + _A,
    "a PAX size of 30 digits": extended(record("size", "9" * 30)) + _A,
    "a negative owner": _fields(uid=b"\xff" * 8),
    "an owner of 2^32": extended(record("uid", str((1 << 32) - 1))) + _A,
    "a time that is no number": extended(record("mtime", "now")) + _A,
    "no checksum": header("a", b"0")[:148] + bytes(8) + header("a", b"0")[156:],
    "a wrong checksum": header("a", b"0")[:148] + b"000001\0 " + header("a", b"0")[156:],
    "a record of length 0": extended(b"0 path=b\n") + _A,
    "a record longer than its header": extended(b"99 path=b\n") + _A,
    "a record of 10^18 bytes": extended(b"1000000000000000000 path=b\n") + _A,
    "a record without a key": extended(b"6 =b\n\n") + _A,
    "a record without an end": extended(b"9 path=bb") + _A,
    "a name with a NUL": extended(record("path", "a\0b")) + _A,
    "cut off in a header": _A[:300],
    "cut off in the data": bytes(file("a", b"x" * 5000))[:1000],
    "cut off after an extended header": extended(record("path", "b")),
    "no tar at all": b"#!/bin/sh\n" * 200,
}  # fmt: skip


@pytest.mark.case("P11")
@pytest.mark.parametrize("name", list(HEADERS))
def test_headers_that_mean_too_much_are_refused_at_once(name: str, shop: Engine, tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(ImageError) as refused:
        _rootfs(shop, tmp_path, HEADERS[name] + END)
    assert "died" not in str(refused.value)
    assert time.monotonic() - begun < SECONDS


@pytest.mark.case("P11")
def test_headers_take_no_memory(shop: Engine, tmp_path: Path) -> None:
    paths = []
    for at, data in enumerate(HEADERS.values()):
        paths.append(tmp_path / f"{at}.tar")
        paths[-1].write_bytes(data + END)
    assert bombs.measured("load", tmp_path / "store", *paths)["memory"] < MEMORY


@pytest.mark.case("P11")
def test_holes_count_as_bytes(small: Engine, tmp_path: Path) -> None:
    image = _rootfs(small, tmp_path, sparse_header("a", 1 << 20, []) + END)
    assert os.stat(f"{image.directories[0]}/a").st_size == 1 << 20
    with pytest.raises(ImageError, match="more bytes than allowed"):
        _rootfs(small, tmp_path, sparse_header("a", (1 << 20) + 1, []) + END)
    with pytest.raises(ImageError, match="more bytes than allowed"):
        _rootfs(small, tmp_path, sparse_header("a", 1 << 19, []) * 3 + END)


def _mutant(chosen: random.Random) -> bytes:
    """Return a valid archive with some bytes changed, with a corrected checksum half of the time."""
    from tests.support.images import with_sum

    good = bytearray(
        tar([*TREES["long names"][:2], directory("d"), hard("h", f"{_LONG[:250]}00000"), symlink("s", "d")])
    )
    for _ in range(chosen.randrange(1, 6)):
        at = chosen.randrange(len(good))
        good[at] = chosen.randrange(256)
        if chosen.random() < 0.7:
            block = at // 512 * 512
            good[block : block + 512] = with_sum(bytes(good[block : block + 512]))
    return bytes(good)


@pytest.mark.case("P11")
@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.full)])
def test_mutants_are_refused_or_unpacked_in_time(count: int, shop: Engine, tmp_path: Path) -> None:
    chosen, slow = random.Random(11), []
    for at in range(count):
        begun = time.monotonic()
        try:
            _rootfs(shop, tmp_path, _mutant(chosen)).remove(force=True)
        except ImageError as error:
            if "died" in str(error):
                slow.append(at)
        if time.monotonic() - begun > SECONDS:
            slow.append(at)
    assert slow == []
