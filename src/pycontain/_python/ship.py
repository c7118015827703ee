"""Data sent into a container for a call: the function, its arguments, and the cloudpickle that reads them."""

from __future__ import annotations

import functools
import importlib.util
import marshal
import sys
import sysconfig
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pycontain.errors import UnsupportedError

_PARTS = (
    ("cloudpickle", "cloudpickle", True),
    ("cloudpickle.cloudpickle", "cloudpickle.cloudpickle", False),
    ("pycontain._python", "_pycontain_call", True),
    ("pycontain._python.arrays", "_pycontain_call.arrays", False),
    ("pycontain._python.writer", "_pycontain_call.writer", False),
)
"""Modules that are sent: the name here, the name inside, and whether it is a package.
The last runs first."""
_REGISTRY = threading.RLock()


def _cloudpickle() -> Any:
    try:
        import cloudpickle
    except ImportError:
        raise UnsupportedError(
            "calls without cloudpickle", hint="install it: pip install 'pycontain[call]'"
        ) from None
    return cloudpickle


@functools.cache
def reader() -> bytes:
    """Return the modules that are sent, as marshalled code: (name inside, is a package, code) of each.

    Raises:
        UnsupportedError: This process has no cloudpickle.
    """
    _cloudpickle()
    parts = []
    for name, inside, is_package in _PARTS:
        spec = importlib.util.find_spec(name)
        get_code = getattr(spec and spec.loader, "get_code", None)
        code = get_code(name) if get_code is not None else None
        if code is None:
            raise UnsupportedError(f"calls without the code of the module {name}")
        parts.append((inside, is_package, code))
    return marshal.dumps(parts)


@functools.cache
def program() -> str:
    """Return the source of the zygote (fork_server.py)."""
    spec = importlib.util.find_spec("pycontain._python.fork_server")
    get_source = getattr(spec and spec.loader, "get_source", None)
    source = get_source("pycontain._python.fork_server") if get_source is not None else None
    assert isinstance(source, str)
    return source


def payload(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    keywords: Mapping[str, Any],
    names: Sequence[tuple[str, str]],
    initializer: Callable[[], object] | None = None,
) -> bytes:
    """Pickle a call; modules of its functions are included unless they are installed.

    Args:
        function: The function to call.
        arguments: Its positional arguments.
        keywords: Its keyword arguments.
        names: The classes that the result may have objects of, by module and qualified name.
        initializer: Called before the function.

    Raises:
        TypeError: It cannot be pickled.
    """
    if not callable(function):
        raise TypeError(f"function must be callable, got {function!r}")
    call = (function, arguments, dict(keywords), list(names), initializer)
    cloudpickle = _cloudpickle()
    sent = [_own_module(one) for one in (function, initializer) if one is not None]
    modules = {module.__name__: module for module in sent if module is not None}
    try:
        if not modules:
            return bytes(cloudpickle.dumps(call))
        with _REGISTRY:
            registered = cloudpickle.list_registry_pickle_by_value()
            added = [module for name, module in modules.items() if name not in registered]
            for module in added:
                cloudpickle.register_pickle_by_value(module)
            try:
                return bytes(cloudpickle.dumps(call))
            finally:
                for module in added:
                    cloudpickle.unregister_pickle_by_value(module)
    except Exception as error:
        raise TypeError(f"the call cannot be sent: {type(error).__name__}: {error}") from error


def _own_module(function: Callable[..., Any]) -> Any:
    """The module of a function that an interpreter elsewhere cannot be expected to have."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__module__", None)
    module = sys.modules.get(name) if isinstance(name, str) else None
    file = getattr(module, "__file__", None)
    if module is None or name == "__main__" or not isinstance(file, str):
        return None  # cloudpickle sends what is of __main__ by itself
    return None if file.startswith(_installed()) else module


@functools.cache
def _installed() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return tuple(f"{paths[name]}/" for name in ("stdlib", "platstdlib", "purelib", "platlib"))
