"""Real and large trees unpack exactly as with umoci."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain import Container, Engine, Image
from tests.support import peers
from tests.support.trees import difference, listing

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="umoci keeps owners only as root")
FILES = 20_000


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """Provide a store of this test's own."""
    with Engine(tmp_path / "store", ahead=0) as one:
        yield one


def _umoci(image: Image, tmp_path: Path) -> Path:
    peers.needs("umoci")
    image.save(tmp_path / "image.tar")
    (tmp_path / "layout").mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "image.tar", "-C", tmp_path / "layout"], check=True)
    peers.run("umoci", "unpack", "--image", f"{tmp_path}/layout:latest", tmp_path / "bundle")
    return tmp_path / "bundle" / "rootfs"


@pytest.mark.case("P21")
def test_debian_unpacks_like_umoci(engine: Engine, tmp_path: Path) -> None:
    peers.needs("debootstrap")
    tree = tmp_path / "debian"
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", "bookworm", tree], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"debootstrap has no mirror here: {made.stdout[-200:]!r}")
    image = Image.from_rootfs(tree, copy=True, tag="pyc/debian", engine=engine)
    (ours,) = image.directories
    assert difference(listing(ours), listing(_umoci(image, tmp_path))) == {}
    assert difference(listing(ours), listing(tree)) == {}
    with Container(image, engine=engine) as container:
        assert "bookworm" in container.exec(["cat", "/etc/os-release"]).stdout
        assert container.exec(["apt-get", "--version"]).returncode == 0
        assert container.exec(["dpkg", "--audit"]).stdout == ""


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _many(top: Path) -> None:
    """Create twenty thousand files of all modes and owners, with links of both kinds and attributes."""
    chosen = random.Random(21)
    for number in range(FILES):
        directory = top / f"d{number % 97}" / f"e{number % 11}"
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"file-{number}"
        kind = chosen.random()
        if kind < 0.05 and number > 200:
            path.symlink_to(chosen.choice(("/etc/passwd", "../x", f"file-{number - 97 * 11}", "nowhere")))
        elif kind < 0.1 and number > 2000 and _is_plain(directory / f"file-{number - 97 * 11}"):
            os.link(directory / f"file-{number - 97 * 11}", path, follow_symlinks=False)
        else:
            path.write_bytes(chosen.randbytes(chosen.randrange(0, 3000)))
            os.chown(path, chosen.randrange(0, 3000), chosen.randrange(0, 3000))
            path.chmod(chosen.choice((0o644, 0o755, 0o600, 0o4755, 0o2755, 0o400, 0o000)))
            if kind > 0.97:
                os.setxattr(path, "user.note", chosen.randbytes(20))
            os.utime(path, ns=(0, chosen.randrange(0, 1 << 60)))


@pytest.mark.case("P21")
def test_twenty_thousand_files_unpack_like_umoci(engine: Engine, tmp_path: Path) -> None:
    tree = tmp_path / "many"
    _many(tree)
    image = Image.from_rootfs(tree, copy=True, tag="pyc/many", engine=engine)
    (ours,) = image.directories
    assert difference(listing(ours), listing(tree)) == {}
    assert difference(listing(ours), listing(_umoci(image, tmp_path))) == {}
    shutil.rmtree(tmp_path / "bundle")
