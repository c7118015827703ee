"""Zygote: function calls in forks of a prepared interpreter in a container."""

from __future__ import annotations

import contextlib
import keyword
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import frozen

from pycontain._kernel import native
from pycontain._kernel.waiting import now
from pycontain._model.process import CallResult, Usage
from pycontain._model.sizes import parse_cap, parse_duration
from pycontain._objects.context_manager import ClosingContextManager
from pycontain._objects.exec import Invocation
from pycontain._python import classes, ship
from pycontain._python.host import ANSWER_ROOM, HEADER, Child, ChildLost, PreparationTimeout, Prepared
from pycontain._python.source import Malformed, Source, TooLarge, printable
from pycontain._runtime import spec as specs
from pycontain._runtime.exec import returncode_of
from pycontain._runtime.streams import Ending, Pump
from pycontain.errors import CallError, CommandFailed, CommandTimeout, StartError, StateError

if TYPE_CHECKING:
    from pycontain._model.limits import CgroupLimits
    from pycontain._objects.container import Container
    from pycontain._runtime.running import Running

T = TypeVar("T")


_TRIES = 3
"""Attempts to find a child for a call; a call that a child accepted is never repeated."""


@frozen
class CallOptions:
    """Checked options of a call.

    Attributes:
        seconds: Timeout in seconds, or None.
        limits: Resource limits, or None.
        cap: Maximum number of bytes of each output, or None.
        types: Further classes that a result may contain.
    """

    seconds: float | None
    limits: CgroupLimits | None
    cap: int | None
    types: tuple[type, ...]

    @classmethod
    def of(
        cls,
        timeout: float | timedelta | None,
        limits: CgroupLimits | None,
        max_output: int | str | None,
        types: Sequence[type],
    ) -> CallOptions:
        """Check the options of a call.

        Raises:
            ValueError: An option is malformed.
            TypeError: An option has the wrong type.
        """
        return cls(
            None if timeout is None else parse_duration(timeout),
            specs.checked_limits(limits),
            parse_cap(max_output),
            tuple(types),
        )


class Zygote(ClosingContextManager):
    """A Python interpreter in a container that imports modules once and is forked for each call.

    `Container.zygote` returns one.  Each call runs in a new fork, so calls share no state except files of the
    container.  Threads may call at the same time.  If the interpreter was killed, the next call starts it
    again.  It ends with the container, with `close`, or at the end of its `with` block.
    """

    def __init__(
        self,
        awake: Callable[[], Running],
        imports: Sequence[str],
        what: Invocation,
        seconds: float | None,
        initializer: Callable[[], object] | None = None,
    ) -> None:
        self._awake = awake
        self._initializer = initializer
        self._imports = tuple(imports)
        self._what = what
        self._seconds = seconds
        self._prepared: Prepared | None = None
        self._closed = False
        self._lock = threading.RLock()
        # Without cgroups, killing the processes of one call would kill those of another, so calls take turns.
        self._alone = threading.RLock()

    def call(
        self,
        function: Callable[..., T],
        /,
        *args: Any,
        timeout: float | timedelta | None = None,
        limits: CgroupLimits | None = None,
        max_output: int | str | None = "16M",
        types: Sequence[type] = (),
        **keywords: Any,
    ) -> T:
        """Call a function and return its result; the arguments and errors are those of `run`."""
        options = CallOptions.of(timeout, limits, max_output, types)
        return self._run(function, args, keywords, options).value

    def run(
        self,
        function: Callable[..., T],
        /,
        *args: Any,
        timeout: float | timedelta | None = None,
        limits: CgroupLimits | None = None,
        max_output: int | str | None = "16M",
        types: Sequence[type] = (),
        **keywords: Any,
    ) -> CallResult[T]:
        """Call a function and return its result with output and resource usage.

        Results are decoded as data and never unpickled.  They may consist of numbers, text, bytes, built-in
        containers, dates and times, Decimal, Fraction, UUID, paths, exceptions, arrays and scalars of numpy,
        Series, DataFrame and Index of pandas, and of namedtuples, dataclasses, attrs classes and enumerations
        of this process (see `types`).

        Args:
            function: Any function that cloudpickle can pickle; its module is sent too unless it is installed
                in the container.
            *args: Positional arguments of the function.
            timeout: Seconds until all processes of the call are killed, including the start of the
                interpreter.
            limits: Resource limits of this call.
            max_output: Maximum number of bytes of standard output, of standard error and of the encoded
                result, whose decoded form may take ten times as much memory; None for no maximum of the
                outputs.
            types: Further classes of which the result may have instances, besides those of the function's
                module and those of the arguments and their modules.
            **keywords: Keyword arguments of the function; use functools.partial for one with the name of an
                option.

        Raises:
            CallError: The function raised, or its result is not data.
            CommandTimeout: The timeout passed.
            CommandFailed: The process died; `reason` says why.
            TypeError: The call cannot be pickled.
            StateError: The container or the zygote has ended.
        """
        options = CallOptions.of(timeout, limits, max_output, types)
        return self._run(function, args, keywords, options)

    def prepare(self) -> None:
        """Start the interpreter and wait for its imports.  Idempotent.

        Raises:
            CallError: An import failed, or the interpreter was not ready within its timeout.
            StateError: The container or the zygote has ended.
        """
        self._get(_Clock("zygote", None))

    def _run(
        self,
        function: Callable[..., T],
        args: tuple[Any, ...],
        keywords: dict[str, Any],
        options: CallOptions,
    ) -> CallResult[T]:
        clock = _Clock(_name(function), options.seconds)
        known = classes.collect(function, (*args, *keywords.values()), options.types)
        names = [one.name for one in known]
        call = ship.payload(function, args, keywords, names, self._initializer)
        return _Run(self, clock, call, options.cap, known).go(options.limits)

    def close(self) -> None:
        """End the interpreter and its running calls.  Idempotent."""
        with self._lock:
            self._closed = True
            prepared, self._prepared = self._prepared, None
        if prepared is not None:
            prepared.discard()

    def _get(self, clock: _Clock) -> Prepared:
        """Return the interpreter, started again if it has ended.

        Raises:
            StateError: The zygote is closed.
            CommandTimeout: The timeout of the call passed.
        """
        with clock.holding(self._lock):
            running = self._awake()
            if self._closed:
                raise StateError("the zygote is closed")
            prepared = self._prepared
            if prepared is None or prepared.running is not running or not prepared.alive:
                if prepared is not None:
                    prepared.discard()
                self._prepared = None
                self._prepared = prepared = self._start(running, clock)
            return prepared

    def _start(self, running: Running, clock: _Clock) -> Prepared:
        """Start the interpreter within the timeouts of the call and of the zygote."""
        command = self._what.resolve(running)
        own = None if self._seconds is None else now() + self._seconds
        ends = [one for one in (own, clock.deadline) if one is not None]
        try:
            return Prepared.start(running, command, self._imports, min(ends, default=None))
        except PreparationTimeout as error:
            if clock.is_over():
                raise clock.timed_out() from None
            raise CallError(
                "TimeoutError",
                "the interpreter was not prepared in time",
                str(error),
                hint="pass a longer timeout= to zygote()",
            ) from None

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<Zygote {state} imports={list(self._imports)!r}>"


