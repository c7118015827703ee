"""A34, A35, B16, U24: operations of the engine in a directory of the host that a guest can write to."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pycontain import Bind, Container, Image, PathError, PycontainError, Volume, open_beneath
from pycontain._kernel import hostpath
from tests.security.conftest import Canary

SECONDS = 30.0 if os.environ.get("PYC_SECURITY_FULL") else 3.0

SWAP = r"""
import os, sys
base, outside, want = "/w", sys.argv[1], sys.argv[2]
print("go", flush=True)
n = 0
while True:
    for place in (base, base + "/sub"):
        try:
            names = os.listdir(place)
        except OSError:
            continue
        for name in names:
            if name.startswith(".pyc-"):
                try:
                    os.rename(f"{place}/{name}", f"{base}/old/{n}")
                    os.symlink(outside, f"{place}/{name}")
                    n += 1
                except OSError:
                    pass
    if want == "parts":
        for name in ("sub", "new"):
            try:
                os.rename(f"{base}/{name}", f"{base}/old/{n}")
                os.symlink(outside, f"{base}/{name}")
                os.unlink(f"{base}/{name}")
                os.mkdir(f"{base}/{name}", 0o777)
                n += 1
            except OSError:
                pass
"""


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """Return a directory to bind into a guest, and reset the record of shared directories afterwards."""
    place = tmp_path / "work"
    place.mkdir()
    before = set(hostpath._shared)
    yield place
    hostpath._shared.clear()
    hostpath._shared.update(before)


def _plant(container: Container, canary: Canary) -> None:
    script = f"""mkdir /w/merged
