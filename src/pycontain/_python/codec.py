"""Read what a call returned: tagged bytes from a guest that is not trusted.

writer.py is its writer.  Nothing is imported, looked up or called by a name that the guest gives: classes are
those that the caller named before the call, by their number (classes.py).

Memory: containers, vectors and objects are counted before they are made, and a value that would take more
than `BUDGET` times the bytes that the caller allowed is refused.  Only single numbers are not counted, which
take at most four times their bytes in the answer.
"""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import fractions
import re
import struct
import uuid
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from pycontain._python import classes, writer
from pycontain._python.source import Malformed, Source, TooLarge
from pycontain._python.writer import COUNT, DEEPEST, SIZE

BUDGET = 6
"""Bytes of counted objects for each byte that the caller allows."""
LEAST_BUDGET = 1 << 20
LONGEST_TEXT = 1 << 18
"""Characters of an error's message and of its traceback."""
_MOST_EQUAL_HASHES = 100
_ZONE = re.compile(r"[A-Za-z0-9_+\-]+(/[A-Za-z0-9_+\-]+){0,3}")
_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?([Ee][+-]?\d{1,19})?|Infinity|s?NaN\d*)", re.ASCII)
_EACH = 24
"""Bytes that a value of a list is counted with: more than its place, since reading each takes time."""
_SMALL = {"B": 8, "h": 40, "i": 40, "q": 40}
"""Bytes of an integer in a list, by the type of its vector."""


def decode(
    answer: bytes | Source, budget: int | None = None, known: Sequence[classes.Known] = ()
) -> list[Any]:
    """Read an answer.

    Args:
        answer: The bytes of the answer.
        budget: Bytes that counted objects may take in memory; `BUDGET` times the answer without it.
        known: The classes that the caller rebuilds, in the order in which they were sent.

    Returns:
        ['=', value] or ['!', type, message, traceback].

    Raises:
        Malformed: The writer gives no such answer.
        TooLarge: The value takes more memory than `budget`.
    """
    source = Source(answer) if isinstance(answer, bytes) else answer
    if budget is None:
        budget = max(source.size * BUDGET, LEAST_BUDGET)
    try:
        return _decode(source, budget, known)
    except Malformed:
        raise
    except (IndexError, struct.error):
        raise Malformed("it ends too early") from None
    except UnicodeError:
        raise Malformed("it holds a text that is no UTF-8") from None
    except RecursionError:
        raise Malformed("it is nested too deep") from None
    except MemoryError:
        raise TooLarge("there is no memory for the result") from None
    except (ValueError, TypeError, OverflowError, ArithmeticError, LookupError, AttributeError) as error:
        raise Malformed(f"it holds a malformed value ({type(error).__name__})") from None


def _decode(source: Source, budget: int, known: Sequence[classes.Known]) -> list[Any]:
    kind = source.take(1)
    (size,) = SIZE.unpack(source.take(SIZE.size))
    if kind not in (b"=", b"!"):
        raise Malformed("it is neither a value nor an error")
    reader = Reader(source.take(size), source, budget, known)
    value = reader.value(0) if kind == b"=" else reader.body(0)
    reader.finish()
    if kind == b"=":
        return ["=", value]
    if len(value) != 3 or not all(type(one) is str for one in value):
        raise Malformed("it is neither a value nor an error")
    return ["!", value[0][:200], value[1][:LONGEST_TEXT], value[2][-LONGEST_TEXT:]]


