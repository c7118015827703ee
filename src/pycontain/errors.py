"""Every exception that pycontain raises on purpose.

::

    PycontainError
    ├── ImageError                     the image or its store
    │   ├── PullError
    │   ├── PushError
    │   ├── AuthError
    │   ├── DigestMismatch
    │   ├── InvalidReference           text that names no image; also ValueError
    │   └── BuildError
    ├── StartError                     a container or process could not start: step, errno, hint
    │   ├── CommandNotFound            also NotFound, FileNotFoundError; a shell would say 127
    │   ├── CommandNotExecutable       also PermissionError; a shell would say 126
    │   └── WorkdirError               also PathError
    ├── UnsupportedError               this host cannot: feature, hint
    ├── LimitError                     a limit that cannot be meant or cannot work; also ValueError
    ├── CommandFailed                  also subprocess.CalledProcessError
    ├── CommandTimeout                 also subprocess.TimeoutExpired
    ├── CallError                      a called function raised, or gave what is no plain data
    ├── NotFound                       also LookupError
    ├── Conflict
    ├── StateError                     the object is not in a state that allows this
    │   └── ContainerEnded             the container ended while a command ran: reason
    └── PathError                      also OSError: errno, strerror, filename
        ├── PathNotFound               also FileNotFoundError
        ├── PathExists                 also FileExistsError
        ├── PathForbidden              also PermissionError
        ├── PathIsDirectory            also IsADirectoryError
        └── PathNotDirectory           also NotADirectoryError

Each of them can be copied, pickled and raised out of another process, with its message and all
its attributes, whatever its constructor looks like.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from pycontain._model.process import Output, Usage

Part: TypeAlias = str | bytes | os.PathLike[str]
Args: TypeAlias = Part | Sequence[Part]
"""A command as subprocess takes it: one part alone is the program."""

_PATH_SHOWN = 160
"""Characters of a path in a message."""
_OS_FACTS = ("errno", "strerror", "filename", "filename2")


def escaped(text: str) -> str:
    """Return `text` with control characters, bidirectional overrides and surrogates as escapes.

    Names and output of a guest become part of messages, and messages are shown on terminals and in logs.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _facts(error: BaseException) -> dict[str, Any]:
    """All attributes; an OSError keeps some beside its `__dict__`."""
    more = _OS_FACTS if isinstance(error, OSError) else ()
    return {**error.__dict__, **{name: getattr(error, name) for name in more}}


def _tell_os_facts(error: BaseException, message: str, errno: int, path: str | None) -> None:
    """Where it is an OSError too, fill in what the readers of those look for."""
    if isinstance(error, OSError):
        error.filename = path or None
        error.strerror = os.strerror(errno) if errno else message


def _blank(kind: type[PycontainError], args: tuple[Any, ...]) -> PycontainError:
    """An exception with nothing but its arguments, made past its constructor; pickle fills it."""
    # Asked of the class that lays the object out: LookupError's, first in the order of some, refuses.
    error = OSError.__new__(kind) if issubclass(kind, OSError) else Exception.__new__(kind)
    error.args = args
    return error


class PycontainError(Exception):
    """The root of the tree: what everything that pycontain raises on purpose is.

    hint: what to do about it, where that is known; it is part of the message.
    """

    hint: str | None = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(escaped(f"{message} (hint: {hint})" if hint else message))
        self.hint = hint

    # OSError would make its own message of errno and filename, which says less.
    __str__ = Exception.__str__

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's calls the constructor with `args`, which are the message and not what it takes.
        return _blank, (type(self), self.args), _facts(self)


class ImageError(PycontainError):
    """The image, its documents or the store."""


class PullError(ImageError):
    """An image could not be fetched; the store is as it was."""


class PushError(ImageError):
    """An image could not be sent; what the registry has already stays there."""


class AuthError(ImageError):
    """A registry refused the credentials."""


class DigestMismatch(ImageError):
    """Content is not what its digest says."""


class InvalidReference(ImageError, ValueError):
    """Text that is no reference of an image; nothing was asked of anybody."""


class BuildError(ImageError):
    """A Dockerfile could not be built."""


class StartError(PycontainError):
    """A control on the way to the guest's first instruction failed; nothing of the guest ran.

    step: the control, as C names it ('clone', 'mount', 'execve', ...).  errno: what the kernel said,
    0 where it was not asked.  path: what it was about, or None.
    """

    def __init__(
        self, message: str, *, step: str, errno: int = 0, path: str | None = None, hint: str | None = None
    ) -> None:
        what = f"{message}: {step}"
        if path:
            what += f" {path[:_PATH_SHOWN]!r}"
        if errno:
            what += f": {os.strerror(errno)}"
        super().__init__(what, hint=hint)
        self.step = step
        self.errno = errno
        self.path = path
        _tell_os_facts(self, message, errno, path)


class UnsupportedError(PycontainError):
    """This host cannot provide `feature`; nothing was created.

    feature: what was asked for.  hint: how to get it, or how to go without.
    """

    def __init__(self, feature: str, hint: str | None = None) -> None:
        super().__init__(f"this host does not support {feature}", hint=hint)
        self.feature = feature


class LimitError(PycontainError, ValueError):
    """A limit that is malformed, negative, or too small to start anything."""


