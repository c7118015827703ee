"""Encode what C executes: plan, security and exec buffers of plan.h.  Pure: no system calls."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum, IntFlag

from attrs import frozen

NO_FD = 0xFFFFFFFF
_VERSION = 1
_PLAN_MAGIC, _EXEC_MAGIC, _SECURITY_MAGIC = 0x4E4C5050, 0x43455850, 0x43455350

_PLAN = struct.Struct("<4IQ6I4I4Q18I")
_SOURCE = struct.Struct("<4I4Q")
_OP = struct.Struct("<2H3IQ4I")
_JOIN = struct.Struct("<2I")
_SECURITY = struct.Struct("<4IQ2I4Q6I")
_EXEC = struct.Struct("<10I2HI12I")
_RLIMIT = struct.Struct("<2I2Q")
_REQUEST = struct.Struct("<4IiI")


class OpKind(IntEnum):
    """One step of building a root (plan.h)."""

    UPPER = 1
    FILE = 2
    OVERLAY = 3
    MOUNT = 4
    FILESYSTEM = 5
    DEV = 6
    MASK = 7
    READONLY = 8
    SEAL = 9
    MOVE = 10
    SYS = 11
    DIRECTORY = 12
    SYSCTL = 13


class OpFlag(IntFlag):
    """How a target or source is treated (plan.h)."""

    NOFOLLOW = 1
    IS_FILE = 2
    IDMAP = 4
    IDMAP_OPTIONAL = 8
    RECURSIVE = 16
    SLAVE = 32


class MountAttr(IntFlag):
    """mount_setattr(2) attributes."""

    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    NOSYMFOLLOW = 0x200000


class PlanFlag(IntFlag):
    """plan.h, pc_plan.flags."""

    DENY_SETGROUPS = 1
    LOOPBACK = 2
    COMMAND_IS_INIT = 4
    SPARE = 8


class SecurityFlag(IntFlag):
    """plan.h, pc_security.flags."""

    NO_NEW_PRIVS = 1
    KEYRING = 2
    SUPERVISE = 4


class ExecFlag(IntFlag):
    """plan.h, pc_exec.flags."""

    STDIN = 1
    STDOUT = 2
    STDERR = 4
    CGROUP = 8
    PTY = 16
    QUIET = 32


@frozen
class Source:
    """A mount to hand over: an fd's index, or a path with the device and inode that it must be.

    first_id: what the container's 0 is on the disk.  image: what stands at the path is a file system's
    image, which the caller mounts.  bind: the path is the caller's, and opened by the rule of hostpath.
    """

    fd: int = NO_FD
    path: str = ""
    device: int = 0
    inode: int = 0
    flags: int = 0
    attributes: int = 0
    first_id: int = 0
    image: bool = False
    bind: bool = False


@frozen
class Op:
    """One step of building a root; `what` names it in errors."""

    kind: OpKind
    target: str = ""
    data: bytes = b""
    flags: int = 0
    mode: int = 0
    source: int = 0
    count: int = 0
    attributes: int = 0


class _Arena:
    """A buffer that hands out references; everything in it is aligned to 8 and followed by a NUL."""

    def __init__(self, header: int) -> None:
        self.data = bytearray(header)

    def put(self, blob: bytes | bytearray) -> tuple[int, int]:
        data = self.data
        offset = len(data)
        data += blob
        data += b"\0" * (8 - len(blob) % 8)
        return offset, len(blob)


def _text(value: str) -> bytes:
    blob = value.encode("utf-8", "surrogateescape")
    if b"\0" in blob:
        raise ValueError(f"NUL byte in {value!r}")
    return blob


def encode_rlimits(rlimits: Mapping[int, tuple[int, int]]) -> bytes:
    """`{resource: (soft, hard)}` as pc_rlimit records."""
    return b"".join(_RLIMIT.pack(number, 0, soft, hard) for number, (soft, hard) in rlimits.items())


def encode_security(
    *,
    flags: int,
    capabilities: int,
    securebits: int,
    landlock: tuple[int, int, int, int, int],
    rlimits: Mapping[int, tuple[int, int]],
    seccomp: bytes,
    inherited: bytes = b"",
) -> bytes:
    """pc_security: what every process of the container gets.

    landlock: ABI in use (0 for none), handled rights, scopes, rights below `/`, rights below `/dev`.
    """
    arena = _Arena(_SECURITY.size)
    refs = *arena.put(encode_rlimits(rlimits)), *arena.put(seccomp), *arena.put(inherited)
    abi, *rights = landlock
    _SECURITY.pack_into(
        arena.data,
        0,
        _SECURITY_MAGIC,
        _VERSION,
        len(arena.data),
        flags,
        capabilities,
        securebits,
        abi,
        *rights,
        *refs,
    )
    return bytes(arena.data)


def encode_exec(
    *,
    flags: int,
    number: int,
    tasks: int,
    uid: int,
    gid: int,
    groups: Sequence[int],
    argv: Sequence[bytes],
    env: bytes,
    env_count: int,
    workdir: str,
    search: str,
    umask: int = 0o022,
    size: tuple[int, int] = (0, 0),
    rlimits: Mapping[int, tuple[int, int]] | None = None,
) -> bytes:
    """pc_exec: one command.  `env` is NUL-terminated strings; size is (rows, columns) of a terminal."""
    arena = _Arena(_EXEC.size)
    refs = (
        *arena.put(b"\0".join(argv) + b"\0"),
        *arena.put(env),
        *arena.put(_text(workdir)),
        *arena.put(_text(search)),
        *arena.put(struct.pack(f"<{len(groups)}I", *groups)),
        *arena.put(encode_rlimits(rlimits) if rlimits else b""),
    )
    _EXEC.pack_into(
        arena.data,
        0,
        _EXEC_MAGIC,
        _VERSION,
        len(arena.data),
        flags,
        number,
        tasks,
        uid,
        gid,
        len(argv),
        env_count,
        *size,
        umask,
        *refs,
    )
    return bytes(arena.data)


def encode_ops(arena: _Arena, ops: Iterable[Op]) -> tuple[int, int]:
    """The ops and their strings; the reference of the array."""
    packed = bytearray()
    put = arena.put
    for op in ops:
        packed += _OP.pack(
            op.kind,
            op.flags,
            op.mode,
            op.source,
            op.count,
            op.attributes,
            *put(_text(op.target)),
            *put(op.data),
        )
    return put(packed)


def _source(arena: _Arena, source: Source) -> tuple[int, ...]:
    return (
        source.fd,
        source.flags,
        *arena.put(_text(source.path)),
        source.device,
        source.inode,
        source.attributes,
        source.first_id,
    )


@frozen(kw_only=True)
class Plan:
    """pc_plan: everything that a start needs.  fds are indexes into those sent with it."""

    control_fd: int
    namespaces: int
    ops: Sequence[Op]
    sources: Sequence[Source]
    security: bytes
    flags: int = 0
    exit_fd: int = NO_FD
    cgroup_fd: int = NO_FD
    store: Source = Source()
    tasks_fd: int = 0
    tasks: int = 0
    uid_map: str = ""
    gid_map: str = ""
    hostname: str = ""
    joins: Sequence[tuple[int, int]] = ()
    command: bytes = b""
    counters: str = ""

    def encode(self) -> bytes:
        """The buffer that the launcher walks.  Raises ValueError for a NUL inside a string."""
        arena = _Arena(_PLAN.size)
        store = _source(arena, self.store)
        sources = b"".join(_SOURCE.pack(*_source(arena, source)) for source in self.sources)
        refs = (
            *arena.put(_text(self.uid_map)),
            *arena.put(_text(self.gid_map)),
            *arena.put(_text(self.hostname)),
            *encode_ops(arena, self.ops),
            *arena.put(sources),
            *arena.put(b"".join(_JOIN.pack(*join) for join in self.joins)),
            *arena.put(self.security),
            *arena.put(self.command),
            *arena.put(_text(self.counters)),
        )
        _PLAN.pack_into(
            arena.data,
            0,
            _PLAN_MAGIC,
            _VERSION,
            len(arena.data),
            self.flags,
            self.namespaces,
            self.control_fd,
            self.exit_fd,
            self.cgroup_fd,
            self.store.fd,
            self.tasks_fd,
            self.tasks,
            *store,
            *refs,
        )
        return bytes(arena.data)


def request(
    kind: int,
    payload: bytes = b"",
    *,
    number: int = 0,
    value: int = 0,
    flags: int = 0,
    size: int | None = None,
) -> bytes:
    """A request of protocol.h with its payload; `size` is given where the payload travels in a memfd."""
    return _REQUEST.pack(kind, len(payload) if size is None else size, flags, number, value, 0) + payload
