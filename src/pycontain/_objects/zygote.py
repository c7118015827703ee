"""Functions of the caller, run in forks of an interpreter that a container has prepared."""

from __future__ import annotations

import contextlib
import keyword
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from pycontain._kernel import native
from pycontain._model.process import CallResult, Usage
from pycontain._model.sizes import parse_cap, parse_duration
from pycontain._objects.call import Invocation
from pycontain._objects.closing import Closing
from pycontain._runtime import spec as specs
from pycontain._runtime.exec import returncode_of
from pycontain._runtime.fork import ANSWER_ROOM, HEADER, Child, NotBorn, Prepared
from pycontain._runtime.streams import Ending, Pump
from pycontain._zygote import codec, ship
from pycontain.errors import CallError, CommandFailed, CommandTimeout, StateError

if TYPE_CHECKING:
    from pycontain._model.limits import CgroupLimits
    from pycontain._objects.container import Container
    from pycontain._runtime.running import Running

T = TypeVar("T")


class CallOptions(TypedDict, total=False):
    """The options of a call that `Container.call` passes on."""

    timeout: float | timedelta | None
    limits: CgroupLimits | None
    max_output: int | str | None


_TRIES = 3
"""Children for one call, where one is gone before it took it; a call that was taken is never repeated."""


class Zygote(Closing):
    """A Python interpreter in a container that imported `imports` once, and is forked for each call.

    Every call runs in a fresh fork: nothing of one is seen by the next but what it wrote to the container's
    files.  Threads may call at the same time.  A zygote that something inside ended is prepared anew for the
    next call.  Made by `Container.zygote`; a context manager; the end of the container ends it too.
    """

    def __init__(
        self,
        awake: Callable[[], Running],
        imports: Sequence[str],
        what: Invocation,
        seconds: float | None,
    ) -> None:
        self._awake = awake
        self._imports = tuple(imports)
        self._what = what
        self._seconds = seconds
        self._prepared: Prepared | None = None
        self._closed = False
        self._lock = threading.RLock()
        # Where no cgroup tells two calls apart, ending one ends what runs beside it: nothing does.
        self._alone = threading.RLock()
        self._get()

    def call(
        self,
        function: Callable[..., T],
        *args: Any,
        timeout: float | timedelta | None = None,
        limits: CgroupLimits | None = None,
        max_output: int | str | None = "16M",
    ) -> T:
        """What the function returns; `run` says what it takes and raises."""
        return self.run(function, *args, timeout=timeout, limits=limits, max_output=max_output).value

    def run(
        self,
        function: Callable[..., T],
        *args: Any,
        timeout: float | timedelta | None = None,
        limits: CgroupLimits | None = None,
        max_output: int | str | None = "16M",
    ) -> CallResult[T]:
        """Call the function inside, with what it wrote and used.

        function, args: anything that cloudpickle takes; the function's own module goes along where it is no
        installed one.  What it returns is plain data: None, bool, int, float, complex, str, bytes,
        bytearray, and list, tuple, dict, set, frozenset of these.  timeout: seconds until every process of
        the call is killed.  limits: for this call alone.  max_output: bytes of stdout, stderr and the
        encoded result each.

        Raises CallError for what the function raised and for a result that is no plain data, CommandTimeout,
        CommandFailed with its `reason` where the process died, TypeError for what cannot be sent, StateError.
        """
        seconds = None if timeout is None else parse_duration(timeout)
        cap = parse_cap(max_output)
        checked = specs.checked_limits(limits)
        call = ship.payload(function, args)
        return _Run(self, _name(function), call, seconds, cap).go(checked)

    def close(self) -> None:
        """End the interpreter; calls under way end with it.  Idempotent."""
        with self._lock:
            self._closed = True
            prepared, self._prepared = self._prepared, None
        if prepared is not None:
            prepared.discard()

    def _get(self) -> Prepared:
        """The interpreter, prepared anew where it is gone.  Raises StateError."""
        with self._lock:
            running = self._awake()
            if self._closed:
                raise StateError("the zygote is closed")
            prepared = self._prepared
            if prepared is None or prepared.running is not running or not prepared.alive:
                if prepared is not None:
                    prepared.discard()
                self._prepared = None
                command = self._what.resolve(running)
                self._prepared = prepared = Prepared.start(running, command, self._imports, self._seconds)
            return prepared

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<Zygote {state} imports={list(self._imports)!r}>"


