"""Security settings of the processes of a container: `Security`, with the presets SANDBOX and DOCKER."""

from __future__ import annotations

import functools
import os
import platform
import posixpath
import resource
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypedDict, Unpack

import attrs
from attrs import field, frozen

from pycontain._kernel.plan import encode_security
from pycontain._kernel.protocol import SecurityFlag
from pycontain._model.arguments import check_flag
from pycontain._model.limits import CgroupLimits
from pycontain._model.options import check_options
from pycontain._model.sizes import is_unlimited, shown
from pycontain._security import capabilities as caps
from pycontain.errors import LimitError, UnsupportedError

if TYPE_CHECKING:
    from pycontain._security.seccomp import Filter

MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/iomem",
    "/proc/ioports",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/pressure",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
)
READ_ONLY = ("/proc/sys", "/proc/sysrq-trigger")
DOCKER_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", *READ_ONLY)
"""Paths that Docker makes read-only; it hides those of MASKED."""
HOST_FACTS = (
    "/proc/bus",
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/diskstats",
    "/proc/fs",
    "/proc/irq",
    "/proc/partitions",
    "/proc/softirqs",
)
"""Files about devices, disks and boot of the host, which say nothing about the container."""

SECUREBITS_LOCKED = 0xFF
"""noroot, no_setuid_fixup, keep_caps off, no_cap_ambient_raise, each locked (capabilities(7))."""
_KEEP_CAPS = 1 << 4

_NO_CORE = {"core": (1, 1)}
"""A limit of 0 prevents core files; only 1 prevents a handler behind a pipe from being started (core(5))."""
_RLIMITS = {
    **_NO_CORE,
    "memlock": (65536, 65536),
    "msgqueue": (0, 0),
    "nofile": (1024, 1024),
    "nice": (0, 0),
    "rtprio": (0, 0),
    "sigpending": (1024, 1024),
}

_TIOCSWINSZ, _TIOCSCTTY, _TIOCSPTLCK, _TIOCGPTPEER = 0x5414, 0x540E, 0x40045431, 0x5441
_F_SETFD, _F_DUPFD_CLOEXEC = 2, 1030
_AGENT_CALLS: tuple[tuple[str, *tuple[int, ...]], ...] = (
    *(
        (name,)
        for name in (
            "capget capset chdir clone3 close close_range dup3 execve exit_group getdents64 kill mmap "
            "munmap nanosleep openat openat2 ppoll prctl prlimit64 read recvmsg rt_sigprocmask seccomp "
            "sendmsg setgroups setresgid setresuid setsid signalfd4 socketpair umask wait4 write"
        ).split()
    ),
    *(("fcntl", 0, command) for command in (_F_SETFD, _F_DUPFD_CLOEXEC)),
    *(("ioctl", 0, command) for command in (_TIOCSWINSZ, _TIOCSCTTY, _TIOCSPTLCK, _TIOCGPTPEER)),
)
"""System calls of the agent, and of the processes that it starts up to their execve."""

_FEATURES = frozenset({"landlock", "time", "idmap", *(one.name for one in attrs.fields(CgroupLimits))})

_ABI_RIGHTS = (0, 13, 14, 15, 15, 16)
_MAKE_CHAR, _MAKE_BLOCK, _IOCTL_DEV = 1 << 6, 1 << 11, 1 << 15


Rlimits: TypeAlias = Mapping[str, int | str | Sequence[int | str]]
"""Name to a number for both limits, or to (soft, hard); -1 and 'unlimited' lift one."""


class SecurityOptions(TypedDict, total=False):
    """Options of `Security.evolve`."""

    name: str
    capabilities: Iterable[str]
    no_new_privs: bool
    seccomp: Filter | None
    landlock: bool
    masked_paths: Iterable[str]
    readonly_paths: Iterable[str]
    rlimits: Rlimits
    restrict_suid_sgid: bool
    optional: Iterable[str]