class _Clock:
    """Deadline of a call, which includes the start of its interpreter."""

    def __init__(self, name: str, seconds: float | None) -> None:
        self.name = name
        self.seconds = seconds
        self.begun = time.perf_counter()
        self.deadline = None if seconds is None else now() + seconds

    def left(self) -> float | None:
        """Return the remaining seconds, at least 0.001, or None without a timeout."""
        return None if self.deadline is None else max(0.001, self.deadline - now())

    def is_over(self) -> bool:
        """Return whether the deadline has passed."""
        return self.deadline is not None and now() >= self.deadline

    def timed_out(self) -> CommandTimeout:
        """Return the error of a call that never ran."""
        assert self.seconds is not None
        usage = Usage(wall=time.perf_counter() - self.begun, cpu_user=0.0, cpu_system=0.0)
        return CommandTimeout(self.name, self.seconds, "", "", usage=usage)

    @contextlib.contextmanager
    def holding(self, lock: threading.RLock) -> Iterator[None]:
        """Hold a lock, and wait for it until the deadline at most.

        Raises:
            CommandTimeout: The deadline passed.
        """
        left = self.left()
        # threading.TIMEOUT_MAX bounds the wait for a lock; it is about 292 years on 64 bits.
        if not lock.acquire(timeout=-1 if left is None else min(left, threading.TIMEOUT_MAX)):
            raise self.timed_out()
        try:
            yield
        finally:
            lock.release()


