"""Access to files in a directory of the host that containers can write to."""

from __future__ import annotations

import builtins
import errno
import os
import stat
from typing import IO, Any

from pycontain._kernel import hostpath
from pycontain._state.paths import Roots, record_shared
from pycontain.errors import PathError, path_error

_HINTS = {
    errno.EXDEV: "do not use this file: a link in its path points outside the directory",
    errno.ELOOP: "do not use this file: its path has a loop of links or a magic link of /proc",
    errno.EAGAIN: "retry when the container has ended: a process in it holds a lease on the file",
    errno.ENXIO: "do not use this file: it is a pipe without a reader, or a socket",
}


def open_beneath(
    directory: str | os.PathLike[str] | int,
    path: str | os.PathLike[str],
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *,
    special: bool = False,
) -> IO[Any]:
    """Open a file below a directory of the host; links of a container cannot lead out of it.

    Use it instead of `open` for files that containers wrote to a `Bind`: a link to `/etc/shadow` or to files
    of another user is refused.  Links that stay below the directory are followed.  The kernel enforces this
    (openat2(2), RESOLVE_BENEATH), also while a container changes the directory.

    Args:
        directory: The directory, or an open descriptor of it, which is not closed.
        path: A path relative to the directory.
        mode: As in `open`; a new file gets the permissions 0666, limited by the umask.
        buffering: As in `open`.
        encoding: As in `open`.
        errors: As in `open`.
        newline: As in `open`.
        special: Also open pipes and devices.  Without it they are refused, and opening never blocks.

    Returns:
        A file object.

    Raises:
        PathError: The path leads out of the directory (EXDEV), is not a regular file (EINVAL, or EISDIR for a
            directory), or `open` would fail; also a FileNotFoundError, PermissionError and so on.
        ValueError: The path is absolute or has a NUL byte, or the mode is malformed.
        TypeError: The path is neither text nor a pathlib path.
    """
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"path must be a str or a pathlib path, got {type(text).__name__}")
    if os.path.isabs(text):
        raise ValueError(f"path must be relative to the directory, got {text[:80]!r}")
    top = os.dup(directory) if isinstance(directory, int) else _opened(os.fspath(directory))
    try:
        return builtins.open(
            text,
            mode,
            buffering,
            encoding,
            errors,
            newline,
            opener=lambda _, flags: _open(top, text, flags, special=special),
        )
    finally:
        os.close(top)


def _opened(directory: str) -> int:
    try:
        record_shared(Roots.of(None))
        return hostpath.open_directory(directory)
    except PathError:
        raise
    except OSError as error:
        raise path_error("cannot open", directory, error.errno or 0) from error


def _open(top: int, path: str, flags: int, *, special: bool) -> int:
    """Open a file without O_TRUNC, and truncate it once it is known to be a regular file."""
    wait = 0 if special else os.O_NONBLOCK
    mode = 0o666 if flags & os.O_CREAT else 0
    resolve = hostpath.BENEATH | hostpath.NO_MAGICLINKS
    try:
        fd = hostpath.openat2(top, path, flags & ~os.O_TRUNC | os.O_NOCTTY | wait, resolve, mode)
    except OSError as error:
        number = error.errno or 0
        raise path_error("cannot open", path, number, _HINTS.get(number)) from error
    try:
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            raise path_error("cannot open", path, errno.EISDIR)
        if not special and not stat.S_ISREG(found.st_mode):
            raise PathError(
                f"cannot open {path!r}: not a regular file",
                path=path,
                errno=errno.EINVAL,
                hint="pass special=True to open pipes and devices",
            )
        if flags & os.O_TRUNC and stat.S_ISREG(found.st_mode):
            os.ftruncate(fd, 0)
        os.set_blocking(fd, True)
    except BaseException:
        os.close(fd)
        raise
    return fd
