"""Files of a host directory that guests can write to, opened without being steered out of it."""

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
    """Open a file below a directory of the host, whatever a guest has put there.

    Use it instead of `open` for what containers wrote to a `Bind`: a guest's link to `/etc/shadow` or to
    another user's files is refused, and so is every other way out.  Links that stay below the directory
    are followed.  The kernel checks it (openat2(2), RESOLVE_BENEATH), so it holds while the guest runs and
    swaps names.

    Args:
        directory: The directory, or an open descriptor of it, which stays the caller's.
        path: A path relative to it.
        mode, buffering, encoding, errors, newline: As `open` has them.  A file is created with mode 0666 less
            the umask.
        special: Also open pipes and devices.  Without it they are refused, and opening never waits.

    Returns:
        A file object.

    Raises:
        PathError: For a way out (EXDEV), for what is no regular file (EINVAL; EISDIR for a directory), and as
            `open` fails; also a FileNotFoundError, PermissionError and so on where `open` raises these.
        ValueError: For an absolute path, a NUL byte or a mode that `open` does not know.
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
    """Open without O_TRUNC, which must not happen before the kind of the file is known."""
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
