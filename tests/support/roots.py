"""Root file systems for attacks, and the modifications that make them hostile."""

from __future__ import annotations

from pathlib import Path

import pytest

APPLETS = "sh cat ls sleep id mount true stat touch mkdir ln rm dd hostname echo find chmod readlink".split()


def make_root(top: Path) -> Path:
    """Return a root with busybox under its names, and the mount points."""
    busybox = Path("/bin/busybox")
    if not busybox.exists():
        pytest.skip("no static busybox on this host")
    for name in ("bin", "etc", "proc", "dev", "tmp", "run", "sys", "root"):
        (top / name).mkdir(parents=True)
    (top / "bin" / "busybox").write_bytes(busybox.read_bytes())
    (top / "bin" / "busybox").chmod(0o755)
    for name in APPLETS:
        (top / "bin" / name).symlink_to("busybox")
    (top / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\nbob:x:1000:1000::/:/bin/sh\n")
    (top / "etc" / "group").write_text("root:x:0:\nbob:x:1000:\nmore:x:2000:bob\n")
    for directory in (top.parent, top, *(one for one in top.iterdir() if one.is_dir())):
        directory.chmod(0o755)
    return top
