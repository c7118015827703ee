"""The protocol between caller, launcher and agent, as the C headers in src/_native/include declare it.

Kinds, flags and the layouts of structures come from the extension, whose compiler took them from the headers.
Only the names are repeated here; tests/unit/test_protocol.py compares them with the headers.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Any

from pycontain._kernel._ffi import ffi, lib


class RequestKind(IntEnum):
    """The kinds of requests to launcher and agent (enum pc_request_kind)."""

    SPAWN = lib.PC_REQUEST_SPAWN
    MAPS = lib.PC_REQUEST_MAPS
    REMOVE = lib.PC_REQUEST_REMOVE
    SECURITY = lib.PC_REQUEST_SECURITY
    EXEC = lib.PC_REQUEST_EXEC
    SIGNAL = lib.PC_REQUEST_SIGNAL
    KILL_TREE = lib.PC_REQUEST_KILL_TREE
    KILL_ALL = lib.PC_REQUEST_KILL_ALL
    OPEN = lib.PC_REQUEST_OPEN
    PREPARE = lib.PC_REQUEST_PREPARE
    UNPACK = lib.PC_REQUEST_UNPACK
    FINISH = lib.PC_REQUEST_FINISH
    PACK = lib.PC_REQUEST_PACK
    FILES = lib.PC_REQUEST_FILES
    FILE = lib.PC_REQUEST_FILE
    REPLACE_ROOT = lib.PC_REQUEST_REPLACE_ROOT
    NETWORK = lib.PC_REQUEST_NETWORK
    RELAY = lib.PC_REQUEST_RELAY
    SYS = lib.PC_REQUEST_SYS
    DRAIN = lib.PC_REQUEST_DRAIN
    MEASURE = lib.PC_REQUEST_MEASURE
    FDS = lib.PC_REQUEST_FDS


class RecordKind(IntEnum):
    """The kinds of answers (enum pc_record_kind)."""

    READY = lib.PC_RECORD_READY
    FAILED = lib.PC_RECORD_FAILED
    STARTED = lib.PC_RECORD_STARTED
    EXITED = lib.PC_RECORD_EXITED
    GONE = lib.PC_RECORD_GONE
    OPENED = lib.PC_RECORD_OPENED


class OpKind(IntEnum):
    """One step of building a root (plan.h)."""

    UPPER = lib.PC_OP_UPPER
    FILE = lib.PC_OP_FILE
    OVERLAY = lib.PC_OP_OVERLAY
    MOUNT = lib.PC_OP_MOUNT
    FILESYSTEM = lib.PC_OP_FILESYSTEM
    DEV = lib.PC_OP_DEV
    MASK = lib.PC_OP_MASK
    READONLY = lib.PC_OP_READONLY
    SEAL = lib.PC_OP_SEAL
    MOVE = lib.PC_OP_MOVE
    SYS = lib.PC_OP_SYS
    DIRECTORY = lib.PC_OP_DIRECTORY
    SYSCTL = lib.PC_OP_SYSCTL
    OWN_DIRECTORY = lib.PC_OP_OWN_DIRECTORY


class OpFlag(IntFlag):
    """Treatment of a target or source (plan.h)."""

    NOFOLLOW = lib.PC_OP_NOFOLLOW
    IS_FILE = lib.PC_OP_IS_FILE
    IDMAP = lib.PC_OP_IDMAP
    IDMAP_OPTIONAL = lib.PC_OP_IDMAP_OPTIONAL
    RECURSIVE = lib.PC_OP_RECURSIVE
    SLAVE = lib.PC_OP_SLAVE


class MountAttr(IntFlag):
    """Attributes of mount_setattr(2) (linux/mount.h)."""

    RDONLY = lib.MOUNT_ATTR_RDONLY
    NOSUID = lib.MOUNT_ATTR_NOSUID
    NODEV = lib.MOUNT_ATTR_NODEV
    NOEXEC = lib.MOUNT_ATTR_NOEXEC
    NOSYMFOLLOW = lib.MOUNT_ATTR_NOSYMFOLLOW


class PlanFlag(IntFlag):
    """Flags of a plan (plan.h, pc_plan.flags)."""

    DENY_SETGROUPS = lib.PC_PLAN_DENY_SETGROUPS
    LOOPBACK = lib.PC_PLAN_LOOPBACK
    COMMAND_IS_INIT = lib.PC_PLAN_COMMAND_IS_INIT
    SPARE = lib.PC_PLAN_SPARE


class SecurityFlag(IntFlag):
    """Flags of a container's security (plan.h, pc_security.flags)."""

    NO_NEW_PRIVS = lib.PC_SECURITY_NO_NEW_PRIVS
    KEYRING = lib.PC_SECURITY_KEYRING
    SUPERVISE = lib.PC_SECURITY_SUPERVISE


class ExecFlag(IntFlag):
    """Flags of a command (plan.h, pc_exec.flags)."""

    STDIN = lib.PC_EXEC_STDIN
    STDOUT = lib.PC_EXEC_STDOUT
    STDERR = lib.PC_EXEC_STDERR
    CGROUP = lib.PC_EXEC_CGROUP
    PTY = lib.PC_EXEC_PTY
    QUIET = lib.PC_EXEC_QUIET


