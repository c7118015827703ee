"""What travels into a container: a function and its arguments, and the cloudpickle that reads them."""

from __future__ import annotations

import functools
import importlib.util
import marshal
import sys
import sysconfig
import threading
from collections.abc import Callable
from typing import Any

from pycontain.errors import UnsupportedError

_PARTS = (("cloudpickle", True), ("cloudpickle.cloudpickle", False))
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
    """This process's cloudpickle as marshalled code: (name, is a package, code) of each module.

    Raises UnsupportedError where there is none.
    """
    _cloudpickle()
    parts = []
    for name, is_package in _PARTS:
        spec = importlib.util.find_spec(name)
        get_code = getattr(spec and spec.loader, "get_code", None)
        code = get_code(name) if get_code is not None else None
        if code is None:
            raise UnsupportedError(f"calls with a cloudpickle that has no module {name}")
        parts.append((name, is_package, code))
    return marshal.dumps(parts)


@functools.cache
def program() -> str:
    """The text of the zygote (inside.py)."""
    spec = importlib.util.find_spec("pycontain._zygote.inside")
    get_source = getattr(spec and spec.loader, "get_source", None)
    source = get_source("pycontain._zygote.inside") if get_source is not None else None
    assert isinstance(source, str)
    return source


def payload(function: Callable[..., Any], arguments: tuple[Any, ...]) -> bytes:
    """The call, pickled; the function's module goes along unless it is an installed one.

    Raises TypeError for what cannot be pickled.
    """
    if not callable(function):
        raise TypeError(f"what is called is a function, not {function!r}")
    cloudpickle = _cloudpickle()
    module = _own_module(function)
    try:
        if module is None:
            return bytes(cloudpickle.dumps((function, arguments)))
        with _REGISTRY:
            known = module.__name__ in cloudpickle.list_registry_pickle_by_value()
            if not known:
                cloudpickle.register_pickle_by_value(module)
            try:
                return bytes(cloudpickle.dumps((function, arguments)))
            finally:
                if not known:
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
