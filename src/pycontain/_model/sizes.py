"""Parsing of sizes and durations."""

from __future__ import annotations

import re
from datetime import timedelta

from pycontain.errors import LimitError

MOST = (1 << 63) - 1
"""Maximum number of bytes, the range of the kernel's counters."""

LONGEST = 1e9
"""Maximum duration in seconds, about 31 years; every clock can hold it."""

_SIZE = re.compile(r"\s*([0-9]+)(?:\.([0-9]+))?\s*(?:([kmgtp])i?b?|b)?\s*", re.IGNORECASE)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_DIGITS = 40
"""Maximum number of digits, so that int() does not take long."""
_SHOWN = 160

UNLIMITED = -1
"""Value of a removed limit, as in docker."""
_LIFTED = ("unlimited", "infinity", "max")


def is_unlimited(value: object) -> bool:
    """Return whether a value removes a limit: -1, 'unlimited', or infinity."""
    if isinstance(value, bool):
        return False
    if isinstance(value, str):
        return value.strip().lower() in _LIFTED
    return isinstance(value, int | float) and (value in (UNLIMITED, float("inf")))


def shown(value: object) -> str:
    """Return the repr of `value` for a message, shortened to 160 characters."""
    try:
        text = repr(value)
    except ValueError:  # an int of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def parse_size(value: int | str) -> int:
    """Return a size in bytes.

    Args:
        value: An int, or text such as '256M' or '1.5G' in binary units, as in docker; a fraction of a byte is
            cut off.

    Raises:
        LimitError: The size is malformed, negative, or at least 2**63 bytes.
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
    """Return a cap in bytes, or None for None and 'unlimited'.

    Raises:
        LimitError: The size is malformed.
    """
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
    """Return a duration in seconds.

    Args:
        value: Seconds or a timedelta; longer durations than LONGEST, infinity too, are shortened to it.

    Raises:
        LimitError: The duration is malformed, negative, or NaN.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LimitError(f"a duration must be a number of seconds or a timedelta, got {shown(value)}")
    if not value >= 0:
        raise LimitError(f"a duration must not be negative, got {shown(value)}")
    return float(min(value, LONGEST))
