"""P19, P20: archives with paths outside, and permissions of the store."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pycontain import Engine, Image, ImageError, NotFound, PathError
from pycontain._images import layout as product
from tests.security.conftest import Canary, kept
from tests.support.images import (
    Entry,
    Layout,
    as_json,
    configuration,
    device,
    directory,
    docker_archive,
    fifo,
    file,
    hard,
    oci_layout,
    sha256,
    symlink,
    tar,
)

UP = "../" * 24


# ---- P19 --------------------------------------------------------------------------------------------------

LAYER = tar([file("a", b"inside")])
OUTSIDE = tar([file("b", Canary.SECRET.encode())])


def _outside(canary: Canary) -> Path:
    """Return a layer beside the canary, which an archive should never reach."""
    path = canary.top.parent / "outside.tar"
    path.write_bytes(OUTSIDE)
    return path


def _docker(path: str, *extra: Entry | bytes) -> io.BytesIO:
    return docker_archive(
        [OUTSIDE], entry={"Layers": [path]}, extra=[file(".", kind=b"5", mode=0o755), *extra]
    )


def _blob_link(outside: str, what: str) -> io.BytesIO:
    """Return a layout in which the layer, or the blob directory, is a link."""
    layout = Layout()
    layout.image([OUTSIDE])
    name = f"blobs/{sha256(OUTSIDE).replace(':', '/')}"
    files = layout.files()
    del files[name]
    link = symlink(name, outside) if what == "symbolic" else hard(name, outside)
    return io.BytesIO(tar([*(file(path, data) for path, data in files.items()), link]))


ARCHIVES: dict[str, Callable[[str], io.BytesIO]] = {
    "a layer above": lambda to: _docker(f"{UP}{to}"),
    "an absolute layer": lambda to: _docker(to),
    "a layer of a process": lambda to: _docker("/proc/self/root" + to),
    "a layer that is a link": lambda to: _docker("x.tar", symlink("x.tar", to)),
    "a layer that is a link up": lambda to: _docker("x.tar", symlink("x.tar", f"{UP}{to}")),
    "a layer that is a chain of links": lambda to: _docker("x.tar", symlink("y", to), symlink("x.tar", "y")),
    "a layer below a link": lambda to: _docker("d/outside.tar", symlink("d", os.path.dirname(to))),
    "a layer that is a hard link": lambda to: _docker("x.tar", hard("x.tar", to)),
    "a layer that is a pipe": lambda to: _docker("x.tar", fifo("x.tar")),
    "a layer that is a device": lambda to: _docker("x.tar", device("x.tar", 1, 5)),
    "a layer that is a directory": lambda to: _docker("d", directory("d")),
    "a layer without a name": lambda to: _docker(""),
    "a layer with a NUL": lambda to: _docker("0.tar\0"),
    "a blob that is a link": lambda to: _blob_link(to, "symbolic"),
    "a blob that is a hard link": lambda to: _blob_link(to, "hard"),
    "a manifest that is a link": lambda to: io.BytesIO(tar([symlink("manifest.json", to)])),
    "an index that is a link": lambda to: io.BytesIO(tar([symlink("index.json", to), symlink("oci-layout", to)])),
    "names that lead out": lambda to: io.BytesIO(tar([file(f"{UP}{to}", b"gone"), file("manifest.json", b"[]")])),
    "a configuration outside": lambda to: docker_archive([LAYER], entry={"Config": to}),
    "no list": lambda to: docker_archive([LAYER], manifest={"Layers": []}),
    "wrong types": lambda to: docker_archive([LAYER], entry={"Layers": [{"path": to}]}),
    "a root file system": lambda to: io.BytesIO(LAYER),
    "nothing": lambda to: io.BytesIO(b""),
    "text": lambda to: io.BytesIO(b"text" * 1000),
}  # fmt: skip


@pytest.mark.case("P19")
def test_archives_reach_nothing_outside(shop: Engine, tmp_path: Path, canary: Canary) -> None:
    outside = str(_outside(canary))
    found: list[str] = []
    for name, make in ARCHIVES.items():
        begun = time.monotonic()
        try:
            Image.load(make(outside), engine=shop)
        except ImageError:
            pass
        else:
            found.append(f"{name} is taken")
        shop.sweep()
        if kept(shop) or canary.check() or Path(outside).read_bytes() != OUTSIDE:
            found.append(f"{name} leaves something")
        if time.monotonic() - begun > 5:
            found.append(f"{name} takes long")
    assert found == []


@pytest.mark.control("P19")
@pytest.mark.parametrize("name", ["an absolute layer", "a layer that is a link", "a blob that is a link"])
def test_reader_that_follows_links_would_be_detected(
    name: str, shop: Engine, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    def follow(self: product.Layout, path: str) -> int:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._top)
        except OSError as error:
            raise ImageError(str(error)) from error

    monkeypatch.setattr(product.Layout, "open", follow)
    (image,) = Image.load(ARCHIVES[name](str(_outside(canary))), engine=shop)
    assert image.layers[0].digest == sha256(OUTSIDE)


@pytest.mark.case("P19")
@pytest.mark.parametrize("kind", ["link", "link up", "pipe", "device", "directory link"])
def test_a_layout_on_the_disk_reaches_nothing_outside(
    kind: str, shop: Engine, tmp_path: Path, canary: Canary
) -> None:
    outside = _outside(canary)
    top = oci_layout([OUTSIDE]).write(tmp_path / "layout")
    blob = top / "blobs" / sha256(OUTSIDE).replace(":", "/")
    blob.unlink()
    if kind == "link":
        blob.symlink_to(outside)
    elif kind == "link up":
        blob.symlink_to(f"{UP}{outside}")
    elif kind == "pipe":
        os.mkfifo(blob)
    elif kind == "device":
        blob.symlink_to("/dev/zero")
    else:
        (top / "blobs" / "sha256").rename(tmp_path / "sha256")
        (top / "blobs" / "sha256").symlink_to(tmp_path / "sha256")
        (tmp_path / "sha256" / blob.name).write_bytes(OUTSIDE)
    with pytest.raises(ImageError):
        Image.from_oci_layout(top, engine=shop)
    shop.sweep()
    assert kept(shop) == {}


@pytest.mark.case("P19")
def test_extra_files_of_an_archive_are_ignored(shop: Engine, tmp_path: Path) -> None:
    policy = as_json({"Privileged": True, "linux": {"namespaces": []}})
    extra: list[Entry | bytes] = [
        file(name, policy) for name in ("config.json", "spec.dump", "hostconfig.json")
    ]
    extra.append(directory("checkpoint"))
    layout = oci_layout([LAYER], config=configuration([LAYER], HostConfig={"Privileged": True}))
    (image,) = Image.load(layout.archive(extra), engine=shop)
    (plain,) = Image.load(oci_layout([LAYER]).archive(), engine=shop)
    fields = ("env", "user", "workdir", "entrypoint", "command", "volumes", "labels", "stop_signal")
    assert [getattr(image, name) for name in fields] == [getattr(plain, name) for name in fields]
    assert sorted(os.listdir(image.directories[0])) == ["a"]


@pytest.mark.case("P19")
def test_no_archive_is_no_image(shop: Engine, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Image.load(tmp_path / "none.tar", engine=shop)
    with pytest.raises(ImageError):
        Image.load(tmp_path, engine=shop)


# ---- P20 --------------------------------------------------------------------------------------------------

_FILL = """
import os, sys
os.umask(0)
from pycontain import Engine, Image
engine = Engine(sys.argv[1])
image = Image.from_oci_layout(sys.argv[2], engine=engine)
engine.close()
"""
_WALK = """
import json, os, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
seen = []
for path in json.load(sys.stdin):
    for attempt in (os.lstat, os.listdir, lambda path: os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))):
        try:
            attempt(path)
        except OSError:
            continue
        seen.append(path)