class _Run:
    """One call, from a child that takes it to what became of it."""

    def __init__(
        self, zygote: Zygote, name: str, call: bytes, seconds: float | None, cap: int | None
    ) -> None:
        self._zygote = zygote
        self._name = name
        self._most = ANSWER_ROOM if cap is None else min(cap, ANSWER_ROOM)
        self._data = HEADER.pack(self._most, len(call)) + call
        self._seconds = seconds
        self._cap = cap
        self._begun = time.perf_counter()

    def go(self, limits: CgroupLimits | None) -> CallResult[Any]:
        for _ in range(_TRIES):
            prepared = self._zygote._get()
            guard = contextlib.nullcontext() if prepared.apart else self._zygote._alone
            with guard:
                try:
                    return self._in(prepared, prepared.take(limits))
                except NotBorn as error:
                    if str(error) == "late":
                        prepared.discard()
                except BrokenPipeError:
                    pass  # the zygote is gone, as the next look tells
        raise StateError(f"the call of {self._name} was not taken: something inside kills what waits for it")

    def _left(self) -> float | None:
        if self._seconds is None:
            return None
        return max(0.001, self._seconds - (time.perf_counter() - self._begun))

    def _in(self, prepared: Prepared, child: Child) -> CallResult[Any]:
        execution = child.execution
        try:
            if not child.started:
                self._wait(child)
            execution.begun = self._begun
            execution.timings = {"fork": time.perf_counter() - self._begun}
            try:
                with Pump(execution, child.plumbing, self._data, self._left(), self._cap) as pump:
                    ending = pump.run()
                    outputs = [pump.output(at).decode("utf-8", "replace") for at in (1, 2)]
                    record = pump.record
            except StateError:
                if child.read_answer(0)[0] and not prepared.running.dead:
                    raise StateError(f"the zygote was ended while it ran {self._name}") from None
                if prepared.running.dead:
                    raise
                raise NotBorn("gone") from None
            taken, answer = child.read_answer(self._most)
            if ending == "exit" and not taken:
                raise NotBorn("gone")
            if record is None and ending != "exit":
                prepared.discard()  # nobody told of the end of what was killed
            return self._result(child, ending, record, outputs, answer)
        finally:
            child.abandon()
            prepared.fork_ahead()

    def _wait(self, child: Child) -> None:
        left = self._left()
        try:
            child.wait_started(left)
        except NotBorn as error:
            if self._seconds is not None and self._left() == 0.001 and str(error) == "late":
                usage = Usage(wall=time.perf_counter() - self._begun, cpu_user=0.0, cpu_system=0.0)
                raise CommandTimeout(self._name, self._seconds, "", "", usage=usage) from None
            raise

    def _result(
        self, child: Child, ending: Ending, record: native.Record | None, outputs: list[str], answer: bytes
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
        reason = "output" if ending == "output" else execution.reason(returncode, counters)
        if ending == "output" or returncode < 0 or (returncode and not answer):
            raise CommandFailed(self._name, returncode, out, err, reason=reason, usage=usage)
        kind, *parts = _read(answer)
        if kind != "=":
            type_name, message, trace = parts
            hint = _HINTS.get(type_name)
            raise CallError(
                type_name, message, trace, stdout=out, stderr=err, reason=reason, usage=usage, hint=hint
            )
        return CallResult(
            value=parts[0], stdout=out, stderr=err, reason=reason, usage=usage, timings=execution.timings
        )


_HINTS = {
    "ModuleNotFoundError": "the image lacks it; own modules beside the function's are sent after "
    "cloudpickle.register_pickle_by_value(module)",
}


def _read(answer: bytes) -> list[Any]:
    """The answer's parts, the guest's words made fit for a terminal."""
    if not answer:
        return ["!", "EOFError", "the process ended before its function returned", ""]
    try:
        parts = codec.decode(answer)
    except codec.Malformed as error:
        return ["!", "Malformed", f"the answer cannot be read: {error}", ""]
    return parts if parts[0] == "=" else ["!", *map(codec.printable, parts[1:])]


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)


def prepare(
    container: Container,
    imports: Sequence[str],
    python: str | None,
    env: Mapping[str, str] | None = None,
    user: str | int | None = None,
    workdir: str | None = None,
    timeout: float | timedelta | None = None,
) -> Zygote:
    """What `Container.zygote` does."""
    if isinstance(imports, str):
        raise TypeError(f"imports are names of modules in a sequence, not {imports!r}")
    for name in imports:
        if not isinstance(name, str) or not all(
            part.isidentifier() and not keyword.iskeyword(part) for part in name.split(".")
        ):
            raise ValueError(f"no name of a module: {name!r}")
    own = sys.executable if container.spec.image.name == "host" else "python3"
    argv = (python or own, "-c", ship.program())
    what = Invocation.of(argv, False, env, workdir, user, None)
    seconds = None if timeout is None else parse_duration(timeout)
    return Zygote(container._awake, imports, what, seconds)


_DEFAULTS = threading.Lock()


def default(container: Container) -> Zygote:
    """The zygote of `Container.call`: no imports, made on first use, the same until the container ends."""
    running = container._awake()
    with _DEFAULTS:
        if running.zygote is None:
            running.zygote = prepare(container, (), None)
        found = running.zygote
    assert isinstance(found, Zygote)
    return found
