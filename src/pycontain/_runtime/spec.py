"""Specification of a container: one immutable value, checked before anything is created."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Mapping, Set
from datetime import timedelta
from typing import TypeAlias

from attrs import evolve, field, fields, frozen

from pycontain._images.image import LocalImage
from pycontain._kernel import hostpath
from pycontain._model.labels import check_name
from pycontain._model.limits import CgroupLimits
from pycontain._model.mounts import Bind, Tmpfs, VolumeMount
from pycontain._model.sizes import is_unlimited, parse_duration, parse_size, shown
from pycontain._model.sysctls import check_network, checked_sysctls
from pycontain._model.user import asked_user, check_user
from pycontain._runtime.network import HOST, JOINED, NetworkSpec
from pycontain._security.policy import Rlimits, Security, rlimit_pairs
from pycontain.errors import Args, LimitError, NotFound, PathError, path_error

DEFAULT_MEMORY = 512 << 20
"""Bytes of memory, if neither the argument nor `limits` names them."""
DEFAULT_PIDS = 128
"""Processes and threads, if neither the argument nor `limits` names them."""
DEFAULT_DISK = 2 << 30
"""Bytes of disk, if the argument does not name them: untrusted code must not fill the host's disk."""
DISK_FLOOR = 64 << 10
"""Bytes that the files of the engine in a root file system need."""
PIDS_FLOOR = 2
"""Processes that every container needs: the agent and one command."""
MOUNTS_MOST = 400
"""Mounts of one container; each costs descriptors in three processes, whose limit is often 1024."""
_TARGET_MOST, _PART_MOST = 4095, 255
"""Bytes of a path inside (PATH_MAX), and of each part of it (NAME_MAX)."""
_ARGUMENT_MOST = 131071
"""Bytes of one argument, or of one variable with its name and value (MAX_ARG_STRLEN of execve(2))."""
STOP_TIMEOUT = 10.0
"""Seconds from the stop signal to SIGKILL, as docker has it."""
_SHM_FLOOR = 4096
_GROUPS_MOST = 32
LIMIT_NAMES = tuple(attribute.name for attribute in fields(CgroupLimits))
_HOSTNAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9.-]{0,62}[a-zA-Z0-9])?")
_RESERVED = ("/", "/proc", "/dev", "/dev/pts", "/sys")

Mount: TypeAlias = Bind | Tmpfs | VolumeMount
Mounts: TypeAlias = Mapping[str, "Mount | str | os.PathLike[str]"]
"""Mount point to mount; a path is short for `Bind(path)`."""
TmpfsOption: TypeAlias = "Mapping[str, Tmpfs | int | str | None] | Iterable[str]"
"""Mount points, or mount point to a `Tmpfs` or its size."""


def inside(path: str | os.PathLike[str]) -> str:
    """Return a normalized absolute path inside, with `..` and double slashes resolved as text.

    Raises:
        ValueError: The path is relative, too long, or contains a NUL byte.
        TypeError: The value is no path.
    """
    text: object = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"a path inside a container must be a str or a path of pathlib, got {shown(text)}")
    if not text.startswith("/") or "\0" in text:
        raise ValueError(
            f"a path inside a container must be absolute and without NUL bytes, got {shown(text)}"
        )
    clean = "/" + posixpath.normpath(text).lstrip("/")
    raw = _encoded("a path inside a container", clean)
    if len(raw) > _TARGET_MOST or any(len(part) > _PART_MOST for part in raw.split(b"/")):
        raise ValueError(
            f"a path inside a container must have at most {_TARGET_MOST} bytes, and {_PART_MOST} between "
            f"slashes, got {shown(clean)}"
        )
    return clean


