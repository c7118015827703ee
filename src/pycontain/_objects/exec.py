"""Implementation of `Container.exec`, and the checked arguments that it shares with `popen`."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from attrs import frozen

from pycontain._kernel import native
from pycontain._kernel.protocol import RecordKind
from pycontain._model.limits import CgroupLimits
from pycontain._model.process import ExecResult, Reason
from pycontain._model.sizes import parse_cap, parse_duration, shown
from pycontain._model.user import asked_user
from pycontain._runtime import spec as specs
from pycontain._runtime.cancel import CancelToken
from pycontain._runtime.exec import Command, Execution, command_of, returncode_of
from pycontain._runtime.log import debug_end
from pycontain._runtime.running import Running
from pycontain._runtime.streams import BUFFER, DEVNULL, PIPE, Ending, Plumbing, Pump, Stream, decoder
from pycontain.errors import Args, CommandFailed, CommandTimeout


@frozen
class Invocation:
    """Checked arguments of a command, before names are looked up in a container."""

    argv: tuple[str, ...]
    env: dict[str, str] | None
    workdir: str | None
    user: str | None
    limits: CgroupLimits | None

    @classmethod
    def of(
        cls,
        args: Args,
        shell: bool,
        env: Mapping[str, str] | None,
        workdir: str | None,
        user: str | int | None,
        limits: CgroupLimits | None,
    ) -> Invocation:
        """Check the arguments of a command.

        Raises:
            ValueError: An argument is malformed.
            TypeError: An argument has the wrong type.
        """
        return cls(
            _argv(args, shell),
            specs.environment(env) if env is not None else None,
            specs.inside(workdir) if workdir is not None else None,
            None if user is None else asked_user(user),
            specs.checked_limits(limits),
        )

    def resolve(self, running: Running, terminal: tuple[int, int] | None = None) -> Command:
        """Return the command with user, groups and working directory of a container.

        Raises:
            NotFound: The user does not exist.
        """
        return command_of(running, self.argv, self.env, self.workdir, self.user, terminal)

    def launch(
        self, running: Running, streams: tuple[Stream, Stream, Stream], terminal: tuple[int, int] | None
    ) -> tuple[Execution, list[int]]:
        """Start the command and return its execution and our ends of its streams."""
        command = self.resolve(running, terminal)
        plumbing = Plumbing(*streams)
        plumbing.give_to(running, command.identity)
        try:
            execution = Execution.launch(running, command, plumbing.guest, self.limits)
        except BaseException:
            plumbing.close()
            raise
        plumbing.hand_over(execution)
        return execution, plumbing.ours


class Exec:
    """One `Container.exec`: input, streams, limits and decoding of output.

    Raises:
        ValueError: An argument is malformed.
        TypeError: An argument has the wrong type.
        LookupError: The encoding does not exist.
    """

    def __init__(
        self,
        args: Args,
        stdout: Stream,
        stderr: Stream,
        text: bool,
        encoding: str,
        errors: str,
        data: str | bytes | None,
        timeout: float | timedelta | None,
        max_output: int | str | None,
        *,
        stdin: Stream = DEVNULL,
        kill_orphans: bool = False,
        cancel: CancelToken | None = None,
    ) -> None:
        if data is not None and stdin != DEVNULL:
            raise ValueError("stdin and input must not both be given (hint: leave one out)")
        if BUFFER in (stdout, stderr):
            raise ValueError(
                "stdout and stderr of exec must be PIPE, STDOUT, DEVNULL, a file or a descriptor, got BUFFER"
            )
        self._args = args
        self._stdin = PIPE if data is not None else stdin
        self._streams = stdout, stderr
        self._kill_orphans = kill_orphans
        self._cancel = cancel
        self._seconds = None if timeout is None else parse_duration(timeout)
        self._cap = parse_cap(max_output)
        self._data = _input_bytes(data, encoding)
        self._decode = decoder(text, encoding, errors)

    def run(self, running: Running, what: Invocation, *, check: bool) -> ExecResult[Any]:
        """Start the command, transfer its streams, wait for its end and return the result."""
        command = what.resolve(running)
        plumbing = Plumbing(self._stdin, *self._streams)
        try:
            plumbing.give_to(running, command.identity)
            execution = Execution.launch(running, command, plumbing.guest, what.limits, quiet=True)
            plumbing.hand_over(execution)
            covered = contextlib.nullcontext() if self._cancel is None else self._cancel.covering(execution)
            with Pump(execution, plumbing, self._data or b"", self._seconds, self._cap) as pump, covered:
                ending = pump.run(kill_orphans=self._kill_orphans)
                outputs = [
                    pump.output(at) if stream == PIPE else None for at, stream in enumerate(self._streams, 1)
                ]
                record = pump.record
        finally:
            plumbing.close()
        return self._result(execution, command, ending, record, outputs, check)

    def _result(
        self,
        execution: Execution,
        command: Command,
        ending: Ending,
        record: native.Record | None,
        outputs: Sequence[bytes | None],
        check: bool,
    ) -> ExecResult[Any]:
        counters = execution.finish()
        usage = execution.usage(record, counters)
        out, err = map(self._decode, outputs)
        if ending == "timeout":
            assert self._seconds is not None
            debug_end(execution, -signal.SIGKILL, "timeout")
            raise CommandTimeout(self._args, self._seconds, out, err, usage=usage)
        if record is not None and record.kind == RecordKind.FAILED:
            from pycontain._runtime.exec_errors import start_failure

            raise start_failure(command, record)
        returncode = returncode_of(record.value) if record is not None else -signal.SIGKILL
        # If the engine killed the command, its own exit status is unknown and the engine's reason counts.

        reason: Reason = execution.reason(returncode, counters, usage)
        if ending == "output" or ending == "cancelled":
            reason = ending
        debug_end(execution, returncode, reason)
        execution.timings["total"] = usage.wall
        if check and (returncode != 0 or ending != "exit"):
            raise CommandFailed(self._args, returncode, out, err, reason=reason, usage=usage)
        return ExecResult(
            self._args,
            returncode,
            out,
            err,
            reason=reason,
            usage=usage,
            timings=execution.timings,
            truncated=ending == "output",
        )


def _argv(args: Args, shell: bool) -> tuple[str, ...]:
    if shell:
        if not isinstance(args, str):
            raise ValueError(f"with shell=True the command must be one string, got {shown(args)}")
        return ("/bin/sh", "-c", *(specs.command(args) or ()))
    argv = specs.command(args)
    assert argv is not None
    return argv


def _input_bytes(data: str | bytes | None, encoding: str) -> bytes | None:
    if data is None:
        return None
    if isinstance(data, str):
        return data.encode(encoding)
    try:
        return bytes(memoryview(data).cast("B"))
    except TypeError:
        raise TypeError(f"input must be text or bytes, got {shown(data)}") from None
