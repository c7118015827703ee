"""Results of commands and calls."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from typing import TYPE_CHECKING, Generic, Literal, Self, TypeAlias, TypeVar

from attrs import frozen

from pycontain.errors import Args, CommandFailed

T = TypeVar("T")
if TYPE_CHECKING:
    import typing_extensions

    S = typing_extensions.TypeVar("S", bound=str | bytes, default=str)
    Chars = typing_extensions.TypeVar("Chars", str, bytes, default=str)
else:  # typing has no defaults before Python 3.13
    S = TypeVar("S", bound=str | bytes)
    Chars = TypeVar("Chars", str, bytes)
Output: TypeAlias = str | bytes | None
Reason: TypeAlias = Literal[
    "exit", "signal", "timeout", "oom", "pids", "disk", "output", "seccomp", "cpu", "cancelled"
]
"""Reasons for the end of a command, from counters of the kernel and actions of the engine."""


@frozen(kw_only=True)
class Usage:
    """Resources that a command used, from counters of the kernel.

    Attributes:
        wall: Seconds of wall-clock time.
        cpu_user: Seconds of processor time in user mode.
        cpu_system: Seconds of processor time in the kernel.
        memory_peak: Maximum memory in bytes, or None if the host does not count it.
        read_bytes: Bytes read from disks, or None.  Without the io controller of cgroup v2, those of the
            command and of the children that it waited for.
        written_bytes: Bytes written to disks, as `read_bytes`.
        processes: Maximum number of tasks at the same time, or None.  cgroup v1 counts tasks only for a
            command with a `pids` limit of its own (Linux 6.11).
        oom_kills: Processes that the kernel killed at the memory limit, even if the command went on and
            returned 0; None if the host does not count them.
    """

    wall: float
    cpu_user: float
    cpu_system: float
    memory_peak: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    processes: int | None = None
    oom_kills: int | None = None


class ExecResult(subprocess.CompletedProcess[S]):
    """Result of a command: a subprocess.CompletedProcess with the reason of its end.

    `ExecResult` in an annotation means `ExecResult[str]`; with `text=False` it is `ExecResult[bytes]`.

    Attributes:
        args: The command.
        returncode: The exit status, or the negative number of the signal that killed the command.
        stdout: Standard output; None if it was not captured.
        stderr: Standard error; None if it was not captured.
        reason: Why the command ended: 'exit', 'signal', 'timeout', 'oom', 'pids', 'disk', 'output',
            'seccomp', 'cpu' or 'cancelled'.
        usage: Resources that the command used.
        timings: Seconds by phase.
        truncated: Whether output was cut at `max_output`.
    """

    def __init__(
        self,
        args: Args,
        returncode: int,
        stdout: S | None,
        stderr: S | None,
        *,
        reason: Reason,
        usage: Usage,
        timings: Mapping[str, float],
        truncated: bool = False,
    ) -> None:
        super().__init__(args, returncode, stdout, stderr)
        self.reason: Reason = reason
        self.usage = usage
        self.timings = timings
        self.truncated = truncated

    def check_returncode(self) -> None:
        """Raise an error as `exec(..., check=True)` does.

        Raises:
            CommandFailed: The status is not 0, or the output was cut.
        """
        if self.returncode != 0 or self.reason == "output":
            raise CommandFailed(
                self.args, self.returncode, self.stdout, self.stderr, reason=self.reason, usage=self.usage
            )

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, reason={self.reason!r})"

    def _repr_html_(self) -> str:
        from pycontain._model.html import table

        rows = [("args", str(self.args)), ("returncode", str(self.returncode)), ("reason", self.reason)]
        for name, output in (("stdout", self.stdout), ("stderr", self.stderr)):
            if output:
                rows.append((name, output if isinstance(output, str) else repr(output)))
        return table([*rows, ("wall time", f"{self.usage.wall:.3f} s")])


class ExitStatus(int):
    """Return code of a container's own command: an int, negative for a signal.

    Attributes:
        reason: Why the command ended, as in ExecResult.
        usage: Resources that the command used.
    """

    reason: Reason
    usage: Usage

    def __new__(cls, returncode: int, reason: Reason, usage: Usage) -> Self:
        """Create the status from a return code."""
        new = super().__new__(cls, returncode)
        new.reason, new.usage = reason, usage
        return new

    def __getnewargs__(self) -> tuple[int, Reason, Usage]:  # type: ignore[override]
        return int(self), self.reason, self.usage

    def __repr__(self) -> str:
        return f"<ExitStatus {int(self)} reason={self.reason!r}>"

    __str__ = int.__repr__


@frozen(kw_only=True)
class CallResult(Generic[T]):
    """Result of a function call in a container.

    Attributes:
        value: The return value of the function.
        stdout: Standard output of the call.
        stderr: Standard error of the call.
        reason: 'exit'.
        usage: Resources of all processes of the call; `memory_peak` counts the pages that the
            call touched beyond those of the prepared interpreter.
        timings: Seconds by phase.
    """

    value: T
    stdout: str
    stderr: str
    reason: Reason
    usage: Usage
    timings: Mapping[str, float]