def _flag(_: object, attribute: Any, value: object) -> None:
    check_flag(attribute.name, value)


def _text(_: object, attribute: Any, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{attribute.name} must be text, got {shown(value)}")


def _filter(_: object, __: object, value: object) -> None:
    from pycontain._security.seccomp import Filter

    if not isinstance(value, Filter | None):
        raise TypeError(f"seccomp must be a Filter, or None for no filter, got {shown(value)}")


def _sandbox_filter() -> Filter:
    from pycontain._security.profiles import SANDBOX_FILTER

    return SANDBOX_FILTER


def _each(names: Iterable[str] | os.PathLike[str]) -> Iterable[str | os.PathLike[str]]:
    """Return `names`; a single name is one name, not its characters."""
    if names is None:
        raise TypeError("names and paths must be a sequence of text, got None (hint: use () for none)")
    return (names,) if isinstance(names, str | os.PathLike) else names


def _capabilities(names: Iterable[str]) -> frozenset[str]:
    return caps.capability_set(map(str, _each(names)))


def _features(names: Iterable[str]) -> frozenset[str]:
    given = frozenset(map(str, _each(names)))
    if unknown := given - _FEATURES:
        raise ValueError(f"optional must be of {', '.join(sorted(_FEATURES))}, got unknown {sorted(unknown)}")
    return given


def _paths(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(map(_path, _each(paths)))


def _path(path: str | os.PathLike[str]) -> str:
    text: object = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"a masked or read-only path must be text or a Path, got {shown(text)}")
    clean = "/" + posixpath.normpath(text).lstrip("/")
    if not text.startswith("/") or "\0" in text or clean == "/":
        raise ValueError(
            f"a masked or read-only path must be absolute, without NUL and not the root, got {shown(text)}"
        )
    text.encode("utf-8", "surrogateescape")
    return clean


_LIFTED = -1
_NO_LIMIT = 0xFFFFFFFFFFFFFFFF
"""RLIM_INFINITY of the kernel; resource has it as -1."""


def rlimit_pairs(rlimits: Rlimits) -> dict[str, tuple[int, int]]:
    """Return checked rlimits as `{'nofile': (soft, hard)}`.

    Args:
        rlimits: A number for both limits, or a pair, by name; -1 lifts a limit. Names are those of
            setrlimit(2), with or without RLIMIT_.

    Raises:
        LimitError: Unknown name, a value out of range, or a soft limit above the hard one.
        TypeError: A value that is neither a number nor a pair.
    """
    if not isinstance(rlimits, Mapping):
        raise TypeError(f"rlimits must be a mapping such as {{'nofile': (1024, 4096)}}, got {shown(rlimits)}")
    pairs: dict[str, tuple[int, int]] = {}
    for given, value in rlimits.items():
        if not isinstance(given, str):
            raise TypeError(f"the name of an rlimit must be text, got {shown(given)}")
        name = given.lower().removeprefix("rlimit_")
        if not hasattr(resource, f"RLIMIT_{name.upper()}"):
            raise LimitError(f"unknown rlimit {shown(given)}")
        if name in pairs:
            raise LimitError(f"rlimit {name} is given twice")
        pairs[name] = _pair(name, value)
    return pairs


def _pair(name: str, value: object) -> tuple[int, int]:
    both: list[Any] = list(value) if isinstance(value, tuple | list) else [value, value]
    both = [_LIFTED if is_unlimited(one) else one for one in both]
    if len(both) != 2 or not all(isinstance(one, int) and not isinstance(one, bool) for one in both):
        raise TypeError(
            f"rlimit {name} must be a number or a pair (soft, hard), -1 for none, got {shown(value)}"
        )
    soft, hard = map(int, both)
    if not (-1 <= soft <= _NO_LIMIT and -1 <= hard <= _NO_LIMIT):
        raise LimitError(f"rlimit {name} must be between 0 and 2**64 - 1, or -1 for none, got {shown(value)}")
    if soft & _NO_LIMIT > hard & _NO_LIMIT:
        raise LimitError(f"rlimit {name} must not have its soft limit above the hard one, got {shown(value)}")
    return soft, hard


@frozen(kw_only=True, repr=False)
class Security:
    """Security settings of every process of a container.

    A single name or path is accepted in place of a set.

    Attributes:
        name: Name of the profile.
        capabilities: Bounding, permitted and effective set; inheritable and ambient are always empty.
        no_new_privs: Set-user-id files and file capabilities grant nothing (prctl(2)).
        seccomp: Filter of system calls, or None.
        landlock: Add a Landlock ruleset (landlock(7)).
        masked_paths: Hidden paths below /proc and /sys, as in the OCI runtime specification.
        readonly_paths: Read-only paths below /proc and /sys.
        rlimits: (soft, hard) by name, or one number for both, -1 for no limit; lowered to the hard limit
            of the host.
        restrict_suid_sgid: Setting the set-user-ID or set-group-ID bit of a file fails with EPERM, so that
            a program left in a bind, a volume or an inherited file gives no rights to other users of the
            host. openat2 and io_uring, whose modes a filter cannot read, fail with ENOSYS. It is part of
            the filter, so it needs `seccomp`.
        optional: Features without which the container may start: 'landlock', 'time', 'idmap', and fields
            of CgroupLimits; `Container.isolation` lists missing ones.

    Raises:
        ValueError: Unknown name or a path that is not absolute.
        LimitError: Invalid rlimit.
        TypeError: A value of another type.
    """

    SANDBOX: ClassVar[Security]
    DOCKER: ClassVar[Security]

    name: str = field(default="custom", validator=_text)
    capabilities: frozenset[str] = field(default=frozenset(), converter=_capabilities)
    no_new_privs: bool = field(default=True, validator=_flag)
    seccomp: Filter | None = field(factory=_sandbox_filter, validator=_filter)
    landlock: bool = field(default=True, validator=_flag)
    masked_paths: tuple[str, ...] = field(default=(*MASKED, *HOST_FACTS), converter=_paths)
    readonly_paths: tuple[str, ...] = field(default=READ_ONLY, converter=_paths)
    rlimits: Mapping[str, tuple[int, int]] = field(
        factory=lambda: dict(_RLIMITS), converter=rlimit_pairs, hash=False
    )
    restrict_suid_sgid: bool = field(default=True, validator=_flag)
    optional: frozenset[str] = field(default=frozenset({"landlock", "time"}), converter=_features)

    def __repr__(self) -> str:
        """Return the preset by its name, or the differences from the sandbox."""
        for name in ("SANDBOX", "DOCKER"):
            if self == getattr(Security, name, None):
                return f"Security.{name}"
        return f"Security.SANDBOX.evolve({', '.join(self._changes())})"

    def _changes(self) -> Iterator[str]:
        base = Security.SANDBOX
        for one in attrs.fields(Security):
            value = getattr(self, one.name)
            if value == getattr(base, one.name) or one.name == "name":
                continue
            if one.name == "seccomp" and value is not None:
                yield "seccomp=..."
            else:
                yield f"{one.name}={sorted(value) if isinstance(value, frozenset) else value!r}"

    def evolve(self, **changes: Unpack[SecurityOptions]) -> Security:
        """Return a copy with some fields changed; its name is 'custom' by default."""
        check_options("Security.evolve", changes, SecurityOptions)
        changes.setdefault("name", "custom")
        return attrs.evolve(self, **changes)


def rlimit_numbers(rlimits: Rlimits) -> dict[int, tuple[int, int]]:
    """Return the pairs of `rlimit_pairs` by the kernel's numbers.  Raises the same errors."""
    return {
        getattr(resource, f"RLIMIT_{name.upper()}"): (soft & _NO_LIMIT, hard & _NO_LIMIT)
        for name, (soft, hard) in rlimit_pairs(rlimits).items()
    }


def landlock_rights(abi: int) -> tuple[int, int, int, int, int]:
    """Return (ABI, handled rights, scopes, rights below `/`, rights below `/dev`), without making devices."""
    if abi <= 0:
        return (0, 0, 0, 0, 0)
    handled = (1 << _ABI_RIGHTS[min(abi, len(_ABI_RIGHTS) - 1)]) - 1
    scopes = 3 if abi >= 6 else 0
    root = handled & ~(_MAKE_CHAR | _MAKE_BLOCK | _IOCTL_DEV)
    return (abi, handled, scopes, root, handled & ~(_MAKE_CHAR | _MAKE_BLOCK))


@functools.lru_cache(maxsize=32)
def _assembled(filter_: Filter | None, by_agent: bool, restrict: bool) -> tuple[bytes, bytes]:
    """Return the programs of the agent and of each process; both are empty without a filter."""
    from pycontain._security.profiles import restrict_suid_sgid
    from pycontain._security.seccomp import assemble, split

    if filter_ is None:
        return b"", b""
    if restrict:
        filter_ = restrict_suid_sgid(filter_)
    machine = platform.machine()
    if not by_agent:
        return b"", assemble(filter_, machine)
    inherited, last = split(filter_, _AGENT_CALLS)
    return assemble(inherited, machine), assemble(last, machine)


def encode(
    security: Security,
    rlimits: Mapping[str, int | tuple[int, int]],
    *,
    landlock_abi: int,
    supervise: bool,
    by_agent: bool,
) -> bytes:
    """Return the security buffer of a container.

    Args:
        security: The settings.
        rlimits: Rlimits of the container, which override those of the settings.
        landlock_abi: Landlock ABI of the kernel, 0 for none.
        supervise: Commands have a supervisor, because their cgroup cannot be killed.
        by_agent: Processes are started by an agent, which loads most of the filter for them.

    Raises:
        UnsupportedError: The host lacks a control that is not optional.
    """
    flags = SecurityFlag.KEYRING
    if security.no_new_privs:
        flags |= SecurityFlag.NO_NEW_PRIVS
    if supervise:
        flags |= SecurityFlag.SUPERVISE
    if security.landlock and landlock_abi <= 0 and "landlock" not in security.optional:
        raise UnsupportedError("Landlock", hint="name 'landlock' in Security.optional to start without it")
    # A core handler behind a pipe runs on the host as root (core(5)), so rlimits={} must not enable it.
    merged = {**rlimit_numbers(_NO_CORE), **rlimit_numbers(security.rlimits), **rlimit_numbers(rlimits)}
    inherited, last = _assembled(security.seccomp, by_agent, security.restrict_suid_sgid)
    return encode_security(
        flags=flags,
        capabilities=caps.mask_of(security.capabilities),
        securebits=0 if security.capabilities else SECUREBITS_LOCKED & ~_KEEP_CAPS,
        landlock=landlock_rights(landlock_abi if security.landlock else 0),
        rlimits=merged,
        seccomp=last,
        inherited=inherited,
    )


def _presets() -> None:
    from pycontain._security.profiles import DOCKER_FILTER, SANDBOX_FILTER

    Security.SANDBOX = Security(name="sandbox", seccomp=SANDBOX_FILTER)
    Security.DOCKER = Security(
        name="docker",
        capabilities=caps.DOCKER,
        no_new_privs=False,
        seccomp=DOCKER_FILTER,
        landlock=False,
        masked_paths=(*MASKED, "/proc/thermal_throttle", "/sys/firmware", "/sys/devices/virtual/powercap"),
        readonly_paths=DOCKER_READ_ONLY,
        rlimits={"core": (1, 1), "sigpending": (1024, 1024)},
        restrict_suid_sgid=False,
    )


_presets()
