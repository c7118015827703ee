"""P07, P08, P21: unpacked layers equal those of other unpackers, within the limits of the policy."""

from __future__ import annotations

import itertools
import os
import stat
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pycontain import Container, Engine, Image, ImageError
from pycontain._images import layers as product
from tests.security.layers_made import made
from tests.support.images import Entry, device, directory, fifo, file, hard, oci_layout, symlink, tar
from tests.support.roots import make_root
from tests.support.trees import difference, listing
from tests.support.unpacked import above, by_umoci, certain, merged, named_layout

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="owners and overlay mounts of the host are root's")
KINDS: dict[str, Callable[[str], Entry]] = {
    "file": lambda name: file(name, b"x", mode=0o640),
    "directory": lambda name: directory(name, 0o711),
    "link": lambda name: symlink(name, "target"),
    "pipe": lambda name: fifo(name, mode=0o600),
    "hard link": lambda name: hard(name, "target"),
}
TYPES = {
    "file": stat.S_ISREG,
    "directory": stat.S_ISDIR,
    "link": stat.S_ISLNK,
    "pipe": stat.S_ISFIFO,
    "hard link": stat.S_ISREG,
}


def _bring(engine: Engine, top: Path, *layers: Sequence[Entry | bytes]) -> Image:
    layout = oci_layout([tar(layer) for layer in layers])
    return Image.from_oci_layout(layout.write(top / "layout"), engine=engine)


def _unlike_umoci(engine: Engine, top: Path, layers: Sequence[Sequence[Entry]]) -> dict[str, object] | None:
    """Return the paths that differ from umoci's, or None if either refuses."""
    top.mkdir()
    layout = named_layout([tar(layer) for layer in layers]).write(top / "layout")
    theirs = by_umoci(layout, top / "bundle")
    try:
        image = Image.from_oci_layout(layout, engine=engine)
    except ImageError:
        return None
    unsure = above(layers)
    found: dict[str, object] | None = None
    with merged(image.directories, top / "merged") as ours:
        names = sorted(path for path, *_ in listing(ours).items())
        if theirs is not None:
            found = {**difference(certain(ours, unsure), certain(theirs, unsure))}
    assert names
    image.remove(force=True)
    return found


def _flips() -> list[tuple[str, tuple[str, ...]]]:
    """Return names that change their kind twice."""
    return [("-".join(kinds).replace(" ", ""), kinds) for kinds in itertools.product(KINDS, repeat=3)]


def _flip_layers(across: bool) -> list[list[Entry]]:
    layers: list[list[Entry]] = [[file("target", b"t"), directory("below"), file("below/x")]]
    for at in range(3):
        if across and at:
            layers.append([file("target", b"t")])
        layers[-1] += [KINDS[kinds[at]](name) for name, kinds in _flips()]
    return layers


@pytest.mark.case("P07")
@pytest.mark.parametrize("across", [False, True], ids=["one layer", "three layers"])
def test_last_entry_of_a_name_counts(across: bool, shop: Engine, tmp_path: Path) -> None:
    top = Path(_bring(shop, tmp_path, *_flip_layers(across)).directories[0])
    assert {
        name: kinds for name, kinds in _flips() if not TYPES[kinds[-1]](os.lstat(top / name).st_mode)
    } == {}


@as_root
@pytest.mark.case("P07")
@pytest.mark.parametrize("across", [False, True], ids=["one layer", "three layers"])
def test_names_that_change_their_kind_are_as_with_umoci(across: bool, shop: Engine, tmp_path: Path) -> None:
    assert _unlike_umoci(shop, tmp_path / "flips", _flip_layers(across)) == {}


REFUSED: dict[str, list[list[Entry]]] = {
    "below a file": [[file("a"), file("a/b")]],
    "below a pipe": [[fifo("a"), directory("a/b")]],
    "below a link to a file": [[file("f"), symlink("a", "f"), file("a/b")]],
    "below a file of the layer below": [[file("a")], [file("a/b")]],
    "below a link of the layer below to a file": [[file("f"), symlink("a", "f")], [file("a/b")]],
    "below a link of the layer below to itself": [[symlink("a", "a")], [file("a/b")]],
    "a whiteout below a file of the layer below": [[file("a")], [file("a/.wh.b")]],
}


