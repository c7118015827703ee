"""Checks of the names and labels of volumes, networks and containers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pycontain._model.arguments import check_mapping
from pycontain._model.sizes import shown

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")


def check_name(name: str, what: str) -> None:
    """Check a name.

    Args:
        name: The name.
        what: Its subject in the message.

    Raises:
        ValueError: The name is malformed.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"{what} must be 1 to 128 characters of [a-zA-Z0-9_.-] that begin with a letter or digit, "
            f"got {shown(name)}"
        )


def checked_labels(labels: Mapping[str, str] | None) -> dict[str, str]:
    """Return a copy of labels.

    Raises:
        TypeError: A name or value is not text.
    """
    check_mapping("labels", labels, "{'name': 'value'}")
    for name, value in (labels or {}).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"labels must map text to text, got {shown(name)}: {shown(value)}")
    return dict(labels or {})
