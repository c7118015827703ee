"""Directories of the store and of the run-time state."""

from __future__ import annotations

import os
import stat

from attrs import frozen

from pycontain._kernel import hostpath
from pycontain._model.arguments import check_path
from pycontain.errors import PathError


@frozen
class Roots:
    """The two directories of an engine.

    Attributes:
        data: Images, volumes and containers, kept across boots.
        run: Locks and state of live processes.
    """

    data: str
    run: str

    @classmethod
    def of(cls, root: str | os.PathLike[str] | None) -> Roots:
        """Return the directories below `root` or PYCONTAIN_ROOT, else those of the system or user (XDG)."""
        chosen = check_path("root", root) if root is not None else os.environ.get("PYCONTAIN_ROOT")
        if chosen:
            top = os.path.abspath(chosen)
            return cls(os.path.join(top, "data"), os.path.join(top, "run"))
        if os.geteuid() == 0:
            return cls("/var/lib/pycontain", "/run/pycontain")
        data = xdg_directory("XDG_DATA_HOME") or os.path.join(home_directory(), ".local", "share")
        run = xdg_directory("XDG_RUNTIME_DIR") or os.path.join(data, "pycontain", "run")
        return cls(os.path.join(data, "pycontain"), os.path.join(run, "pycontain"))


def record_shared(roots: Roots) -> None:
    """Record directories that guests can write to in the store, for later processes."""
    hostpath.record_in(os.path.join(roots.data, "shared-directories"))


def home_directory() -> str:
    """Return this user's home directory: HOME where it is an absolute path, else the user database's.

    Raises:
        PathError: Neither names one.
    """
    named = os.environ.get("HOME", "")
    if os.path.isabs(named):
        return named
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError as error:
        raise PathError(
            f"user {os.geteuid()} has no home directory", hint="set HOME, or PYCONTAIN_ROOT"
        ) from error


def xdg_directory(variable: str) -> str:
    """Return the directory of an XDG variable, or '' where it is unset, empty or relative (basedir-spec)."""
    named = os.environ.get(variable, "")
    return named if os.path.isabs(named) else ""


def private_directory(path: str) -> str:
    """Create a directory with mode 0700, or restrict an existing one to it; return the path.

    Raises:
        PathError: It cannot be created, or is no directory of this user.
    """
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        found = os.stat(path, follow_symlinks=False)
    except OSError as error:
        raise PathError(
            f"cannot create the directory {path}: {error.strerror}",
            path=path,
            errno=error.errno or 0,
            hint="choose a root that this user may write: Engine(root=...) or PYCONTAIN_ROOT",
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PathError(f"{path} must be a directory that this user owns", path=path)
    if found.st_mode & 0o077:
        os.chmod(path, 0o700)
    return path
