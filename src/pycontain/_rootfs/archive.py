"""Unpack a tar archive beneath a directory fd.  Nothing outside is ever touched, whatever the names say."""

from __future__ import annotations

import contextlib
import os
import shutil
import tarfile
from typing import IO

from pycontain._kernel import native
from pycontain.errors import ImageError

_RESOLVE = 0x08 | 0x04 | 0x02  # BENEATH | NO_SYMLINKS | NO_MAGICLINKS
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_MAX_ENTRIES = 2_000_000
_MAX_DEPTH = 256


def _parts(name: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ImageError(f"the archive has an entry outside of itself: {name!r}")
    if len(parts) > _MAX_DEPTH:
        raise ImageError(f"the archive has an entry deeper than {_MAX_DEPTH}: {name[:80]!r}")
    return parts


def _open_parent(top: int, parts: list[str]) -> int:
    """The directory that an entry goes to; what is missing is made, a link on the way is refused."""
    path = "/".join(parts[:-1]) or "."
    fd = native.lib.pcx_openat2(top, os.fsencode(path), _DIRECTORY, _RESOLVE)
    if fd == -2:
        at = ""
        for part in parts[:-1]:
            at = f"{at}/{part}" if at else part
            with contextlib.suppress(FileExistsError):
                os.mkdir(at, 0o755, dir_fd=top)
        fd = native.lib.pcx_openat2(top, os.fsencode(path), _DIRECTORY, _RESOLVE)
    if fd < 0:
        raise ImageError(
            f"the archive writes through a link or a file: {'/'.join(parts)!r} ({os.strerror(-fd)})"
        )
    return int(fd)


def unpack(stream: IO[bytes], directory: str) -> None:
    """Unpack a tar (gzip, bzip2, xz or plain) into `directory`, owned as it says where this user may.

    Raises ImageError for what is no archive and for hostile entries; device nodes are left out.
    """
    own_ids = os.geteuid() == 0
    top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    modes: list[tuple[str, int]] = []
    try:
        with tarfile.open(fileobj=stream, mode="r|*") as archive:
            for count, entry in enumerate(archive):
                if count >= _MAX_ENTRIES:
                    raise ImageError(f"the archive has more than {_MAX_ENTRIES} entries")
                _unpack_one(top, archive, entry, own_ids, modes)
        for name, mode in reversed(modes):
            os.chmod(name, mode, dir_fd=top)
    except tarfile.TarError as error:
        raise ImageError(f"not a tar archive: {error}") from error
    finally:
        os.close(top)


def _unpack_one(
    top: int, archive: tarfile.TarFile, entry: tarfile.TarInfo, own_ids: bool, modes: list[tuple[str, int]]
) -> None:
    parts = _parts(entry.name)
    if not parts or entry.ischr() or entry.isblk():
        return
    parent = _open_parent(top, parts)
    name = parts[-1]
    try:
        if entry.isdir():
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=parent)
            modes.append(("/".join(parts), entry.mode & 0o7777))
        else:
            with contextlib.suppress(FileNotFoundError, IsADirectoryError, PermissionError):
                os.unlink(name, dir_fd=parent)
            _make(top, parent, name, archive, entry)
        if own_ids:
            os.chown(name, entry.uid & 0xFFFF, entry.gid & 0xFFFF, dir_fd=parent, follow_symlinks=False)
        if entry.isreg():
            os.chmod(name, entry.mode & 0o7777, dir_fd=parent)
    except OSError as error:
        raise ImageError(f"cannot unpack {entry.name!r}: {error.strerror}") from error
    finally:
        os.close(parent)


def _make(top: int, parent: int, name: str, archive: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
    if entry.issym():
        os.symlink(entry.linkname, name, dir_fd=parent)
    elif entry.islnk():
        target = _parts(entry.linkname)
        if not target:
            raise ImageError(f"hard link to nothing: {entry.name!r}")
        source = _open_parent(top, target)
        try:
            os.link(target[-1], name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)
    elif entry.isfifo():
        os.mkfifo(name, entry.mode & 0o777, dir_fd=parent)
    elif entry.isreg():
        data = archive.extractfile(entry)
        fd = os.open(
            name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent
        )
        with open(fd, "wb") as file:
            if data is not None:
                shutil.copyfileobj(data, file, 1 << 20)


def copy_tree(source: str, target: str) -> None:
    """Copy a directory with links, modes and (as root) owners; devices and sockets are left out."""

    def skip(directory: str, names: list[str]) -> set[str]:
        found = {name: os.lstat(os.path.join(directory, name)).st_mode & 0o170000 for name in names}
        return {name for name, kind in found.items() if kind not in (0o040000, 0o100000, 0o120000)}

    shutil.copytree(source, target, symlinks=True, ignore=skip, dirs_exist_ok=True)
    if os.geteuid() == 0:
        for directory, names, files in os.walk(source):
            for name in (".", *names, *files):
                path = os.path.join(directory, name)
                found = os.lstat(path)
                copied = os.path.join(target, os.path.relpath(path, source))
                if os.path.lexists(copied):
                    os.chown(copied, found.st_uid, found.st_gid, follow_symlinks=False)
