"""The merged tree of an image: by overlayfs for pycontain, unpacked by the other tools."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support import peers
from tests.support.images import TIME, Entry, Layout
from tests.support.trees import listing

NAME = "pyc"


@contextlib.contextmanager
def merged(directories: Sequence[str], place: Path) -> Iterator[Path]:
    """Provide the layers as a container sees them (root only)."""
    if len(directories) == 1:
        yield Path(directories[0])
        return
    place.mkdir()
    options = f"ro,userxattr,lowerdir={':'.join(directories)}"
    # In a mount namespace of its own, looked into from here: another test watches the mounts of this one.
    script = 'mount -t overlay pyc-merged -o "$0" "$1" && echo ready && exec cat'
    command = ["unshare", "-m", "--propagation", "private", "sh", "-c", script, options, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as keeper:
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"ready\n"
        yield Path(f"/proc/{keeper.pid}/root{place}")
        keeper.stdin.close()


def by_umoci(layout: Path, place: Path) -> Path | None:
    """Return the tree that umoci makes of the image `NAME`; None where it refuses."""
    peers.needs("umoci")
    command = ["umoci", "unpack", "--image", f"{layout}:{NAME}", str(place)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    return None if done.returncode else place / "rootfs"


def named_layout(layers: Sequence[bytes]) -> Layout:
    """Return a layout that umoci finds its image in."""
    layout = Layout()
    layout.image(layers, name=NAME)
    return layout


def certain(top: Path, unsure: Container[str] = ()) -> dict[str, Any]:
    """Return a listing without unspecified times: of implied directories and of `unsure` ones."""
    found = {}
    for name, (mode, owner, time, *rest) in listing(top).items():
        nobodys = mode.startswith("0o4") and (abs(time - TIME * 10**9) > 10**17 or name in unsure)
        found[name] = (mode, owner, None if nobodys else time, *rest)
    return found


def above(layers: Sequence[Sequence[Entry]]) -> set[str]:
    """Return directories that may be created implicitly for an entry; umoci does not keep their times."""
    found = set()
    for layer in layers:
        for entry in layer:
            parts = str(entry.name).strip("/").split("/")
            found |= {"/".join(parts[:at]) or "." for at in range(len(parts) - 1)}
    return found
