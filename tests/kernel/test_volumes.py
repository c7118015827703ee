"""Volumes: contents persist, are shared between containers, bounded in size and private to the store."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain import (
    Conflict,
    Container,
    Engine,
    Image,
    ImageError,
    LimitError,
    NotFound,
    UnsupportedError,
    Volume,
)
from pycontain._state.owner import STORE_BLOCK


@pytest.fixture(autouse=True)
def _volumes(engine: Engine, needs_idmap: None) -> Iterator[None]:
    """Check that no volume and no loop device of one is left."""
    yield
    Volume.prune(all=True)
    assert Volume.list() == []
    engine.settle()
    place = os.path.join(engine._session.roots.data, "volumes")
    assert not os.path.exists(place) or os.listdir(place) == []
    assert _without_devices(engine._session.roots.data)


def _without_devices(place: str) -> bool:
    """Wait until no loop device is left; scans of other processes keep a device alive for a moment."""
    deadline = time.monotonic() + 5
    while any(_backing(device).startswith(place) for device in os.listdir("/sys/block")):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _backing(device: str) -> str:
    try:
        return Path(f"/sys/block/{device}/loop/backing_file").read_text()
    except OSError:
        return ""


@pytest.fixture
def sized(engine: Engine) -> None:
    """Skip where no volume has a size."""
    if not engine._session.features.privileged:
        pytest.skip("mounting a file system's image is root's")
    if not os.path.exists("/dev/loop-control"):
        pytest.skip("no loop devices")


def _sh(container: Container, script: str) -> str:
    return str(container.exec(script, shell=True, check=True).stdout)


def test_two_containers_share_a_persistent_volume(engine: Engine) -> None:
    volume = Volume("pyc-db", labels={"of": "test"})
    with Container(volumes={"/a": volume}) as one, Container(volumes={"/b/c": volume}) as other:
        _sh(one, "echo one > /a/file; chmod 640 /a/file; mkdir /a/dir")
        assert _sh(other, "cat /b/c/file; stat -c '%u %g %a' /b/c/file").split() == ["one", "0", "0", "640"]
        _sh(other, "echo two >> /b/c/file")
        assert _sh(one, "cat /a/file").split() == ["one", "two"]
        assert sorted(volume.containers) == sorted([one.id, other.id])
    again = Volume("pyc-db")
    assert again == volume
    assert again.labels == {"of": "test"}
    assert again.containers == []
    with Container(volumes={"/a": again.mounted(read_only=True)}) as one:
        assert _sh(one, "cat /a/file").split() == ["one", "two"]
        assert one.exec("echo no > /a/file", shell=True).returncode != 0


def test_owners_are_the_same_inside_and_on_the_disk(engine: Engine, root: Path) -> None:
    if not engine._session.store.owners:
        pytest.skip("only one id is mapped")
    from pycontain import Security

    volume = Volume("pyc-owners")
    image = Image.from_rootfs(root)
    with (
        Container(image, volumes={"/data": volume}, security=Security.DOCKER) as one,
        Container(image, volumes={"/data": volume}, security=Security.DOCKER) as other,
    ):
        _sh(one, "touch /data/mine && chown 1000:1001 /data/mine")
        assert _sh(other, "stat -c '%u %g' /data/mine").split() == ["1000", "1001"]
        assert other.exec("touch /data/theirs", shell=True, user="1000:1001").returncode != 0
        _sh(other, "chmod 777 /data")
        assert other.exec("touch /data/theirs", shell=True, user="1000:1001").returncode == 0
        assert _sh(one, "stat -c '%u %g' /data/theirs").split() == ["1000", "1001"]
    if engine._session.features.privileged:
        seen = os.stat(os.path.join(volume.mounted().path, "mine"))
        assert (seen.st_uid, seen.st_gid) == (STORE_BLOCK + 1000, STORE_BLOCK + 1001)  # no host user


def test_one_in_use_is_not_removed() -> None:
    volume = Volume("pyc-used")
    container = Container(volumes={"/data": volume})
    with pytest.raises(Conflict, match=container.id[:12]):
        volume.remove()  # made, and not started: it may start at any time
    with container:
        assert Volume.prune(all=True) == []
    volume.remove()
    with pytest.raises(NotFound):
        volume.remove()
    with pytest.raises(NotFound, match="pyc-used"):
        Container(volumes={"/data": volume})


def test_dropped_container_does_not_hold_its_volume() -> None:
    volume = Volume("pyc-dropped")
    Container(volumes={"/data": volume})
    volume.remove()


def test_data_survives_kills(engine: Engine) -> None:
    script = """
