"""Checks of single arguments; every message names the argument."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pycontain._model.sizes import shown


def check_flag(name: str, value: object) -> bool:
    """Return `value`, which must be True or False.

    Text from the environment such as 'false' or '' is refused, because its truth value is not its meaning.

    Raises:
        TypeError: The value is not a bool.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return value


def check_given(name: str, value: Any) -> Any:
    """Return `value`, which must not be empty text, such as an unset variable of the environment.

    Raises:
        ValueError: The value is empty text.
    """
    if isinstance(value, str | bytes) and not value:
        raise ValueError(f"{name} must not be empty; leave it out for the default")
    return value


def check_path(name: str, value: str | os.PathLike[str]) -> str:
    """Return a path of the host as text.

    Raises:
        ValueError: The path has a NUL byte or is empty, which would mean the current directory.
        TypeError: The value is not a path.
    """
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a path, got {shown(value)}")
    path: object = os.fspath(value)
    if not isinstance(path, str):
        raise TypeError(f"{name} must be text or a pathlib path, got {shown(value)}")
    if not path or "\0" in path:
        raise ValueError(f"{name} must be a path, got {shown(path)}")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise ValueError(f"{name} must be text that the file system can hold, got {shown(path)}") from None
    return path


def check_mapping(name: str, value: object, example: str) -> None:
    """Check that a value is None or a mapping.

    Args:
        name: The argument.
        value: Its value.
        example: A correct value, for the message.

    Raises:
        TypeError: The value is neither.
    """
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping such as {example}, got {shown(value)}")
