"""The choice of files of /etc for the default image."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from pycontain._rootfs import etc, host
from pycontain.errors import NotFound


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return an /etc with published, changed, secret and linked files."""
    for path, text in {
        "app/app.conf": "published",
        "app/changed.conf": "password = hunter2",
        "app/by-admin.conf": "token",
        "app/closed.conf": "published",
        "ssh/ssh_config": "published",
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "app/closed.conf").chmod(0o640)
    (tmp_path / "app/link").symlink_to("/usr/share")
    (tmp_path / "app/inner").symlink_to("app.conf")
    (tmp_path / "app/secret").symlink_to("by-admin.conf")
    (tmp_path / "app/home").symlink_to("/root/secret")
    (tmp_path / "app/replaced.conf").symlink_to("by-admin.conf")
    return tmp_path


def test_only_files_as_published_are_carried(tree: Path) -> None:
    sums = {
        "/etc/app/app.conf": _md5("published"),
        "/etc/app/changed.conf": _md5("published"),
        "/etc/app/closed.conf": _md5("published"),
        "/etc/app/absent.conf": _md5("published"),
        "/etc/app/replaced.conf": _md5("token"),
        "/etc/app/../../root/x": _md5("published"),
        "/etc/ssh/ssh_config": _md5("published"),
    }
    found = {(entry.path, entry.target) for entry in etc.carried(["/usr"], str(tree), sums)}
    assert found == {
        ("app/app.conf", None),
        ("app/link", "/usr/share"),
        ("app/inner", "app.conf"),
    }


def test_checksums_are_those_of_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = "0123456789abcdef0123456789abcdef"
    status, hashes = tmp_path / "status", tmp_path / "hashfile"
    status.write_text(f"Package: a\nConffiles:\n /etc/a {one}\n /etc/b {one} obsolete\n /etc/c newconffile\n")
    hashes.write_text(f"{one}  /etc/d\n{one}  /var/e\n")
    monkeypatch.setattr(etc, "_STATUS", str(status))
    monkeypatch.setattr(etc, "_UCF", str(hashes))
    assert etc.published() == {"/etc/a": one, "/etc/d": one}
    monkeypatch.setattr(etc, "_STATUS", str(tmp_path / "absent"))
    assert etc.published() == {"/etc/d": one}


@pytest.mark.parametrize(
    "path", ["/", "/etc", "/etc/", "/home", "/proc/1", "/usr/../etc", "relative", "", "/a\0"]
)
def test_added_paths_are_parts_of_the_host(path: str) -> None:
    with pytest.raises(ValueError, match="paths must"):
        host.added([path])


def test_an_added_path_exists(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        host.added([tmp_path / "absent"])
    (tmp_path / "tool").mkdir()
    (tmp_path / "file").touch()
    found = host.added([tmp_path / "tool", str(tmp_path / "tool"), tmp_path / "file"])
    assert found == (str(tmp_path / "file"), str(tmp_path / "tool"))
    assert host.with_added([("/usr", "/usr")], ["/usr/bin", *found]) == [
        ("/usr", "/usr"),
        (str(tmp_path / "file"), str(tmp_path / "file")),
        (str(tmp_path / "tool"), str(tmp_path / "tool")),
    ]


def test_unused_skeletons_are_pruned(tmp_path: Path) -> None:
    shown = host.trees()
    first, lock = host.skeleton(str(tmp_path), shown)
    second, other = host.skeleton(str(tmp_path), [*shown, ("/opt", "/opt")])
    assert first != second
    assert os.path.isdir(first)
    os.close(lock)
    assert host.prune(str(tmp_path)) == 1
    assert os.listdir(tmp_path) == [os.path.basename(second)]
    again, lock = host.skeleton(str(tmp_path), shown)
    os.close(other)
    assert again == first
    os.close(host.skeleton(str(tmp_path), [*shown, ("/srv", "/srv")])[1])
    assert not os.path.exists(second)
    os.close(lock)