class _Run:
    """One call, from its acceptance by a child to its result."""

    def __init__(
        self, zygote: Zygote, clock: _Clock, call: bytes, cap: int | None, known: tuple[classes.Known, ...]
    ) -> None:
        self._zygote = zygote
        self._clock = clock
        self._name = clock.name
        self._most = ANSWER_ROOM if cap is None else min(cap, ANSWER_ROOM)
        self._data = HEADER.pack(self._most, len(call)) + call
        self._seconds = clock.seconds
        self._cap = cap
        self._known = known
        self._begun = clock.begun

    def go(self, limits: CgroupLimits | None) -> CallResult[Any]:
        for _ in range(_TRIES):
            prepared = self._zygote._get(self._clock)
            guard = contextlib.nullcontext() if prepared.apart else self._clock.holding(self._zygote._alone)
            with guard:
                try:
                    return self._in(prepared, prepared.take(limits))
                except ChildLost as error:
                    if str(error) == "late":
                        prepared.discard()
                except BrokenPipeError:
                    pass  # the zygote has ended, so the next attempt starts it again
                except OSError as error:
                    raise StartError(
                        f"cannot call {self._name}", step="call", errno=error.errno or 0
                    ) from error
        raise StateError(
            f"the zygote did not accept the call of {self._name}",
            hint="end processes in the container that kill the zygote's children",
        )

    def _in(self, prepared: Prepared, child: Child) -> CallResult[Any]:
        execution = child.execution
        try:
            if not child.started:
                self._wait(child)
            execution.begun = self._begun
            execution.timings = {"fork": time.perf_counter() - self._begun}
            try:
                with Pump(execution, child.plumbing, self._data, self._clock.left(), self._cap) as pump:
                    ending = pump.run()
                    outputs = [pump.output(at).decode("utf-8", "replace") for at in (1, 2)]
                    record = pump.record
            except StateError:
                if child.is_taken() and not prepared.running.dead:
                    if execution.was_stopped:  # the zygote was killed with the call
                        return self._result(child, "exit", None, ["", ""])
                    raise StateError(f"the zygote ended while it ran {self._name}") from None
                if prepared.running.dead:
                    raise
                raise ChildLost("gone") from None
            if ending == "exit" and not child.is_taken():
                raise ChildLost("gone")
            if record is None and ending != "exit":
                prepared.discard()  # nothing reported the end of what was killed
            return self._result(child, ending, record, outputs)
        finally:
            child.abandon()
            prepared.fork_next()

    def _wait(self, child: Child) -> None:
        try:
            child.wait_started(self._clock.left())
        except ChildLost as error:
            if self._clock.is_over() and str(error) == "late":
                raise self._clock.timed_out() from None
            raise

    def _result(
        self, child: Child, ending: Ending, record: native.Record | None, outputs: list[str]
    ) -> CallResult[Any]:
        execution = child.execution
        counters = execution.finish()
        usage = execution.usage(record, counters)
        execution.timings["total"] = usage.wall
        out, err = outputs
        if ending == "timeout":
            assert self._seconds is not None
            raise CommandTimeout(self._name, self._seconds, out, err, usage=usage)
        returncode = returncode_of(record.value) if record is not None else -9
        reason = "output" if ending == "output" else execution.reason(returncode, counters, usage)
        answer = child.read_answer(self._most)  # after the cgroup's last process is gone
        if ending == "output" or returncode < 0 or (returncode and not answer.size):
            raise CommandFailed(self._name, returncode, out, err, reason=reason, usage=usage)
        kind, *parts = self._read(answer)
        if kind != "=":
            type_name, message, trace = parts
            hint = _HINTS.get(type_name)
            raise CallError(
                type_name, message, trace, stdout=out, stderr=err, reason=reason, usage=usage, hint=hint
            )
        return CallResult(
            value=parts[0], stdout=out, stderr=err, reason=reason, usage=usage, timings=execution.timings
        )

    def _read(self, answer: Source) -> list[Any]:
        """Return the parts of an answer, with text of the guest made printable."""
        if not answer.size:
            return ["!", "EOFError", "the process ended before its function returned", ""]
        from pycontain._python import codec  # with a dozen modules of the standard library, on first use

        try:
            parts = codec.decode(answer, max(self._most * codec.BUDGET, codec.LEAST_BUDGET), self._known)
        except TooLarge as error:
            return ["!", "OverflowError", f"{error}: raise max_output, or return an array", ""]
        except Malformed as error:
            return ["!", "Malformed", f"the answer cannot be read: {error}", ""]
        return parts if parts[0] == "=" else ["!", *map(printable, parts[1:])]


_HINTS = {
    "ModuleNotFoundError": "the image lacks it; own modules beside the function's are sent after "
    "cloudpickle.register_pickle_by_value(module)",
}


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)


def make(
    container: Container,
    imports: Sequence[str],
    python: str | None,
    env: Mapping[str, str] | None = None,
    user: str | int | None = None,
    workdir: str | None = None,
    timeout: float | timedelta | None = None,
    initializer: Callable[[], object] | None = None,
) -> Zygote:
    """Return a zygote whose interpreter is started by its first call or by `Zygote.prepare`.

    Raises:
        TypeError: `imports` is not a sequence of text, or `initializer` is not callable.
        ValueError: A name is not that of a module.
    """
    if isinstance(imports, str):
        raise TypeError(f"imports must be a sequence of module names, got {imports!r}")
    for name in imports:
        if not isinstance(name, str) or not all(
            part.isidentifier() and not keyword.iskeyword(part) for part in name.split(".")
        ):
            raise ValueError(f"imports must have module names, got {name!r}")
    own = sys.executable if container.spec.image.name == "host" else "python3"
    # -I and -S keep files that a guest can write off the module path until the program adds the packages.
    argv = (python or own, "-I", "-S", "-c", ship.program())
    what = Invocation.of(argv, False, env, workdir, user, None)
    seconds = None if timeout is None else parse_duration(timeout)
    if initializer is not None and not callable(initializer):
        raise TypeError(f"initializer must be callable, got {initializer!r}")
    return Zygote(container._awake, imports, what, seconds, initializer)


def default(container: Container) -> Zygote:
    """Return the zygote of `Container.call`, which is created on first use and ends with the container."""
    running = container._awake()
    if running.zygote is None:
        made = make(container, (), None)
        with running.lock:
            if running.zygote is None:
                running.zygote = made
    found = running.zygote
    assert isinstance(found, Zygote)
    return found
