"""Read what a call returned: JSON of scalars and tagged arrays, from a guest that nobody trusts.

`packed` in inside.py is its writer.  Nothing here makes an object of a class that the guest names.
"""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NoReturn

DEEPEST = 100
_MOST_ARRAYS = 1_000_000
_MOST_EQUAL_HASHES = 100
_WIDEST_INTEGER = 1 << 18
"""Hexadecimal digits."""

_NAMED = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Malformed(ValueError):
    """No answer that the writer could have given."""


def decode(text: bytes) -> list[Any]:
    """The answer: ['=', value] or ['!', type, message, traceback].  Raises Malformed."""
    # An empty array takes 3 bytes there and 64 here.
    if text.count(b"[") > _MOST_ARRAYS:
        raise Malformed(f"it holds more than {_MOST_ARRAYS} containers")
    try:
        answer = json.loads(text.decode("ascii"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"it is no JSON: {type(error).__name__}") from None
    if isinstance(answer, list) and len(answer) == 2 and answer[0] == "=":
        return ["=", _value(answer[1], 0)]
    if (
        isinstance(answer, list)
        and len(answer) == 4
        and answer[0] == "!"
        and all(isinstance(one, str) for one in answer)
    ):
        return answer
    raise Malformed("it is neither a value nor an error")


def _no_constant(name: str) -> NoReturn:
    raise Malformed(f"it holds a bare {name}")


def _value(raw: Any, depth: int) -> Any:
    if raw is None or isinstance(raw, bool | str):
        return raw
    if isinstance(raw, int):
        if not -(1 << 63) <= raw < 1 << 63:
            raise Malformed("it holds a bare integer of more than 64 bits")
        return raw
    if isinstance(raw, float):
        if not math.isfinite(raw):
            raise Malformed("it holds a bare number that is too large")
        return raw
    if not isinstance(raw, list) or not raw or not isinstance(raw[0], str):
        raise Malformed("it holds an array without a tag")
    return _tagged(raw[0], raw[1:], depth)


def _tagged(tag: str, parts: list[Any], depth: int) -> Any:
    scalar = _SCALARS.get(tag)
    if scalar is not None:
        return scalar(parts)
    if depth >= DEEPEST:
        raise Malformed(f"it is nested deeper than {DEEPEST}")
    if tag not in "ltsfd" or len(tag) != 1:
        raise Malformed("it holds an unknown tag")
    values = [_value(one, depth + 1) for one in parts]
    if tag == "l":
        return values
    if tag == "t":
        return tuple(values)
    if tag == "d":
        if len(values) % 2:
            raise Malformed("it holds a key without a value")
        keys = _hashable(values[::2])
        return dict(zip(keys, values[1::2], strict=True))
    members = _hashable(values)
    return set(members) if tag == "s" else frozenset(members)


def _hashable(values: list[Any]) -> list[Hashable]:
    """Raises Malformed for what cannot be a key, and where so many share a hash that it was meant."""
    try:
        # The hash of a str is salted; that of a number is for everyone to compute.
        hashes = collections.Counter(hash(one) for one in values if not isinstance(one, str))
    except TypeError:
        raise Malformed("it holds a key that has no hash") from None
    if hashes and max(hashes.values()) > _MOST_EQUAL_HASHES:
        raise Malformed("too many of its keys have the same hash")
    return values


def _bytes(parts: list[Any]) -> bytes:
    return bytes.fromhex(_text(parts))


def _text(parts: list[Any]) -> str:
    if len(parts) != 1 or not isinstance(parts[0], str):
        raise Malformed("it holds a tag without its text")
    return parts[0]


def _integer(parts: list[Any]) -> int:
    text = _text(parts)
    if len(text) > _WIDEST_INTEGER + 2:
        raise Malformed("it holds an integer that is too large")
    return int(text, 16)


def _number(parts: list[Any]) -> float:
    try:
        return _NAMED[_text(parts)]
    except KeyError:
        raise Malformed("it holds an unknown number") from None


def _complex(parts: list[Any]) -> complex:
    values = [_value(one, DEEPEST) for one in parts]
    if len(values) != 2 or not all(type(one) is float for one in values):
        raise Malformed("it holds a complex number without its parts")
    return complex(*values)


def _guarded(read: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    def guarded(parts: list[Any]) -> Any:
        try:
            return read(parts)
        except Malformed:
            raise
        except ValueError:
            raise Malformed("it holds a malformed scalar") from None

    return guarded


_SCALARS: dict[str, Callable[[list[Any]], Any]] = {
    "b": _guarded(_bytes),
    "a": _guarded(lambda parts: bytearray(_bytes(parts))),
    "i": _guarded(_integer),
    "n": _guarded(_number),
    "c": _guarded(_complex),
}


def printable(text: str) -> str:
    """Text of a guest, fit for a terminal: control characters but newline and tab as escapes."""
    return "".join(_escaped(text))


def _escaped(text: str) -> Iterable[str]:
    for one in text:
        if one in "\n\t" or one.isprintable():
            yield one
        else:
            yield one.encode("unicode_escape").decode()
