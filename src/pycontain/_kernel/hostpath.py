"""Paths of the host, with a rule for symbolic links, and replacement of files by descriptor.

A guest with a directory of the host can make links in it.  The engine has its caller's rights, so it follows
a link only where no guest can have made it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator

from attrs import define, field

from pycontain._kernel import native
from pycontain.errors import PathError

AT_FDCWD = -100
BENEATH, NO_SYMLINKS, NO_MAGICLINKS, IN_ROOT = 0x08, 0x04, 0x02, 0x10
"""RESOLVE_* of openat2(2)."""
BENEATH_WITHOUT_LINKS = BENEATH | NO_SYMLINKS | NO_MAGICLINKS
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_LINKS_MOST = 40
_HINT = (
    "name the target of the link, if it may be used; "
    "or remove the link, and read what guests wrote with open_beneath"
)

Identity = tuple[int, int, int]
"""Device, inode and time of creation of a directory: inode numbers are used again."""

_shared: set[Identity] = set()
"""Directories that a container of this process could write to."""
_records: list[str] = []
"""Files that name the directories of earlier processes' containers too."""
_RECORD_MOST = 1 << 20
"""The size in bytes above which the older half of such a file is dropped."""


def openat2(directory: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    """Call openat2(2) with O_CLOEXEC.  Raises OSError."""
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError(f"embedded null byte in the path {path[:80]!r}")
    result = int(native.lib.pcx_openat2(directory, raw, flags | os.O_CLOEXEC, resolve, mode))
    if result < 0:
        raise OSError(-result, os.strerror(-result), path)
    return result


def share(fd: int) -> None:
    """Remember a directory that a guest can write to: links below it are not followed from now on."""
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        return
    found = _identity(fd)
    if found not in _shared:
        for record in _records:
            _write_record(record, [found])
        _shared.add(found)


def record_in(path: str) -> None:
    """Keep shared directories in a file, for later processes; its directory need not exist.

    Raises:
        OSError: Directories were shared before, and cannot be written there.
    """
    if path not in _records:
        if _shared:
            _write_record(path, _shared)
        _records.append(path)


def _identity(fd: int) -> Identity:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino, int(native.lib.pcx_birth(fd))


def _write_record(path: str, added: Iterable[Identity]) -> None:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_size > _RECORD_MOST:
            kept = os.pread(fd, 2 * _RECORD_MOST, _RECORD_MOST // 2).partition(b"\n")[2]
            os.ftruncate(fd, 0)
            os.write(fd, kept)
        os.write(fd, "".join(f"{device} {inode} {birth}\n" for device, inode, birth in added).encode())
    finally:
        os.close(fd)


def _recorded() -> set[Identity]:
    """Return the directories that the containers of earlier processes could write to."""
    found: set[Identity] = set()
    for path in _records:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        with open(fd, "rb") as file:
            fcntl.flock(fd, fcntl.LOCK_SH)
            for line in file:
                parts = line.split()
                if len(parts) == len(("device", "inode", "birth")):
                    found.add((int(parts[0]), int(parts[1]), int(parts[2])))
    return found


def open_path(path: str, flags: int) -> int:
    """Open a path of the host as open(2) does, but follow only links that no guest can have made.

    A link is followed where it belongs to root or to the caller, its directory is not open to everyone
    for writing (the sticky bit excepted, as in fs.protected_symlinks), and no container of this or an
    earlier process could write to a directory above it (`record_in`).

    Returns:
        A descriptor, close-on-exec.

    Raises:
        PathError: with ELOOP, for another link.
        OSError: as open(2).
    """
    path = os.path.abspath(path)
    try:
        return openat2(AT_FDCWD, path, flags, NO_SYMLINKS)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    walk = _Walk(path)
    try:
        return walk.open(flags)
    finally:
        os.close(walk.directory)


@define
class _Walk:
    """A walk along a path with links, one name after the other, always by descriptor."""

    path: str
    directory: int = field(factory=lambda: os.open("/", _DIRECTORY))
    guarded: bool = False
    links: int = 0
    shared: set[Identity] = field(factory=lambda: _shared | _recorded())

    def open(self, flags: int) -> int:
        parts = deque(self._names(self.path))
        owners = {0, os.geteuid(), os.fstat(self.directory).st_uid}  # "/" may have the overflow id
        while parts:
            name = parts.popleft()
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.directory)
            try:
                found = os.fstat(fd)
                if stat.S_ISLNK(found.st_mode):
                    self._check(name, found, owners)
                    if found.st_dev != _device_of_proc():
                        parts.extendleft(reversed(self._target(fd)))
                        continue
                    # A link of /proc is no text: /proc/self/fd/3 may be a pipe.
                    os.close(fd)
                    fd = -1
                    fd = os.open(name, (_DIRECTORY if parts else flags) | os.O_CLOEXEC, dir_fd=self.directory)
                    if not parts:
                        opened, fd = fd, -1
                        return opened
                elif not parts:
                    return openat2(self.directory, name, flags, NO_SYMLINKS)
                if not stat.S_ISDIR(os.fstat(fd).st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self.path)
                fd = self._enter(fd)
            finally:
                if fd >= 0:
                    os.close(fd)
        return openat2(self.directory, ".", flags, NO_SYMLINKS)

    @staticmethod
    def _names(text: str) -> list[str]:
        return [name for name in text.split("/") if name not in ("", ".")]

    def _enter(self, fd: int) -> int:
        """Go on from this directory; the descriptor to close instead of it."""
        self.guarded = self.guarded or _identity(fd) in self.shared
        left, self.directory = self.directory, fd
        return left

    def _target(self, fd: int) -> list[str]:
        text = os.readlink("", dir_fd=fd)
        if text.startswith("/"):
            os.close(self._enter(os.open("/", _DIRECTORY)))
            self.guarded = False
        return self._names(text)

    def _check(self, name: str, link: os.stat_result, owners: set[int]) -> None:
        self.links += 1
        if self.links > _LINKS_MOST:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), self.path)
        above = os.fstat(self.directory)
        is_open = above.st_mode & stat.S_IWOTH and not above.st_mode & stat.S_ISVTX
        if self.guarded or link.st_uid not in owners or is_open:
            raise PathError(
                f"will not follow the symbolic link {name!r} in {self.path!r}: a guest may have made it",
                path=self.path,
                errno=errno.ELOOP,
                hint=_HINT,
            )


