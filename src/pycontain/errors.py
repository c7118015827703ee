"""Every exception that pycontain raises on purpose.

::

    PycontainError
    ├── ImageError                     the image or its store
    │   ├── PullError
    │   ├── AuthError
    │   ├── DigestMismatch
    │   └── BuildError
    ├── StartError                     a container or process could not start: step, errno, hint
    │   ├── CommandNotFound            also NotFound, FileNotFoundError; a shell would say 127
    │   ├── CommandNotExecutable       also PermissionError; a shell would say 126
    │   └── WorkdirError               also PathError
    ├── UnsupportedError               this host cannot: feature, hint
    ├── LimitError                     a limit that cannot be meant or cannot work; also ValueError
    ├── CommandFailed                  also subprocess.CalledProcessError
    ├── CommandTimeout                 also subprocess.TimeoutExpired
    ├── NotFound                       also LookupError
    ├── Conflict
    ├── StateError                     the object is not in a state that allows this
    └── PathError                      also OSError
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pycontain._model.process import Output, Usage


class PycontainError(Exception):
    """The root of the tree; `hint` says what to do about it where that is known."""

    hint: str | None = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"{message} (hint: {hint})" if hint else message)
        self.hint = hint


class ImageError(PycontainError):
    """The image, its documents or the store."""


class PullError(ImageError):
    """An image could not be fetched."""


class AuthError(ImageError):
    """A registry refused the credentials."""


class DigestMismatch(ImageError):
    """Content is not what its digest says."""


class BuildError(ImageError):
    """A Dockerfile could not be built."""


class StartError(PycontainError):
    """A control on the way to the guest's first instruction failed; nothing of the guest ran."""

    def __init__(
        self, message: str, *, step: str, errno: int = 0, path: str | None = None, hint: str | None = None
    ) -> None:
        what = f"{message}: {step}"
        if path:
            what += f" {path!r}"
        if errno:
            what += f": {os.strerror(errno)}"
        super().__init__(what, hint=hint)
        self.step = step
        self.errno = errno
        self.path = path


class UnsupportedError(PycontainError):
    """This host cannot provide `feature`; nothing was created."""

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


class PathError(PycontainError, OSError):
    """A path inside a container could not be used."""

    def __init__(self, message: str, *, path: str = "", errno: int = 0, hint: str | None = None) -> None:
        PycontainError.__init__(self, message, hint=hint)
        self.errno = errno
        self.path = path


class CommandNotFound(StartError, NotFound, FileNotFoundError):  # type: ignore[misc]
    """The command does not exist in the image; nothing ran."""

    returncode = 127


class CommandNotExecutable(StartError, PermissionError):  # type: ignore[misc]
    """The command exists but may not or cannot be executed; nothing ran."""

    returncode = 126


class WorkdirError(StartError, PathError):  # type: ignore[misc]
    """The working directory does not exist or may not be entered; nothing ran."""


class CommandFailed(PycontainError, subprocess.CalledProcessError):
    """A checked command ended with something else than 0; carries output, usage and reason."""

    def __init__(
        self,
        args: str | Sequence[str],
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
        return f"{subprocess.CalledProcessError.__str__(self)[:-1]} (reason: {self.reason})."


class CommandTimeout(PycontainError, subprocess.TimeoutExpired):
    """The deadline passed; every process of the command is gone; carries the output so far."""

    reason = "timeout"

    def __init__(
        self, args: str | Sequence[str], timeout: float, stdout: Output, stderr: Output, *, usage: Usage
    ) -> None:
        subprocess.TimeoutExpired.__init__(self, args, timeout, stdout, stderr)
        self.usage = usage

    def __str__(self) -> str:
        return subprocess.TimeoutExpired.__str__(self)
