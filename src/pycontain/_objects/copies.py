"""Files and trees copied into a container and out of it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from attrs import frozen

from pycontain._kernel.filer import SET_MODE, SET_OWNER, SET_TIMES, Verb
from pycontain._kernel.transfer import Way, into, out_of
from pycontain._kernel.unpacker import Report
from pycontain._model.sizes import parse_size
from pycontain._objects.path import ContainerPath
from pycontain._runtime.files import new_owner
from pycontain.errors import LimitError, PathError, PycontainError, path_error

if TYPE_CHECKING:
    from pycontain._objects.container import Container

_CHUNK = 1 << 20
_EIO, _EFBIG, _ENOTDIR, _EISDIR, _EEXIST = 5, 27, 20, 21, 17
_HOST_BYTES, _HOST_ENTRIES = 1 << 62, 1 << 40
"""The host's own trees are as large as they are."""


@frozen
class _Bounds:
    size: int
    entries: int


def _last_name(path: str) -> str:
    return os.path.basename(os.path.normpath(path))


def _is_content(path: str) -> bool:
    return path == "." or path.endswith("/.")


def _new_name() -> str:
    return f".pyc-{secrets.token_hex(8)}"


@contextlib.contextmanager
def _told(what: str, path: str = "") -> Iterator[None]:
    """What the kernel says of the host's paths and of open files, as PathError."""
    try:
        yield
    except PycontainError:
        raise
    except OSError as error:
        raise path_error(what, str(error.filename or path), error.errno or _EIO) from error


def _check(what: str, path: str, report: Report) -> None:
    if report.problem is None:
        return
    text = f"cannot {what} {path!r}: {report.problem}"
    if report.name:
        text += f": {report.name!r}"
    if report.errno:
        text += f" ({os.strerror(report.errno)})"
    hint = (
        "see max_bytes and max_entries" if "more" in report.problem and "allowed" in report.problem else None
    )
    raise PathError(text, path=path, errno=report.errno or (_EFBIG if hint else _EIO), hint=hint)


def _carried(carry: Callable[[], Report]) -> Report:
    try:
        return carry()
    except ConnectionError as error:
        raise PathError("the process at a tree died", errno=_EIO) from error


# ---- in ---------------------------------------------------------------------------------------------------


