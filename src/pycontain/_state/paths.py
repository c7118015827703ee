"""Where the store and the run-time state of an engine stand."""

from __future__ import annotations

import os
import stat

from attrs import frozen

from pycontain.errors import PathError


@frozen
class Roots:
    """data: images and containers, kept across boots.  run: locks and live state."""

    data: str
    run: str

    @classmethod
    def of(cls, root: str | os.PathLike[str] | None) -> Roots:
        """`root` if given, else PYCONTAIN_ROOT, else the system's directories or the user's (XDG)."""
        chosen = os.fspath(root) if root is not None else os.environ.get("PYCONTAIN_ROOT")
        if chosen:
            top = os.path.abspath(chosen)
            return cls(os.path.join(top, "data"), os.path.join(top, "run"))
        if os.geteuid() == 0:
            return cls("/var/lib/pycontain", "/run/pycontain")
        home = os.path.expanduser("~")
        data = os.environ.get("XDG_DATA_HOME") or os.path.join(home, ".local", "share")
        run = os.environ.get("XDG_RUNTIME_DIR") or os.path.join(data, "pycontain", "run")
        return cls(os.path.join(data, "pycontain"), os.path.join(run, "pycontain"))


def private_directory(path: str) -> str:
    """Make `path` with mode 0700, owned by this user.  Raises PathError when another user owns it."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        found = os.stat(path, follow_symlinks=False)
    except OSError as error:
        raise PathError(
            f"cannot make the directory {path}: {error.strerror}",
            path=path,
            errno=error.errno or 0,
            hint="set PYCONTAIN_ROOT to a directory of your own",
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PathError(f"{path} is not a directory of this user", path=path)
    if found.st_mode & 0o077:
        os.chmod(path, 0o700)
    return path
