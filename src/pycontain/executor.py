"""Python functions in sandboxes, by the interface of `concurrent.futures`."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, Unpack, overload

from attrs import define, evolve, frozen

from pycontain import Container

if TYPE_CHECKING:
    from pycontain import CgroupLimits, Image, Snapshot, Zygote
    from pycontain._objects.run import ContainerOptions

P = ParamSpec("P")
R = TypeVar("R")


@frozen
class TaskOptions:
    """The bounds of one task; see `Zygote.run`."""

    timeout: float | timedelta | None = None
    limits: CgroupLimits | None = None
    max_output: int | str | None = "16M"
    types: Sequence[type] = ()


@define(eq=False)
class _Worker:
    """A container with a prepared interpreter, and the number of tasks that it has run."""

    container: Container
    zygote: Zygote
    tasks: int = 0


class SandboxExecutor(Executor):
    """An executor whose tasks run in sandboxed containers.

    Up to `max_workers` containers are kept, each with an interpreter that has imported `imports`.  Every task
    runs in a fresh fork of one, with its own limits and timeout: a task that crashes, loops, forks or uses
    too much memory harms no other.  Tasks of one worker share the files of its container, so pass
    `max_tasks_per_child=1` where one task must not see what an earlier one wrote.

    A future raises `CallError` for an exception of the function, with its type, message and traceback,
    `CommandTimeout` for a task that took too long, and `CommandFailed` for one that died; `reason` says why.

    >>> with SandboxExecutor(max_workers=2, memory="256M", timeout=5) as executor:
    ...     list(executor.map(abs, [-1, 2]))
    [1, 2]
    """

    def __init__(
        self,
        image: Image | Snapshot | str | None = None,
        max_workers: int | None = None,
        *,
        imports: Sequence[str] = (),
        python: str | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks_per_child: int | None = None,
        timeout: float | timedelta | None = None,
        task_limits: CgroupLimits | None = None,
        max_output: int | str | None = "16M",
        types: Sequence[type] = (),
        **options: Unpack[ContainerOptions],
    ) -> None:
        """Check the arguments; containers are started by the first tasks.

        Args:
            image: The image of the containers, its name, or None for `Image.host()`.
            max_workers: Containers, and tasks that run at the same time; the number of processors by default.
            imports: Modules that each interpreter imports once.
            python: Path of the interpreter inside.
            initializer: Called in the process of each task before the task.  Slow work belongs in
                `imports`, which every task shares.
            initargs: Arguments of the initializer.
            max_tasks_per_child: Tasks after which a container is replaced; None for no limit.
            timeout: Seconds of one task.
            task_limits: Limits of one task, within those of its container.
            max_output: Bytes of the output and of the result of one task.
            types: Further classes that results may have objects of.
            **options: Options of `Container`.

        Raises:
            ValueError: `max_workers` or `max_tasks_per_child` is less than 1.
            TypeError: `initializer` is not callable, or `Container` has no such option.
        """
        workers = max_workers if max_workers is not None else os.cpu_count() or 1
        for name, number in (("max_workers", workers), ("max_tasks_per_child", max_tasks_per_child or 1)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be a positive int, got {number!r}")
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be callable, got {initializer!r}")
        if options.get("name") is not None:
            raise ValueError("name must not be given: the containers of an executor have names of their own")
        self._image, self._options = image, options
        self._imports, self._python = tuple(imports), python
        self._initializer = None if initializer is None else functools.partial(initializer, *initargs)
        self._most = max_tasks_per_child
        self._task = TaskOptions(timeout, task_limits, max_output, tuple(types))
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()
        self._closing: threading.Thread | None = None
        Container(image, **options).remove()  # wrong options are refused here, not by the first task
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="pycontain-executor")

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run a function in a sandbox and return the future of its result.

        Raises:
            RuntimeError: The executor was shut down.
        """
        return self._submit(self._task, fn, args, kwargs)

    def with_options(self, **changes: Any) -> Executor:
        """Return an executor with the same containers and other bounds for its tasks.

        Args:
            **changes: Fields of `TaskOptions`: timeout, limits, max_output, types.
        """
        return _Bounded(self, evolve(self._task, **changes))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuse further tasks, and remove the containers when the last task has ended.  Idempotent.

        Args:
            wait: Return only then.
            cancel_futures: Cancel the tasks that have not begun.
        """
        self._threads.shutdown(wait=False, cancel_futures=cancel_futures)
        with self._lock:
            if self._closing is None:
                self._closing = threading.Thread(target=self._close, name="pycontain-executor-end")
                self._closing.start()
        if wait:
            self._closing.join()

    def _close(self) -> None:
        self._threads.shutdown(wait=True)
        while self._idle:
            self._idle.pop().container.remove()

    def _submit(
        self, options: TaskOptions, fn: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Future[R]:
        return self._threads.submit(self._run, options, functools.partial(fn, **kwargs), args)

    def _run(self, options: TaskOptions, fn: Callable[..., R], args: tuple[Any, ...]) -> R:
        with self._borrow() as worker:
            return worker.zygote.call(
                fn,
                *args,
                timeout=options.timeout,
                limits=options.limits,
                max_output=options.max_output,
                types=options.types,
            )

    @contextmanager
    def _borrow(self) -> Iterator[_Worker]:
        """Lend the worker that was used last, or a new one, which is removed once it has run its tasks."""
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is not None and worker.container.status != "running":
            worker.container.remove()
            worker = None
        worker = worker or self._start()
        worker.tasks += 1
        try:
            yield worker
        finally:
            if worker.tasks == self._most:
                worker.container.remove()
            else:
                with self._lock:
                    self._idle.append(worker)

    def _start(self) -> _Worker:
        container = Container(self._image, **self._options).start()
        try:
            made = container.zygote(self._imports, python=self._python, initializer=self._initializer)
            return _Worker(container, made)
        except BaseException:
            container.remove()
            raise


class _Bounded(Executor):
    """Another executor's containers, with other bounds for the tasks; its shutdown leaves them running."""

    def __init__(self, whole: SandboxExecutor, options: TaskOptions) -> None:
        self._whole, self._bounds = whole, options

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        return self._whole._submit(self._bounds, fn, args, kwargs)