class Reader:
    """One answer on its way from bytes."""

    def __init__(self, head: bytes, source: Source, budget: int, known: Sequence[classes.Known]) -> None:
        self.head = head
        self.at = 0
        self.source = source
        self.left = self.budget = budget
        self.known = known
        self.shapes: list[list[Any]] = []

    def finish(self) -> None:
        """Raise Malformed where something is left."""
        if self.at != len(self.head) or self.source.left:
            raise Malformed("it goes on after its end")

    def charge(self, size: int) -> None:
        """Count memory before it is allocated."""
        self.left -= size
        if self.left < 0:
            raise TooLarge(f"the result takes more than {self.budget >> 20} MiB of memory when it is read")

    def take(self, count: int) -> bytes:
        """Return the next bytes of the head."""
        at = self.at
        if count > len(self.head) - at:
            raise Malformed("it ends too early")
        self.at = at + count
        return self.head[at : at + count]

    def unpack(self, form: struct.Struct) -> tuple[Any, ...]:
        """Return the next numbers of the head."""
        at = self.at
        self.at = at + form.size
        return form.unpack_from(self.head, at)

    def count(self) -> int:
        """A number of things that are to come, each of one byte at least."""
        (number,) = self.unpack(COUNT)
        return int(number)

    def text(self) -> str:
        """Return a text without a tag."""
        data = self.take(self.count())
        # A text of wide characters takes four bytes for each; one of ASCII as many as it has.
        self.charge(56 + (0 if data.isascii() else 4 * len(data)))
        return data.decode("utf-8", "surrogatepass")

    def value(self, depth: int) -> Any:
        """Return the next value."""
        if depth > DEEPEST + 1:
            raise Malformed(f"it is nested deeper than {DEEPEST}")
        tag = self.head[self.at]
        self.at += 1
        read = _READERS.get(tag)
        if read is None:
            raise Malformed("it holds an unknown tag")
        return read(self, depth)

    def body(self, depth: int) -> list[Any]:
        """A count of values, and the values."""
        kind = self.take(1)
        count = self.count()
        if count > len(self.head) - self.at:
            raise Malformed("it ends too early")
        if kind == b"v":
            self.charge(64 + _EACH * count)
            return [self.value(depth + 1) for _ in range(count)]
        if kind == b"i":
            code = self.take(1).decode()
            self.charge(64 + _SMALL[code] * count)
            return self._array(code, count).tolist()
        if kind == b"f":
            self.charge(64 + 32 * count)
            return self._array("d", count).tolist()
        if kind == b"b":
            self.charge(64 + 8 * count)
            return [one == 1 for one in self.take(count)]
        if kind == b"s":
            return self._texts(count)
        raise Malformed("it holds an unknown vector")

    def _array(self, code: str, count: int) -> array.array[Any]:
        found: array.array[Any] = array.array(code)
        found.frombytes(self.take(count * found.itemsize))
        return found

    def _texts(self, count: int) -> list[str]:
        lengths = self._array("I", count)
        data = self.take(sum(lengths))
        self.charge(64 + 64 * count + (1 if data.isascii() else 4) * len(data))
        texts, at = [], 0
        for length in lengths:
            texts.append(data[at : at + length].decode("utf-8", "surrogatepass"))
            at += length
        return texts

    def buffer(self) -> tuple[int, Callable[[memoryview], None]]:
        """The size of the next buffer, and what fills memory with it."""
        place = self.take(1)
        (size,) = self.unpack(SIZE)
        if place == b"o":
            if size > self.source.left:
                raise Malformed("it ends too early")
            return size, self.source.fill
        if place != b"h" or size > len(self.head) - self.at:
            raise Malformed("it ends too early")
        data = self.take(size)

        def fill(view: memoryview) -> None:
            view[:] = data

        return size, fill

    def bytes(self) -> bytes:
        """Return the next buffer as bytes."""
        place = self.take(1)
        (size,) = self.unpack(SIZE)
        self.charge(64)
        if place == b"o":
            return self.source.take(size)
        if place != b"h":
            raise Malformed("it holds an unknown buffer")
        return self.take(size)

    def keys(self, depth: int) -> list[Hashable]:
        """Values that are keys of a dict or members of a set."""
        is_vector = self.head[self.at] != ord("v")
        values = self.body(depth)
        return values if is_vector else hashable(values)  # numbers of 64 bits have few equal hashes

    def pairs(self, depth: int) -> Iterable[tuple[Hashable, Any]]:
        """Return the keys and values of a mapping."""
        keys = self.keys(depth)
        self.charge(64 + 104 * len(keys))
        values = self.body(depth)
        if len(values) != len(keys):
            raise Malformed("it holds a key without a value")
        return zip(keys, values, strict=True)


