"""Write the corpus of the layers: small archives, one for each feature.

`--check` compares instead: exit status 1 when the corpus is not what this version makes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

LAYERS = Path(__file__).parent / "corpus" / "layers"
BLOCK = 512
_TIME = 1_700_000_000


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % BLOCK)


def _octal(value: int, digits: int) -> bytes:
    return b"%0*o\0" % (digits, value)


def _binary(value: int, size: int) -> bytes:
    """Encode a number as GNU tar does: two's complement with the first bit set."""
    raw = bytearray(value.to_bytes(size, "big", signed=True))
    raw[0] |= 0x80
    return bytes(raw)


def header(
    name: bytes,
    kind: bytes = b"0",
    size: int = 0,
    *,
    mode: int = 0o644,
    link: bytes = b"",
    ids: tuple[int, int] = (0, 0),
    device: tuple[int, int] = (0, 0),
    patches: dict[int, bytes] | None = None,
) -> bytes:
    """Return a header with its sum; patches: bytes at other places."""
    block = bytearray(BLOCK)
    fields = {
        0: name[:100],
        100: _octal(mode, 7),
        108: _octal(ids[0], 7),
        116: _octal(ids[1], 7),
        124: _octal(size, 11),
        136: _octal(_TIME, 11),
        148: b" " * 8,
        156: kind,
        157: link[:100],
        257: b"ustar\x0000",
        329: _octal(device[0], 7),
        337: _octal(device[1], 7),
        **(patches or {}),
    }
    for at, data in fields.items():
        block[at : at + len(data)] = data
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: bytes, data: bytes = b"", kind: bytes = b"0", **fields: object) -> bytes:
    """Return a header and its data."""
    return header(name, kind, len(data), **fields) + _padded(data)  # type: ignore[arg-type]


def directory(name: bytes, mode: int = 0o755, **fields: object) -> bytes:
    """Return a directory's header."""
    return header(name, b"5", mode=mode, **fields)  # type: ignore[arg-type]


