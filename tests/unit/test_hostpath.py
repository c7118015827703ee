"""Paths of the host: links that are followed, and replacement of files."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain import PathError, open_beneath
from pycontain._kernel import hostpath

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")


@pytest.fixture
def top(tmp_path: Path) -> Iterator[Path]:
    """Return a directory with a secret beside it, and reset the record of shared directories afterwards."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("KEY")
    work = tmp_path / "work"
    work.mkdir()
    before = set(hostpath._shared)
    yield work
    hostpath._shared.clear()
    hostpath._shared.update(before)


def _read(path: Path | str) -> str:
    fd = hostpath.open_path(os.fspath(path), os.O_RDONLY)
    with open(fd) as file:
        return file.read()


def _share(path: Path) -> None:
    fd = os.open(path, os.O_PATH)
    hostpath.share(fd)
    os.close(fd)


def test_callers_own_links_are_followed(top: Path) -> None:
    (top / "absolute").symlink_to(top.parent / "secret")
    (top / "up").symlink_to("../secret")
    (top / "chain").symlink_to("up/../secret/./")
    (top / "file").symlink_to("chain/key")
    for name in ("absolute/key", "up/key", "chain/key", "file"):
        assert _read(top / name) == "KEY"
    assert _read("/proc/self/root" + str(top / "file")) == "KEY"


def test_links_below_a_shared_directory_are_refused(top: Path) -> None:
    inner = top / "inner"
    inner.mkdir()
    (inner / "last").symlink_to(top.parent / "secret" / "key")
    (inner / "middle").symlink_to(top.parent / "secret")
    (top.parent / "way").symlink_to("work/inner")
    _share(top)
    for path in (inner / "last", inner / "middle" / "key", top.parent / "way" / "last"):
        with pytest.raises(PathError) as caught:
            _read(path)
        assert caught.value.errno == errno.ELOOP
        assert "open_beneath" in str(caught.value)
    (inner / "plain").write_text("plain")
    assert _read(top.parent / "way" / "plain") == "plain"


def test_links_in_a_directory_open_to_everyone_are_refused_unless_sticky(top: Path) -> None:
    (top / "link").symlink_to("../secret/key")
    top.chmod(0o777)
    with pytest.raises(PathError):
        _read(top / "link")
    top.chmod(0o1777)
    assert _read(top / "link") == "KEY"


@needs_root
def test_links_of_other_users_are_refused(top: Path) -> None:
    (top / "link").symlink_to("../secret/key")
    os.chown(top / "link", 12345, 12345, follow_symlinks=False)
    with pytest.raises(PathError):
        _read(top / "link")


def test_circles_end_and_errors_keep_their_number(top: Path) -> None:
    (top / "a").symlink_to("b")
    (top / "b").symlink_to("a")
    (top / "gone").symlink_to("nothing/below")
    (top / "file").write_text("")
    (top / "through").symlink_to("file")
    for name, kind in (("a", OSError), ("gone", FileNotFoundError), ("through/x", NotADirectoryError)):
        with pytest.raises(kind):
            _read(top / name)


def test_pipes_of_proc_are_no_text(top: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"through")
    os.close(write)
    assert _read(f"/dev/fd/{read}") == "through"
    os.close(read)


def test_replaced_leaves_nothing_after_an_error(top: Path) -> None:
    (top / "name").symlink_to("../secret/key")
    directory = hostpath.open_directory(str(top))
    with pytest.raises(RuntimeError), hostpath.replaced(directory, "name", 0o600):
        raise RuntimeError
    assert os.listdir(top) == ["name"]
    with hostpath.replaced(directory, "name", 0o600) as fd:
        os.write(fd, b"new")
    os.close(directory)
    assert (top / "name").read_text() == "new"
    assert not (top / "name").is_symlink()
    assert (top.parent / "secret" / "key").read_text() == "KEY"


def test_replaced_names_another_writer(top: Path) -> None:
    directory = hostpath.open_directory(str(top))
    new = hostpath.Replacement(directory, "name", 0o600)
    os.close(new.create())
    new.fd = os.open(top / new.temporary, os.O_RDONLY)
    os.rename(top / new.temporary, top / "moved")
    (top / new.temporary).symlink_to("../secret/key")
    with pytest.raises(PathError, match="replaced"):
        new.place()
    os.close(new.fd)
    os.close(directory)
    assert (top.parent / "secret" / "key").read_text() == "KEY"


