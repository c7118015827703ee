"""What is known of a process that ran."""

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
else:  # typing has no defaults before Python 3.13
    S = TypeVar("S", bound=str | bytes)
Output: TypeAlias = str | bytes | None
Reason: TypeAlias = Literal[
    "exit", "signal", "timeout", "oom", "pids", "disk", "output", "seccomp", "cpu", "cancelled"
]
"""Why a command ended, by what the kernel counted and the engine did; never a guess."""


@frozen(kw_only=True)
class Usage:
    """What a command used, from the kernel's own counters.

    wall, cpu_user, cpu_system: seconds.  memory_peak, read_bytes, written_bytes: bytes.
    processes: the most tasks alive at once.  oom_kills: processes that the kernel killed at the memory limit,
    also where the command went on and ended with 0.  None where the host does not count it: cgroup v1 counts
    processes only for a command with a `pids` limit of its own (Linux 6.11).  Without the io controller of
    cgroup v2, read_bytes and written_bytes are those of the command and the children that it waited for.
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
    """A CompletedProcess that explains itself.

    args, returncode, stdout, stderr: as subprocess has them; a negative returncode is the number of
    a signal, an output that was not captured is None.  `ExecResult` in an annotation is `ExecResult[str]`;
    with text=False it is `ExecResult[bytes]`.
    reason: why it ended, as `Reason` lists it.
    usage: what it used.  timings: seconds by phase.  truncated: output was cut at `max_output`.
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
        """Raise CommandFailed where `exec(..., check=True)` does: not 0, or output that was cut."""
        if self.returncode != 0 or self.reason == "output":
            raise CommandFailed(
                self.args, self.returncode, self.stdout, self.stderr, reason=self.reason, usage=self.usage
            )

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, reason={self.reason!r})"


class ExitStatus(int):
    """The return code of a container's own command, with what explains it.

    It is an int: 0 and more for a status, negative for a signal.
    reason: why it ended, as `Reason` lists it.  usage: what it used.
    """

    reason: Reason
    usage: Usage

    def __new__(cls, returncode: int, reason: Reason, usage: Usage) -> Self:
        """Make one of a return code."""
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
    """What a call of a function gave.

    value: what it returned.  stdout, stderr: what it wrote.  reason: 'exit'.  usage: what the call used, all
    of its processes together; memory_peak is what it touched beyond the pages that the prepared interpreter
    had.  timings: seconds by phase.
    """

    value: T
    stdout: str
    stderr: str
    reason: Reason
    usage: Usage
    timings: Mapping[str, float]
