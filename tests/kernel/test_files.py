"""Files of a running container: paths with pathlib's verbs, and copies in and out."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from pycontain import Container, ContainerPath, Engine, Image, PathError, StateError
from pycontain._kernel.file_server import FileServer
from pycontain._kernel.launcher import Launcher
from pycontain._kernel.pidfd import wait_dead


@pytest.fixture
def place(container: Container) -> ContainerPath:
    """Return a directory of root's in /tmp."""
    path = container.path("/tmp/place")
    path.mkdir(0o755)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return files of all sorts on the host."""
    top = tmp_path / "tree"
    (top / "sub" / "deep").mkdir(parents=True)
    (top / "plain").write_bytes(b"plain")
    (top / "plain").chmod(0o640)
    (top / "tool").write_bytes(b"#!/bin/sh\n")
    (top / "tool").chmod(0o755)
    (top / "sub" / ".wh.plain").write_bytes(b"a name like any other")
    (top / "sub" / ".wh..wh..opq").write_bytes(b"and this")
    (top / "sub" / "link").symlink_to("../plain")
    (top / "sub" / "away").symlink_to("/etc/shadow")
    os.link(top / "plain", top / "sub" / "twin")
    (top / "sub" / "deep" / "hollow").write_bytes(b"")
    os.truncate(top / "sub" / "deep" / "hollow", 1 << 20)
    for path in (top / "plain", top / "sub" / "deep", top / "sub", top):
        os.utime(path, ns=(10**18, 10**18 + 123456789))
    os.utime(top / "sub" / "link", ns=(10**18, 10**18 + 5), follow_symlinks=False)
    return top


def _state(top: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in (top, *sorted(top.rglob("*"))):
        seen = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(top))] = (seen.st_mode, seen.st_mtime_ns, content)
    return found


# ---- paths ------------------------------------------------------------------------------------------------


def test_text_and_bytes_go_in_and_out(container: Container, place: ContainerPath) -> None:
    assert (place / "a").write_text("grün\n") == 5
    assert container.exec(["cat", "/tmp/place/a"]).stdout == "grün\n"
    assert (place / "a").read_text() == "grün\n"
    assert (place / "b").write_bytes(bytes(range(256))) == 256
    assert (place / "b").read_bytes() == bytes(range(256))
    container.exec(["sh", "-c", "echo more >> /tmp/place/a"])
    assert (place / "a").read_text() == "grün\nmore\n"


def test_the_modes_of_open(place: ContainerPath) -> None:
    file = place / "file"
    with file.open("x") as stream:
        stream.write("one\n")
    with pytest.raises(FileExistsError):
        file.open("x")
    with file.open("a") as stream:
        stream.write("two\n")
    with file.open("r+") as stream:
        assert stream.readline() == "one\n"
    with file.open("rb") as stream:
        assert stream.read() == b"one\ntwo\n"
    with file.open("w+b") as stream:
        stream.write(b"three")
        stream.seek(0)
        assert stream.read() == b"three"
    with pytest.raises(ValueError, match="mode"):
        file.open("q")
    with pytest.raises(IsADirectoryError):
        place.open()
    with pytest.raises(IsADirectoryError):
        place.open("w")
    with pytest.raises(FileNotFoundError) as missing:
        (place / "none").open()
    assert isinstance(missing.value, PathError)
    assert (missing.value.errno, missing.value.filename) == (errno.ENOENT, "/tmp/place/none")


def test_attributes_are_those_of_pathlib(container: Container) -> None:
    path = container.path("/a/b/c.tar.gz")
    pure = PurePosixPath("/a/b/c.tar.gz")
    for name in ("name", "stem", "suffix", "suffixes", "parts", "root", "anchor"):
        assert getattr(path, name) == getattr(pure, name)
    assert path.parent == container.path("/a") / "b"
    assert [str(one) for one in path.parents] == ["/a/b", "/a", "/"]
    assert path.relative_to("/a") == PurePosixPath("b/c.tar.gz")
    assert path.with_suffix(".x") == path.parent.joinpath("c.tar.x")
    assert path.with_name("d") == path.parent / PurePosixPath("d")
    assert path.match("*.gz")
    assert path.is_relative_to(path.parent)
    assert str(path) == path.as_posix() == "/a/b/c.tar.gz"
    assert {path, container.path("/a/b") / "c.tar.gz"} == {path}
    with pytest.raises(ValueError, match="absolute"):
        container.path("a")
    with pytest.raises(TypeError):
        os.fspath(path)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="NUL"):
        container.path("/a\0b").exists()
    with pytest.raises(PathError) as long:
        container.path("/" + "a/" * 3000).exists()
    assert long.value.errno == errno.ENAMETOOLONG


def test_directories(place: ContainerPath) -> None:
    (place / "x" / "y" / "z").mkdir(parents=True)
    with pytest.raises(FileExistsError):
        (place / "x").mkdir()
    (place / "x").mkdir(exist_ok=True)
    with pytest.raises(FileNotFoundError):
        (place / "n" / "n").mkdir()
    (place / "x" / "one.txt").touch()
    (place / "x" / "y" / "two.txt").touch()
    (place / "x" / "loop").symlink_to("..")
    assert {path.name for path in (place / "x").iterdir()} == {"y", "one.txt", "loop"}
    assert [str(path.relative_to(place)) for path in place.rglob("*.txt")] == ["x/one.txt", "x/y/two.txt"]
    assert [path.name for path in place.glob("x/*/*.txt")] == ["two.txt"]
    assert list(place.glob("x/none")) == []
    walked = [(str(at.relative_to(place)), sorted(kept)) for at, kept, _ in place.walk()]
    assert walked == [(".", ["x"]), ("x", ["y"]), ("x/y", ["z"]), ("x/y/z", [])]
    assert [at.name for at, _, _ in place.walk(top_down=False)] == ["z", "y", "x", "place"]
    with pytest.raises(OSError, match="not empty"):
        (place / "x").rmdir()
    (place / "x" / "y" / "z").rmdir()
    with pytest.raises(NotADirectoryError):
        list((place / "x" / "one.txt").iterdir())
    with pytest.raises(FileExistsError):
        place.parent.parent.mkdir()


def test_path_kinds(container: Container, place: ContainerPath) -> None:
    (place / "file").touch(0o600)
    (place / "to-file").symlink_to("file")
    (place / "to-nothing").symlink_to("none")
    (place / "loop").symlink_to("loop")
    container.exec(["mkfifo", "/tmp/place/pipe"])
    listed = {
        name: (path.exists(), path.is_file(), path.is_dir(), path.is_symlink())
        for name in ("", "file", "to-file", "to-nothing", "loop", "pipe", "none", "file/below")
        for path in [place / name]
    }
    assert listed == {
        "": (True, False, True, False),
        "file": (True, True, False, False),
        "to-file": (True, True, False, True),
        "to-nothing": (False, False, False, True),
        "loop": (False, False, False, True),
        "pipe": (True, False, False, False),
        "none": (False, False, False, False),
        "file/below": (False, False, False, False),
    }
    assert (place / "to-file").readlink() == PurePosixPath("file")
    with pytest.raises(PathError, match="Invalid argument"):
        (place / "file").readlink()
    assert stat.S_IMODE((place / "file").stat().st_mode) == 0o600
    assert stat.S_ISLNK((place / "to-file").lstat().st_mode)
    assert (place / "file").stat().st_mtime_ns > 10**18


def test_names_change(place: ContainerPath) -> None:
    (place / "a").write_text("a")
    (place / "b").write_text("b")
    assert (place / "a").rename(place / "c") == place / "c"
    assert not (place / "a").exists()
    (place / "c").replace(place / "b")
    assert (place / "b").read_text() == "a"
    (place / "twin").hardlink_to(place / "b")
    assert (place / "twin").stat().st_nlink == 2
    (place / "twin").unlink()
    (place / "twin").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (place / "twin").unlink()
    with pytest.raises(FileNotFoundError):
        (place / "none").rename(place / "b")
    (place / "b").chmod(0o4751)
    assert stat.S_IMODE((place / "b").stat().st_mode) == 0o4751


def test_no_file_is_made_through_a_link_to_nothing(place: ContainerPath) -> None:
    (place / "link").symlink_to("made")
    with pytest.raises(FileNotFoundError):
        (place / "link").write_text("x")
    assert not (place / "made").exists()


@pytest.mark.parametrize("path", ["/dev/null", "/dev/tty", "/proc/sys/kernel/hostname", "/proc/1/status"])
def test_devices_and_the_kernels_files_are_refused(path: str, container: Container) -> None:
    for mode in ("rb", "r+b"):
        with pytest.raises(PathError):
            container.path(path).open(mode)


def test_pipes_and_sockets_neither_block_nor_open(container: Container, place: ContainerPath) -> None:
    container.exec(["mkfifo", "/tmp/place/pipe"])
    begun = time.monotonic()
    for mode in ("rb", "wb", "r+b"):
        with pytest.raises(PathError):
            (place / "pipe").open(mode)
    assert time.monotonic() - begun < 2


def test_more_than_is_wanted_is_not_read(place: ContainerPath) -> None:
    with (place / "big").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(PathError) as refused:
        (place / "big").read_bytes()
    assert refused.value.errno == errno.EFBIG
    (place / "small").write_bytes(b"12345")
    assert (place / "small").read_bytes(max_bytes=5) == b"12345"
    with pytest.raises(PathError, match="max_bytes"):
        (place / "small").read_bytes(max_bytes=4)


# ---- owners -----------------------------------------------------------------------------------------------


@pytest.fixture
def needs_ids(engine: Engine) -> None:
    """Skip where the container has only one id."""
    if not engine._session.features.privileged and not engine._session.sub_ids:
        pytest.skip("this user has no sub-ids")


def _owners(container: Container, *paths: str) -> set[str]:
    return set(container.exec(["stat", "-c", "%u:%g", *paths], user="root").stdout.split())


def test_created_files_belong_to_the_user(needs_ids: None, tree: Path) -> None:
    with Container(user="7:9") as container:
        place = container.path("/tmp/place")
        place.mkdir()
        (place / "file").write_text("x")
        (place / "link").symlink_to("file")
        container.copy_in(tree, "/tmp/place/tree")
        container.copy_in(tree / "plain", "/tmp/place/plain")
        made = [f"/tmp/place{name}" for name in ("", "/file", "/link", "/tree/sub", "/tree/tool", "/plain")]
        assert _owners(container, *made) == {"7:9"}
        assert {path.lstat().st_uid for path in place.rglob("*")} == {7}
        assert {path.lstat().st_gid for path in place.rglob("*")} == {9}
        container.copy_in(tree / "plain", "/tmp/place/other", owner="3:4", user="root")
        assert _owners(container, "/tmp/place/other") == {"3:4"}
        container.exec(
            ["sh", "-c", "echo changed > /tmp/place/other; echo kept > /tmp/place/file"], user="3:4"
        )
        container.path("/tmp/place/other", user="root").write_text("kept")
        assert _owners(container, "/tmp/place/other") == {"3:4"}


def test_root_without_a_user(container: Container, place: ContainerPath) -> None:
    (place / "file").write_text("x")
    assert _owners(container, "/tmp/place", "/tmp/place/file") == {"0:0"}
    assert ((place / "file").stat().st_uid, (place / "file").stat().st_gid) == (0, 0)


# ---- copies -----------------------------------------------------------------------------------------------


def test_a_tree_there_and_back(container: Container, tree: Path, tmp_path: Path) -> None:
    container.copy_in(tree, "/tmp/there")
    container.copy_out("/tmp/there", tmp_path / "back")
    assert _state(tmp_path / "back") == _state(tree)
    twin = tmp_path / "back" / "sub" / "twin"
    assert twin.stat().st_ino == (tmp_path / "back" / "plain").stat().st_ino


def test_copy_in_where_no_directory_can_be_renamed(
    container: Container, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on overlays whose upper directory is on a tmpfs without extended attributes."""
    rename = ContainerPath.rename

    def refused(self: ContainerPath, target: ContainerPath) -> ContainerPath:
        if self.is_dir():
            raise PathError("cannot rename", path=str(self), errno=errno.EXDEV)
        return rename(self, target)

    monkeypatch.setattr(ContainerPath, "rename", refused)
    container.copy_in(tree, "/tmp/there")
    container.copy_out("/tmp/there", tmp_path / "back")
    assert _state(tmp_path / "back") == _state(tree)
    assert container.exec(["ls", "-A", "/tmp"]).stdout.split() == ["there"]