@pytest.mark.parametrize("mode", ["r", "w", "a", "r+"])
@pytest.mark.parametrize("name", ["out", "up", "inner/up", "../secret/key", "self"])
def test_open_beneath_refuses_ways_out(top: Path, mode: str, name: str) -> None:
    (top / "inner").mkdir()
    (top / "out").symlink_to(top.parent / "secret" / "key")
    (top / "up").symlink_to("../secret/key")
    (top / "inner" / "up").symlink_to("../../secret/key")
    (top / "self").symlink_to(f"/proc/self/root{top.parent}/secret/key")
    with pytest.raises(PathError):
        open_beneath(top, name, mode)
    assert (top.parent / "secret" / "key").read_text() == "KEY"
    assert sorted(os.listdir(top.parent)) == ["secret", "work"]


def test_open_beneath_does_not_wait_for_pipes(top: Path) -> None:
    os.mkfifo(top / "pipe")
    for mode in ("r", "w", "a", "r+"):
        with pytest.raises(PathError):
            open_beneath(top, "pipe", mode)
    with open_beneath(top, "pipe", "r+b", 0, special=True) as pipe:
        pipe.write(b"x")
        assert pipe.read(1) == b"x"
    with pytest.raises(IsADirectoryError):
        open_beneath(top.parent, "work")


def test_open_beneath_reads_and_writes_like_open(top: Path) -> None:
    (top / "inner").mkdir()
    (top / "inside").symlink_to("inner/file")
    with open_beneath(top, "inner/file", "w", encoding="utf-8") as file:
        file.write("first line\n")
    with open_beneath(top, Path("inside")) as file:
        assert file.read() == "first line\n"
    fd = os.open(top, os.O_RDONLY)
    with open_beneath(fd, "inside", "w") as file:
        file.write("2")
    os.fstat(fd)
    os.close(fd)
    assert (top / "inner" / "file").read_text() == "2"
    with pytest.raises(FileExistsError):
        open_beneath(top, "inner/file", "x")
    with pytest.raises(FileNotFoundError):
        open_beneath(top, "nothing")
    with pytest.raises(FileNotFoundError):
        open_beneath(top / "gone", "nothing")
    for bad, words in (("/etc/passwd", "relative"), ("a\0b", "null byte")):
        with pytest.raises(ValueError, match=words):
            open_beneath(top, bad)


@pytest.fixture
def record(top: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file of shared directories, and no other."""
    path = top.parent / "store" / "shared"
    monkeypatch.setattr(hostpath, "_records", [])
    hostpath._shared.clear()
    return path


@pytest.mark.parametrize("first", ["share", "record"])
def test_shared_directories_are_known_to_later_processes(top: Path, record: Path, first: str) -> None:
    if first == "share":
        _share(top)
        hostpath.record_in(os.fspath(record))
    else:
        hostpath.record_in(os.fspath(record))
        _share(top)
    (top / "way").symlink_to("../secret/key")
    hostpath._shared.clear()  # as in another process
    with pytest.raises(PathError, match="symbolic link"):
        _read(top / "way")


def test_a_new_directory_with_a_used_inode_number_is_not_shared(
    top: Path, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostpath.record_in(os.fspath(record))
    _share(top)
    (top / "way").symlink_to("../secret/key")
    device, inode, birth = hostpath._identity(fd := os.open(top, os.O_PATH))
    os.close(fd)
    record.write_text(f"{device} {inode} {birth - 1}\n")
    hostpath._shared.clear()
    assert _read(top / "way") == "KEY"


def test_the_record_of_shared_directories_is_bounded(
    top: Path, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostpath, "_RECORD_MOST", 4000)
    hostpath.record_in(os.fspath(record))
    for number in range(300):
        hostpath._write_record(os.fspath(record), [(1, number, 10**18)])
        assert record.stat().st_size <= 4100
    found = {inode for _, inode, _ in hostpath._recorded()}
    assert 299 in found
    assert 0 not in found
    assert len(found) > 60


@pytest.mark.parametrize("kind", ["pipe", "socket", "link"])
def test_special_files_are_not_replaced(top: Path, kind: str) -> None:
    place = top / "place"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.fspath(place))
    else:
        place.symlink_to("/dev/null")
    before = place.lstat()
    directory = os.open(top, os.O_PATH)
    with pytest.raises(PathError, match="a device, a pipe or a socket") as caught:
        hostpath.Replacement(directory, "place", 0o600).create()
    os.close(directory)
    assert caught.value.errno == errno.EEXIST
    assert place.lstat() == before
    assert os.listdir(top) == ["place"]
