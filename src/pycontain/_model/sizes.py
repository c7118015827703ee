"""Sizes and durations as people write them."""

from __future__ import annotations

import re
from datetime import timedelta

from pycontain.errors import LimitError

MOST = (1 << 63) - 1
"""Bytes: no counter of the kernel holds more."""

LONGEST = 1e9
"""Seconds, some 31 years: longer durations are taken for this one, which every clock can hold."""

_SIZE = re.compile(r"\s*([0-9]+)(?:\.([0-9]+))?\s*(?:([kmgtp])i?b?|b)?\s*", re.IGNORECASE)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_DIGITS = 40
"""Of a number that can be meant; more would only keep int() busy."""
_SHOWN = 160

UNLIMITED = -1
"""A limit that is lifted, as docker writes it; fields of `CgroupLimits` keep it so."""
_LIFTED = ("unlimited", "infinity", "max")


def is_unlimited(value: object) -> bool:
    """Return True for a value that lifts a limit: -1, 'unlimited', or infinity."""
    if isinstance(value, bool):
        return False
    if isinstance(value, str):
        return value.strip().lower() in _LIFTED
    return isinstance(value, int | float) and (value in (UNLIMITED, float("inf")))


def shown(value: object) -> str:
    """`value` for a message: its repr, short whatever it is."""
    try:
        text = repr(value)
    except ValueError:  # an int of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def parse_size(value: int | str) -> int:
    """Bytes of `value`: an int, or text such as '256M' or '1.5G' in binary units, as docker reads them.

    A fraction of a byte is cut off.  Raises LimitError for anything else, for negative sizes and
    for those of 2**63 bytes or more.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise LimitError(f"a size must be an int or text such as '256M', got {shown(value)}")
    size = value if isinstance(value, int) else _read_size(value)
    if size < 0:
        raise LimitError(f"a size must not be negative, got {shown(value)}")
    if size > MOST:
        raise LimitError(f"a size must be less than 2**63 bytes, got {shown(value)}")
    return size


def parse_cap(value: int | str | None) -> int | None:
    """Return the bytes of a cap, or None for None and for 'unlimited'.  Raises LimitError."""
    return None if value is None or is_unlimited(value) else parse_size(value)


def _read_size(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise LimitError(
            f"a size must be bytes or a number with a unit, got {shown(text)}",
            hint="write a binary unit k, M, G or T after the number, as in '256M'",
        )
    whole, part, unit = match.group(1), match.group(2) or "", match.group(3) or ""
    if len(whole) > _DIGITS:
        raise LimitError(f"a size must be less than 2**63 bytes, got {shown(text)}")
    part = part[:_DIGITS]
    scale: int = 10 ** len(part)
    factor = 1 << 10 * _POWERS.get(unit.lower(), 0)
    return int(whole) * factor + int(part or 0) * factor // scale


def parse_duration(value: float | timedelta) -> float:
    """Seconds of `value`: a number or a timedelta; at most LONGEST, for which longer ones are taken.

    Infinity is such a longer one.

    Raises LimitError, a ValueError, for anything else and for what is negative or not a number.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LimitError(f"a duration must be a number of seconds or a timedelta, got {shown(value)}")
    if not value >= 0:
        raise LimitError(f"a duration must not be negative, got {shown(value)}")
    return float(min(value, LONGEST))
