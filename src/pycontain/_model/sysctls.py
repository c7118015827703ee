"""Kernel parameters of a container's namespaces."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pycontain._model.arguments import check_mapping
from pycontain._model.sizes import shown

_IPC = frozenset(
    "kernel.msgmax kernel.msgmnb kernel.msgmni kernel.sem kernel.shmall kernel.shmmax kernel.shmmni "
    "kernel.shm_rmid_forced".split()
)
_NAME = re.compile(r"[a-z0-9_]+(?:[./][a-zA-Z0-9_-]+)+")
_VALUE_MOST = 1024


def checked_sysctls(sysctls: Mapping[str, str | int] | None) -> dict[str, str]:
    """Return parameters and their values as text.

    Raises:
        ValueError: A parameter applies to the whole host, or a value is malformed.
        TypeError: A value has the wrong type.
    """
    check_mapping("sysctls", sysctls, "{'net.ipv4.ip_forward': 1}")
    found: dict[str, str] = {}
    for given, value in (sysctls or {}).items():
        if not isinstance(given, str) or not _NAME.fullmatch(given):
            raise ValueError(f"a sysctl must be a name such as 'net.ipv4.ip_forward', got {shown(given)}")
        name = given.replace("/", ".")
        if not (name in _IPC or name.startswith(("net.", "fs.mqueue."))):
            raise ValueError(
                "sysctls must be namespaced: net.*, fs.mqueue.*, kernel.msg*, kernel.sem or kernel.shm*, "
                f"got {name}, which applies to the whole host"
            )
        if name in found:
            raise ValueError(f"sysctls must name each parameter once, got {name} twice")
        found[name] = _text(name, value)
    return found


def _text(name: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(f"the sysctl {name} must be text or an int, got {shown(value)}")
    text = str(value)
    if not text or not text.isascii() or not text.replace("\t", " ").isprintable() or len(text) > _VALUE_MOST:
        raise ValueError(f"the sysctl {name} must be a line of ASCII text, got {shown(value)}")
    return text


def check_network(sysctls: Mapping[str, str]) -> None:
    """Check that no parameter belongs to a network namespace, for a container that shares one.

    Raises:
        ValueError: A parameter does.
    """
    for name in sysctls:
        if name.startswith("net."):
            raise ValueError(f"sysctls must not have net.* where the network is shared, got {name}")
