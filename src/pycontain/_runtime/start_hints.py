"""Remedies for the steps of a start that fail, by step and errno."""

from __future__ import annotations

from errno import (
    EDQUOT,
    EINVAL,
    EISDIR,
    ELOOP,
    EMFILE,
    ENOENT,
    ENOTDIR,
    EPERM,
    EROFS,
    ESTALE,
    ETOOMANYREFS,
)

_USER_NAMESPACES = "run `Engine().doctor()`: user namespaces may be disabled"
_OPEN_FILES = "raise the limit of open files (ulimit -n): each mount needs one"
_LINKS = "mount at a path without symbolic links of the image into /proc, /sys or /dev"
_SYSCTL = "use a parameter that this kernel has and lets a container's root set, and a value it takes"

_HINTS = {
    ("mount", ENOTDIR): "mount a directory over a directory, and at no path below a file",
    ("mount", EISDIR): "mount the file over a file: the path is a directory",
    ("mount", EROFS): "mount at a path that exists: none can be created on the read-only file system there",
    ("mount", EPERM): "run on a host with all of /proc visible: inside Docker no new /proc can be mounted",
    ("mount source", ENOENT): "create the file or directory on the host before the container starts",
    ("mount source", ESTALE): "start again: the file at the path was replaced after it was checked",
    ("mount source", EMFILE): _OPEN_FILES,
    ("mount id map", EINVAL): "move the directory to a file system that can be idmapped (mount_setattr(2))",
    ("sync", EMFILE): _OPEN_FILES,
    ("sync", ETOOMANYREFS): _OPEN_FILES,
    ("clone", EPERM): _USER_NAMESPACES,
    ("namespaces", EPERM): _USER_NAMESPACES,
    ("session keyring", EPERM): "permit keyctl in the system call filter of this process, such as Docker's",
    ("session keyring", EDQUOT): "raise kernel.keys.maxkeys: this user has no keys left (keyrings(7))",
}


def hint_for(step: str, errno: int, path: str | None = None) -> str | None:
    """Return the remedy for a step that failed, or None.

    Args:
        step: Name of the step.
        errno: Its error.
        path: The path inside, if the step had one.
    """
    if errno == ELOOP:
        return _LINKS
    if path is not None and path.startswith("/proc/sys/"):
        return _SYSCTL
    return _HINTS.get((step, errno))