import os, signal
from pycontain import Container, Volume
with Container(volumes={"/data": Volume("pyc-killed")}) as one:
    one.exec("echo kept > /data/file; sync /data/file", shell=True, check=True)
    writer = one.popen("while :; do echo x >> /data/log; sync /data/log; done", shell=True)
    while one.exec("test -s /data/log", shell=True).returncode:
        pass
    writer.kill()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    volume = Volume.get("pyc-killed")
    assert volume.containers == []
    with Container(volumes={"/data": volume}) as one:
        assert _sh(one, "cat /data/file; grep -vc x /data/log || true").split() == ["kept", "0"]


def test_new_volume_is_filled_from_the_image(root: Path) -> None:
    place = root / "srv" / "content"
    place.mkdir(parents=True)
    (place / "file").write_text("of the image")
    (place / "file").chmod(0o640)
    (place / "link").symlink_to("file")
    volume = Volume("pyc-copied")
    with Container(Image.from_rootfs(root), volumes={"/srv/content": volume}) as one:
        assert _sh(one, "cat /srv/content/link; stat -c %a /srv/content/file") == "of the image640\n"
        _sh(one, "rm /srv/content/file")
    with Container(Image.from_rootfs(root), volumes={"/srv/content": volume}) as one:
        assert _sh(one, "ls /srv/content") == "link\n"
    with Container(
        Image.from_rootfs(root), volumes={"/srv/content": Volume("pyc-empty")}, read_only=True
    ) as one:
        assert _sh(one, "ls /srv/content").split() == ["file", "link"]
    other = Volume("pyc-elsewhere")
    with Container(volumes={"/nothing/there": other}) as one:
        _sh(one, "touch /nothing/there/x")
    with Container(Image.from_rootfs(root), volumes={"/srv/content": other}) as one:
        assert _sh(one, "ls /srv/content") == "x\n"


def test_one_of_two_concurrent_starts_fills_the_volume(root: Path) -> None:
    place = root / "srv" / "content"
    place.mkdir(parents=True)
    for at in range(200):
        (place / str(at)).write_text(str(at))
    volume, image = Volume("pyc-raced"), Image.from_rootfs(root)
    seen: list[str] = []

    def look() -> None:
        with Container(image, volumes={"/srv/content": volume}) as one:
            seen.append(_sh(one, "cat /srv/content/* | wc -c; ls /srv/content | wc -l"))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {tuple(text.split()) for text in seen} == {("490", "200")}


def test_unnamed_volume_lasts_while_used(engine: Engine) -> None:
    with Volume() as volume:
        assert volume in Volume.list()
        with Container(volumes={"/data": volume}) as one:
            _sh(one, "touch /data/x")
    assert Volume.list() == []
    kept = Volume()
    with pytest.raises(Conflict), kept, Container(volumes={"/data": kept}) as one:
        kept.remove()
    assert Volume.list() == []


def test_unnamed_volume_ends_with_its_engine(engine: Engine) -> None:
    script = "from pycontain import Volume\nfor _ in range(2): print(Volume().name)\nVolume('pyc-named')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert len(done.stdout.split()) == 2
    script = f"{script}\nimport os; os._exit(0)"
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert len(engine.volumes) == 3
    with Engine(engine._session.roots.data.removesuffix("/data")):
        pass
    assert [volume.name for volume in engine.volumes] == ["pyc-named"]


def test_prune_takes_those_without_a_name() -> None:
    named, unnamed = Volume("pyc-named"), Volume()
    assert Volume.prune() == [unnamed.name]
    assert Volume.prune(all=True) == [named.name]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "a\0b", "x" * 200, 5])
def test_names_are_checked(name: object) -> None:
    with pytest.raises(ValueError, match="the name of a volume"):
        Volume(name)  # type: ignore[arg-type]


def test_labels_are_text() -> None:
    with pytest.raises(TypeError, match="labels"):
        Volume("pyc-x", labels={"a": 1})  # type: ignore[dict-item]


