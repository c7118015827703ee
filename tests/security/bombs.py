"""Decompression bombs, and a process that is measured while it loads them."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import resource
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from tests.support.images import END, header, octal

ROOT = Path(__file__).resolve().parent.parent.parent
GIB = 1 << 30
_PIECE = 64 << 20


def zeros(kind: str, size: int) -> bytes:
    """Return a compressed tar of one file of zeros, made by repeating one piece."""
    head = header("zeros", b"0", size)
    piece, rest = bytes(_PIECE), bytes(size % _PIECE) + END
    return squeeze(kind, head) + squeeze(kind, piece) * (size // _PIECE) + squeeze(kind, rest)


def squeeze(kind: str, data: bytes) -> bytes:
    """Return compressed data; concatenated pieces are one stream."""
    if kind == "gzip":
        return gzip.compress(data, 9, mtime=0)
    if kind == "xz":
        return lzma.compress(data)
    return _zstd().compress(data)  # type: ignore[no-any-return]


def _zstd() -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        from backports import zstd
    return zstd


def sparse_header(name: str, size: int, regions: list[tuple[int, int]], *, more: bool = False) -> bytes:
    """Return GNU tar's header of a sparse file."""
    fields = {345: bytes(167), 483: octal(size, 12), 482: b"\1" if more else b"\0", 257: b"ustar  \0"}
    for at, (offset, length) in enumerate(regions):
        fields[386 + 24 * at] = octal(offset, 12) + octal(length, 12)
    return header(name, b"S", sum(length for _, length in regions), fields=fields)


# ---- in a process of its own ------------------------------------------------------------------------------


def measured(what: str, *arguments: str | Path, timeout: float = 120) -> dict[str, Any]:
    """Run `what` in a fresh interpreter; return outcome, processor seconds and peak memory."""
    command = [sys.executable, "-m", "tests.security.bombs", what, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def load(root: str, *sources: str) -> str:
    """Import archives by Image.from_rootfs, then a normal one; return the last error as text."""
    from pycontain import Engine, Image, ImageError

    said = "kept"
    with Engine(root) as engine:
        for source in sources:
            try:
                Image.from_rootfs(source, engine=engine)
            except ImageError as error:
                said = f"{type(error).__name__}: {error}"
    return said


def documents(root: str, *sources: str) -> str:
    """Load archives by Image.load and return the last error as text."""
    from pycontain import Engine, Image, ImageError

    said = "kept"
    with Engine(root) as engine:
        for source in sources:
            try:
                Image.load(source, engine=engine)
            except ImageError as error:
                said = f"{type(error).__name__}: {error}"
    return said


def peer(source: str) -> str:
    """Control: unpack by Python's tarfile in memory, as many programs do."""
    with tarfile.open(source) as archive:
        for member in archive:
            if member.isfile():
                data = archive.extractfile(member)
                return str(len(data.read() if data else b""))
    return "0"


def _main(what: str, *arguments: str) -> None:
    outcome = globals()[what](*arguments)
    # Processor time of this process and its children: a busy machine takes longer and is no bomb.
    seconds = sum(os.times()[:4])
    # Not ru_maxrss of this process: it keeps, through exec, the most that the one had which it came from.
    own = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({"outcome": outcome, "seconds": seconds, "memory": max(own, children) << 10}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