class Sandboxed(Generic[P, R]):
    """A function that runs in a sandbox whenever it is called; made by `sandboxed`."""

    def __init__(self, function: Callable[P, R], make: Callable[[], SandboxExecutor]) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        """The function as it was written, which runs in this process."""
        self._make = make
        self._executor: SandboxExecutor | None = None
        self._lock = threading.Lock()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function in a sandbox and return its result."""
        return self.submit(*args, **kwargs).result()

    def __reduce__(self) -> tuple[Any, ...]:
        # In a sandbox it is the bare function: other functions refer to it by its name, and it to itself.
        return functools.partial, (self.function,)

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Begin a call and return the future of its result."""
        return self._started().submit(self.function, *args, **kwargs)

    def map(self, *iterables: Iterable[Any]) -> Iterator[R]:
        """Call it for the elements of the iterables, several at a time, and yield the results in order."""
        return self._started().map(self.function, *iterables)

    def _started(self) -> SandboxExecutor:
        with self._lock:
            if self._executor is None:
                self._executor = self._make()
            return self._executor

    def close(self) -> None:
        """Remove its containers; the next call starts new ones."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()


@overload
def sandboxed(function: Callable[P, R], /) -> Sandboxed[P, R]: ...


@overload
def sandboxed(**options: Any) -> Callable[[Callable[P, R]], Sandboxed[P, R]]: ...


def sandboxed(function: Callable[P, R] | None = None, /, **options: Any) -> Any:
    """Decorate a function so that every call runs in a sandbox.

    Args:
        function: The function, where the decorator is used without arguments.
        **options: Options of `SandboxExecutor`.  Its containers are started by the first call and live until
            `close`, or the end of the process.

    >>> @sandboxed(memory="256M", timeout=2)
    ... def evaluate(source: str) -> object:
    ...     return eval(source)
    >>> evaluate("6 * 7")
    42
    """
    make = functools.partial(SandboxExecutor, **options)
    if function is not None:
        return Sandboxed(function, make)
    return lambda written: Sandboxed(written, make)