print(json.dumps(seen))
"""


def _filled(top: Path) -> tuple[Path, list[str]]:
    """Create a store with umask 0 in a world-writable directory and return all its paths."""
    top.chmod(0o777)
    entries: list[Entry | bytes] = [
        file("setuid", b"#!", mode=0o4777),
        directory("open", 0o777),
        file("open/file"),
    ]
    layout = oci_layout([tar(entries)]).write(top / "layout")
    subprocess.run([sys.executable, "-c", _FILL, top / "store", layout], check=True)
    paths = []
    for place, names, files in os.walk(top / "store"):
        paths += [os.path.join(place, name) for name in (*names, *files)]
    return top / "store", paths


def _walk(paths: list[str]) -> list[str]:
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", _WALK],
        input=json.dumps(paths),
        text=True,
        capture_output=True,
        check=True,
    )
    return list(json.loads(done.stdout))


_second = pytest.mark.skipif(os.geteuid() != 0, reason="only root can switch to another user")


@_second
@pytest.mark.case("P20")
def test_another_user_sees_nothing_of_the_store(tmp_path: Path) -> None:
    for place in (tmp_path.parent, tmp_path.parent.parent, tmp_path.parent.parent.parent):
        if place.stat().st_uid == os.geteuid() and str(place).startswith("/tmp/"):
            place.chmod(place.stat().st_mode | 0o011)
    store, paths = _filled(tmp_path)
    assert any(path.endswith("/fs/setuid") for path in paths)
    tops = {path for path in paths if os.path.dirname(path) == str(store)}
    assert {*_walk(paths)} <= tops
    assert [os.stat(path).st_mode & 0o077 for path in sorted(tops)] == [0] * len(tops)


@_second
@pytest.mark.control("P20")
def test_accessible_store_would_be_detected(tmp_path: Path) -> None:
    for place in (tmp_path.parent, tmp_path.parent.parent, tmp_path.parent.parent.parent):
        if place.stat().st_uid == os.geteuid() and str(place).startswith("/tmp/"):
            place.chmod(place.stat().st_mode | 0o011)
    store, paths = _filled(tmp_path)
    for path in (store, *(one for one in map(Path, paths) if one.is_dir())):
        path.chmod(0o755)
    assert any(path.endswith("/fs/setuid") for path in _walk(paths))


@pytest.mark.case("P20")
@pytest.mark.parametrize("place", ["data", "data/blobs", "data/layers", "data/partial"])
def test_accessible_store_is_reported_and_closed(place: str, tmp_path: Path) -> None:
    with Engine(tmp_path / "store") as engine:
        assert engine.fsck() == []
        path = tmp_path / "store" / place
        path.chmod(0o777)
        assert any(line.startswith("permissions") for line in engine.fsck())
    with Engine(tmp_path / "store") as engine:
        assert engine._session.store
        assert path.stat().st_mode & 0o077 == 0
        assert engine.fsck() == []


@_second
@pytest.mark.case("P20")
def test_a_store_of_another_user_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o777)
    (tmp_path / "store" / "data").mkdir()
    os.chown(tmp_path / "store" / "data", 65534, 65534)
    with pytest.raises(PathError):
        Engine(tmp_path / "store").close()
