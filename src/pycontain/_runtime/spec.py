"""What a container is asked to be: one immutable value, checked before anything is created."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TypeAlias

from attrs import field, fields, frozen

from pycontain._model.limits import CgroupLimits
from pycontain._model.mounts import Bind, Tmpfs
from pycontain._model.sizes import parse_duration, parse_size
from pycontain._objects.image import Image
from pycontain._security.policy import Security, rlimit_numbers
from pycontain.errors import NotFound

DEFAULT_MEMORY = 512 << 20
DEFAULT_PIDS = 128
LIMIT_NAMES = tuple(attribute.name for attribute in fields(CgroupLimits))
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
_HOSTNAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9.-]{0,62}[a-zA-Z0-9])?")
_RESERVED = ("/", "/proc", "/dev", "/dev/pts", "/sys")

Mounts: TypeAlias = Mapping[str, "Bind | Tmpfs | str | os.PathLike[str]"]
TmpfsOption: TypeAlias = "Mapping[str, Tmpfs | int | str | None] | Iterable[str]"


def inside(path: str) -> str:
    """A clean absolute path inside.  Raises ValueError for one that is none."""
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
        raise ValueError(f"a path inside a container is absolute and without NUL: {path!r}")
    clean = posixpath.normpath(path)
    return "/" + clean.lstrip("/")


def environment(env: Mapping[str, str] | None) -> dict[str, str]:
    """A checked environment.  Raises ValueError for names or values that no environment can hold."""
    result = {}
    for name, value in (env or {}).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"environment names and values are str: {name!r}={value!r}")
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise ValueError(f"not a variable of an environment: {name!r}={value!r}")
        result[name] = value
    return result


def command(args: Sequence[str | os.PathLike[str]] | str | None) -> tuple[str, ...] | None:
    """Arguments as text.  Raises ValueError for none at all and for NUL bytes."""
    if args is None:
        return None
    if isinstance(args, str):
        args = [args]
    result = tuple(os.fsdecode(part) for part in args)
    if not result or not result[0]:
        raise ValueError("a command has at least one argument, and the first is not empty")
    for part in result:
        if "\0" in part:
            raise ValueError(f"NUL byte in the argument {part!r}")
    return result


def mount_points(mounts: Mounts | None, tmpfs: TmpfsOption | None) -> dict[str, Bind | Tmpfs]:
    """Everything to mount by its place inside.

    Raises NotFound for a missing source, ValueError for a bad place.
    """
    result: dict[str, Bind | Tmpfs] = {}
    for place, what in (mounts or {}).items():
        result[_place(place, result)] = what if isinstance(what, Bind | Tmpfs) else Bind(os.fspath(what))
    if tmpfs is not None:
        if isinstance(tmpfs, str):
            tmpfs = [tmpfs]
        pairs = tmpfs.items() if isinstance(tmpfs, Mapping) else [(place, None) for place in tmpfs]
        for place, size in pairs:
            result[_place(place, result)] = size if isinstance(size, Tmpfs) else Tmpfs(size)
    for place, what in result.items():
        if isinstance(what, Bind) and not os.path.lexists(what.path):
            raise NotFound(f"nothing to mount at {place}: {what.path} does not exist")
    return result


def _place(path: str, taken: Mapping[str, object]) -> str:
    place = inside(path)
    if place in _RESERVED or place.startswith(("/proc/", "/sys/")):
        raise ValueError(f"nothing can be mounted at {place}: it is the engine's own")
    if place in taken:
        raise ValueError(f"two mounts at {place}")
    return place


def limits_of(
    limits: CgroupLimits | None, memory: int | str | None, cpus: float | None, pids: int | None
) -> tuple[CgroupLimits, frozenset[str]]:
    """The limits with defaults, and the names of those that were asked for.

    Raises ValueError when a short argument and `limits` name the same resource.
    """
    given = limits or CgroupLimits()
    short = {"memory": memory, "cpus": cpus, "pids": pids}
    chosen = {name: getattr(given, name) for name in LIMIT_NAMES}
    for name, value in short.items():
        if value is None:
            continue
        if chosen[name] is not None:
            raise ValueError(f"{name} is given twice: as an argument and in limits")
        chosen[name] = value
    asked = frozenset(name for name, value in chosen.items() if value is not None)
    if chosen["memory"] is None:
        chosen["memory"] = DEFAULT_MEMORY
    if chosen["pids"] is None:
        chosen["pids"] = DEFAULT_PIDS
    return CgroupLimits(**chosen), asked


def _name(_: object, __: object, value: str) -> None:
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"a name begins with a letter or digit and goes on with those or one of _.-: {value!r}"
        )


def _hostname(_: object, __: object, value: str) -> None:
    if not _HOSTNAME.fullmatch(value):
        raise ValueError(f"not a host name: {value!r}")


def _lifetime(value: float | timedelta | None) -> float | None:
    return None if value is None else parse_duration(value)


def _disk(value: int | str | None) -> int | None:
    if value is None:
        return None
    size = parse_size(value)
    if size < 65536:
        raise ValueError(f"disk below 64K holds nothing: {value!r}")
    return size


@frozen(kw_only=True)
class ContainerSpec:
    """Every option of a container, checked.  `asked` names the limits that the caller gave."""

    id: str
    image: Image
    command: tuple[str, ...] | None
    name: str = field(validator=_name)
    env: dict[str, str] = field(converter=environment)
    workdir: str = field(converter=inside)
    user: str
    hostname: str = field(validator=_hostname)
    limits: CgroupLimits
    asked: frozenset[str]
    rlimits: dict[str, int | tuple[int, int]]
    disk: int | None = field(converter=_disk)
    mounts: dict[str, Bind | Tmpfs]
    read_only: bool
    init: bool
    network: str
    security: Security
    lifetime: float | None = field(converter=_lifetime)
    labels: dict[str, str]

    def __attrs_post_init__(self) -> None:
        rlimit_numbers(self.rlimits)
        if not self.init and self.command is None:
            raise ValueError("init=False wants a command: it is PID 1 itself")
        if not isinstance(self.security, Security):
            raise TypeError(f"security is a Security, such as Security.SANDBOX, not {self.security!r}")
