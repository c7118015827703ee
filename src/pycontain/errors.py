"""Exceptions of pycontain.

::

    PycontainError
    ├── ImageError                     an image or the store
    │   ├── PullError
    │   ├── PushError
    │   ├── AuthError
    │   ├── DigestMismatch
    │   ├── InvalidReference           malformed image reference; also ValueError
    │   └── BuildError
    ├── StartError                     a container or process could not start: step, errno, hint
    │   ├── CommandNotFound            also NotFound, FileNotFoundError; exit status 127 in a shell
    │   ├── CommandNotExecutable       also PermissionError; exit status 126 in a shell
    │   └── WorkdirError               also PathError
    ├── UnsupportedError               the host lacks a feature: feature, hint
    ├── LimitError                     a malformed or impossible limit; also ValueError
    ├── CommandFailed                  also subprocess.CalledProcessError
    ├── CommandTimeout                 also subprocess.TimeoutExpired
    ├── CallError                      a called function raised, or its result cannot be sent
    ├── NotFound                       also LookupError
    ├── Conflict
    ├── StateError                     the state of an object does not allow an operation
    │   └── ContainerEnded             the container ended while a command ran: reason
    └── PathError                      also OSError: errno, strerror, filename
        ├── PathNotFound               also FileNotFoundError
        ├── PathExists                 also FileExistsError
        ├── PathForbidden              also PermissionError
        ├── PathIsDirectory            also IsADirectoryError
        └── PathNotDirectory           also NotADirectoryError

All of them can be copied, pickled and sent between processes with their message and attributes.
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
"""A command as subprocess takes it; a single part is the program."""

_PATH_SHOWN = 160
"""Maximum number of characters of a path in a message."""
_OS_ATTRIBUTES = ("errno", "strerror", "filename", "filename2")


def escaped(text: str) -> str:
    """Return `text` with control characters, bidirectional overrides and surrogates as escapes.

    Names and output of a guest become part of messages, and messages are shown on terminals and in logs.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _attributes(error: BaseException) -> dict[str, Any]:
    """Return all attributes of an error; an OSError keeps some outside its `__dict__`."""
    extra = _OS_ATTRIBUTES if isinstance(error, OSError) else ()
    return {**error.__dict__, **{name: getattr(error, name) for name in extra}}


def _set_os_attributes(error: BaseException, message: str, errno: int, path: str | None) -> None:
    """Set `filename` and `strerror` of an error that is also an OSError."""
    if isinstance(error, OSError):
        error.filename = path or None
        error.strerror = os.strerror(errno) if errno else message


def _blank(kind: type[PycontainError], args: tuple[Any, ...]) -> PycontainError:
    """Return an exception that has only its arguments, without calling its constructor; pickle fills it."""
    # LookupError.__new__, the first in the order of some classes, refuses the layout of an OSError.
    error = OSError.__new__(kind) if issubclass(kind, OSError) else Exception.__new__(kind)
    error.args = args
    return error


class PycontainError(Exception):
    """Base class of all exceptions that pycontain raises on purpose.

    Attributes:
        hint: An instruction that may solve the problem, or None; it is part of the message.
    """

    hint: str | None = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(escaped(f"{message} (hint: {hint})" if hint else message))
        self.hint = hint

    # OSError.__str__ builds its text from errno and filename, which says less than the message.
    __str__ = Exception.__str__

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception.__reduce__ calls the constructor with `args`, but our constructors take other arguments.
        return _blank, (type(self), self.args), _attributes(self)


class ImageError(PycontainError):
    """An image, one of its documents, or the store is unusable."""


class PullError(ImageError):
    """An image could not be fetched; the store is unchanged."""


class PushError(ImageError):
    """An image could not be sent; content that was already uploaded stays in the registry."""


class AuthError(ImageError):
    """A registry refused the credentials."""


class DigestMismatch(ImageError):
    """Content does not match its digest."""


class InvalidReference(ImageError, ValueError):
    """An image reference is malformed; no registry was contacted."""


class BuildError(ImageError):
    """A Dockerfile could not be built."""