def _encoded(what: str, text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError(f"{what} must be text that UTF-8 can hold, got {shown(text)}") from None


def _check_argument(what: str, text: str) -> None:
    """Raise ValueError for an argument that is too long for execve(2).

    For ASCII text the length in characters suffices.
    """
    size = len(text) if text.isascii() else len(_encoded(what, text))
    if size > _ARGUMENT_MOST:
        raise ValueError(
            f"{what} must have at most {_ARGUMENT_MOST} bytes, got {size}: pass it with input= or in a file"
        )


def environment(env: object) -> dict[str, str]:
    """Return a checked copy of an environment; None is an empty one.

    Raises:
        TypeError: For a value that is not a mapping, and for names or values that are not text.
        ValueError: For names and values that no environment can hold.
    """
    if not isinstance(env, Mapping | None):
        kind = type(env).__name__  # its values may be secret
        raise TypeError(f"env must be a mapping such as {{'NAME': 'value'}}, got a {kind}")
    result = {}
    for name, value in ({} if env is None else env).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(
                f"names and values of env must be str, got {shown(name)} with a {type(value).__name__}"
            )
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise ValueError(
                f"env must have names without '=' and NUL, and values without NUL, got {shown(name)}"
            )  # its value may be secret
        try:
            _check_argument(f"the variable {shown(name)}", f"{name}={value}")
        except ValueError as error:
            if value.isascii():
                raise
            # The value may be secret, so it is not part of the message.
            raise ValueError(f"the variable {shown(name)} must be text that UTF-8 can hold") from error
        result[name] = value
    return result


def command(args: Args | None) -> tuple[str, ...] | None:
    """Return arguments as text; a single one is the command itself.

    Raises:
        ValueError: There are none, the first is empty, or one contains a NUL byte or is too long.
        TypeError: The value is neither text nor a path nor a sequence of them.
    """
    if args is None:
        return None
    if isinstance(args, str | bytes | os.PathLike):
        args = [args]
    if isinstance(args, Mapping | Set) or not isinstance(args, Iterable):
        raise TypeError(f"a command must be a sequence of arguments, got {shown(args)}")
    result = tuple(os.fsdecode(part) for part in args)
    if not result or not result[0]:
        raise ValueError("a command must have at least one argument, and the first must not be empty")
    for part in result:
        if "\0" in part:
            raise ValueError(f"an argument must have no NUL byte, got {shown(part)}")
        _check_argument("an argument", part)  # in UTF-8, in any locale of the caller
    return result


def mount_points(mounts: Mounts | None, tmpfs: TmpfsOption | None) -> dict[str, Mount]:
    """Return all mounts by mount point.

    Raises:
        NotFound: The source of a mount does not exist.
        PathError: A link that a guest may have made is on the path of a source.
        ValueError: A mount point is reserved, or two mounts have the same.
        LimitError: There are too many mounts, or a tmpfs is too small.
    """
    result: dict[str, Mount] = {}
    for place, what in (mounts or {}).items():
        result[_place(place, result)] = what if isinstance(what, Mount) else Bind(os.fspath(what))
    if tmpfs is not None:
        if isinstance(tmpfs, str | os.PathLike):
            tmpfs = [os.fspath(tmpfs)]
        pairs = tmpfs.items() if isinstance(tmpfs, Mapping) else [(place, None) for place in tmpfs]
        for place, size in pairs:
            result[_place(place, result)] = size if isinstance(size, Tmpfs) else Tmpfs(size)
    if len(result) > MOUNTS_MOST:
        raise LimitError(
            f"mounts must be at most {MOUNTS_MOST}, got {len(result)}",
            hint="mount a directory that contains several of them",
        )
    for place, what in result.items():
        if isinstance(what, Bind):
            _check_source(place, what)
        _check_outer(place, result)
    return result


def _check_source(place: str, bind: Bind) -> None:
    """Check that the source exists, and record it if guests can write to it."""
    try:
        fd = hostpath.open_path(bind.path, os.O_PATH)
    except PathError:
        raise
    except FileNotFoundError:
        state = "is a dangling link" if os.path.islink(bind.path) else "does not exist"
        raise NotFound(f"source {bind.path!r} of the mount at {place!r} {state}") from None
    except OSError as error:
        raise path_error(f"cannot mount at {place}:", bind.path, error.errno or 0) from error
    try:
        if not bind.read_only:
            hostpath.share(fd)
    finally:
        os.close(fd)


def _check_outer(place: str, mounts: Mapping[str, Mount]) -> None:
    """Raise ValueError for a mount point below a file."""
    outer = posixpath.dirname(place)
    while outer != "/":
        if isinstance(what := mounts.get(outer), Bind) and not os.path.isdir(what.path):
            raise ValueError(f"mount point {place!r} must not be below a file, which is mounted at {outer!r}")
        outer = posixpath.dirname(outer)


def _place(path: str, taken: Mapping[str, object]) -> str:
    place = inside(path)
    if place in _RESERVED or place.startswith(("/proc/", "/sys/")):
        raise ValueError(f"mount point must not be {place!r}, which the engine mounts")
    if place.startswith("/dev/") and not f"{place}/".startswith("/dev/shm/"):
        raise ValueError(f"mount point must not be {place!r}: below /dev only /dev/shm can be replaced")
    if place in taken:
        raise ValueError(f"mount point {place!r} must have one mount, got two")
    return place


def is_free(path: str, taken: Mapping[str, object]) -> bool:
    """Return whether a path can be a mount point and is none yet."""
    return path not in taken and path not in _RESERVED and not path.startswith(("/proc/", "/sys/"))


def checked_limits(limits: CgroupLimits | None) -> CgroupLimits | None:
    """Return the limits of one command that are in force, None without any.

    Raises:
        TypeError: The value is no CgroupLimits.
    """
    return None if (given := _limits(limits)) is None else given.in_force()


def _limits(limits: CgroupLimits | None) -> CgroupLimits | None:
    if not isinstance(limits, CgroupLimits | None):
        raise TypeError(
            f"limits must be a CgroupLimits, such as CgroupLimits(memory='64M'), got {shown(limits)}"
        )
    return limits


def limits_of(
    limits: CgroupLimits | None,
    memory: int | str | None,
    cpus: float | str | None,
    pids: int | str | None,
) -> tuple[CgroupLimits, frozenset[str]]:
    """Return the limits with defaults, and the names of those that the caller gave.

    Raises:
        ValueError: An argument and `limits` name the same resource.
        LimitError: A value is out of range.
        TypeError: `limits` is no CgroupLimits.
    """
    given = _limits(limits) or CgroupLimits()
    short = {"memory": memory, "cpus": cpus, "pids": pids}
    chosen = {name: getattr(given, name) for name in LIMIT_NAMES}
    for name, value in short.items():
        if value is None:
            continue
        if chosen[name] is not None:
            raise ValueError(f"{name} must be given once, got it as an argument and in limits")
        chosen[name] = value
    wanted = CgroupLimits(**chosen)
    asked = frozenset(name for name, value in chosen.items() if value is not None) - wanted.lifted
    held = wanted.in_force()
    if wanted.memory is None:
        held = evolve(held, memory=DEFAULT_MEMORY)
    if wanted.pids is None:
        held = evolve(held, pids=DEFAULT_PIDS)
    return held, asked


def disk_of(value: int | str | float | None) -> int | str | None:
    """Return the disk limit of an option: the default for None, None for 'unlimited'."""
    if value is None:
        return DEFAULT_DISK
    return None if is_unlimited(value) else value  # type: ignore[return-value]


def new_id() -> str:
    """Return a new id of 32 hexadecimal digits, of which the first 12 are not all decimal.

    They are the default host name, and gethostbyname(3) takes a name of decimal digits for an address.
    """
    while (new := os.urandom(16).hex())[:12].isdecimal():
        pass
    return new


def default_name(new: str) -> str:
    """Return the default name of the container of an id."""
    return f"pyc-{new[:12]}"


def _name(_: object, __: object, value: str) -> None:
    check_name(value, "a name")


def _hostname(_: object, __: object, value: str) -> None:
    if not isinstance(value, str) or not _HOSTNAME.fullmatch(value):
        raise ValueError(f"hostname must have 1 to 64 letters, digits, dots and hyphens, got {shown(value)}")


def _rlimits(value: Rlimits) -> dict[str, int | tuple[int, int]]:
    return dict(rlimit_pairs(value))


def _lifetime(value: float | timedelta | None) -> float | None:
    return None if value is None else parse_duration(value)


def _disk(value: int | str | None) -> int | None:
    if value is None:
        return None
    size = parse_size(value)
    if size < DISK_FLOOR:
        raise LimitError(f"disk must be at least 64K, got {shown(value)}")
    return size


def _shm_size(value: int | str | None) -> int | None:
    if value is None:
        return None
    size = parse_size(value)
    if size < _SHM_FLOOR:
        raise LimitError(f"shm_size must be at least {_SHM_FLOOR} bytes, got {shown(value)}")
    return size


def _groups(value: Iterable[str | int] | str | int | None) -> tuple[str, ...]:
    """Return checked names or ids of groups."""
    if value is None:
        return ()
    given = [value] if isinstance(value, str | int) else list(value)
    if len(given) > _GROUPS_MOST:
        raise ValueError(f"group_add must have at most {_GROUPS_MOST} groups, got {len(given)}")
    for one in given:
        text = asked_user(one)
        if ":" in text:
            raise ValueError(f"group_add must be names or ids of groups, got {shown(one)}")
    return tuple(dict.fromkeys(map(str, given)))


def _stop_timeout(value: float | timedelta | None) -> float:
    return STOP_TIMEOUT if value is None else parse_duration(value)


_ALONE = NetworkSpec()


@frozen(kw_only=True)
class ContainerSpec:
    """Every option of a container, checked when it is made.

    Attributes:
        limits: Limits with the defaults.
        asked: Names of the limits that the caller gave.
        disk: Bytes, or None for no limit.
        lifetime: Seconds after which it is ended, or None.
        rlimits: Name to limit or (soft, hard).
        mounts: Mount point to mount.

    Raises:
        LimitError: No container can start under a limit.
        ValueError: An option has a wrong value.
        TypeError: An option has a wrong type.
    """

    id: str
    image: LocalImage
    command: tuple[str, ...] | None
    name: str = field(validator=_name)
    env: dict[str, str] = field(converter=environment)
    workdir: str = field(converter=inside)
    user: str = field(converter=check_user)
    hostname: str = field(validator=_hostname)
    limits: CgroupLimits
    asked: frozenset[str]
    rlimits: dict[str, int | tuple[int, int]] = field(converter=_rlimits)
    disk: int | None = field(converter=_disk)
    mounts: dict[str, Mount]
    read_only: bool
    init: bool
    network: str
    network_spec: NetworkSpec = _ALONE
    security: Security
    lifetime: float | None = field(converter=_lifetime)
    sysctls: dict[str, str] = field(factory=dict, converter=checked_sysctls)
    shm_size: int | None = field(default=None, converter=_shm_size)
    group_add: tuple[str, ...] = field(default=(), converter=_groups)
    stop_timeout: float = field(default=STOP_TIMEOUT, converter=_stop_timeout)
    labels: dict[str, str]

    def renamed(self, new: str) -> ContainerSpec:
        """Return the spec of another id, with the default name and host name of that."""
        return evolve(
            self,
            id=new,
            name=default_name(new) if self.name == default_name(self.id) else self.name,
            hostname=new[:12] if self.hostname == self.id[:12] else self.hostname,
        )

    def __attrs_post_init__(self) -> None:
        if self.init and self.limits.pids is not None and self.limits.pids < PIDS_FLOOR:
            raise LimitError(
                f"pids must be at least {PIDS_FLOOR}, got {self.limits.pids}",
                hint="count the agent too, or use init=False, which has none",
            )
        if self.network_spec.kind in (HOST, JOINED):
            check_network(self.sysctls)
        if not self.init and self.command is None:
            raise ValueError("init=False requires a command, which is PID 1 then")
        if not self.init and self.network_spec.attachments:
            raise ValueError("networks require init=True")
        if not isinstance(self.security, Security):
            raise TypeError(
                f"security must be a Security, such as Security.SANDBOX, got {shown(self.security)}"
            )