def test_closed_directories_come_out_removable(container: Container, tmp_path: Path) -> None:
    """A caller without privilege cannot remove a directory that it may not list; modes stay for root."""
    script = "mkdir -p /tmp/a/b/c && touch /tmp/a/b/c/x && chmod 000 /tmp/a/b/c && chmod 050 /tmp/a/b"
    container.exec(script, shell=True, check=True)
    container.copy_out("/tmp/a", tmp_path / "a")
    privileged = container._engine._session.features.privileged
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == (0o050 if privileged else 0o750)
    assert stat.S_IMODE((tmp_path / "a" / "b" / "c").stat().st_mode) == (0o000 if privileged else 0o700)
    shutil.rmtree(tmp_path / "a")


def test_the_places_that_cp_has(container: Container, tree: Path, tmp_path: Path) -> None:
    # The interpreter's prefix is shown at its own path, so a checkout may own any fixed name below /tmp.
    place = f"/tmp/pyc-{secrets.token_hex(4)}"
    container.path(place).mkdir()
    container.copy_in(tree, place)
    assert container.path(f"{place}/tree/plain").is_file()
    container.copy_in(tree / "plain", f"{place}/tree/sub")
    assert container.path(f"{place}/tree/sub/plain").read_bytes() == b"plain"
    container.copy_in(tree / "plain", container.path(f"{place}/new"))
    assert container.path(f"{place}/new").read_bytes() == b"plain"
    before = container.path(place).stat()
    container.copy_in(f"{tree}/.", place)
    assert container.path(f"{place}/sub/link").is_symlink()
    assert container.path(place).stat().st_mode == before.st_mode, "a directory that was there keeps its own"
    out = tmp_path / "out"
    out.mkdir()
    container.copy_out(f"{place}/tree", out)
    container.copy_out(f"{place}/new", out)
    container.copy_out(f"{place}/tree/sub/.", out)
    assert sorted(os.listdir(out)) == [
        ".wh..wh..opq",
        ".wh.plain",
        *sorted(["away", "deep", "link", "new"]),
        "plain",
        "tree",
        "twin",
    ]
    container.copy_out(f"{place}/tree", out)  # once more, over what is there
    assert (out / "tree" / "plain").read_bytes() == b"plain"
    assert not [name for name in os.listdir(out) if name.startswith(".pyc-")]
    assert not [path.name for path in container.path(place).iterdir() if path.name.startswith(".pyc-")]