def test_a_size_holds(sized: None) -> None:
    volume = Volume("pyc-sized", size="8M")
    assert volume.size == 8 << 20
    with Container(volumes={"/data": volume}) as one, Container(volumes={"/data": volume}) as other:
        assert _sh(one, "ls -A /data") == ""
        full = one.exec("head -c 32M /dev/zero > /data/big", shell=True)
        assert "No space left" in full.stderr
        assert int(_sh(other, "stat -c %s /data/big")) < 8 << 20
        assert other.exec("rm /data/big; fallocate -l 7M /data/other", shell=True).returncode in (0, 1)
        many = one.exec(
            "cd /data && rm -f other && i=0; while true > f$i; do i=$((i+1)); done 2>/dev/null; ls | wc -l",
            shell=True,
        )
        assert 100 < int(many.stdout) < 20000
    path = volume.mounted().path
    assert os.stat(path).st_blocks * 512 <= 9 << 20
    with pytest.raises(Conflict, match="another size"):
        Volume("pyc-sized", size="16M")
    assert Volume("pyc-sized").size == 8 << 20


def test_sizes_are_checked(engine: Engine) -> None:
    if not engine._session.features.privileged:
        with pytest.raises(UnsupportedError, match="in a rootless engine"):
            Volume("pyc-sized", size="8M")
        return
    with pytest.raises(LimitError):
        Volume("pyc-sized", size="1K")
    with pytest.raises(ValueError, match="size"):
        Volume("pyc-sized", size="many")
    assert Volume.list() == []


@pytest.mark.parametrize("size", [None, "8M"])
def test_backup_and_restore(size: str | None, request: pytest.FixtureRequest) -> None:
    if size is not None:
        request.getfixturevalue("sized")
    volume, archive = Volume("pyc-old", size=size), io.BytesIO()
    with Container(volumes={"/data": volume}) as one:
        _sh(
            one, "mkdir -m 2750 /data/d; echo x > /data/d/f; ln -s f /data/d/l; touch -d 2001-02-03 /data/d/f"
        )
        look = "cd /data && find . -printf '%p %y %m %U %T@ %l\\n' | sort"
        before = _sh(one, look)
        volume.backup(archive)
    archive.seek(0)
    other = Volume("pyc-new", size=size)
    other.restore(archive)
    with Container(volumes={"/data": other}) as one:
        assert _sh(one, look) == before
        with pytest.raises(Conflict):
            other.restore(io.BytesIO(archive.getvalue()))
    with pytest.raises(Conflict, match="not empty"):
        other.restore(io.BytesIO(archive.getvalue()))
    with pytest.raises(ImageError):
        Volume("pyc-third").restore(io.BytesIO(b"no archive" * 100))


def test_restore_stays_inside_the_volume(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("untouched")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as out:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        out.addfile(link)
        evil = tarfile.TarInfo("out/canary")
        evil.size = 4
        out.addfile(evil, io.BytesIO(b"evil"))
    archive.seek(0)
    volume = Volume("pyc-evil")
    with pytest.raises(ImageError):
        volume.restore(archive)
    assert canary.read_text() == "untouched"


def test_a_volume_of_another_store_is_refused(tmp_path: Path) -> None:
    with Engine(tmp_path / "pyc-other") as other:
        with pytest.raises(ValueError, match="another store"):
            Container(volumes={"/data": Volume("pyc-foreign", engine=other)})
        Volume.prune(all=True, engine=other)


@pytest.mark.parametrize("size", [None, "8M"])
def test_content_outlives_its_record(
    engine: Engine, size: str | None, request: pytest.FixtureRequest
) -> None:
    if size is not None:
        request.getfixturevalue("sized")
    with Container(volumes={"/data": Volume("pyc-lost", size=size)}) as one:
        _sh(one, "echo kept > /data/file")
    for regain in (lambda: engine.fsck(repair=True), lambda: Volume("pyc-lost")):
        with engine._session.store.database.writing() as rows:
            rows.execute("DELETE FROM volume")
        assert engine.fsck() == ["volume pyc-lost: has no record"]
        regain()
        assert engine.fsck() == []
        volume = Volume.get("pyc-lost")
        assert volume.size == (None if size is None else 8 << 20)
        with Container(volumes={"/data": volume}) as one:
            assert _sh(one, "cat /data/file") == "kept\n"
