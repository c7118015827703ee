"""Capabilities by name (capabilities(7))."""

from __future__ import annotations

from collections.abc import Iterable

NAMES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT "
    "SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE "
    "AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ "
    "PERFMON BPF CHECKPOINT_RESTORE"
).split()
"""Names in the order of their numbers."""

_NUMBERS = {name: number for number, name in enumerate(NAMES)}

DOCKER = frozenset(
    "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE "
    "SYS_CHROOT KILL AUDIT_WRITE".split()
)
"""Docker's default capabilities."""


def capability_name(name: str) -> str:
    """Return the bare upper-case name of 'CAP_CHOWN' or 'chown'.  Raises ValueError for an unknown one."""
    bare = name.upper().removeprefix("CAP_")
    if bare not in _NUMBERS:
        raise ValueError(f"unknown capability {name!r}")
    return bare


def capability_set(names: Iterable[str]) -> frozenset[str]:
    """Return the bare names.  Raises ValueError for an unknown one."""
    return frozenset(capability_name(name) for name in names)


def mask_of(names: Iterable[str]) -> int:
    """Return the bit mask for the kernel."""
    mask = 0
    for name in names:
        mask |= 1 << _NUMBERS[name]
    return mask