def test_links_at_the_top_are_followed_those_below_are_copied(
    container: Container, tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to("tree")
    container.copy_in(tmp_path / "link", "/tmp")
    assert container.path("/tmp/link").is_dir()
    assert not container.path("/tmp/link").is_symlink()
    container.path("/tmp/again").symlink_to("link")
    container.copy_out("/tmp/again", tmp_path / "out")
    assert (tmp_path / "out" / "sub" / "away").is_symlink()
    container.copy_in(tree / "sub" / "link", "/tmp/file")
    assert container.path("/tmp/file").read_bytes() == b"plain"


def test_errors_name_the_path_and_leave_nothing(container: Container, tree: Path, tmp_path: Path) -> None:
    before = {path.name for path in container.path("/tmp").iterdir()}
    with pytest.raises(FileNotFoundError, match="/tmp/none"):
        container.copy_in(tree, "/tmp/none/there")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        container.copy_in(tree / "nowhere", "/tmp")
    with pytest.raises(FileNotFoundError, match="/tmp/none"):
        container.copy_out("/tmp/none", tmp_path)
    with pytest.raises(FileNotFoundError, match="missing"):
        container.copy_out("/etc/hostname", tmp_path / "missing" / "name")
    container.path("/tmp/file").write_text("x")
    with pytest.raises(FileExistsError):
        container.copy_in(tree, "/tmp/file")
    with pytest.raises(PathError):
        container.copy_in("/dev/null", "/tmp")
    (tmp_path / "file").write_text("x")
    container.copy_in(tree, "/tmp/tree")
    with pytest.raises(FileExistsError):
        container.copy_out("/tmp/tree", tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        container.copy_in(tree, "/tmp/file/below")
    assert {"file", "tree"} == {path.name for path in container.path("/tmp").iterdir()} - before
    assert sorted(os.listdir(tmp_path)) == ["file", "tree"]


@pytest.mark.parametrize("options", [{"max_bytes": 1000}, {"max_entries": 3}])
def test_bounds_leave_nothing(
    options: dict[str, int], container: Container, tree: Path, tmp_path: Path
) -> None:
    container.copy_in(tree, "/tmp/tree")
    (tmp_path / "out").mkdir()
    with pytest.raises(PathError, match="max_bytes") as refused:
        container.copy_out("/tmp/tree", tmp_path / "out", **options)
    assert refused.value.errno == errno.EFBIG
    assert os.listdir(tmp_path / "out") == []


def test_failed_copy_to_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "file").write_bytes(b"x" * (1 << 21))
    with Container(tmpfs={"/data": "1M"}) as container:
        for source in (tmp_path / "big", tmp_path / "big" / "file"):
            with pytest.raises(PathError) as full:
                container.copy_in(source, "/data")
            assert full.value.errno == errno.ENOSPC
        assert list(container.path("/data").iterdir()) == []


def test_copy_out_drops_devices_and_set_id_bits(container: Container, tmp_path: Path) -> None:
    container.exec(
        ["sh", "-c", "mkdir /tmp/t; cp /bin/true /tmp/t/suid; chmod 6755 /tmp/t/suid; mkfifo /tmp/t/pipe"]
    )
    container.copy_out("/tmp/t", tmp_path / "t")
    container.copy_out("/tmp/t/suid", tmp_path / "one")
    assert os.listdir(tmp_path / "t") == ["suid"]
    for path in (tmp_path / "t" / "suid", tmp_path / "one"):
        found = path.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o755, os.geteuid())
        assert os.access(path, os.X_OK)