def _device_of_proc() -> int:
    try:
        return os.stat("/proc").st_dev
    except OSError:
        return -1


def open_directory(path: str) -> int:
    """Open a directory of the host by the rule of `open_path`.  Raises OSError, PathError."""
    return open_path(path, os.O_RDONLY | os.O_DIRECTORY)


def open_named(directory: int, name: str) -> int:
    """Open a directory that is right below another and no link.  Raises OSError."""
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)


def temporary_name() -> str:
    """Return a name that a guest cannot know in advance."""
    return f".pyc-{os.urandom(8).hex()}"


@define
class Replacement:
    """A new file beside the one that it replaces; both names are used below one open directory."""

    directory: int
    name: str
    mode: int
    temporary: str = field(factory=temporary_name, init=False)
    fd: int = field(default=-1, init=False)

    def create(self) -> int:
        """Create the file, empty, for writing.  Raises OSError, and PathError as `check_replaceable`."""
        check_replaceable(self.directory, self.name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self.fd = os.open(self.temporary, flags, self.mode, dir_fd=self.directory)
        return self.fd

    def place(self) -> None:
        """Give it its name.  Raises OSError; PathError where another file was put in its place meanwhile."""
        os.rename(self.temporary, self.name, src_dir_fd=self.directory, dst_dir_fd=self.directory)
        check_same(self.directory, self.name, self.fd)

    def discard(self) -> None:
        """Remove what was created."""
        with contextlib.suppress(OSError):
            os.unlink(self.temporary, dir_fd=self.directory)


def check_replaceable(directory: int, name: str) -> None:
    """Check that a name is free, or of a regular file or directory, or a link to such or to nothing.

    A file that is moved to the name of a device, such as /dev/null, would be there in its place.

    Raises:
        PathError: With EEXIST, for a device, a pipe or a socket, and for a link to one.
    """
    for follow in (False, True):
        try:
            kind = os.stat(name, dir_fd=directory, follow_symlinks=follow).st_mode
        except OSError:  # free, or a link to nothing
            return
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind) or stat.S_ISLNK(kind)):
            raise PathError(
                f"cannot replace {name!r}: a device, a pipe or a socket",
                path=name,
                errno=errno.EEXIST,
                hint="use another name, or pass an open file where one is taken",
            )


def check_same(directory: int, name: str, fd: int) -> None:
    """Raise PathError unless the name is still that of the open file: it may have been moved."""
    wanted = os.fstat(fd)
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        found = None
    if found is None or (found.st_dev, found.st_ino) != (wanted.st_dev, wanted.st_ino):
        raise PathError(
            f"another process replaced {name!r} while it was written",
            path=name,
            errno=errno.ESTALE,
            hint="write to a directory that no guest can write to",
        )


@contextlib.contextmanager
def replaced(directory: int, name: str, mode: int) -> Iterator[int]:
    """Yield the descriptor of a new file, which gets the name when the block ends without an error."""
    new = Replacement(directory, name, mode)
    fd = new.create()
    try:
        yield fd
        new.place()
    except BaseException:
        new.discard()
        raise
    finally:
        os.close(fd)