def copy_in(
    container: Container,
    source: str | os.PathLike[str],
    target: str | ContainerPath,
    owner: str | int | None,
) -> None:
    """See `Container.copy_in`."""
    text = os.fspath(source)
    ids = new_owner(container._awake(), owner)
    with _told("cannot read"):
        fd = os.open(text, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        kind = stat.S_IFMT(os.fstat(fd).st_mode)
        if kind not in (stat.S_IFDIR, stat.S_IFREG):
            raise PathError(f"neither file nor directory: {text!r}", path=text)
        with container._awake().held():
            there = _place_inside(container, text, target, is_directory=kind == stat.S_IFDIR)
            if kind == stat.S_IFDIR:
                _tree_in(container, fd, there, ids)
            else:
                _file_in(fd, there, ids)
    finally:
        os.close(fd)


def _place_inside(
    container: Container, source: str, target: str | ContainerPath, *, is_directory: bool
) -> ContainerPath:
    """Where it goes, whose directory is there.  Raises PathError."""
    there = target if isinstance(target, ContainerPath) else ContainerPath(container, target)
    if there.container is not container:
        raise ValueError("the target is a path of another container")
    if there.is_dir():
        if is_directory and _is_content(source):
            return there
        there = there / (_last_name(os.path.abspath(source)) or "root")
    elif isinstance(target, str) and target.endswith("/") and not is_directory:
        raise path_error("no directory", target, _ENOTDIR)
    if not there.parent.is_dir():
        there.parent.stat()
        raise path_error("no directory", str(there.parent), _ENOTDIR)
    if there.exists() and there.is_dir() != is_directory:
        raise path_error("cannot replace", str(there), _EEXIST)
    return there


def _file_in(fd: int, there: ContainerPath, ids: tuple[int, int]) -> None:
    found = os.fstat(fd)
    fresh = there.parent / _new_name()
    out = fresh._ask(Verb.OPEN, flags=os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode=0o600)
    try:
        try:
            with _told("cannot copy to", str(there)):
                _copy_bytes(fd, out, _HOST_BYTES, str(there))
            times = (*divmod(found.st_atime_ns, 10**9), *divmod(found.st_mtime_ns, 10**9))
            change = SET_OWNER | SET_MODE | SET_TIMES
            mode = stat.S_IMODE(found.st_mode)
            fresh._ask(Verb.SET, fd=out, change=change, mode=mode, owner=ids, times=times)
        finally:
            os.close(out)
        fresh.rename(there)
    except BaseException:
        _forget_inside(fresh)
        raise


def _tree_in(container: Container, fd: int, there: ContainerPath, ids: tuple[int, int]) -> None:
    merges = there.is_dir()
    work = there if merges else there.parent / _new_name()
    if not merges:
        work._ask(Verb.MKDIR, mode=0o700)
    try:
        top = work._fd(os.O_RDONLY | os.O_DIRECTORY)
        try:
            engine, pidfd = container._engine, container._awake().pidfd
            way = Way(
                source=fd,
                target=top,
                size=_HOST_BYTES,
                entries=_HOST_ENTRIES,
                content=merges,
                landlock=engine.features.landlock,
            )
            report = _carried(lambda: into(way, engine._make_janitor, pidfd, ids))
            _check("copy to", str(there), report)
        finally:
            os.close(top)
        if not merges:
            work.rename(there)
    except BaseException:
        if not merges:
            _forget_inside(work)
        raise


def _forget_inside(path: ContainerPath) -> None:
    """Remove what a copy left half-way; the first error is the one to tell."""
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


# ---- out --------------------------------------------------------------------------------------------------


def copy_out(
    container: Container,
    source: str | ContainerPath,
    target: str | os.PathLike[str],
    max_bytes: int | str,
    max_entries: int,
) -> None:
    """See `Container.copy_out`."""
    if isinstance(max_entries, bool) or not isinstance(max_entries, int) or max_entries < 1:
        raise LimitError(f"max_entries is a number of at least 1, not {max_entries!r}")
    bounds = _Bounds(parse_size(max_bytes), max_entries)
    here = source if isinstance(source, ContainerPath) else ContainerPath(container, source)
    if here.container is not container:
        raise ValueError("the source is a path of another container")
    fd = here._fd(os.O_RDONLY)
    try:
        is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        content = is_directory and isinstance(source, str) and _is_content(source)
        with _told("cannot write", os.fspath(target)):
            there = _place_outside(here, os.fspath(target), content=content, is_directory=is_directory)
            if is_directory:
                _tree_out(container, fd, there, bounds)
            else:
                _file_out(fd, there, bounds, str(here))
    finally:
        os.close(fd)


def _place_outside(here: ContainerPath, target: str, *, content: bool, is_directory: bool) -> str:
    if os.path.isdir(target):
        if content:
            return os.path.abspath(target)
        name = here.name if here.name not in ("", "..") else "root"
        target = os.path.join(target, name)
    elif target.endswith("/") and not is_directory:
        raise path_error("no directory", target, _ENOTDIR)
    there = os.path.abspath(target)
    parent = os.path.dirname(there)
    if not os.path.isdir(parent):
        os.stat(parent)
        raise path_error("no directory", parent, _ENOTDIR)
    if os.path.lexists(there) and os.path.isdir(there) != is_directory:
        raise path_error("cannot replace", there, _EEXIST)
    return there


def _file_out(fd: int, there: str, bounds: _Bounds, what: str) -> None:
    found = os.fstat(fd)
    fresh = os.path.join(os.path.dirname(there), _new_name())
    out = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            _copy_bytes(fd, out, bounds.size, what)
            os.fchmod(out, found.st_mode & 0o1777)
            os.utime(out, ns=(found.st_atime_ns, found.st_mtime_ns))
        finally:
            os.close(out)
        os.replace(fresh, there)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise


def _copy_bytes(fd: int, out: int, most: int, what: str) -> None:
    """As many bytes as the file is now, and no more: a guest's may grow for ever."""
    left = os.fstat(fd).st_size
    if left > most:
        raise path_error(f"more than {most} bytes in", what, _EFBIG, "see max_bytes")
    while left > 0 and (chunk := os.read(fd, min(left, _CHUNK))):
        left -= len(chunk)
        view = memoryview(chunk)
        while view:
            view = view[os.write(out, view) :]


def _tree_out(container: Container, fd: int, there: str, bounds: _Bounds) -> None:
    # Beside it, not in it: moved as a whole, or not at all.
    merges = os.path.isdir(there)
    parent, name = (there if merges else os.path.dirname(there)), _new_name()
    fresh = os.path.join(parent, name)
    engine, pidfd = container._engine, container._awake().pidfd
    os.mkdir(fresh, 0o700)
    try:
        top = os.open(fresh, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            way = Way(
                source=fd,
                target=top,
                size=bounds.size,
                entries=bounds.entries,
                content=merges,
                landlock=engine.features.landlock,
            )
            report = _carried(lambda: out_of(way, engine._make_janitor, pidfd))
            _check("copy to", there, report)
        finally:
            os.close(top)
        if merges:
            _merge(fresh, there)
        else:
            os.rename(fresh, there)
    finally:
        if os.path.lexists(fresh):
            _forget_outside(container, parent, name)


def _merge(fresh: str, there: str) -> None:
    """Move what a fresh directory holds into one that is there."""
    with os.scandir(fresh) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        old, new = os.path.join(fresh, name), os.path.join(there, name)
        if os.path.isdir(new) and not os.path.islink(new) and is_directory:
            _merge(old, new)
        elif os.path.lexists(new) and (is_directory or (os.path.isdir(new) and not os.path.islink(new))):
            raise path_error("cannot replace", new, _EEXIST)
        else:
            _move(old, new, is_directory)


def _move(old: str, new: str, is_directory: bool) -> None:
    """A directory that changes its parent is written to, whatever its mode says."""
    mode = stat.S_IMODE(os.lstat(old).st_mode)
    times = os.lstat(old)
    if is_directory and not mode & 0o200:
        os.chmod(old, mode | 0o200)
    os.rename(old, new)
    if is_directory and not mode & 0o200:
        os.chmod(new, mode)
    if is_directory:
        os.utime(new, ns=(times.st_atime_ns, times.st_mtime_ns))


def _forget_outside(container: Container, parent: str, name: str) -> None:
    """With the rights of a launcher: a guest's directories may be of modes that keep their owner out."""
    with contextlib.suppress(OSError, PycontainError):
        fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            launcher = container._engine._make_janitor()
            try:
                launcher.remove(fd, name)
            finally:
                launcher.close()
        finally:
            os.close(fd)
        return
    shutil.rmtree(os.path.join(parent, name), ignore_errors=True)
