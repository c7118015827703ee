"""Files: a tree of 20 000 into a container and out of it, against `tar | tar` of the same tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.images import _timed
from benchmarks.measure import Case, interleave, ratio
from pycontain import Container

_DIRECTORIES, _FILES = 200, 100
_BAR = 1.5


def _tree(top: Path) -> Path:
    """Return a tree of 20 000 files of 0 to 4 KiB."""
    for directory in range(_DIRECTORIES):
        place = top / f"d{directory}"
        place.mkdir(parents=True)
        for file in range(_FILES):
            (place / f"f{file}").write_bytes(b"x" * (41 * file))
    return top


def _tar(source: Path, target: Path) -> None:
    target.mkdir()
    with subprocess.Popen(["tar", "-C", source, "-c", "."], stdout=subprocess.PIPE) as packer:
        subprocess.run(["tar", "-C", target, "-x"], stdin=packer.stdout, check=True)
    if packer.returncode:
        raise subprocess.CalledProcessError(packer.returncode, "tar")


def files(quick: bool) -> list[dict[str, object]]:
    """Measure copy_in and copy_out of 20 000 files against GNU tar, in memory to avoid disk noise."""
    rows: list[dict[str, object]] = []
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="pyc-bench-", dir=memory) as directory:
        top = Path(directory)
        tree = _tree(top / "tree")
        with Container(memory="2G", tmpfs={"/data": "1G"}) as container:
            container.copy_in(tree, "/data/kept")

            def remove() -> None:
                container.exec(["rm", "-rf", "/data/in"], check=True)

            def case(name: str, job: Callable[[], object], clean: Callable[[], object]) -> Case:
                return Case(name, _timed(job, clean))

            cases = [
                case("copy_in", lambda: container.copy_in(tree, "/data/in"), remove),
                case(
                    "copy_out",
                    lambda: container.copy_out("/data/kept", top / "out"),
                    lambda: shutil.rmtree(top / "out"),
                ),
                case("tar | tar", lambda: _tar(tree, top / "tar"), lambda: shutil.rmtree(top / "tar")),
            ]
            *ours, tar = interleave(cases, 3 if quick else 9, 1, 0)
    for one in ours:
        middle, low, high = ratio(one, tar)
        met = "met" if middle <= _BAR else "MISSED"
        print(
            f"{one.name}, 20 000 files {one.p50:7.3f} s  tar | tar {tar.p50:7.3f} s"
            f"  ratio {middle:5.2f} [{low:.2f}, {high:.2f}]  bar {_BAR}  {met}"
        )
        rows.append(
            {
                "job": f"{one.name} of 20 000 files",
                "against": tar.name,
                "ours_p50": one.p50,
                "other_p50": tar.p50,
                "ratio": middle,
                "interval": [low, high],
                "bar": _BAR,
                "met": middle <= _BAR,
            }
        )
    return rows