ln -s {canary.top} /w/dir
ln -s {canary.top} /w/merged/inner
ln -s {canary.top}/secret /w/file
mkdir -p /root/t/inner; echo evil > /root/t/secret; echo evil > /root/t/inner/secret; echo evil > /root/one"""
    container.exec(script, shell=True, check=True)


def _attempt(what: Callable[[], object]) -> None:
    with contextlib.suppress(PycontainError):
        what()


@pytest.mark.case("A34")
@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_copy_out_follows_no_planted_link(work: Path, canary: Canary, mode: int) -> None:
    work.chmod(mode)
    with Container(mounts={"/w": Bind(work)}) as c:
        _plant(c, canary)
        for source in ("/root/t/.", "/root/t", "/root/one"):
            for target in ("dir", "dir/", "dir/new", "dir/inner", "merged", "file"):
                _attempt(lambda source=source, target=target: c.copy_out(source, f"{work}/{target}"))  # type: ignore[misc]
                assert not canary.check()
        _attempt(lambda: c.export(work / "dir" / "archive.tar"))
        c.export(work / "file")
        assert not (work / "file").is_symlink()


@pytest.mark.case("A34")
@pytest.mark.parametrize("want", ["temporary", "parts"])
def test_copy_out_lands_in_no_swapped_directory(work: Path, canary: Canary, want: str) -> None:
    (work / "old").mkdir()
    (work / "sub").mkdir()
    for place in (work, work / "old", work / "sub"):
        place.chmod(0o777)
    with Container(mounts={"/w": Bind(work)}) as c:
        c.exec("mkdir -p /root/t/inner; echo evil > /root/t/secret", shell=True, check=True)
        swap = c.popen(["python3", "-c", SWAP, str(canary.top), want])
        assert swap.stdout is not None
        swap.stdout.readline()
        end, done = time.monotonic() + SECONDS, 0
        while time.monotonic() < end or done < 40:
            _attempt(lambda: c.copy_out("/root/t/.", work / "sub"))
            _attempt(lambda: c.copy_out("/root/t", work / "new"))
            _attempt(lambda: c.copy_out("/root/t/secret", work / "sub" / "file"))
            _attempt(lambda: c.export(work / "sub" / "archive"))
            assert not canary.check()
            shutil.rmtree(work / "new", ignore_errors=True)
            done += 1
        swap.kill()
        swap.wait()


@pytest.mark.control("A34")
def test_a_copy_by_path_follows_the_link(work: Path, tmp_path: Path) -> None:
    """Control: a guest replaces a new directory by a link before the host writes into it by path."""
    victim = tmp_path / "victim"
    victim.mkdir()
    with Container(mounts={"/w": Bind(work)}) as c:
        name = work / ".pyc-0"
        name.mkdir()
        c.exec(f"mv /w/.pyc-0 /w/old; ln -s {victim} /w/.pyc-0", shell=True, check=True)
        (name / "file").write_text("evil")
    assert os.listdir(victim) == ["file"]


@pytest.mark.case("A35")
@pytest.mark.parametrize("mode", [0o755, 0o777])
@pytest.mark.parametrize("path", ["dir", "dir/inner", "file"])
def test_paths_behind_links_of_an_earlier_guest_are_refused(
    work: Path, canary: Canary, mode: int, path: str
) -> None:
    work.chmod(mode)
    with Container(mounts={"/w": Bind(work)}) as c:
        _plant(c, canary)
    place = work / path
    with pytest.raises(PathError, match="symbolic link"):
        Container(mounts={"/j": Bind(place)})
    with pytest.raises(PathError, match="symbolic link"):
        Container(mounts={"/j": Bind(place, read_only=True)})
    with pytest.raises(PathError, match="symbolic link"):
        Image.from_rootfs(place)
    with pytest.raises(PathError, match="symbolic link"):
        Image.load(place)
    with pytest.raises(PathError, match="symbolic link"):
        Image.from_oci_layout(place)
    with Container() as c:
        with pytest.raises(PathError, match="symbolic link"):
            c.copy_in(place, "/root/in")
        assert not c.path("/root/in").exists()


@pytest.mark.case("A35")
def test_a_link_planted_between_two_starts_is_refused(work: Path, canary: Canary) -> None:
    (work / "job").mkdir()
    inner = Container(mounts={"/j": Bind(work / "job")})
    with Container(mounts={"/w": Bind(work)}) as c:
        c.exec(f"rmdir /w/job; ln -s {canary.top} /w/job", shell=True, check=True)
    with pytest.raises(PathError, match="symbolic link"), inner:
        pass


@pytest.mark.case("A35")
def test_links_of_the_caller_keep_working(work: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(work)
    (tmp_path / "more").symlink_to("link")
    (work / "input").write_text("mine")
    with Container(mounts={"/w": Bind(tmp_path / "more")}) as c:
        assert c.exec(["cat", "/w/input"]).stdout == "mine"
        c.copy_in(tmp_path / "link" / "input", "/root/in")
        c.copy_out("/root/in", tmp_path / "more" / "out")
    assert (work / "out").read_text() == "mine"


@pytest.mark.control("A35")
def test_an_open_by_path_follows_the_link_of_an_earlier_guest(work: Path, canary: Canary) -> None:
    with Container(mounts={"/w": Bind(work)}) as c:
        _plant(c, canary)
    assert (work / "dir" / "inner" / "secret").read_text() == Canary.SECRET


@pytest.mark.case("A35")
@pytest.mark.timeout(60)
def test_pipes_that_a_guest_left_are_not_waited_for(work: Path) -> None:
    with Container(mounts={"/w": Bind(work)}) as c:
        c.exec("mkfifo /w/pipe; mkdir -p /root/t; mkfifo /root/t/pipe", shell=True, check=True)
        with pytest.raises(PathError):
            c.copy_in(work / "pipe", "/root/in")
        with pytest.raises(PycontainError):
            Image.load(work / "pipe")
        with pytest.raises(PycontainError):
            c.copy_out("/root/t/pipe", work / "out")
        c.exec("echo plain > /root/one", shell=True, check=True)
        with pytest.raises(PathError):
            c.copy_out("/root/one", work / "pipe")


@pytest.mark.case("U24")
def test_open_beneath_reads_no_file_that_a_guest_linked(work: Path, canary: Canary) -> None:
    with Container(mounts={"/w": Bind(work)}) as c:
        _plant(c, canary)
        c.exec("echo own > /w/own; ln -s own /w/inside", shell=True, check=True)
    for name in ("file", "dir/secret", "dir/inner/secret", "merged/inner/secret"):
        for mode in ("r", "w", "a", "r+"):
            with pytest.raises(PathError):
                open_beneath(work, name, mode)
    with open_beneath(work, "inside") as file:
        assert file.read() == "own\n"


@pytest.mark.control("U24")
def test_open_reads_the_file_that_a_guest_linked(work: Path, canary: Canary) -> None:
    with Container(mounts={"/w": Bind(work)}) as c:
        _plant(c, canary)
    with (work / "file").open() as file:
        assert file.read() == Canary.SECRET


@pytest.mark.case("B16")
def test_a_sparse_file_takes_no_blocks_of_the_host(tmp_path: Path) -> None:
    with Container() as c:
        c.exec("mkdir /root/t; truncate -s 4G /root/t/hole", shell=True, check=True)
        c.copy_out("/root/t", tmp_path / "tree")
        c.copy_out("/root/t/hole", tmp_path / "file")
        c.export(tmp_path / "archive")
    for path in (tmp_path / "tree" / "hole", tmp_path / "file"):
        assert path.stat().st_size == 4 << 30
        assert path.stat().st_blocks < 2048
    # The guest's root is the host's programs, which are mounts and left out.
    assert (tmp_path / "archive").stat().st_blocks * 512 < 1 << 30


@pytest.mark.control("B16")
def test_dense_copy_takes_blocks(tmp_path: Path) -> None:
    with Container() as c:
        c.exec("truncate -s 16M /root/hole", shell=True, check=True)
        with c.path("/root/hole").open("rb") as source, (tmp_path / "file").open("wb") as target:
            shutil.copyfileobj(source, target)
    assert (tmp_path / "file").stat().st_blocks * 512 >= 16 << 20


LATER = """
import os, sys
from pycontain import Bind, Container, Image, PathError, open_beneath
work = sys.argv[1]
def refused(what):
    try:
        what()
    except PathError as error:
        assert error.errno == 40, error
    else:
        print("followed", what)
