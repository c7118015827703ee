"""Every exception: its place in the tree, and pickling without loss."""

from __future__ import annotations

import copy
import errno
import inspect
import os
import pickle
import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import pytest

from pycontain import errors
from pycontain._model.process import ExecResult, Reason, Usage
from pycontain.errors import PycontainError

USAGE = Usage(wall=1.5, cpu_user=0.25, cpu_system=0.125, memory_peak=1 << 20, processes=3)


def plain(name: str) -> PycontainError:
    error: PycontainError = getattr(errors, name)("it broke", hint="mend it")
    return error


def start(name: str) -> PycontainError:
    error: PycontainError = getattr(errors, name)(
        "no start", step="execve", errno=errno.ENOENT, path="/bin/x", hint="look elsewhere"
    )
    return error


PLAIN = (
    "PycontainError ImageError PullError PushError AuthError DigestMismatch InvalidReference BuildError "
    "LimitError NotFound Conflict StateError"
).split()


def path(name: str, number: int) -> PycontainError:
    error: PycontainError = getattr(errors, name)("no way in", path="/a", errno=number, hint="knock")
    return error


PATHS = {
    "PathError": errno.EBUSY,
    "PathNotFound": errno.ENOENT,
    "PathExists": errno.EEXIST,
    "PathForbidden": errno.EACCES,
    "PathIsDirectory": errno.EISDIR,
    "PathNotDirectory": errno.ENOTDIR,
}
START = ("StartError", "CommandNotFound", "CommandNotExecutable", "WorkdirError")
MAKERS: dict[str, Callable[[], PycontainError]] = {
    **{name: partial(plain, name) for name in PLAIN},
    **{name: partial(start, name) for name in START},
    **{name: partial(path, name, number) for name, number in PATHS.items()},
    "UnsupportedError": lambda: errors.UnsupportedError("time travel", "wait"),
    "CommandFailed": lambda: errors.CommandFailed(
        ["sh", "-c", "exit 3"], 3, "out", "err", reason="exit", usage=USAGE
    ),
    "CallError": lambda: errors.CallError(
        "KeyError", "'x'", "Traceback", stdout="out", stderr="err", reason="exit", usage=USAGE, hint="wait"
    ),
    "ContainerEnded": lambda: errors.ContainerEnded("it ended", reason="oom", hint="give it more memory"),
    "CommandTimeout": lambda: errors.CommandTimeout("sleep 9", 0.5, b"out", None, usage=USAGE),
}
"""One of each; a class without an entry here fails the first test below."""

CLASSES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, BaseException) and kind.__module__ == errors.__name__
]


def through_pickle(protocol: int, value: object) -> object:
    return pickle.loads(pickle.dumps(value, protocol))


TRANSPORTS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle{protocol}": partial(through_pickle, protocol)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}

FACTS = (
    "args hint step errno path feature reason usage returncode cmd timeout output stdout stderr "
    "filename filename2 strerror __notes__"
).split()


def facts(error: BaseException) -> dict[str, object]:
    """Return everything that a caller may read from an exception."""
    read = {name: getattr(error, name) for name in FACTS if hasattr(error, name)}
    return {"type": type(error), "str": str(error), "repr": repr(error), **read, **vars(error)}


def test_no_class_is_forgotten() -> None:
    assert {kind.__name__ for kind in CLASSES} == set(MAKERS)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_exceptions_survive_the_journey(kind: type[PycontainError], transport: str) -> None:
    error = MAKERS[kind.__name__]()
    error.add_note("seen on the way")
    arrived = TRANSPORTS[transport](error)
    assert type(arrived) is kind
    assert arrived is not error
    assert facts(arrived) == facts(error)


class Custom(errors.CommandNotFound):
    """A subclass of a user's, with a constructor of its own."""

    def __init__(self, name: str, extra: int) -> None:
        super().__init__(f"custom {name}", step="execve", errno=errno.ENOENT, path=name)
        self.extra = extra


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_subclasses_of_users_survive_too(transport: str) -> None:
    error = Custom("x", 7)
    arrived = TRANSPORTS[transport](error)
    assert facts(arrived) == facts(error)
    assert arrived.extra == 7


def _raise_timeout() -> None:
    raise MAKERS["CommandTimeout"]()


def test_exceptions_come_out_of_a_worker_process() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        future = pool.submit(_raise_timeout)
        with pytest.raises(errors.CommandTimeout) as expired:
            future.result(timeout=60)
    assert (expired.value.stdout, expired.value.usage) == (b"out", USAGE)