class StartError(PycontainError):
    """A step of a start failed before the first instruction of the guest.

    Attributes:
        step: The step that failed, by its name in C ('clone', 'mount', 'execve', ...).
        errno: The error number of the kernel, or 0 if the kernel was not involved.
        path: The path that the step was about, or None.
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
        _set_os_attributes(self, message, errno, path)


class UnsupportedError(PycontainError):
    """The host does not provide a feature; nothing was created.

    Attributes:
        feature: The missing feature.
        hint: How to provide the feature or do without it, or None.
    """

    def __init__(self, feature: str, hint: str | None = None) -> None:
        super().__init__(f"this host does not support {feature}", hint=hint)
        self.feature = feature


class LimitError(PycontainError, ValueError):
    """A limit is malformed, negative, or too small for a start."""


class NotFound(PycontainError, LookupError):
    """An image, container, user or command does not exist."""


class Conflict(PycontainError):
    """A name or resource is already in use."""


class StateError(PycontainError):
    """The state of an object does not allow an operation, such as not started, paused or removed."""


class ContainerEnded(StateError):
    """The container ended while a command ran in it.

    Attributes:
        reason: Why the container ended: 'timeout' when its lifetime passed, 'oom' when the kernel killed its
            PID 1 at the memory limit, 'cancelled' when the caller stopped or removed it or closed its engine,
            'signal' when it was killed, 'exit' when its PID 1 ended by itself.
    """

    def __init__(self, message: str, *, reason: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class PathError(PycontainError, OSError):
    """A path in a container, a path to mount there, or the root of the engine could not be used.

    As for every OSError, `filename` is the path or None, and `strerror` the text of `errno`.

    Attributes:
        path: The path, or '' if the error is not about a single path.
        errno: The error number of the kernel, or 0 if the kernel was not involved.
    """

    def __init__(self, message: str, *, path: str = "", errno: int = 0, hint: str | None = None) -> None:
        PycontainError.__init__(self, message, hint=hint)
        self.errno = errno
        self.path = path
        _set_os_attributes(self, message, errno, path)


class PathNotFound(PathError, FileNotFoundError):
    """The path does not exist."""


class PathExists(PathError, FileExistsError):
    """The path exists already."""


class PathForbidden(PathError, PermissionError):
    """The mode, the mount, or another rule of the kernel forbids the operation on the path."""


class PathIsDirectory(PathError, IsADirectoryError):
    """The path is a directory, but the operation needs a file."""


class PathNotDirectory(PathError, NotADirectoryError):
    """The path, or one of its parents, is not a directory."""


_PATH_ERRORS: dict[int, type[PathError]] = {
    errno.ENOENT: PathNotFound,
    errno.EEXIST: PathExists,
    errno.EACCES: PathForbidden,
    errno.EPERM: PathForbidden,
    errno.EISDIR: PathIsDirectory,
    errno.ENOTDIR: PathNotDirectory,
}


def path_error(what: str, path: str, number: int, hint: str | None = None) -> PathError:
    """Return the PathError of an errno."""
    kind = _PATH_ERRORS.get(number, PathError)
    return kind(f"{what} {path!r}: {os.strerror(number)}", path=path, errno=number, hint=hint)


class CommandNotFound(StartError, NotFound, FileNotFoundError):  # type: ignore[misc]
    """The command, or the interpreter in its first line, does not exist in the image; nothing ran.

    Attributes:
        returncode: 127, the exit status of a shell in this case.
    """

    returncode = 127


class CommandNotExecutable(StartError, PermissionError):  # type: ignore[misc]
    """The command exists but cannot be executed; nothing ran.

    Attributes:
        returncode: 126, the exit status of a shell in this case.
    """

    returncode = 126


class WorkdirError(StartError, PathError):  # type: ignore[misc]
    """The working directory does not exist or cannot be entered; nothing ran."""


class CommandFailed(PycontainError, subprocess.CalledProcessError):
    """A command with `check=True` returned a status other than 0, or exceeded `max_output`.

    `cmd`, `returncode` (negative for a signal), `stdout` and `stderr` are those of
    subprocess.CalledProcessError.

    Attributes:
        reason: Why the command ended, as in ExecResult.
        usage: Resources that the command used, as in ExecResult.
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
    """The timeout of a command passed; all of its processes have been killed.

    `cmd`, `timeout` (seconds), `stdout` and `stderr` (the output so far) are those of
    subprocess.TimeoutExpired, but the output is text unless the command was run with `text=False`.

    Attributes:
        reason: 'timeout'.
        usage: Resources that the command used, as in ExecResult.
    """

    reason = "timeout"
    if TYPE_CHECKING:  # the stubs of subprocess declare bytes
        stdout: Any
        stderr: Any

    def __init__(self, args: Args, timeout: float, stdout: Output, stderr: Output, *, usage: Usage) -> None:
        subprocess.TimeoutExpired.__init__(self, args, timeout, stdout, stderr)
        self.usage = usage

    def __str__(self) -> str:
        return escaped(subprocess.TimeoutExpired.__str__(self))


class CallError(PycontainError):
    """A function that was called in a container raised, or returned a value that cannot be sent.

    All text except `reason` comes from the guest.

    Attributes:
        type_name: The class of the exception in the container.
        message: The message of the exception.
        traceback: The formatted traceback, as text.
        stdout: Standard output until then; '' if no function ran.
        stderr: Standard error until then; '' if no function ran.
        reason: Why the call ended, as in ExecResult.
        usage: Resources that the call used, as in ExecResult; None if no function ran.
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