class NotFound(PycontainError, LookupError):
    """No such image, container, user or command."""


class Conflict(PycontainError):
    """The name or resource is taken."""


class StateError(PycontainError):
    """The object's state does not allow this: not started, already removed, paused."""


class ContainerEnded(StateError):
    """The container ended while a command ran in it.

    reason: why it ended: 'timeout' when its lifetime passed, 'oom' when the kernel killed its PID 1 at the
    memory limit, 'cancelled' when the caller stopped or removed it or closed its engine, 'signal' when it
    was killed, 'exit' when its PID 1 ended by itself.
    """

    def __init__(self, message: str, *, reason: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class PathError(PycontainError, OSError):
    """A path could not be used: one inside a container, one to mount there, or the engine's root.

    path: the path, '' where there is no single one.  errno: what the kernel said, 0 where it was not
    asked.  As on every OSError, `filename` is the path or None, and `strerror` the text of errno.
    """

    def __init__(self, message: str, *, path: str = "", errno: int = 0, hint: str | None = None) -> None:
        PycontainError.__init__(self, message, hint=hint)
        self.errno = errno
        self.path = path
        _tell_os_facts(self, message, errno, path)


class PathNotFound(PathError, FileNotFoundError):
    """Nothing has this path."""


class PathExists(PathError, FileExistsError):
    """Something has this path already."""


class PathForbidden(PathError, PermissionError):
    """This may not be done with the path, by its mode, its mount, or another rule of the kernel."""


class PathIsDirectory(PathError, IsADirectoryError):
    """The path is a directory, where a file was meant."""


class PathNotDirectory(PathError, NotADirectoryError):
    """The path, or a part of it, is no directory."""


_PATH_ERRORS: dict[int, type[PathError]] = {
    errno.ENOENT: PathNotFound,
    errno.EEXIST: PathExists,
    errno.EACCES: PathForbidden,
    errno.EPERM: PathForbidden,
    errno.EISDIR: PathIsDirectory,
    errno.ENOTDIR: PathNotDirectory,
}


def path_error(what: str, path: str, number: int, hint: str | None = None) -> PathError:
    """The PathError of an errno."""
    kind = _PATH_ERRORS.get(number, PathError)
    return kind(f"{what} {path!r}: {os.strerror(number)}", path=path, errno=number, hint=hint)


class CommandNotFound(StartError, NotFound, FileNotFoundError):  # type: ignore[misc]
    """The command, or the interpreter that it names, does not exist in the image; nothing ran.

    returncode: 127, as a shell has it.
    """

    returncode = 127


class CommandNotExecutable(StartError, PermissionError):  # type: ignore[misc]
    """The command exists but may not or cannot be executed; nothing ran.

    returncode: 126, as a shell has it.
    """

    returncode = 126


class WorkdirError(StartError, PathError):  # type: ignore[misc]
    """The working directory does not exist or may not be entered; nothing ran."""


class CommandFailed(PycontainError, subprocess.CalledProcessError):
    """A checked command ended with something else than 0, or was cut off by `max_output`.

    cmd, returncode (negative for a signal), stdout, stderr: as on subprocess.CalledProcessError.
    reason, usage: as on ExecResult.
    """

    def __init__(
        self,
        args: Args,
        returncode: int,
        stdout: Output,
        stderr: Output,
        *,
        reason: str,
        usage: Usage,
    ) -> None:
        subprocess.CalledProcessError.__init__(self, returncode, args, stdout, stderr)
        self.reason = reason
        self.usage = usage

    def __str__(self) -> str:
        if self.returncode == 0:
            return f"Command {self.cmd!r} was cut off (reason: {self.reason})."
        return escaped(f"{subprocess.CalledProcessError.__str__(self)[:-1]} (reason: {self.reason}).")


class CommandTimeout(PycontainError, subprocess.TimeoutExpired):
    """The deadline passed, and every process of the command is gone.

    cmd, timeout (seconds), stdout, stderr (what was written until then): as on
    subprocess.TimeoutExpired, but text unless the command was run with text=False.
    reason: 'timeout'.  usage: as on ExecResult.
    """

    reason = "timeout"
    if TYPE_CHECKING:  # bytes there, in the stubs of subprocess
        stdout: Any
        stderr: Any

    def __init__(self, args: Args, timeout: float, stdout: Output, stderr: Output, *, usage: Usage) -> None:
        subprocess.TimeoutExpired.__init__(self, args, timeout, stdout, stderr)
        self.usage = usage

    def __str__(self) -> str:
        return escaped(subprocess.TimeoutExpired.__str__(self))


class CallError(PycontainError):
    """A function that was called in a container raised, or returned what is no plain data.

    type_name, message: of the exception inside.  traceback: formatted, as text; all three are the guest's
    words.  stdout, stderr: what was written until then, '' where no function ran.  reason, usage: as on
    ExecResult; usage is None where no function ran.
    """

    def __init__(
        self,
        type_name: str,
        message: str,
        traceback: str = "",
        *,
        stdout: str = "",
        stderr: str = "",
        reason: str = "exit",
        usage: Usage | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(f"{type_name}: {message}" if message else type_name, hint=hint)
        self.type_name = type_name
        self.message = message
        self.traceback = traceback
        self.stdout = stdout
        self.stderr = stderr
        self.reason = reason
        self.usage = usage