def hashable(values: list[Any]) -> list[Hashable]:
    """Return the values if they can be keys.

    Raises:
        Malformed: One has no hash, or so many share one that a dict of them takes quadratic time.
    """
    try:
        # The hash of a text is salted; that of a number can be computed by anyone.
        hashes = collections.Counter(hash(one) for one in values if type(one) not in (str, bytes))
    except TypeError:
        raise Malformed("it holds a key that has no hash") from None
    if hashes and max(hashes.values()) > _MOST_EQUAL_HASHES:
        raise Malformed("too many of its keys have the same hash")
    return values


# ---- values ----------------------------------------------------------------------------------------------


def _number(reader: Reader, depth: int) -> int:
    return int(reader.unpack(writer.LONG)[0])


def _wide_number(reader: Reader, depth: int) -> int:
    size = reader.count()
    if size > writer.WIDEST_INTEGER // 8 + 1:
        raise Malformed("it holds an integer that is too large")
    return int.from_bytes(reader.take(size), "little", signed=True)


def _integer(reader: Reader, depth: int, bits: int = writer.WIDEST_INTEGER) -> int:
    value = reader.value(depth)
    if type(value) is not int or value.bit_length() > bits:
        raise Malformed("it holds something else where an integer is due")
    return value


def _bytearray(reader: Reader, depth: int) -> bytearray:
    size, fill = reader.buffer()
    data = bytearray(size)
    fill(memoryview(data))
    return data


def _set(reader: Reader, depth: int) -> set[Hashable]:
    members = reader.keys(depth)
    reader.charge(216 + 64 * len(members))
    return set(members)


def _dict(reader: Reader, depth: int) -> dict[Hashable, Any]:
    return dict(reader.pairs(depth))


def _shape(reader: Reader, depth: int) -> dict[Hashable, Any]:
    """A dict whose keys are texts, which later ones have too."""
    keys = reader.body(depth)
    if len(reader.shapes) >= writer.MOST_SHAPES or not all(type(one) is str for one in keys):
        raise Malformed("it holds a shape of no texts")
    reader.shapes.append(keys)
    return _shaped(reader, keys, depth)


def _shaped(reader: Reader, keys: list[Any], depth: int) -> dict[Hashable, Any]:
    reader.charge(64 + 104 * len(keys))
    values = reader.body(depth)
    if len(values) != len(keys):
        raise Malformed("it holds a key without a value")
    return dict(zip(keys, values, strict=True))


def _counter(reader: Reader, depth: int) -> collections.Counter[Hashable]:
    counter: collections.Counter[Hashable] = collections.Counter()
    dict.update(counter, reader.pairs(depth))
    return counter


def _defaultdict(reader: Reader, depth: int) -> collections.defaultdict[Hashable, Any]:
    factory = writer.FACTORIES[reader.take(1)[0]]
    return collections.defaultdict(factory, reader.pairs(depth))


def _deque(reader: Reader, depth: int) -> collections.deque[Any]:
    longest = reader.value(depth + 1)
    reader.charge(700)
    if longest is not None and type(longest) is not int:
        raise Malformed("it holds a deque of no length")
    return collections.deque(reader.body(depth), longest)


def _range(reader: Reader, depth: int) -> range:
    reader.charge(48)
    return range(*(_integer(reader, depth + 1) for _ in range(3)))


def _date(reader: Reader, depth: int) -> datetime.date:
    return datetime.date(*reader.unpack(writer.DATE))


def _datetime(reader: Reader, depth: int) -> datetime.datetime:
    year, month, day = reader.unpack(writer.DATE)
    return datetime.datetime.combine(datetime.date(year, month, day), _time(reader, depth))


def _time(reader: Reader, depth: int) -> datetime.time:
    hour, minute, second, fraction, fold = reader.unpack(writer.TIME)
    return datetime.time(hour, minute, second, fraction, _zone_or_none(reader, depth), fold=fold)


def _zone_or_none(reader: Reader, depth: int) -> datetime.tzinfo | None:
    zone = reader.value(depth + 1)
    if zone is not None and not isinstance(zone, datetime.tzinfo):
        raise Malformed("it holds something else where a time zone is due")
    return zone


def _delta(reader: Reader, depth: int) -> datetime.timedelta:
    return datetime.timedelta(*reader.unpack(writer.DELTA))


def _timezone(reader: Reader, depth: int) -> datetime.timezone:
    reader.charge(48)
    offset, name = _delta_tagged(reader), reader.value(depth + 1)
    return datetime.timezone(offset) if name is None else datetime.timezone(offset, name)


