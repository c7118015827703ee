"""Sizes and durations as people write them."""

from __future__ import annotations

import math
import re
from datetime import timedelta

from pycontain.errors import LimitError

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([bkmgtp]?)(?:i?b)?\s*", re.IGNORECASE)
_POWERS = {"": 0, "b": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def parse_size(value: int | str) -> int:
    """Bytes of `value`: an int, or text such as '256M' or '1.5G' in binary units, as docker reads them.

    Raises LimitError for anything else, and for negative sizes.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise LimitError(f"a size is an int or text such as '256M', not {value!r}")
    if isinstance(value, int):
        if value < 0:
            raise LimitError(f"a size cannot be negative: {value}")
        return value
    match = _SIZE.fullmatch(value)
    if match is None:
        raise LimitError(f"not a size: {value!r}", hint="write bytes, or a number with k, M, G, T: '256M'")
    number, unit = match.groups()
    return int(float(number) * 1024 ** _POWERS[unit.lower()])


def parse_duration(value: float | timedelta) -> float:
    """Seconds of `value`: a number or a timedelta.  Raises LimitError when it is not finite or negative."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LimitError(f"a duration is a number of seconds or a timedelta, not {value!r}")
    if not math.isfinite(value) or value < 0:
        raise LimitError(f"a duration is finite and not negative: {value!r}")
    return float(value)
