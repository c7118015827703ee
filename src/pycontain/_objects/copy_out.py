"""Copies out of a container, also to directories that containers can write to.

The destination directory is opened once.  All operations are relative to this descriptor and follow no
links, so a guest that renames or replaces entries meanwhile can only affect files that it can write
anyway.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from typing import TYPE_CHECKING

from attrs import frozen

from pycontain._kernel import hostpath
from pycontain._kernel.transfer import CopySpec, out_of
from pycontain._model.sizes import parse_size
from pycontain._objects.copies import check_report, completed_report, copy_bytes, is_content, translate_errors
from pycontain._objects.path import ContainerPath
from pycontain.errors import LimitError, PathError, PycontainError, path_error

if TYPE_CHECKING:
    from pycontain._objects.container import Container


@frozen
class _Bounds:
    size: int
    entries: int


@frozen
class _Destination:
    """A destination on the host: an open directory and a name in it, or '' for the directory itself."""

    directory: int
    name: str
    path: str


def copy_out(
    container: Container,
    source: str | ContainerPath,
    target: str | os.PathLike[str],
    max_bytes: int | str,
    max_entries: int,
) -> None:
    """Implement `Container.copy_out`."""
    if isinstance(max_entries, bool) or not isinstance(max_entries, int) or max_entries < 1:
        raise LimitError(f"max_entries must be an int of at least 1, got {max_entries!r}")
    bounds = _Bounds(parse_size(max_bytes), max_entries)
    if isinstance(source, ContainerPath) and source.container is not container:
        raise ValueError(
            f"the source must be a path of container {container.name}, got one of {source.container.name}"
        )
    # Read as root of the container, since the caller may read all of its files.
    here = ContainerPath(container, source, "root")
    fd = here._fd(os.O_RDONLY)
    try:
        is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        content = is_directory and isinstance(source, str) and is_content(source)
        text = os.fspath(target)
        with translate_errors("cannot write", text):
            there = _destination(here, text, content=content, is_directory=is_directory)
            try:
                if is_directory:
                    _tree_out(container, fd, there, bounds)
                else:
                    _file_out(fd, there, bounds, str(here))
            finally:
                os.close(there.directory)
    finally:
        os.close(fd)


def _destination(here: ContainerPath, target: str, *, content: bool, is_directory: bool) -> _Destination:
    """Open the directory that receives the copy.

    Raises:
        PathError: The path cannot be used.
        OSError: The directory cannot be opened.
    """
    found = _directory_at(target)
    if found is not None and content:
        return _Destination(found, "", os.path.abspath(target))
    if found is not None:
        name = here.name if here.name not in ("", "..") else "root"
        return _named(found, name, os.path.join(target, name), is_directory)
    if target.endswith("/") and not is_directory:
        raise path_error("cannot copy to", target, errno.ENOTDIR)
    there = os.path.abspath(target)
    parent, name = os.path.split(there)
    return _named(hostpath.open_directory(parent), name, there, is_directory)


def _directory_at(target: str) -> int | None:
    try:
        return hostpath.open_directory(target)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PathError as error:
        # A link of a guest is replaced if a file is copied; if a tree is copied, it is refused later.
        if error.errno == errno.ELOOP:
            return None
        raise


def _named(directory: int, name: str, path: str, is_directory: bool) -> _Destination:
    """Return the destination `name` in a directory; takes ownership of the descriptor."""
    inner = -1
    try:
        found = _mode_of(directory, name)
        if found is not None and stat.S_ISLNK(found) and is_directory:
            inner = hostpath.open_directory(path)
        elif found is not None and stat.S_ISDIR(found) != is_directory:
            raise path_error("cannot replace", path, errno.EEXIST)
        elif found is not None and is_directory:
            inner = hostpath.open_named(directory, name)
    except BaseException:
        os.close(directory)
        raise
    if inner < 0:
        return _Destination(directory, name, path)
    os.close(directory)
    return _Destination(inner, "", path)


def _mode_of(directory: int, name: str) -> int | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None


def _file_out(fd: int, there: _Destination, bounds: _Bounds, shown: str) -> None:
    found = os.fstat(fd)
    with hostpath.replaced(there.directory, there.name, 0o600) as out:
        copy_bytes(fd, out, bounds.size, shown)
        os.fchmod(out, found.st_mode & 0o1777)
        os.utime(out, ns=(found.st_atime_ns, found.st_mtime_ns))


def _tree_out(container: Container, fd: int, there: _Destination, bounds: _Bounds) -> None:
    # Unpack under a temporary name and rename, so that the tree appears completely or not at all.
    name, top = hostpath.temporary_name(), -1
    os.mkdir(name, 0o700, dir_fd=there.directory)
    try:
        top = hostpath.open_named(there.directory, name)
        engine, pidfd = container._engine, container._awake().pidfd
        spec = CopySpec(
            source=fd,
            target=top,
            size=bounds.size,
            entries=bounds.entries,
            content=not there.name,
            landlock=engine._session.features.landlock,
            # Root can remove every directory.
            open_directories=not engine._session.features.privileged,
        )
        report = completed_report(lambda: out_of(spec, engine._session.make_helper, pidfd))
        check_report("copy to", there.path, report)
        if there.name:
            os.rename(name, there.name, src_dir_fd=there.directory, dst_dir_fd=there.directory)
            hostpath.check_same(there.directory, there.name, top)
        else:
            _merge(top, there.directory, there.path)
    finally:
        if top >= 0:
            os.close(top)
        if _mode_of(there.directory, name) is not None:
            _forget(container, there.directory, name)


def _merge(fresh: int, there: int, path: str) -> None:
    """Move the content of one open directory into another."""
    with os.scandir(fresh) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        mode = _mode_of(there, name)
        if mode is None or not (is_directory or stat.S_ISDIR(mode)):
            hostpath.check_replaceable(there, name)
            _move(name, fresh, there, is_directory)
        elif is_directory and stat.S_ISDIR(mode):
            _merge_below(name, fresh, there, os.path.join(path, name))
        else:
            raise path_error("cannot replace", os.path.join(path, name), errno.EEXIST)


def _merge_below(name: str, fresh: int, there: int, path: str) -> None:
    inner = hostpath.open_named(fresh, name)
    try:
        target = hostpath.open_named(there, name)
        try:
            _merge(inner, target, path)
        finally:
            os.close(target)
    finally:
        os.close(inner)


def _move(name: str, fresh: int, there: int, is_directory: bool) -> None:
    if not is_directory:
        os.rename(name, name, src_dir_fd=fresh, dst_dir_fd=there)
        return
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fresh)
    try:
        found, itself = os.fstat(fd), f"/proc/self/fd/{fd}"
        mode = stat.S_IMODE(found.st_mode)
        if not mode & 0o200:  # rename(2) writes "..", so the directory's own mode counts
            os.chmod(itself, mode | 0o200)
        os.rename(name, name, src_dir_fd=fresh, dst_dir_fd=there)
        if not mode & 0o200:
            os.chmod(itself, mode)
        os.utime(itself, ns=(found.st_atime_ns, found.st_mtime_ns))
    finally:
        os.close(fd)


def _forget(container: Container, directory: int, name: str) -> None:
    """Remove a partial copy by a helper process, because its modes may deny access to its owner."""
    with contextlib.suppress(OSError, PycontainError):
        launcher = container._session.make_helper()
        try:
            launcher.remove(directory, name)
        finally:
            launcher.close()
        return
    if _mode_of(directory, name) is None or not stat.S_ISDIR(_mode_of(directory, name) or 0):
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=directory)
        return
    shutil.rmtree(name, ignore_errors=True, dir_fd=directory)