def _delta_tagged(reader: Reader) -> datetime.timedelta:
    if reader.take(1) != b"E":
        raise Malformed("it holds a time zone without its offset")
    return _delta(reader, 0)


def _zone(reader: Reader, depth: int) -> datetime.tzinfo:
    import zoneinfo  # it takes 10 ms, and few results have one

    key = reader.text()
    if len(key) > 100 or not _ZONE.fullmatch(key):
        raise Malformed("it holds a time zone of no name")
    try:
        return zoneinfo.ZoneInfo(key)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise Malformed(f"the time zone {key} is not known here") from None


def _decimal(reader: Reader, depth: int) -> decimal.Decimal:
    text = reader.text()
    reader.charge(112 + len(text))
    if not _DECIMAL.fullmatch(text):
        raise Malformed("it holds a decimal that is no number")
    return decimal.Decimal(text)


def _fraction(reader: Reader, depth: int) -> fractions.Fraction:
    reader.charge(64)
    above, below = (_integer(reader, depth + 1, writer.WIDEST_FRACTION) for _ in range(2))
    return fractions.Fraction(above, below)


def _path(reader: Reader, depth: int) -> Any:
    reader.charge(400)
    return writer.PATHS[reader.take(1)[0]](reader.text())


def _uuid(reader: Reader, depth: int) -> uuid.UUID:
    reader.charge(120)
    return uuid.UUID(bytes=reader.take(16))


def _known(reader: Reader) -> classes.Known:
    number = reader.count()
    if number >= len(reader.known):
        raise Malformed("it holds a class that was not named")
    return reader.known[number]


def _enum(reader: Reader, depth: int) -> Any:
    return _known(reader).member(reader.body(depth))


def _record(reader: Reader, depth: int) -> Any:
    known = _known(reader)
    values = reader.body(depth)
    reader.charge(104 + 96 * len(values))
    return known.record(values)


def _exception(reader: Reader, depth: int) -> BaseException:
    name = reader.value(depth + 1)
    arguments, names, values = reader.value(depth + 1), reader.body(depth), reader.body(depth)
    reader.charge(400 + 104 * len(names))
    if type(arguments) is not tuple or len(names) != len(values):
        raise Malformed("it holds an exception without its arguments")
    known = reader.known[name] if type(name) is int and 0 <= name < len(reader.known) else name
    return classes.exception(known, arguments, dict(zip(names, values, strict=True)))


def _numpy(reader: Reader, depth: int) -> Any:
    from pycontain._python import frames

    reader.at -= 1
    tag = reader.take(1)
    return frames.read(reader, tag, depth)


_READERS: dict[int, Callable[[Reader, int], Any]] = {
    ord(tag): read
    for tag, read in {
        "N": lambda reader, depth: None,
        "T": lambda reader, depth: True,
        "F": lambda reader, depth: False,
        "i": _number,
        "I": _wide_number,
        "f": lambda reader, depth: reader.unpack(writer.FLOAT)[0],
        "c": lambda reader, depth: complex(*reader.unpack(writer.COMPLEX)),
        "s": lambda reader, depth: reader.text(),
        "b": lambda reader, depth: reader.bytes(),
        "a": _bytearray,
        "l": lambda reader, depth: reader.body(depth),
        "t": lambda reader, depth: tuple(reader.body(depth)),
        "e": _set,
        "z": lambda reader, depth: frozenset(_set(reader, depth)),
        "d": _dict,
        "o": _shape,
        "S": lambda reader, depth: _shaped(reader, reader.shapes[reader.count()], depth),
        "O": lambda reader, depth: collections.OrderedDict(reader.pairs(depth)),
        "C": _counter,
        "D": _defaultdict,
        "q": _deque,
        "r": _range,
        "Y": _date,
        "M": _datetime,
        "H": _time,
        "E": _delta,
        "Z": _timezone,
        "W": _zone,
        "p": _decimal,
        "R": _fraction,
        "P": _path,
        "U": _uuid,
        "n": _enum,
        "m": _record,
        "g": _record,
        "X": _exception,
        **dict.fromkeys("ykujw", _numpy),
    }.items()
}
