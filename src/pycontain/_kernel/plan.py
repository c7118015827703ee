"""Encoding of what C executes: the plan, security and exec buffers of plan.h.  Pure: no system calls."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

from attrs import frozen

from pycontain._kernel._ffi import lib
from pycontain._kernel.protocol import NO_FD, OpKind, structure

_PLAN = structure(
    "pc_plan",
    "magic version size flags namespaces control_fd exit_fd cgroup_fd store_fd tasks_fd tasks_count store "
    "uid_map gid_map hostname ops sources joins security command counters",
)
_SOURCE = structure("pc_source", "fd flags path device inode attributes first_id")
_OP = structure("pc_op", "kind flags mode source count attributes target data")
_JOIN = structure("pc_join", "fd type")
_SECURITY = structure(
    "pc_security",
    "magic version size flags capabilities securebits landlock_abi landlock_fs landlock_scoped landlock_root "
    "landlock_dev rlimits seccomp inherited",
)
_EXEC = structure(
    "pc_exec",
    "magic version size flags id tasks_count uid gid argc envc rows columns umask "
    "argv env workdir search groups rlimits",
)
_RLIMIT = structure("pc_rlimit", "resource soft hard")
_REQUEST = structure("pc_request", "kind size flags id value")


@frozen
class Source:
    """A mount for the container: the index of a descriptor, or a path.

    Attributes:
        fd: The index of the mount among the descriptors sent with the plan, or NO_FD.
        path: The path to mount where fd is NO_FD.
        device: The device of the file at the path when the caller saw it.
        inode: The inode of the file at the path when the caller saw it.
        flags: Of OpFlag.
        attributes: Of MountAttr.
        first_id: The id on the disk that is the container's 0.
        image: The file at the path is the image of a file system, which the caller mounts.
        bind: The path is the caller's and is opened by the rules of hostpath.
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
    """One step of building a root, as struct pc_op describes it."""

    kind: OpKind
    target: str = ""
    data: bytes = b""
    flags: int = 0
    mode: int = 0
    source: int = 0
    count: int = 0
    attributes: int = 0


class _Arena:
    """A buffer for a structure and the data that it refers to, aligned to 8 bytes and followed by a NUL."""

    def __init__(self, header: int) -> None:
        self.data = bytearray(header)

    def put(self, blob: bytes | bytearray) -> tuple[int, int]:
        """Append data and return the reference to it (struct pc_ref)."""
        data = self.data
        offset = len(data)
        data += blob
        data += b"\0" * (8 - len(blob) % 8)
        return offset, len(blob)


def _text(value: str) -> bytes:
    blob = value.encode("utf-8", "surrogateescape")
    if b"\0" in blob:
        raise ValueError(f"a text of a plan must have no NUL byte, got {value!r}")
    return blob


def encode_rlimits(rlimits: Mapping[int, tuple[int, int]]) -> bytes:
    """Encode `{resource: (soft, hard)}` as an array of struct pc_rlimit."""
    return b"".join(_RLIMIT.pack(number, soft, hard) for number, (soft, hard) in rlimits.items())


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
    """Encode the security of a container's processes (struct pc_security).

    Args:
        flags: Of SecurityFlag.
        capabilities: The bounding, permitted and effective set.
        securebits: Of prctl(2), PR_SET_SECUREBITS.
        landlock: The ABI in use (0 for none), handled rights, scopes, rights below `/`, rights below `/dev`.
        rlimits: `{resource: (soft, hard)}`.
        seccomp: The filter of the container's processes, an array of struct sock_filter.
        inherited: The filter of the agent, which all its children inherit.
    """
    arena = _Arena(_SECURITY.size)
    references = *arena.put(encode_rlimits(rlimits)), *arena.put(seccomp), *arena.put(inherited)
    _SECURITY.pack_into(
        arena.data,
        0,
        lib.PC_SECURITY_MAGIC,
        lib.PC_VERSION,
        len(arena.data),
        flags,
        capabilities,
        securebits,
        *landlock,
        *references,
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
    """Encode one command (struct pc_exec).

    Args:
        flags: Of ExecFlag.
        number: The exec's id, which names it in later requests.
        tasks: The number of v1 `tasks` files among the descriptors.
        uid: The user.
        gid: The group.
        groups: Supplementary groups.
        argv: The command and its arguments.
        env: The environment, as strings that each end in a NUL.
        env_count: The number of these strings.
        workdir: The working directory.
        search: The PATH for a command without a slash.
        umask: The umask.
        size: Rows and columns of a terminal.
        rlimits: `{resource: (soft, hard)}`, in place of the container's.
    """
    arena = _Arena(_EXEC.size)
    references = (
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
        lib.PC_EXEC_MAGIC,
        lib.PC_VERSION,
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
        *references,
    )
    return bytes(arena.data)


def encode_ops(arena: _Arena, ops: Iterable[Op]) -> tuple[int, int]:
    """Append ops and their strings to an arena and return the reference to the array."""
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
    """All that the launcher needs for a start (struct pc_plan).

    Descriptors are indexes into those sent with the plan, and NO_FD for none.

    Attributes:
        control_fd: The agent's end of the control socket.
        namespaces: The namespaces to make, of CLONE_NEW*.
        ops: The steps of building the root.
        sources: The mounts that the steps refer to.
        security: The result of `encode_security`.
        flags: Of PlanFlag.
        exit_fd: The socket that reports the end of PID 1.
        cgroup_fd: The v2 directory to clone PID 1 into.
        store: The container's directory in the store.
        tasks_fd: The first of the v1 `tasks` files by which PID 1 enters its cgroups.
        tasks: The number of these files.
        uid_map: The content of /proc/PID/uid_map.
        gid_map: The content of /proc/PID/gid_map.
        hostname: The host name, if the plan makes a UTS namespace.
        joins: Namespaces to join, as (descriptor, CLONE_NEW* of its kind).
        command: The result of `encode_exec` for a command that is PID 1 itself.
        counters: Limits of the user namespace, a line for each: a file of /proc/sys/user and a number.
    """

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
        """Encode the buffer that the launcher executes.  Raises ValueError for a NUL in a string."""
        arena = _Arena(_PLAN.size)
        store = _source(arena, self.store)
        sources = b"".join(_SOURCE.pack(*_source(arena, source)) for source in self.sources)
        references = (
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
            lib.PC_PLAN_MAGIC,
            lib.PC_VERSION,
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
            *references,
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
    """Encode a request (struct pc_request) and its payload.

    Args:
        kind: Of RequestKind.
        payload: The bytes after the header.
        number: The id of an exec, or of the request itself.
        value: A number whose meaning depends on the kind.
        flags: IN_MEMFD, AFTER, or flags of the kind.
        size: The size of the payload where it is sent in a memfd.
    """
    length = len(payload) if size is None else size
    return _REQUEST.pack(kind, length, flags, number, value) + payload