refused(lambda: Container(mounts={"/j": Bind(work + "/dir")}))
refused(lambda: Image.from_rootfs(work + "/dir"))
refused(lambda: open_beneath(work + "/dir", "secret"))
with Container() as c:
    refused(lambda: c.copy_in(work + "/file", "/root/in"))
    c.exec(["touch", "/root/out"], check=True)
    refused(lambda: c.copy_out("/root/out", work + "/dir/out"))
"""


@pytest.mark.case("A35")
def test_links_of_an_earlier_process_guest_are_refused(work: Path, canary: Canary) -> None:
    with Container(mounts={"/w": Bind(work)}) as c:
        _plant(c, canary)
    done = subprocess.run(
        [sys.executable, "-c", LATER, str(work)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    assert not canary.check()


@pytest.mark.case("A34")
@pytest.mark.parametrize("kind", ["pipe", "socket", "link"])
def test_engine_replaces_no_special_file(tmp_path: Path, kind: str) -> None:
    place, merged = tmp_path / "place", tmp_path / "merged"
    merged.mkdir()
    for one in (place, merged / "one"):
        if kind == "pipe":
            os.mkfifo(one)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(os.fspath(one))
        else:
            one.symlink_to("/dev/null")
    before = [one.lstat().st_ino for one in (place, merged / "one")]
    with Container() as c, Volume() as volume:
        c.exec("mkdir /root/t; touch /root/t/one", shell=True, check=True)
        with pytest.raises(PathError, match="cannot replace"):
            c.copy_out("/root/t/one", place)
        with pytest.raises(PathError, match="cannot replace"):
            c.copy_out("/root/t/.", merged)
        with pytest.raises(PathError, match="cannot replace"):
            c.export(place)
        with pytest.raises(PathError, match="cannot replace"):
            volume.backup(place)
    assert [one.lstat().st_ino for one in (place, merged / "one")] == before