@pytest.mark.case("P07")
@pytest.mark.parametrize("name", list(REFUSED))
def test_entry_below_a_non_directory_is_refused(name: str, shop: Engine, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is below a file that is not a directory"):
        _bring(shop, tmp_path, *REFUSED[name])


@pytest.mark.case("P07")
def test_file_in_a_middle_layer_hides_the_lower_directory(shop: Engine, tmp_path: Path) -> None:
    root = make_root(tmp_path / "base")
    base = [directory("d"), file("d/old"), file("d/.wh.nothing")]
    image = _bring(shop, tmp_path, base, [file("d"), directory("d"), file("d/new")], _busybox(root))
    with Container(image, engine=shop, command=["sleep", "60"]) as container:
        assert container.exec(["ls", "/d"]).stdout.split() == ["new"]


@pytest.mark.case("P07")
def test_directories_named_often_end_as_they_were_named_last(shop: Engine, tmp_path: Path) -> None:
    note = {"SCHILY.xattr.user.pyc": "1"}
    first = directory("d", 0o000, pax=note, mtime=5)
    image = _bring(shop, tmp_path, [first, file("d/a"), directory("d", 0o751, mtime=7), file("d/b", mtime=9)])
    top = Path(image.directories[0]) / "d"
    found = os.lstat(top)
    assert (stat.S_IMODE(found.st_mode), found.st_mtime, sorted(os.listdir(top))) == (0o751, 7, ["a", "b"])
    assert os.listxattr(top) == []


def _busybox(root: Path) -> list[Entry]:
    """Return a layer with the files that a container needs to run a program."""
    entries = [directory(name) for name in ("bin", "etc", "proc", "dev", "tmp", "run", "sys", "root")]
    entries.append(file("bin/busybox", (root / "bin" / "busybox").read_bytes(), mode=0o755))
    entries += [
        symlink(f"bin/{path.name}", "busybox") for path in (root / "bin").iterdir() if path.is_symlink()
    ]
    return entries


CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
OVERLAY: dict[str, str | bytes] = {
    f"SCHILY.xattr.{space}.overlay.{name}": value
    for space in ("user", "trusted")
    for name, value in (
        ("opaque", "y"),
        ("redirect", "/etc"),
        ("metacopy", ""),
        ("whiteout", "y"),
        ("overlay.opaque", "y"),
    )
}
FOREIGN: dict[str, str | bytes] = {
    "SCHILY.xattr.security.selinux": "x",
    "SCHILY.xattr.security.ima": "x",
    "SCHILY.xattr.trusted.pyc": "x",
    "SCHILY.xattr.system.nfs4_acl": "x",
}


@pytest.mark.case("P08")
def test_attributes_of_overlayfs_and_of_the_host_never_arrive(shop: Engine, tmp_path: Path) -> None:
    pax = {**OVERLAY, **FOREIGN, "SCHILY.xattr.user.pyc": "kept"}
    image = _bring(
        shop, tmp_path, [directory("d", pax=pax), file("f", b"x", pax=pax), directory(".", pax=pax)]
    )
    top = Path(image.directories[0])
    for name in ("d", "f", "."):
        ours = [one for one in os.listxattr(top / name) if not one.startswith("security.selinux")]
        assert ours == ["user.pyc"], name


@pytest.mark.case("P08")
def test_merged_view_equals_the_unpacked_tree(shop: Engine, tmp_path: Path) -> None:
    root = make_root(tmp_path / "base")
    below = [*_busybox(root), directory("d"), file("d/below", b"1")]
    above = [directory("d", pax=OVERLAY), file("d/above", b"2", pax=OVERLAY)]
    image = _bring(shop, tmp_path, below, above)
    with Container(image, engine=shop, command=["sleep", "60"]) as container:
        assert container.exec(["ls", "/d"]).stdout.split() == ["above", "below"]
        assert container.exec(["cat", "/d/below", "/d/above"]).stdout == "12"


@pytest.mark.control("P08")
def test_opaque_mark_in_the_layer_would_be_detected(shop: Engine, tmp_path: Path) -> None:
    root = make_root(tmp_path / "base")
    image = _bring(shop, tmp_path, [*_busybox(root), directory("d"), file("d/below")], [directory("d")])
    path = Path(image.directories[0]) / "d"
    try:
        os.setxattr(path, "user.overlay.opaque", b"y")
    except PermissionError:
        pytest.skip("the layer's directories belong to ids of this user's range")
    with Container(image, engine=shop, command=["sleep", "60"]) as container:
        assert container.exec(["ls", "/d"]).stdout.split() == []
    assert shop.fsck() != []
    os.removexattr(path, "user.overlay.opaque")


@pytest.mark.case("P08")
def test_whiteouts_of_nothing_show_nothing(shop: Engine, tmp_path: Path) -> None:
    root = make_root(tmp_path / "base")
    above = [directory("d"), file("d/.wh.none"), directory("e"), file("e/.wh.none"), file("e/.wh..wh..opq")]
    image = _bring(shop, tmp_path, [*_busybox(root), directory("e"), file("e/below")], above)
    with Container(image, engine=shop, command=["sleep", "60"]) as container:
        assert container.exec(["ls", "/d", "/e"]).stdout.split() == ["/d:", "/e:"]


@pytest.mark.case("P08")
def test_special_entries_by_the_policy(shop: Engine, tmp_path: Path) -> None:
    entries = [
        file("setuid", mode=0o4755),
        file("setgid", mode=0o2755),
        directory("sticky", 0o1777),
        file("able", mode=0o755, pax={"SCHILY.xattr.security.capability": CAPABILITY}),
        fifo("pipe", mode=0o600),
        device("null", 1, 3, mode=0o666),
        device("disk", 8, 0, b"4"),
    ]
    top = Path(_bring(shop, tmp_path, entries).directories[0])
    modes = {
        name: oct(stat.S_IMODE(os.lstat(top / name).st_mode))
        for name in ("setuid", "setgid", "sticky", "pipe")
    }
    assert modes == {"setuid": "0o4755", "setgid": "0o2755", "sticky": "0o1777", "pipe": "0o600"}
    nodes = shop._session.features.privileged
    assert [os.path.lexists(top / name) for name in ("null", "disk")] == [nodes, nodes]
    if nodes:
        assert os.lstat(top / "null").st_rdev == os.makedev(1, 3)
        assert os.getxattr(top / "able", "security.capability") == CAPABILITY


@pytest.mark.case("P08")
@pytest.mark.parametrize("kind", [b"8", b"A", b"M", b"s", b"\xff"])
def test_types_that_no_layer_has_are_refused(kind: bytes, shop: Engine, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="an entry has an unsupported type"):
        _bring(shop, tmp_path, [Entry(name="a", kind=kind)])


USR = [
    directory("usr"),
    directory("usr/lib", 0o711, owner=(3, 4)),
    file("usr/lib/old"),
    symlink("lib", "usr/lib"),
]
THROUGH: dict[str, list[list[Entry]]] = {
    "a file": [USR, [file("lib/new", b"new")]],

    "both paths": [USR, [file("lib/a", b"1"), directory("usr/lib", 0o700), file("usr/lib/a", b"2"), file("lib/b")]],
    "an absolute link": [[directory("d"), symlink("a", "/d")], [file("a/b")]],
    "a link that leaves the root": [[directory("d"), directory("e"), symlink("e/a", "../../../d")], [file("e/a/b")]],
    "a link to the root": [[directory("d"), symlink("d/a", "/")], [file("d/a/b"), file("d/a/d/c")]],
    "a chain": [[directory("x"), directory("x/y"), symlink("b", "x"), symlink("a", "./b/../b/y")], [file("a/c")]],
    "a link in the target": [[*USR, symlink("usr/lib/x", "../../lib/y"), directory("usr/lib/y")], [file("lib/x/z")]],
    "links of several layers": [USR, [directory("opt"), symlink("opt/l", "/lib")], [file("opt/l/n"), file("lib/m")]],
    "a link made again": [[directory("d"), symlink("a", "d")], [file("a/b"), symlink("a", "d")]],
    "a link that becomes a directory": [[directory("d"), symlink("a", "d")], [file("a/b"), directory("a"), file("a/c")]],
    "a link that is removed first": [USR, [file(".wh.lib"), file("lib/new")]],
    "a link that an opaque directory hides": [
        [directory("e"), directory("d"), symlink("d/a", "../e")],
        [USR[0], *USR[1:]],
        [file("d/.wh..wh..opq"), file("d/a/b"), file("lib/new")],
    ],
    "a link below a directory that replaced one": [
        [directory("e"), directory("d"), symlink("d/a", "../e"), *USR],
        [file(".wh.d")],
        [file("d/a/b"), file("lib/new")],
    ],
    "a whiteout": [USR, [file("lib/.wh.old")]],
    "an opaque mark": [USR, [file("lib/.wh..wh..opq"), file("lib/new")]],
    "hard links": [USR, [file("lib/a", b"a"), hard("lib/b", "usr/lib/a"), hard("c", "lib/a")]],
    "a hard link's target": [USR, [file("usr/lib/a", b"a"), hard("c", "lib/a")]],
    "a link of the own layer": [USR, [file("lib/a"), symlink("l", "usr/lib"), file("l/b")]],
}  # fmt: skip
BY_HAND: dict[str, list[list[Entry]]] = {
    "parents of the layer below": [
        [directory("a", 0o700, owner=(5, 6), mtime=1_600_000_100, pax={"SCHILY.xattr.user.pyc": "1"}),
         directory("a/b", 0o711, owner=(7, 8), mtime=1_600_000_200)],
        [file("a/b/c", b"x"), file("a/d/e")],
        [file("a/b/f"), file("new/g")],
    ],
    "whiteouts": [
        [directory("a"), file("a/b"), file("a/c"), directory("d"), directory("d/e"), file("d/e/f")],
        [file("a/.wh.b"), file(".wh.d")],
        [directory("d", 0o700, owner=(1, 1)), file("d/new"), file("a/b", b"again")],
    ],
    "a directory removed and left out": [
        [directory("d", 0o700, owner=(3, 3)), file("d/old")],
        [file(".wh.d"), file("d/new")],
    ],
    "opaque directories": [
        [directory("a", 0o751), file("a/b"), directory("a/c"), file("a/c/d"), directory("e", 0o700, owner=(9, 9)), file("e/f")],
        [directory("a", 0o755), file("a/.wh..wh..opq"), file("a/new"), file("e/.wh..wh..opq"), file("e/g")],
        [file("a/c/h")],
    ],
    "hard links": [
        [file("a", b"1", owner=(4, 4)), hard("b", "a"), symlink("s", "a"), hard("t", "s")],
        [file("a", b"2"), hard("c", "a")],
    ],
    "type flips": [
        [directory("a"), file("a/x"), file("b"), symlink("c", "a"), directory("d"), file("d/y")],
        [file("a", b"file"), directory("b"), file("b/z"), directory("c"), file("c/w"), symlink("d", "b")],
        [directory("a"), file("a/new"), symlink("b", "c"), file("c", b"file"), file("d")],
    ],
    "links are content": [
        [symlink("abs", "/etc/passwd"), symlink("up", "../../.."), symlink("none", "none"), symlink("e", "x" * 200)],
    ],
    "numbers": [
        [file("old", mtime=1), file("big", owner=(1 << 21, 1 << 22)), file("far", mtime=1 << 33),
         file("part", pax={"mtime": "1600000000.123456789"}), file("é" * 60), file("n" * 255)],
    ],
}  # fmt: skip


@as_root
@pytest.mark.case("P07", "B18")
@pytest.mark.parametrize("name", list(THROUGH))
def test_paths_through_links_of_layers_below_are_as_with_umoci(
    name: str, shop: Engine, tmp_path: Path
) -> None:
    assert _unlike_umoci(shop, tmp_path / "one", THROUGH[name]) == {}


@pytest.mark.case("B18")
def test_links_of_lower_layers_stay_inside(shop: Engine, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    base = [
        symlink("a", str(outside)),
        symlink("b", "../" * 30 + str(outside)),
        symlink("c", "/proc/self/root"),
    ]
    image = _bring(shop, tmp_path, base, [file("a/x"), file("b/y"), file("c/z")])
    top = Path(image.directories[0])
    assert list(outside.iterdir()) == []
    below = top / str(outside).lstrip("/")
    assert sorted(path.name for path in below.iterdir()) == ["x", "y"]
    assert (top / "proc/self/root/z").is_file()


@pytest.mark.control("B18")
def test_a_layer_that_is_not_unpacked_again_is_refused(
    shop: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = product.LayerBuild.finish
    monkeypatch.setattr(product.LayerBuild, "finish", lambda self, lowers, feed: finish(self, lowers))
    with pytest.raises(ImageError, match="of a lower layer"):
        _bring(shop, tmp_path, *THROUGH["a file"])


@as_root
@pytest.mark.case("P07", "P21")
@pytest.mark.parametrize("name", list(BY_HAND))
def test_layers_by_hand_are_as_with_umoci(name: str, shop: Engine, tmp_path: Path) -> None:
    assert _unlike_umoci(shop, tmp_path / "one", BY_HAND[name]) == {}


def _compare(engine: Engine, top: Path, seeds: Sequence[int], hostile: bool) -> tuple[dict[int, object], int]:
    """Return the differences by seed, and the number of comparisons."""
    found: dict[int, object] = {}
    compared = 0
    for seed in seeds:
        unlike = _unlike_umoci(engine, top / f"{hostile}-{seed}", made(seed, hostile=hostile))
        compared += unlike is not None
        if unlike:
            found[seed] = unlike
    return found, compared


@as_root
@pytest.mark.case("P07", "P21")
def test_made_images_are_as_with_umoci(shop: Engine, tmp_path: Path) -> None:
    unlike, compared = _compare(shop, tmp_path, range(50), hostile=False)
    assert unlike == {}
    assert compared >= 30
    unlike, compared = _compare(shop, tmp_path, range(20), hostile=True)
    assert unlike == {}
    assert compared


@as_root
@pytest.mark.full
@pytest.mark.case("P21")
def test_four_hundred_made_images_are_as_with_umoci(shop: Engine, tmp_path: Path) -> None:
    unlike, compared = _compare(shop, tmp_path, range(400), hostile=False)
    assert unlike == {}
    assert compared > 250


@as_root
@pytest.mark.control("P07", "P21")
def test_unpacker_without_lower_layers_would_be_detected(
    shop: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = product.LayerBuild.finish
    monkeypatch.setattr(product.LayerBuild, "finish", lambda self, lowers, feed: finish(self, []))
    unlike = _unlike_umoci(shop, tmp_path / "one", BY_HAND["parents of the layer below"])
    assert unlike
    assert "a" in unlike