@pytest.mark.parametrize(
    ("name", "parents"),
    [
        ("LimitError", (ValueError,)),
        ("NotFound", (LookupError,)),
        ("PathError", (OSError,)),
        ("PathNotFound", (errors.PathError, FileNotFoundError)),
        ("PathExists", (errors.PathError, FileExistsError)),
        ("PathForbidden", (errors.PathError, PermissionError)),
        ("PathIsDirectory", (errors.PathError, IsADirectoryError)),
        ("PathNotDirectory", (errors.PathError, NotADirectoryError)),
        ("CommandFailed", (subprocess.CalledProcessError,)),
        ("CommandTimeout", (subprocess.TimeoutExpired,)),
        ("CommandNotFound", (errors.StartError, errors.NotFound, FileNotFoundError, LookupError)),
        ("CommandNotExecutable", (errors.StartError, PermissionError)),
        ("WorkdirError", (errors.StartError, errors.PathError, OSError)),
        *(
            (name, (errors.ImageError,))
            for name in ("PullError", "PushError", "AuthError", "DigestMismatch", "BuildError")
        ),
    ],
)
def test_builtin_parents(name: str, parents: tuple[type, ...]) -> None:
    assert issubclass(getattr(errors, name), (PycontainError, *parents))
    for parent in parents:
        assert issubclass(getattr(errors, name), parent)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_one_root_one_docstring(kind: type[PycontainError]) -> None:
    assert issubclass(kind, PycontainError)
    assert kind.__doc__


@pytest.mark.parametrize(
    ("name", "number", "place"),
    [
        *((name, number, "/a") for name, number in PATHS.items()),
        ("CommandNotFound", errno.ENOENT, "/bin/x"),
        ("CommandNotExecutable", errno.ENOENT, "/bin/x"),
        ("WorkdirError", errno.ENOENT, "/bin/x"),
    ],
)
def test_kinds_of_oserror_carry_its_facts(name: str, number: int, place: str) -> None:
    error: BaseException = MAKERS[name]()
    assert isinstance(error, OSError)
    assert (error.errno, error.filename) == (number, place)
    assert error.strerror == os.strerror(number)
    assert str(error) == error.args[0], "the message is ours, not that of OSError"


@pytest.mark.parametrize("name", PATHS)
def test_the_error_of_a_path_is_of_its_numbers_kind(name: str) -> None:
    error = errors.path_error("cannot open", "/a", PATHS[name], "knock")
    assert type(error) is getattr(errors, name)
    assert (error.errno, error.path, error.hint) == (PATHS[name], "/a", "knock")
    assert str(error) == f"cannot open '/a': {os.strerror(PATHS[name])} (hint: knock)"


def test_oserror_without_errno_keeps_its_text() -> None:
    error = errors.PathError("no directory of this user")
    assert (error.errno, error.filename, error.strerror) == (0, None, "no directory of this user")
    assert str(error) == "no directory of this user"
    died = errors.WorkdirError("it died", step="agent")
    assert (died.errno, died.filename, died.path) == (0, None, None)


def test_the_codes_of_a_shell() -> None:
    assert errors.CommandNotFound("x", step="execve").returncode == 127
    assert errors.CommandNotExecutable("x", step="execve").returncode == 126


def test_the_hint_is_part_of_the_message() -> None:
    error = MAKERS["StartError"]()
    assert str(error) == "no start: execve '/bin/x': No such file or directory (hint: look elsewhere)"
    assert error.hint == "look elsewhere"


def result(returncode: int, reason: Reason, *, truncated: bool = False) -> ExecResult:
    return ExecResult(
        ["x"],
        returncode,
        "out",
        "err",
        reason=reason,
        usage=USAGE,
        timings={"total": 1.5},
        truncated=truncated,
    )


@pytest.mark.parametrize(
    ("returncode", "reason", "says"),
    [(3, "exit", "exit status 3"), (-9, "oom", "SIGKILL"), (0, "output", "output")],
)
def test_check_returncode_raises_like_check(returncode: int, reason: Reason, says: str) -> None:
    with pytest.raises(errors.CommandFailed, match=says) as failed:
        result(returncode, reason, truncated=reason == "output").check_returncode()
    error = failed.value
    assert (error.cmd, error.returncode, error.stdout, error.stderr) == (["x"], returncode, "out", "err")
    assert (error.reason, error.usage) == (reason, USAGE)
    assert reason in str(error)
    assert "status 0" not in str(error)


def test_check_returncode_is_quiet_when_all_went_well() -> None:
    result(0, "exit").check_returncode()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_results_survive_the_journey(transport: str) -> None:
    before = result(-9, "oom")
    after = TRANSPORTS[transport](before)
    assert type(after) is ExecResult
    assert vars(after) == vars(before)