def test_copy_out_of_the_root_skips_kernel_mounts(root: Path, tmp_path: Path) -> None:
    with Container(Image.from_rootfs(root)) as container:
        container.copy_out("/", tmp_path / "whole")
        assert os.listdir(tmp_path / "whole" / "proc") == []
        assert (tmp_path / "whole" / "bin" / "busybox").stat().st_size > 1000
        assert (tmp_path / "whole" / "etc" / "hostname").read_text().strip() == container.id[:12]


def test_trees_that_keep_their_owner_out(container: Container, tmp_path: Path) -> None:
    container.exec(
        ["sh", "-c", "mkdir -p /tmp/t/a/b; echo x > /tmp/t/a/b/f; chmod 0 /tmp/t/a/b/f /tmp/t/a/b /tmp/t/a"]
    )
    # A rootless caller gets directories that it can remove.
    wanted = 0 if container._engine._session.features.privileged else 0o700
    container.copy_out("/tmp/t", tmp_path / "t")
    assert stat.S_IMODE((tmp_path / "t" / "a").stat().st_mode) == wanted
    (tmp_path / "t" / "a").chmod(0o700)
    (tmp_path / "t" / "a" / "b").chmod(0o700)
    (tmp_path / "u").mkdir()
    container.copy_out("/tmp/t/.", tmp_path / "u")
    assert stat.S_IMODE((tmp_path / "u" / "a").stat().st_mode) == wanted
    (tmp_path / "u" / "a").chmod(0o700)
    (tmp_path / "u" / "a" / "b").chmod(0o700)


