"""ContainerPath: a path in a running container, with the methods of pathlib."""

from __future__ import annotations

import builtins
import errno
import os
import stat
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from pycontain._kernel.file_server import SET_MODE, SET_TIMES, UTIME_NOW, Verb
from pycontain._model.sizes import parse_size
from pycontain._objects.pattern import matching
from pycontain._objects.purepath import Other, PureContainerPath, pure_path
from pycontain._runtime.files import ask, decoded, encoded, seen_inside, user_of
from pycontain.errors import PathError, PathExists, PathNotFound, path_error

if TYPE_CHECKING:
    from pathlib import PurePosixPath

    from pycontain._objects.container import Container

_EISDIR, _ENOTDIR, _EFBIG, _ELOOP, _EINVAL = 21, 20, 27, 40, 22
_NOREPLACE = 1
_OWN = ("/", "/tmp")
"""Container paths at which no file of the host can be mounted by default."""
SET_ID = stat.S_ISUID | stat.S_ISGID
_CHUNK = 1 << 20


class ContainerPath(PureContainerPath):
    """A path in a container, with the methods and attributes of pathlib.Path.

    Operations need a running container.  The file server of the container performs them with the rights of
    the container's `user`, or of the user given to `Container.path`, and without rights on the host.  Links,
    `..` and concurrent changes by the container cannot lead outside.  New files belong to that user, with
    permissions limited by the umask 022.  The class is not an `os.PathLike`, because `builtins.open` would
    then read it as a path of the host.

    Methods raise PathError where those of pathlib raise OSError; `except FileNotFoundError` and similar catch
    it.  They raise StateError if the container is not running.
    """

    __slots__ = ()

    # ---- reading ------------------------------------------------------------------------------------------

    def open(
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open the file as `pathlib.Path.open` does; the file object stays valid when the path changes later.

        Only regular files can be opened: pipes, sockets, devices and files of /proc and /sys are refused.  No
        file is created through a dangling link.

        Args:
            mode: As in `open`.
            buffering: As in `open`.
            encoding: As in `open`.
            errors: As in `open`.
            newline: As in `open`.

        Raises:
            PathError: The file cannot be opened.
            StateError: The container is not running.
            ValueError: The mode is malformed.
        """
        running = self._container._awake()
        with running.in_use():
            file = builtins.open(  # noqa: SIM115  the caller closes it
                os.fsdecode(encoded(str(self))),
                mode,
                buffering,
                encoding,
                errors,
                newline,
                opener=self._opener,
            )
            if file.writable():
                running.writers.add(file)
        return file

    def _opener(self, _: str, flags: int) -> int:
        fd = self._fd(flags & ~os.O_CLOEXEC, mode=0o666)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.close(fd)
            raise path_error("cannot open", str(self), _EISDIR)
        os.set_blocking(fd, True)
        return fd

    def read_bytes(self, *, max_bytes: int | str = "1G") -> bytes:
        """Return the content of the file.

        Args:
            max_bytes: Maximum size, in bytes or as text such as '1G'.

        Raises:
            PathError: The file cannot be read, or is larger (EFBIG).
        """
        most = parse_size(max_bytes)
        with self.open("rb", buffering=0) as file:
            parts, left = [], most
            if os.fstat(file.fileno()).st_size > most:
                raise path_error(f"more than {most} bytes in", str(self), _EFBIG, "raise max_bytes")
            while chunk := file.read(min(_CHUNK, left + 1)):
                parts.append(chunk)
                left -= len(chunk)
                if left < 0:
                    raise path_error(f"more than {most} bytes in", str(self), _EFBIG, "raise max_bytes")
        return b"".join(parts)

    def read_text(
        self, encoding: str = "utf-8", errors: str = "strict", *, max_bytes: int | str = "1G"
    ) -> str:
        r"""Return the content of the file as text; all kinds of newlines become '\n'.

        Args:
            encoding: Encoding of the file.
            errors: Handling of encoding errors, as in `bytes.decode`.
            max_bytes: Maximum size, in bytes or as text such as '1G'.

        Raises:
            PathError: The file cannot be read, or is larger (EFBIG).
            UnicodeDecodeError: The content does not match the encoding.
        """
        text = self.read_bytes(max_bytes=max_bytes).decode(encoding, errors)
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def iterdir(self) -> Iterator[ContainerPath]:
        """Iterate over the entries of the directory, in arbitrary order."""
        for name, _ in self._entries():
            yield self / name

    def walk(
        self, top_down: bool = True, *, follow_symlinks: bool = False
    ) -> Iterator[tuple[ContainerPath, list[str], list[str]]]:
        """Iterate over a tree as `pathlib.Path.walk` does; directories that cannot be read are skipped.

        Args:
            top_down: Yield a directory before its subdirectories; the caller may then change the list of
                these.
            follow_symlinks: Must be False; links are never followed.

        Raises:
            ValueError: `follow_symlinks` is True.
        """
        if follow_symlinks:
            raise ValueError("follow_symlinks must be False, got True: links of a guest may form a loop")
        # No recursion: a guest can nest directories deeper than the recursion limit.
        left: list[tuple[ContainerPath, list[str], list[str]] | ContainerPath] = [self]
        while left:
            path = left.pop()
            if isinstance(path, tuple):
                yield path
                continue
            try:
                entries = list(path._entries())
            except PathError:
                continue
            directories = [name for name, is_directory in entries if is_directory]
            files = [name for name, is_directory in entries if not is_directory]
            if top_down:
                yield path, directories, files
            else:
                left.append((path, directories, files))
            left.extend(path / name for name in reversed(directories))

    def glob(self, pattern: str) -> Iterator[ContainerPath]:
        """Iterate over the paths that match a relative pattern, as `pathlib.Path.glob` does.

        '**' does not follow links.

        Raises:
            ValueError: The pattern is malformed.
        """
        return matching(self, pattern)

    def rglob(self, pattern: str) -> Iterator[ContainerPath]:
        """Iterate over the paths that match a relative pattern at any depth.

        Raises:
            ValueError: The pattern is malformed.
        """
        return matching(self, f"**/{pattern}")

    def _entries(self) -> Iterator[tuple[str, bool]]:
        """Iterate over names, each with True for a directory that is not a link."""
        fd = self._fd(os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    try:
                        yield decoded(entry.name), entry.is_dir(follow_symlinks=False)
                    except OSError:
                        continue  # deleted meanwhile
        finally:
            os.close(fd)

    def readlink(self) -> ContainerPath | PurePosixPath:
        """Return the target of the link: a ContainerPath if it is absolute, else a PurePosixPath."""
        fd = self._fd(os.O_PATH | os.O_NOFOLLOW)
        try:
            if not stat.S_ISLNK(os.fstat(fd).st_mode):
                raise path_error("cannot read the link", str(self), _EINVAL)
            text = pure_path(decoded(os.readlink("", dir_fd=fd)))
        finally:
            os.close(fd)
        return self._with(text) if text.is_absolute() else text

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return the result of stat(2), with ids as the container has them; unmapped ids are 65534.

        Args:
            follow_symlinks: Follow a link at the end of the path.
        """
        fd = self._fd(os.O_PATH | (0 if follow_symlinks else os.O_NOFOLLOW))
        try:
            return seen_inside(self._container._awake(), os.fstat(fd))
        finally:
            os.close(fd)

    def lstat(self) -> os.stat_result:
        """Return the result of lstat(2), with ids as the container has them."""
        return self.stat(follow_symlinks=False)

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether the path exists.

        Args:
            follow_symlinks: Follow a link at the end of the path.
        """
        return self._mode(follow_symlinks) is not None

    def is_file(self) -> bool:
        """Return whether the path is a regular file or a link to one."""
        return stat.S_ISREG(self._mode(True) or 0)

    def is_dir(self) -> bool:
        """Return whether the path is a directory or a link to one."""
        return stat.S_ISDIR(self._mode(True) or 0)

    def is_symlink(self) -> bool:
        """Return whether the path is a symbolic link."""
        return stat.S_ISLNK(self._mode(False) or 0)

    def _mode(self, follow: bool) -> int | None:
        try:
            return self.stat(follow_symlinks=follow).st_mode
        except PathError as error:
            if isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno == _ELOOP:
                return None
            raise

    # ---- writing ------------------------------------------------------------------------------------------

    def write_bytes(self, data: bytes) -> int:
        """Write the file, creating or truncating it, and return the number of bytes."""
        view = memoryview(data)
        with self.open("wb") as file:
            return int(file.write(view))

    def write_text(
        self, data: str, encoding: str = "utf-8", errors: str = "strict", newline: str | None = None
    ) -> int:
        """Write the file, creating or truncating it, and return the number of characters.

        Args:
            data: The text.
            encoding: Encoding of the file.
            errors: Handling of encoding errors, as in `str.encode`.
            newline: Translation of newlines, as in `open`.
        """
        if not isinstance(data, str):
            raise TypeError(f"data must be text, got {type(data).__name__}")
        with self.open("w", encoding=encoding, errors=errors, newline=newline) as file:
            return int(file.write(data))

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Create the directory.

        Args:
            mode: Permissions, limited by the umask 022.
            parents: Create missing parents too.
            exist_ok: Accept an existing directory.
        """
        try:
            self._ask(Verb.MKDIR, mode=mode & 0o7777)
        except PathNotFound:
            if not parents or self.parent == self:
                raise
            self.parent.mkdir(parents=True, exist_ok=True)
            self.mkdir(mode, exist_ok=exist_ok)
        except PathExists:
            if not exist_ok or not self.is_dir():
                raise

    def symlink_to(self, target: Other, target_is_directory: bool = False) -> None:
        """Create a symbolic link.

        Args:
            target: Target of the link, which need not exist.
            target_is_directory: Ignored, as pathlib does on Linux.
        """
        del target_is_directory  # of other systems
        self._ask(Verb.SYMLINK, str(target))

    def hardlink_to(self, target: Other) -> None:
        """Create a hard link to `target`; if that is a symbolic link, to the link itself."""
        self._ask(Verb.LINK, str(self._with(pure_path(target))))

    def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        """Create the file, or set its times to the current time.

        Args:
            mode: Permissions of a new file, limited by the umask 022.
            exist_ok: Accept an existing file.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            os.close(self._fd(flags, mode=mode & ~SET_ID))
        except PathExists:
            if not exist_ok:
                raise
            self._ask(Verb.SET, change=SET_TIMES, times=(0, UTIME_NOW, 0, UTIME_NOW))

    def chmod(self, mode: int, *, follow_symlinks: bool = True) -> None:
        """Set the permissions of a file or directory.

        Args:
            mode: The permissions.
            follow_symlinks: Follow a link at the end of the path.

        Raises:
            PathError: With EPERM, for a set-user-ID or set-group-ID bit of a file in a bind, volume or tmpfs,
                if the container's `Security` forbids its processes to set these bits.
        """
        flags = 0 if follow_symlinks else os.O_NOFOLLOW
        if mode & SET_ID:
            self._set_id(mode & 0o7777, flags)
            return
        self._ask(Verb.SET, change=SET_MODE, mode=mode & 0o7777, flags=flags)

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the file or link.

        Args:
            missing_ok: Accept a path that does not exist.
        """
        try:
            self._ask(Verb.UNLINK)
        except PathNotFound:
            if not missing_ok:
                raise

    def rmdir(self) -> None:
        """Delete the empty directory."""
        self._ask(Verb.RMDIR)

    def rename(self, target: Other) -> ContainerPath:
        """Move to another path of the container, replacing a file there, as rename(2) does.

        Args:
            target: The new absolute path.

        Returns:
            The new path.
        """
        there = self._with(pure_path(target))
        self._ask(Verb.RENAME, str(there))
        return there

    def replace(self, target: Other) -> ContainerPath:
        """Move to another path of the container; the same as `rename`."""
        return self.rename(target)

    def _set_id(self, mode: int, flags: int) -> None:
        fd = self._fd(os.O_RDONLY | flags)
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode) and not may_set_id(self, fd):
                raise path_error(
                    "cannot set the set-user-ID or set-group-ID bit of",
                    str(self),
                    errno.EPERM,
                    "leave the bit out, or use Security.evolve(restrict_suid_sgid=False)",
                )
            self._ask(Verb.SET, change=SET_MODE, mode=mode, fd=fd)
        finally:
            os.close(fd)

    # ---- requests -----------------------------------------------------------------------------------------

    def _ask(self, verb: Verb, second: str = "", **options: Any) -> int:
        running = self._container._awake()
        return ask(running, verb, str(self), second, user=user_of(running, self._user), **options)

    def _fd(self, flags: int, mode: int = 0) -> int:
        return self._ask(Verb.OPEN, flags=flags, mode=mode & 0o7777)


def may_set_id(path: ContainerPath, fd: int) -> bool:
    """Return whether an open file of the container may get set-id bits.

    A file on the host that a guest can write keeps these bits when it is changed through a shared mapping,
    so the guest would choose the program that the host runs with the owner's rights.
    """
    container = path._container
    if not container.spec.security.restrict_suid_sgid:
        return True
    mount = _mount_of(fd)
    # A guest cannot rename mount points right below the root, so these paths are what they seem.
    return any(mount == _mount_at(container, place) for place in _OWN if place not in container.spec.mounts)


def _mount_at(container: Container, place: str) -> str:
    try:
        fd = ContainerPath(container, place, "root")._fd(os.O_PATH | os.O_NOFOLLOW)
    except PathError:
        return ""
    try:
        return _mount_of(fd)
    finally:
        os.close(fd)


def _mount_of(fd: int) -> str:
    with builtins.open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
        return next(line for line in info if line.startswith("mnt_id:"))
