"""Errors for unknown keyword arguments, with a hint at the right one."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_UNEXPECTED = re.compile(r".* got an unexpected keyword argument '(\w+)'")
_FORMS = {
    "auto_remove": "use the container in a `with`, which removes it",
    "remove": "use the container in a `with`, which removes it",
    "detach": "Container(...).start() does not wait for the command",
    "blkio_weight": "limits=CgroupLimits(io_weight=...)",
    "cap_add": "security=Security.SANDBOX.evolve(capabilities={'NET_RAW'})",
    "cap_drop": "security=Security.SANDBOX, which has no capabilities",
    "capture_output": "both streams are captured by default",
    "cpu_count": "cpus=2",
    "cpu_period": "cpus=1.5",
    "cpu_quota": "cpus=1.5",
    "cpu_shares": "limits=CgroupLimits(cpu_weight=...)",
    "cpuset_cpus": "limits=CgroupLimits(cpuset_cpus='0-1')",
    "cpuset_mems": "limits=CgroupLimits(cpuset_mems='0')",
    "cwd": "workdir='/place'",
    "working_dir": "workdir='/place'",
    "cmd": "pass the command as the second argument",
    "args": "pass the command as the second argument",
    "environment": "env={'NAME': 'value'}",
    "mem_limit": "memory='512M'",
    "mem_reservation": "limits=CgroupLimits(memory_high='256M')",
    "memswap_limit": "limits=CgroupLimits(memory='512M', swap='256M')",
    "nano_cpus": "cpus=1.5",
    "network_disabled": "network='none', the default",
    "network_mode": "network='none'",
    "pids_limit": "pids=128",
    "privileged": "security=Security.DOCKER.evolve(...), which names each right",
    "rm": "use the container in a `with`, which removes it",
    "security_opt": "security=Security.SANDBOX.evolve(...)",
    "shell_command": "shell=True",
    "stdin_open": "popen(..., stdin=PIPE)",
    "storage_opt": "disk='1G'",
    "stream": "popen(...), whose stdout can be read as it comes",
    "tag": "the image's name with its tag, as in 'debian:12'",
    "tty": "popen(..., pty=True)",
    "ulimits": "rlimits={'nofile': (1024, 4096)}",
    "universal_newlines": "text=True, the default",
    "userns_mode": "leave it out: every container has a user namespace",
    "volume": "volumes={'/inside': Bind('/outside')}",
}
"""Options of docker-py and subprocess, and their equivalents in this package."""


def refusal(caller: str, option: str, known: Mapping[str, object] | tuple[str, ...]) -> TypeError:
    """Return the error for an unknown keyword argument.

    Args:
        caller: Name of the function for the message.
        option: The unknown keyword argument.
        known: The keyword arguments of the function.
    """
    message = f"{caller}() got an unexpected keyword argument {option!r}"
    if option in _FORMS:
        return TypeError(f"{message} (hint: {_FORMS[option]})")
    from difflib import get_close_matches

    near = get_close_matches(option, list(known), n=1)
    return TypeError(f"{message} (hint: did you mean {near[0]!r}?)" if near else message)


def check_options(caller: str, given: Mapping[str, object], options: type) -> None:
    """Check that every name in `given` is a key of the TypedDict `options`.

    Raises:
        TypeError: A name is not.
    """
    for name in given:
        if name not in options.__annotations__:
            raise refusal(caller, name, options.__annotations__)


def explains_options(caller: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that errors for unknown keyword arguments name `caller` and the right one."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **named: P.kwargs) -> R:
            try:
                return function(*args, **named)
            except TypeError as error:
                # A further frame means that the function was entered, so the error is not about this call.
                if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                    raise
                raise _explained(caller, function, error) from None

        return call

    return decorate


def _explained(caller: str, function: Callable[..., object], error: TypeError) -> TypeError:
    text = str(error)
    match = _UNEXPECTED.fullmatch(text)
    if match is not None:
        code = function.__code__
        return refusal(caller, match[1], code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    return TypeError(text.replace(f"{function.__qualname__}()", f"{caller}()"))