# ---- the server -------------------------------------------------------------------------------------------


def _file_server(container: Container) -> FileServer:
    container.path("/").exists()
    file_server = container._live().file_server
    assert file_server is not None
    return file_server


def test_a_server_that_died_is_replaced(container: Container) -> None:
    first = _file_server(container)
    signal.pidfd_send_signal(first.pid_fd, signal.SIGKILL)
    time.sleep(0.2)
    assert container.path("/tmp").is_dir()
    assert container._live().file_server is not first


def test_the_server_ends_with_the_container() -> None:
    with Container() as container:
        held = os.dup(_file_server(container).pid_fd)
        path = container.path("/tmp")
    try:
        assert wait_dead(held, 0)
    finally:
        os.close(held)
    with pytest.raises(StateError):
        path.exists()


def test_the_guest_does_not_see_the_server(container: Container) -> None:
    _file_server(container)
    assert len(container.exec(["sh", "-c", "ls -d /proc/[0-9]*"]).stdout.split()) <= 4


def test_many_threads(container: Container, place: ContainerPath) -> None:
    failed: list[Exception] = []

    def work(name: str) -> None:
        try:
            for at in range(40):
                (place / name).write_text(f"{name}{at}")
                assert (place / name).read_text() == f"{name}{at}"
        except (PathError, StateError, AssertionError) as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(str(n),)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_states(container: Container, needs_freezer: None) -> None:
    path = container.path("/tmp/x")
    container.pause()
    with pytest.raises(StateError, match="paused"):
        path.exists()
    container.unpause()
    assert not path.exists()
    with (
        Container(command=["sleep", "60"], init=False) as other,
        pytest.raises(StateError, match="init=False"),
    ):
        other.path("/").exists()


@pytest.fixture
def bare() -> Iterator[Launcher]:
    """Provide a launcher that joins nothing."""
    launcher = Launcher(files=True)
    yield launcher
    launcher.kill()
    launcher.close()


def test_file_server_without_a_container_refuses_requests(bare: Launcher, tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        from pycontain._kernel import native
        from pycontain._kernel.plan import request

        native.send(bare.socket, request(14), [fd, fd])
        record = native.receive(bare.socket)
        assert record is not None
        assert record.errno == errno.EINVAL
        assert native.receive(bare.socket) is None
    finally:
        os.close(fd)


DEEP = """
import os
os.mkdir("/root/deep")
os.chdir("/root/deep")
for _ in range(1100):
    os.mkdir("d")
    os.chdir("d")
"""


def test_trees_deeper_than_python_recurses_are_walked(container: Container) -> None:
    container.exec([sys.executable, "-c", DEEP], check=True)
    top = container.path("/root/deep")
    below = [at for at, _, _ in top.walk(top_down=False)]
    assert (len(below), below[-1]) == (1101, top)
    assert sum(1 for _ in top.glob("**/d")) == 1100