IN_MEMFD: int = lib.PC_REQUEST_IN_MEMFD
"""Flag of a request: its payload is in the first descriptor."""
AFTER: int = lib.PC_REQUEST_AFTER
"""Flag of REMOVE: the first descriptor is a pidfd, whose end comes first."""
NO_FD: int = lib.PC_NO_FD
"""The index of a descriptor that is not sent."""
MAX_INLINE: int = lib.PC_MAX_MESSAGE - 8 * 1024
"""Most bytes of a payload in a message; a larger one goes in a memfd."""
MAX_FDS = 240
"""Most descriptors in one message: the kernel's SCM_MAX_FD is 253."""

# Classes of constants and not IntFlag where nothing outside the engine reads them: an IntFlag takes
# longer to define than to use, and every process that imports this module defines all of them.


class LauncherKind:
    """The kinds of launchers (extension.h)."""

    ROOT = 0
    PLAIN: int = lib.PCX_LAUNCHER_ROOTLESS
    FILES: int = lib.PCX_LAUNCHER_FILES
    ROOTLESS_NETNS: int = lib.PCX_LAUNCHER_ROOTLESS_NETNS


class UnpackFlag:
    """Flags of an archive to unpack (layer.h, pc_unpack_request.flags)."""

    OWNERS: int = lib.PC_UNPACK_OWNERS
    DEVICES: int = lib.PC_UNPACK_DEVICES
    LANDLOCK: int = lib.PC_UNPACK_LANDLOCK
    READABLE: int = lib.PC_UNPACK_READABLE
    INTO_TREE: int = lib.PC_UNPACK_INTO_TREE
    NO_SPECIAL_FILES: int = lib.PC_UNPACK_NO_SPECIAL_FILES
    MERGE: int = lib.PC_UNPACK_MERGE
    OPEN_DIRECTORIES: int = lib.PC_UNPACK_OPEN_DIRECTORIES
    NO_SET_ID: int = lib.PC_UNPACK_NO_SET_ID
    THROUGH: int = lib.PC_UNPACK_THROUGH


class PackFlag:
    """Flags of an archive to make (layer.h, pc_pack_request.flags)."""

    WHITEOUTS: int = lib.PC_PACK_WHITEOUTS
    CLAMP: int = lib.PC_PACK_CLAMP
    LANDLOCK: int = lib.PC_PACK_LANDLOCK
    ONE_MOUNT: int = lib.PC_PACK_ONE_MOUNT
    HEADERS: int = lib.PC_PACK_HEADERS
    CONTENT: int = lib.PC_PACK_CONTENT
    OWNER: int = lib.PC_PACK_OWNER
    NO_KERNEL: int = lib.PC_PACK_NO_KERNEL


class RelayKind:
    """The commands of the port relay (enum pc_relay_kind)."""

    ADD: int = lib.PC_RELAY_ADD
    DROP: int = lib.PC_RELAY_DROP


_CODES = {
    (1, False): "B",
    (2, False): "H",
    (4, False): "I",
    (8, False): "Q",
    (4, True): "i",
    (8, True): "q",
}
"""(size, signed) of a C integer to its code in a format of `struct`."""


def structure(name: str, fields: str, *, without: str = "") -> struct.Struct:
    """Return the packer of a C structure, with the sizes and offsets that the compiler gave it.

    A nested structure takes the values of its fields, an array of bytes takes bytes, and any other array its
    numbers.  Fields called `pad` take no value: they are zeros.

    Args:
        name: The structure, such as 'pc_exec'.
        fields: The names of its fields, in the order in which the caller packs them.
        without: A field at the beginning to leave out: `plan.request` packs the header of a message.

    Raises:
        RuntimeError: The header declares other fields, or another order.
    """
    kind = ffi.typeof(f"struct {name}")
    found = _fields(kind, without)
    declared = " ".join(field for field, _ in found)
    if declared != fields:
        raise RuntimeError(f"struct {name} must have the fields {fields!r}, got {declared!r}")
    layouts = [layout for _, layout in found]
    return struct.Struct("<" + _codes(layouts, layouts[0].offset, ffi.sizeof(kind)))


def _fields(kind: Any, without: str = "") -> list[tuple[str, Any]]:
    return [(name, one) for name, one in kind.fields if name not in ("pad", without)]


def _codes(layouts: list[Any], start: int, end: int) -> str:
    """Return the codes of `struct` for fields from offset `start` up to `end`, padding included."""
    codes, at = [], start
    for one in layouts:
        codes.append("x" * (one.offset - at) + _code(one.type))
        at = one.offset + ffi.sizeof(one.type)
    return "".join([*codes, "x" * (end - at)])


def _code(kind: Any) -> str:
    if kind.kind == "struct":
        return _codes([layout for _, layout in _fields(kind)], 0, ffi.sizeof(kind))
    if kind.kind == "array":
        size = ffi.sizeof(kind.item)
        return f"{kind.length}s" if size == 1 else f"{kind.length}{_code(kind.item)}"
    return _CODES[ffi.sizeof(kind), int(ffi.cast(kind, -1)) < 0]


def step_name(step: int) -> str:
    """Return the name of a control of a start or an exec (steps.h)."""
    return _name(lib.pcx_step_name, "step", step)


def stage_name(stage: int) -> str:
    """Return the name of a stage of a launcher's own start (steps.h)."""
    return _name(lib.pcx_stage_name, "stage", stage)


def steps() -> list[str]:
    """Return the name of every control, in the order in which they are applied."""
    names: list[str] = []
    while lib.pcx_step_name(len(names)):
        names.append(step_name(len(names)))
    return names


def _name(look_up: Any, what: str, number: int) -> str:
    name = look_up(number) if number >= 0 else None
    return ffi.string(name).decode() if name else f"{what} {number}"
