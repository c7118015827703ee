"""Write the corpus of the decoders: small valid buffers, one for each feature.

`--check` compares instead: exit status 1 when corpus/ is not what this version encodes.
"""

from __future__ import annotations

import argparse
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pycontain._kernel.plan import Op, Plan, Source, encode_exec, encode_security
from pycontain._kernel.protocol import NO_FD, OpFlag, OpKind, PlanFlag

CORPUS = Path(__file__).parent / "corpus" / "decoders"
_ALL_NAMESPACES = 0x7E020080
_NEWNET, _NEWIPC, _NEWUTS = 0x40000000, 0x08000000, 0x04000000
_GUARDED = 6
_INFINITY = 0xFFFFFFFFFFFFFFFF


def _filter(instructions: int) -> bytes:
    """Return a seccomp program that allows everything after some loads of the number."""
    load, allow = struct.pack("<HBBI", 0x20, 0, 0, 0), struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)
    return load * (instructions - 1) + allow


def security(**changes: Any) -> bytes:
    """Return a security buffer with one of everything, changed by `changes`."""
    fields: dict[str, Any] = {
        "flags": 3,
        "capabilities": 0xA80425FB,
        "securebits": 0xEF,
        "landlock": (6, 0xFFFF, 3, 0x3FFF, 0x7FFF),
        "rlimits": {7: (1024, 4096), 4: (0, 0)},
        "seccomp": _filter(8),
        "inherited": _filter(5),
    }
    return encode_security(**{**fields, **changes})


def command(**changes: Any) -> bytes:
    """Return an exec buffer with one of everything, changed by `changes`."""
    fields: dict[str, Any] = {
        "flags": 7,
        "number": 1,
        "tasks": 2,
        "uid": 1000,
        "gid": 1000,
        "groups": (4, 24, 27),
        "argv": [b"sh", b"-c", b"echo hello; exit 3"],
        "env": b"HOME=/root\0PATH=/usr/bin:/bin\0LANG=C.UTF-8\0",
        "env_count": 3,
        "workdir": "/tmp",
        "search": "/usr/local/bin:/usr/bin:/bin",
        "rlimits": {7: (64, 64)},
        "size": (24, 80),
    }
    return encode_exec(**{**fields, **changes})


def _root_ops() -> list[Op]:
    """Return the operations of a small root, as _rootfs.layout composes them."""
    nofollow = int(OpFlag.NOFOLLOW)
    return [
        Op(OpKind.UPPER, data=b"size=64m,mode=755,nr_inodes=16384"),
        Op(OpKind.FILE, "etc/hostname", b"name\n", mode=0o644),
        Op(OpKind.FILE, "etc/x", b"a\0b", mode=0o644),
        Op(OpKind.OVERLAY, source=0, count=2, attributes=_GUARDED),
        Op(OpKind.FILESYSTEM, "proc", b"proc", flags=nofollow, attributes=14),
        Op(OpKind.DEV, "dev", flags=nofollow),
        Op(OpKind.FILESYSTEM, "tmp", b"tmpfs\0size=1m,mode=1777", flags=nofollow, attributes=_GUARDED),
        Op(OpKind.MOUNT, "mnt/data", source=2),
        Op(OpKind.MOUNT, "etc/resolv.conf", flags=int(OpFlag.IS_FILE), source=2),
        Op(OpKind.MASK, "proc/kcore"),
        Op(OpKind.READONLY, "proc/sys"),
        Op(OpKind.SEAL),
    ]


def plan(**changes: Any) -> bytes:
    """Return a plan of a privileged caller, changed by `changes`."""
    fields: dict[str, Any] = {
        "control_fd": 0,
        "exit_fd": 1,
        "tasks_fd": 2,
        "tasks": 3,
        "namespaces": _ALL_NAMESPACES,
        "ops": _root_ops(),
        "store": Source(fd=5),
        "sources": [
            Source(fd=6, flags=12, attributes=7),
            Source(fd=7, flags=12, attributes=7),
            Source(fd=8, flags=4, attributes=6),
        ],
        "security": security(),
        "uid_map": "0 1000000 65536\n",
        "gid_map": "0 1000000 65536\n",
        "hostname": "name",
        "flags": int(PlanFlag.LOOPBACK),
    }
    return Plan(**{**fields, **changes}).encode()


def _bare_security() -> bytes:
    return security(flags=0, landlock=(0, 0, 0, 0, 0), rlimits={}, seccomp=b"", inherited=b"")


def _by_path() -> bytes:
    """Return a rootless plan: sources by path, groups denied, one cgroup to be cloned into."""
    return plan(
        exit_fd=NO_FD,
        cgroup_fd=1,
        tasks_fd=0,
        tasks=0,
        store=Source(path="/home/u/.local/share/pycontain/live/x", device=0x800000001, inode=1234),
        sources=[Source(path="/usr", device=0x800000001, inode=2, flags=16, attributes=7), Source(path="/")],
        ops=[Op(OpKind.UPPER), Op(OpKind.OVERLAY, count=1), Op(OpKind.MOUNT, "srv", source=1)],
        uid_map="0 0 1\n",
        gid_map="0 0 1\n",
        flags=int(PlanFlag.LOOPBACK | PlanFlag.DENY_SETGROUPS),
    )


def buffers() -> Mapping[str, bytes]:
    """Return the corpus by file name."""
    limits = {number: (number, _INFINITY) for number in range(16)}
    many = [f"V{number}={number}".encode() for number in range(40)]
    least: dict[str, Any] = {
        "ops": [],
        "sources": [],
        "tasks": 0,
        "store": Source(),
        "security": _bare_security(),
    }
    return {
        "security": security(),
        "security-bare": _bare_security(),
        "security-long": security(seccomp=_filter(60), inherited=_filter(90), rlimits=limits),
        "exec": command(),
        "exec-bare": command(
            flags=0,
            tasks=0,
            groups=(),
            argv=[b"/bin/true"],
            env=b"",
            env_count=0,
            workdir="/",
            search="",
            rlimits={},
        ),
        "exec-many": command(
            groups=range(32),
            argv=many,
            env=b"".join(one + b"\0" for one in many),
            env_count=len(many),
            rlimits=limits,
        ),
        "exec-empty-strings": command(argv=[b"", b"", b""], env=b"\0\0", env_count=2, search="::/bin:"),
        "plan": plan(),
        "plan-bare": plan(**least, exit_fd=NO_FD, uid_map="", gid_map="", hostname="", flags=0),
        "plan-by-path": _by_path(),
        "plan-command": plan(flags=int(PlanFlag.COMMAND_IS_INIT), command=command()),
        "plan-joins": plan(**least, joins=[(2, _NEWNET), (3, _NEWIPC), (4, _NEWUTS)]),
    }


def main() -> int:
    """Write or compare the corpus and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--into", type=Path, default=CORPUS)
    arguments = parser.parse_args()
    wanted = {f"{name}.bin": data for name, data in buffers().items()}
    if arguments.check:
        found = {path.name: path.read_bytes() for path in arguments.into.iterdir()}
        stale = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        print(
            f"corpus: stale, run {Path(__file__).name}: {' '.join(stale)}" if stale else "corpus: up to date"
        )
        return int(bool(stale))
    arguments.into.mkdir(exist_ok=True)
    for path in arguments.into.glob("*.bin"):
        path.unlink()
    for name, data in wanted.items():
        (arguments.into / name).write_bytes(data)
    print(f"corpus: {len(wanted)} files, {sum(map(len, wanted.values()))} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
