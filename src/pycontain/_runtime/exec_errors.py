"""Errors of exec requests that failed before their command ran, with remedies."""

from __future__ import annotations

from errno import (
    E2BIG,
    EACCES,
    EAGAIN,
    EINVAL,
    EMFILE,
    ENAMETOOLONG,
    ENOENT,
    ENOEXEC,
    ENOMEM,
    ENOTDIR,
    EPERM,
)
from typing import TYPE_CHECKING

from pycontain.errors import CommandNotExecutable, CommandNotFound, StartError, WorkdirError

if TYPE_CHECKING:
    from pycontain._kernel import native
    from pycontain._runtime.exec import Command

_NOT_EXECUTABLE = {
    EACCES: "give the file execute permission for this user, on a mount without noexec",
    ENOEXEC: "use a program for this machine's architecture, or begin the script with #!",
}
_WORKDIR = {
    EACCES: "give this user the right to enter the directory, or choose another workdir",
    EMFILE: "raise the rlimit nofile: the agent needs descriptors to start a command",
}
_HINTS = {
    E2BIG: "pass large data with input= or in a file: execve(2) limits arguments and environment together",
    ENAMETOOLONG: "shorten the name: a path has at most 4095 bytes, and a part of it 255",
    EMFILE: "raise the rlimit nofile: the agent needs descriptors to start a command",
    ENOMEM: "raise the memory limit, or the rlimits as, data and stack",
    EAGAIN: "raise pids, or the rlimit nproc",
}


def start_failure(command: Command, record: native.Record) -> StartError:
    """Return the error of an exec request that failed before its command ran."""
    step, errno = record.step_name, record.errno
    name = command.argv[0]
    if step == "execve" and errno in (ENOENT, ENOTDIR):
        return CommandNotFound(
            "no such command",
            step=step,
            errno=errno,
            path=name,
            hint="install the command, or the interpreter that its first line names, in the image",
        )
    if step == "execve" and errno in (EACCES, ENOEXEC):
        return CommandNotExecutable(
            "cannot execute the command", step=step, errno=errno, path=name, hint=_NOT_EXECUTABLE[errno]
        )
    if step == "chdir":
        return WorkdirError(
            "no usable working directory",
            step=step,
            errno=errno,
            path=command.workdir,
            hint=_WORKDIR.get(
                errno, "create the directory in the image, mount one there, or choose another workdir"
            ),
        )
    hint = _HINTS.get(errno)
    if step in ("user", "groups") and errno in (EPERM, EINVAL):
        hint = "use an id below 65536; an unprivileged user without ranges in /etc/subuid has only 0"
    return StartError("cannot start the command", step=step, errno=errno, path=name, hint=hint)


def too_long(command: Command) -> StartError:
    """Return the error for arguments and environment that are too long for the agent."""
    return StartError(
        "cannot start the command", step="execve", errno=E2BIG, path=command.argv[0], hint=_HINTS[E2BIG]
    )
