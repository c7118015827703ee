"""Copies into a container, and helpers for both directions."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pycontain._kernel import hostpath
from pycontain._kernel.file_server import SET_MODE, SET_OWNER, SET_TIMES, Verb
from pycontain._kernel.transfer import CopySpec, into
from pycontain._kernel.unpacker import Report, User
from pycontain._objects.path import SET_ID, ContainerPath, may_set_id
from pycontain._runtime.files import user_of
from pycontain.errors import PathError, PycontainError, path_error

if TYPE_CHECKING:
    from pycontain._objects.container import Container

_CHUNK = 1 << 20
_HOST_BYTES, _HOST_ENTRIES = 1 << 62, 1 << 40
"""No limits for trees of the host, which the caller chose."""


def _last_name(path: str) -> str:
    return os.path.basename(os.path.normpath(path))


def is_content(path: str) -> bool:
    """Return whether a path ends with "/.", which means the content of a directory."""
    return path == "." or path.endswith("/.")


@contextlib.contextmanager
def translate_errors(what: str, path: str = "") -> Iterator[None]:
    """Raise OSError of host paths and open files as PathError."""
    try:
        yield
    except PycontainError:
        raise
    except OSError as error:
        raise path_error(what, path or str(error.filename or ""), error.errno or errno.EIO) from error


def check_report(what: str, path: str, report: Report) -> None:
    """Raise PathError if the report of a copy has a problem."""
    if report.problem is None:
        return
    text = f"cannot {what} {path!r}: {report.problem}"
    if report.name:
        text += f": {report.name!r}"
    if report.errno:
        text += f" ({os.strerror(report.errno)})"
    hint = (
        "raise max_bytes or max_entries" if "more" in report.problem and "allowed" in report.problem else None
    )
    raise PathError(text, path=path, errno=report.errno or (errno.EFBIG if hint else errno.EIO), hint=hint)


def completed_report(carry: Callable[[], Report]) -> Report:
    """Return the report of a copy.

    Raises:
        PathError: A helper process of the copy died.
    """
    try:
        return carry()
    except ConnectionError as error:
        raise PathError("a helper process that copies the tree died", errno=errno.EIO) from error


# ---- in ---------------------------------------------------------------------------------------------------


def copy_in(
    container: Container,
    source: str | os.PathLike[str],
    target: str | ContainerPath,
    owner: str | int | None,
    user: str | int | None,
) -> None:
    """Implement `Container.copy_in`."""
    text = os.fspath(source)
    there = target if isinstance(target, ContainerPath) else ContainerPath(container, target, user)
    if user is not None and isinstance(target, ContainerPath):
        there = ContainerPath(target.container, target.pure, user)
    acting = user_of(container._awake(), there._user)
    ids = user_of(container._awake(), owner)[:2] if owner is not None else acting[:2]
    if acting[0] != 0 and ids != acting[:2]:
        raise path_error(
            "cannot change the owner of", str(there), errno.EPERM, "pass user='root' together with owner"
        )
    with translate_errors("cannot read", text):
        fd = hostpath.open_path(text, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        kind = stat.S_IFMT(os.fstat(fd).st_mode)
        if kind not in (stat.S_IFDIR, stat.S_IFREG):
            raise PathError(f"the source must be a regular file or a directory, got {text!r}", path=text)
        with container._awake().in_use():
            slash = isinstance(target, str) and target.endswith("/")
            there = _place_inside(container, text, there, slash, is_directory=kind == stat.S_IFDIR)
            if kind == stat.S_IFDIR:
                _tree_in(container, fd, there, ids, acting)
            else:
                _file_in(fd, there, ids)
    finally:
        os.close(fd)


def _place_inside(
    container: Container, source: str, there: ContainerPath, slash: bool, *, is_directory: bool
) -> ContainerPath:
    """Return the path of the copy; its parent exists.

    Raises:
        PathError: The path cannot be used.
    """
    if there.container is not container:
        raise ValueError(
            f"the destination must be a path of container {container.name}, got one of {there.container.name}"
        )
    if there.is_dir():
        if is_directory and is_content(source):
            return there
        there = there / (_last_name(os.path.abspath(source)) or "root")
    elif slash and not is_directory:
        raise path_error("cannot copy to", str(there), errno.ENOTDIR)
    if not there.parent.is_dir():
        there.parent.stat()
        raise path_error("cannot copy to", str(there.parent), errno.ENOTDIR)
    if there.exists() and there.is_dir() != is_directory:
        raise path_error("cannot replace", str(there), errno.EEXIST)
    return there


def _file_in(fd: int, there: ContainerPath, ids: tuple[int, int]) -> None:
    found = os.fstat(fd)
    fresh = there.parent / hostpath.temporary_name()
    out = fresh._ask(Verb.OPEN, flags=os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode=0o600)
    try:
        try:
            with translate_errors("cannot copy to", str(there)):
                copy_bytes(fd, out, _HOST_BYTES, str(there))
            times = (*divmod(found.st_atime_ns, 10**9), *divmod(found.st_mtime_ns, 10**9))
            change = SET_OWNER | SET_MODE | SET_TIMES
            mode = stat.S_IMODE(found.st_mode)
            if mode & SET_ID and not may_set_id(there, out):
                mode &= ~SET_ID
            fresh._ask(Verb.SET, fd=out, change=change, mode=mode, owner=ids, times=times)
        finally:
            os.close(out)
        fresh.rename(there)
    except BaseException:
        _forget_inside(fresh)
        raise


def _tree_in(container: Container, fd: int, there: ContainerPath, ids: tuple[int, int], user: User) -> None:
    if there.is_dir():
        _fill(container, fd, there, ids, user)
        return
    try:
        _make_tree(container, fd, there, there.parent / hostpath.temporary_name(), ids, user)
    except PathError as error:
        # An overlay whose upper directory takes no extended attributes (tmpfs before Linux 6.6).
        if error.errno != errno.EXDEV:
            raise
        _make_tree(container, fd, there, there, ids, user)


def _make_tree(
    container: Container, fd: int, there: ContainerPath, work: ContainerPath, ids: tuple[int, int], user: User
) -> None:
    """Make a directory at `work`, copy the content of `fd` to it, and rename it to `there`."""
    work._ask(Verb.MKDIR, mode=0o700)
    try:
        _fill(container, fd, work, ids, user, name=str(there))
        if work is not there:
            work.rename(there)
    except BaseException:
        _forget_inside(work)
        raise


def _fill(
    container: Container, fd: int, work: ContainerPath, ids: tuple[int, int], user: User, name: str = ""
) -> None:
    """Copy the content of `fd` to the directory `work`, a new one if errors call it by another name."""
    top = work._fd(os.O_RDONLY | os.O_DIRECTORY)
    try:
        engine, pidfd = container._engine, container._awake().pidfd
        spec = CopySpec(
            source=fd,
            target=top,
            size=_HOST_BYTES,
            entries=_HOST_ENTRIES,
            content=not name,
            landlock=engine._session.features.landlock,
            no_set_id=not may_set_id(work, top),
        )
        report = completed_report(lambda: into(spec, engine._session.make_helper, pidfd, ids, user))
        check_report("copy to", name or str(work), report)
    finally:
        os.close(top)


def _forget_inside(path: ContainerPath) -> None:
    """Remove a partial copy, ignoring errors in favour of the one that ended the copy."""
    with contextlib.suppress(PycontainError):
        if not path.is_dir() or path.is_symlink():
            path.unlink(missing_ok=True)
            return
        for place, directories, files in path.walk(top_down=False):
            for name in files:
                (place / name).unlink(missing_ok=True)
            for name in directories:
                (place / name).rmdir()
        path.rmdir()


def copy_bytes(fd: int, out: int, most: int, shown: str) -> None:
    """Copy as many bytes as the file has now, keeping holes; a guest may extend the file meanwhile.

    Raises:
        PathError: The file has more than `most` bytes, holes included (EFBIG).
        OSError: A read or write failed.
    """
    found = os.fstat(fd)
    if found.st_size > most:
        raise path_error(f"more than {most} bytes in", shown, errno.EFBIG, "raise max_bytes")
    if found.st_blocks * 512 >= found.st_size:
        _copy_range(fd, out, found.st_size)
        return
    at = 0
    while (data := _next_data(fd, at, found.st_size)) is not None:
        start, at = data
        os.lseek(fd, start, os.SEEK_SET)
        os.lseek(out, start, os.SEEK_SET)
        _copy_range(fd, out, at - start)
    os.ftruncate(out, found.st_size)


def _next_data(fd: int, at: int, size: int) -> tuple[int, int] | None:
    """Return the next range that is not a hole, or None after the last one."""
    if at >= size:
        return None
    try:
        start = os.lseek(fd, at, os.SEEK_DATA)
        end = os.lseek(fd, start, os.SEEK_HOLE)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        if error.errno == errno.EINVAL:  # the file system does not support SEEK_DATA
            return at, size
        raise
    return (start, min(end, size)) if start < size else None


def _copy_range(fd: int, out: int, size: int) -> None:
    while size > 0 and (chunk := os.read(fd, min(size, _CHUNK))):
        size -= len(chunk)
        view = memoryview(chunk)
        while view:
            view = view[os.write(out, view) :]