def extended(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    """Return a header of PAX records."""
    data = b""
    for key, value in records:
        body = len(key) + len(value) + 3
        size = body + len(str(body))
        size += len(str(size)) - len(str(body))
        data += b"%d %s=%s\n" % (size, key, value)
    return member(b"PaxHeaders/x", data, kind)


def _pair(offset: int, size: int) -> bytes:
    return _octal(offset, 11) + _octal(size, 11)


def _gnu_sparse(pairs: int) -> bytes:
    regions = [_pair(at * 1000, 10) for at in range(pairs)]
    patches = {
        257: b"ustar  \0",
        329: b"\0" * 16,
        386: b"".join(regions[:4]),
        482: bytes([pairs > 4]),
        483: _octal(pairs * 1000, 11),
    }
    blocks = []
    for at in range(4, pairs, 21):
        part = b"".join(regions[at : at + 21])
        blocks.append(part.ljust(504, b"\0") + bytes([pairs > at + 21]) + b"\0" * 7)
    return header(b"gnu", b"S", pairs * 10, patches=patches) + b"".join(blocks) + _padded(b"s" * pairs * 10)


def _leading_sparse(pairs: int) -> bytes:
    lines = b"%d\n" % pairs + b"".join(b"%d\n5\n" % (at * 700) for at in range(pairs))
    records = ((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", b"leading"))
    size = (b"GNU.sparse.realsize", b"%d" % (pairs * 700))
    return extended(*records, size) + member(b"GNUSparseFile.0/leading", _padded(lines) + b"x" * pairs * 5)


_END = b"\0" * 2 * BLOCK
_CAPABILITY = b"\1\0\0\2\0\4\0\0" + b"\0" * 12
_ACL = b"\2\0\0\0" + b"\1\0\7\0\xff\xff\xff\xff" + b"\4\0\5\0\xff\xff\xff\xff" + b"\x20\0\5\0\xff\xff\xff\xff"


def _sparse() -> dict[str, bytes]:
    size = (b"GNU.sparse.size", b"5000")
    pairs = [(b"GNU.sparse.offset", b"0"), (b"GNU.sparse.numbytes", b"3")]
    pairs += [(b"GNU.sparse.offset", b"4096"), (b"GNU.sparse.numbytes", b"4")]
    return {
        "sparse-gnu": _gnu_sparse(3),
        "sparse-gnu-long": _gnu_sparse(30),
        "sparse-gnu-full": _gnu_sparse(64),
        "sparse-0.0": extended(size, (b"GNU.sparse.numblocks", b"2"), *pairs) + member(b"old", b"abcdefg"),
        "sparse-0.1": extended(size, (b"GNU.sparse.map", b"0,3,4096,4")) + member(b"listed", b"abcdefg"),
        "sparse-1.0": _leading_sparse(3),
        "sparse-1.0-full": _leading_sparse(64),
        "sparse-empty": extended((b"GNU.sparse.map", b""), (b"GNU.sparse.size", b"70000")) + member(b"hole"),
    }


def _names() -> dict[str, bytes]:
    deep, wide = b"d/" * 120 + b"file", b"n" * 200
    return {
        "name-prefix": member(b"file", b"x", patches={345: b"a/long/prefix"}),
        "name-pax": extended((b"path", deep), (b"mtime", b"-1.5")) + member(b"short", b"x"),
        "name-gnu": member(b"././@LongLink", deep + b"\0", b"L") + member(b"short", b"x"),
        "link-gnu": member(b"././@LongLink", wide + b"\0", b"K") + header(b"to", b"2", link=b"short"),
        "link-pax": extended((b"linkpath", wide)) + header(b"to", b"2", link=b"short"),
        "name-through-links": member(b"l/new", b"x")
        + member(b"away/fresh")
        + member(b"a/up/c")
        + member(b"l/.wh.file"),
        "name-odd": member(b"//a/.//b", b"x") + directory(b"./") + member(b"c/", b""),
        "global": extended((b"comment", b"of git"), kind=b"g") + member(b"file", b"x"),
        "numbers": member(b"file", b"xy", patches={108: _binary(100000, 8), 136: _binary(-5, 12)}),
    }


def _links() -> dict[str, bytes]:
    return {
        "hard": member(b"a", b"data") + header(b"b", b"1", link=b"./a") + header(b"a", b"1", link=b"b"),
        "hard-symlink": header(b"s", b"2", link=b"/etc") + header(b"t", b"1", link=b"s"),
        "through-link": directory(b"m") + header(b"k", b"2", link=b"m") + member(b"k/file", b"x"),
        "out-by-link": header(b"o", b"2", link=b"../../canary") + member(b"o/file", b"x"),
        "out-by-root": header(b"o", b"2", link=b"/proc/self/cwd") + member(b"o/canary/file", b"x"),
        "replaced": directory(b"r") + member(b"r/x", b"x") + member(b"r", b"y") + directory(b"r"),
        "link-replaced": header(b"o", b"2", link=b"..") + member(b"o/p/q/file", b"x") + member(b"o", b"y"),
        "link-replaced-by-link": directory(b"o/d/e")
        + member(b"o/d/e/f/file")
        + header(b"o/d", b"2", link=b"../m/")
        + directory(b"m/e")
        + directory(b"o/d/e/g"),
        "loop": header(b"p", b"2", link=b"q") + header(b"q", b"2", link=b"p") + member(b"p/x", b""),
    }


def _marks() -> dict[str, bytes]:
    return {
        "whiteout": member(b".wh.gone") + member(b"etc/.wh.file") + directory(b"gone"),
        "whiteout-late": directory(b"etc") + member(b".wh.etc") + member(b"etc/x", b"x"),
        "times": extended((b"mtime", b"1000.25"))
        + member(b"file")
        + extended((b"mtime", b"-7.5"))
        + directory(b"d"),
        "opaque": directory(b"opq") + member(b"opq/.wh..wh..opq") + member(b"opq/x", b"x"),
        "opaque-root": member(b".wh..wh..opq") + directory(b"./", 0o700),
        "implied": member(b"etc/deep/dir/file", b"x") + member(b"usr/bin/x", b"x") + member(b"a/b/c", b""),
        "implied-link": member(b"l/x", b"x"),
        "devices": header(b"c", b"3", device=(1, 3)) + header(b"b", b"4", device=(7, 0)) + header(b"f", b"6"),
        "zero-device": header(b"c", b"3"),
        "modes": directory(b"s", 0o3775, ids=(1000, 1000)) + member(b"s/x", b"x", mode=0o6755),
        "attributes": extended(
            (b"SCHILY.xattr.user.a", b"v=\0\n1"),
            (b"SCHILY.xattr.security.capability", _CAPABILITY),
            (b"SCHILY.xattr.trusted.overlay.opaque", b"y"),
        )
        + member(b"program", b"x", mode=0o755),
        "no-capability": extended((b"SCHILY.xattr.security.capability", b""))
        + member(b"program")
        + directory(b"d"),
        "acl": extended((b"SCHILY.xattr.system.posix_acl_default", _ACL))
        + directory(b"d")
        + member(b"d/x", b"x"),
    }


def _refused() -> dict[str, bytes]:
    """Return archives that every reader must refuse, each just beyond a limit."""
    size, back = (b"GNU.sparse.size", b"5000"), (b"GNU.sparse.map", b"4096,4,0,3")
    data = b"d" * 7
    return {
        "bad-sparse-more": _gnu_sparse(65),
        "bad-sparse-1.0-more": _leading_sparse(65),
        "bad-sparse-back": extended(size, back) + member(b"listed", data),
        "bad-sparse-beyond": extended(size, (b"GNU.sparse.map", b"0,3,4998,4")) + member(b"listed", data),
        "bad-sparse-less": extended(size, (b"GNU.sparse.map", b"0,3")) + member(b"listed", data),
        "bad-record": member(b"PaxHeaders/x", b"9000 path=x\n", b"x") + member(b"file"),
        "bad-record-short": member(b"PaxHeaders/x", b"9 path=x\n", b"x") + member(b"file"),
        "bad-extended": member(b"PaxHeaders/x", b"x" * 8193, b"x") + member(b"file"),
        "bad-long-name": member(b"././@LongLink", b"n" * 4097, b"L") + member(b"file"),
        "bad-name": directory(b"d") + member(b"d/../../canary/fresh", b"x"),
        "bad-link": member(b"d/x") + header(b"y", b"1", link=b"../canary/file"),
        "bad-parts": extended((b"path", b"d/" * 256 + b"x")) + member(b"file"),
        "bad-global": extended((b"path", b"x")) + extended((b"comment", b"c"), kind=b"g") + member(b"file"),
        "bad-after-end": member(b"file") + bytes(BLOCK) + member(b"hidden"),
        "bad-sum": member(b"file", patches={0: b"x"})[:148] + b"0000000\0" + b"\0" * 356,
    }


def archives() -> dict[str, bytes]:
    """Return archives by file name. All but two have a correct end."""
    every = {**_sparse(), **_names(), **_links(), **_marks(), **_refused()}
    ended = {name: data + _END for name, data in every.items()}
    ended["plain"] = directory(b"etc/") + member(b"etc/hosts", b"127.0.0.1 localhost\n") + _END
    ended["ended-once"] = member(b"file") + bytes(BLOCK)
    ended["unended"] = member(b"file", b"x" * 2000)
    ended["cut"] = member(b"file", b"x" * 2000)[:1500]
    return ended


def main() -> int:
    """Write or compare the corpus and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    wanted = {f"{name}.tar": data for name, data in archives().items()}
    if arguments.check:
        return int({path.name: path.read_bytes() for path in LAYERS.iterdir()} != wanted)
    LAYERS.mkdir(parents=True, exist_ok=True)
    for path in LAYERS.glob("*.tar"):
        path.unlink()
    for name, data in wanted.items():
        (LAYERS / name).write_bytes(data)
    print(f"corpus: {len(wanted)} files, {sum(map(len, wanted.values()))} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
