"""Encode the result of a call: data of known types as tagged bytes, large buffers behind them.

It runs inside the container, so it is sent there as code and imports nothing of pycontain.  codec.py reads
the output; the constants of the format are declared here for both.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import pathlib
import struct
import sys
import uuid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

DEEPEST = 100
WIDEST_INTEGER = 1 << 20
"""Bits."""
WIDEST_FRACTION = 1 << 14
"""Bits of a numerator or denominator: the reader reduces the fraction."""
SHORTEST_VECTOR = 4
MOST_SHAPES, WIDEST_SHAPE = 1 << 12, 64
"""Dicts whose keys are written once: how many sorts, and of how many keys."""
INLINE = 1 << 12
"""Bytes of the largest buffer that is in the head itself."""
COUNT, LONG, SIZE = struct.Struct("<I"), struct.Struct("<q"), struct.Struct("<Q")
FLOAT, COMPLEX = struct.Struct("<d"), struct.Struct("<dd")
DATE, TIME, DELTA = struct.Struct("<HBB"), struct.Struct("<BBBIB"), struct.Struct("<iII")
FACTORIES: list[Any] = [None, int, float, str, bytes, bool, list, dict, set, tuple, complex, frozenset]
"""Factories of a defaultdict that are kept; another one is left out."""
PATHS: list[Any] = [pathlib.PurePosixPath, pathlib.PosixPath, pathlib.PureWindowsPath]
CONTAINERS = {list: b"l", tuple: b"t", set: b"e", frozenset: b"z"}
INTEGERS = (("B", 0, 255), ("h", -(1 << 15), (1 << 15) - 1), ("i", -(1 << 31), (1 << 31) - 1))


class NotPlain(TypeError):
    """A result that cannot be carried, with the way to the part that cannot."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.hint = what, hint
        self.path: list[str] = []

    def __str__(self) -> str:
        place = "result" + "".join(reversed(self.path))
        return f"{place} is {self.what}" + (f": {self.hint}" if self.hint else "")


class TooLong(OverflowError):
    """A result of more bytes than the caller takes."""


def encode(value: Any, names: Sequence[tuple[str, str]], most: int) -> list[Any]:
    """The parts of an answer: its head, and then buffers.

    Args:
        value: The result.
        names: Module and qualified name of each class that the caller rebuilds; the order is their number.
        most: Bytes that the caller takes.

    Raises:
        NotPlain: The result holds what cannot be carried.
        TooLong: It takes more than `most` bytes.
    """
    writer = Writer({name: number for number, name in enumerate(names)}, most)
    writer.put(value, 0)
    return writer.parts(b"=")


def encode_error(kind: str, message: str, trace: str) -> list[Any]:
    """Return the parts of an answer that reports an error."""
    writer = Writer({}, 1 << 40)
    writer.body([kind, message, trace], 0, str)
    return writer.parts(b"!")


class Writer:
    """One answer on its way into bytes."""

    def __init__(self, classes: dict[tuple[str, str], int], most: int) -> None:
        self.classes = classes
        self.most = most
        self.head = bytearray()
        self.buffers: list[Any] = []
        self.outside = 0
        self.handlers: dict[type, Callable[..., None]] = dict(HANDLERS)
        self.shapes: dict[tuple[str, ...], int] = {}

    def parts(self, kind: bytes) -> list[Any]:
        """Return the parts to write in order."""
        self.check()
        return [kind + SIZE.pack(len(self.head)) + bytes(self.head), *self.buffers]

    def check(self) -> None:
        """Raise TooLong as soon as it is."""
        size = len(self.head) + self.outside + 1 + SIZE.size
        if size > self.most:
            raise TooLong(f"the result takes {size} bytes or more, more than max_output ({self.most})")

    def put(self, value: Any, depth: int) -> None:
        """Append a value with its tag."""
        kind = type(value)
        handler = self.handlers.get(kind)
        if handler is None:
            handler = self.handlers[kind] = self.find(kind)
        if depth > DEEPEST:
            raise NotPlain(f"nested deeper than {DEEPEST}")
        handler(self, value, depth)

    def find(self, kind: type) -> Callable[..., None]:
        """Return the handler of a class that is no type of the format itself."""
        root = kind.__module__.partition(".")[0]
        if root in ("numpy", "pandas") and root in sys.modules:
            from .arrays import handler

            found = handler(kind)
            if found is not None:
                return found
        number = self.classes.get((kind.__module__, kind.__qualname__))
        if issubclass(kind, BaseException):
            builtin = kind.__module__ == "builtins"
            return exception_writer(kind.__name__ if builtin else self.known(kind, number))
        if issubclass(kind, enum.Enum):
            return enum_writer(self.known(kind, number), issubclass(kind, enum.Flag))
        if issubclass(kind, tuple) and hasattr(kind, "_fields"):
            return record_writer(b"m", self.known(kind, number), kind._fields)
        if dataclasses.is_dataclass(kind):
            names = [one.name for one in dataclasses.fields(kind)]
            return record_writer(b"g", self.known(kind, number), names)
        if hasattr(kind, "__attrs_attrs__"):
            names = [one.name for one in kind.__attrs_attrs__]
            return record_writer(b"g", self.known(kind, number), names)
        if kind.__module__ == "zoneinfo":
            return put_zone
        raise NotPlain(described(kind), hint_for(kind))

    def known(self, kind: type, number: int | None) -> int:
        """Return the number of a class that the caller rebuilds."""
        if number is None:
            hint = "its module is not that of the function or of an argument; name the class in types=[...]"
            raise NotPlain(described(kind), hint)
        return number

    def body(self, values: Sequence[Any], depth: int, step: Callable[[int], str]) -> None:
        """Append a count of values and the values; those of one simple type as a vector."""
        kinds = set(map(type, values)) if len(values) >= SHORTEST_VECTOR else ()
        vector = VECTORS.get(next(iter(kinds))) if len(kinds) == 1 else None
        if vector is not None and vector(self, values):
            self.check()
            return
        self.head += b"v" + COUNT.pack(len(values))
        at = 0
        try:
            for at, one in enumerate(values):  # noqa: B007  it is read where a value is refused
                self.put(one, depth + 1)
        except NotPlain as error:
            error.path.append(step(at))
            raise
        self.check()

    def item(self, value: Any, depth: int, name: str) -> None:
        """Append a part of a value, by the name that it has there."""
        try:
            self.put(value, depth + 1)
        except NotPlain as error:
            error.path.append(name)
            raise

    def text(self, text: str) -> None:
        """Append a text without a tag."""
        data = text.encode("utf-8", "surrogatepass")
        self.head += COUNT.pack(len(data)) + data

    def buffer(self, data: Any) -> None:
        """Append bytes: here where they are few, else behind the head, where they are not copied."""
        view = memoryview(data)
        view = view.cast("B") if view.nbytes else memoryview(b"")
        if view.nbytes <= INLINE:
            self.head += b"h" + SIZE.pack(view.nbytes) + view
        else:
            self.head += b"o" + SIZE.pack(view.nbytes)
            self.buffers.append(view)
            self.outside += view.nbytes
        self.check()


def described(kind: type) -> str:
    """Return the type of a value as text."""
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"of type {name}"[:300]


def hint_for(kind: type) -> str:
    """Return a hint about returning such a value as data."""
    if issubclass(kind, int | float | str | bytes | list | dict | set | tuple):
        base = next(one for one in kind.__mro__ if one.__module__ == "builtins")
        return f"return {base.__name__}(value)"
    if kind.__name__ in ("dict_keys", "dict_values", "dict_items", "generator", "map", "filter", "zip"):
        return "return list(value)"
    if kind is memoryview:
        return "return bytes(value)"
    return "return plain data: numbers, texts, bytes, containers, arrays, dates, dataclasses"


def at_index(number: int) -> str:
    """Return the path step to an element."""
    return f"[{number}]"


def shown(value: Any) -> str:
    """Return a key for the path in an error."""
    try:
        return repr(value)[:60]
    except Exception:  # noqa: BLE001  it is the caller's class
        return f"<{type(value).__name__}>"


# ---- vectors ---------------------------------------------------------------------------------------------


def integer_vector(writer: Writer, values: Sequence[int]) -> bool:
    """Append integers of 64 bits at most as an array of the narrowest type; False for wider ones."""
    low, high = min(values), max(values)
    code = next((code for code, least, most in INTEGERS if least <= low and high <= most), "q")
    try:
        packed = array.array(code, values)
    except OverflowError:
        return False
    writer.head += b"i" + COUNT.pack(len(values)) + code.encode() + packed.tobytes()
    return True


def float_vector(writer: Writer, values: Sequence[float]) -> bool:
    """Append floats as an array."""
    writer.head += b"f" + COUNT.pack(len(values)) + array.array("d", values).tobytes()
    return True


def text_vector(writer: Writer, values: Sequence[str]) -> bool:
    """Append texts: their lengths in bytes, then all of them."""
    encoded = [one.encode("utf-8", "surrogatepass") for one in values]
    lengths = array.array("I", map(len, encoded))
    writer.head += b"s" + COUNT.pack(len(values)) + lengths.tobytes()
    writer.head += b"".join(encoded)
    return True


def truth_vector(writer: Writer, values: Sequence[bool]) -> bool:
    """Append truth values, a byte each."""
    writer.head += b"b" + COUNT.pack(len(values)) + bytes(values)
    return True


VECTORS: dict[type, Callable[[Writer, Any], bool]] = {
    int: integer_vector,
    float: float_vector,
    str: text_vector,
    bool: truth_vector,
}


# ---- values ----------------------------------------------------------------------------------------------


def put_integer(writer: Writer, value: int, depth: int) -> None:
    if -(1 << 63) <= value < 1 << 63:
        writer.head += b"i" + LONG.pack(value)
        return
    if value.bit_length() > WIDEST_INTEGER:
        raise NotPlain(f"an integer of {value.bit_length()} bits", f"at most {WIDEST_INTEGER} are carried")
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    writer.head += b"I" + COUNT.pack(len(data)) + data


def put_text(writer: Writer, value: str, depth: int) -> None:
    writer.head += b"s"
    writer.text(value)
    writer.check()


def put_bytes(writer: Writer, value: bytes | bytearray, depth: int) -> None:
    writer.head += b"b" if type(value) is bytes else b"a"
    writer.buffer(value)


def put_container(writer: Writer, value: Any, depth: int) -> None:
    kind: Any = type(value)
    writer.head += CONTAINERS[kind]
    if kind is list or kind is tuple:
        writer.body(value, depth, at_index)
        return
    members = list(value)
    writer.body(members, depth, lambda at: f"{{{shown(members[at])}}}")


def put_mapping(writer: Writer, value: Any, depth: int) -> None:
    keys = list(value)
    writer.body(keys, depth, lambda at: f".key({shown(keys[at])})")
    writer.body(list(value.values()), depth, lambda at: f"[{shown(keys[at])}]")


def put_dict(writer: Writer, value: dict[Any, Any], depth: int) -> None:
    """Append a dict.  Records have the same texts as keys over and over: those are written once."""
    if not 0 < len(value) <= WIDEST_SHAPE or set(map(type, value)) != {str}:
        writer.head += b"d"
        put_mapping(writer, value, depth)
        return
    keys = tuple(value)
    number = writer.shapes.get(keys)
    if number is not None:
        writer.head += b"S" + COUNT.pack(number)
    elif len(writer.shapes) < MOST_SHAPES:
        writer.shapes[keys] = len(writer.shapes)
        writer.head += b"o"
        writer.body(keys, depth, at_index)
    else:
        writer.head += b"d"
        writer.body(keys, depth, at_index)
    writer.body(list(value.values()), depth, lambda at: f"[{shown(keys[at])}]")


def put_ordered(writer: Writer, value: Any, depth: int) -> None:
    writer.head += b"O"
    put_mapping(writer, value, depth)


def put_counter(writer: Writer, value: Any, depth: int) -> None:
    writer.head += b"C"
    put_mapping(writer, value, depth)


def put_defaultdict(writer: Writer, value: Any, depth: int) -> None:
    factory = value.default_factory
    number = next((at for at, one in enumerate(FACTORIES) if one is factory), 0)
    writer.head += b"D" + bytes([number])
    put_mapping(writer, value, depth)


def put_deque(writer: Writer, value: Any, depth: int) -> None:
    writer.head += b"q"
    writer.put(value.maxlen, depth)
    writer.body(list(value), depth, at_index)


def put_range(writer: Writer, value: range, depth: int) -> None:
    writer.head += b"r"
    for one in (value.start, value.stop, value.step):
        put_integer(writer, one, depth)


def put_date(writer: Writer, value: datetime.date, depth: int) -> None:
    writer.head += b"Y" + DATE.pack(value.year, value.month, value.day)


def put_time(writer: Writer, value: Any, depth: int) -> None:
    if type(value) is datetime.datetime:
        writer.head += b"M" + DATE.pack(value.year, value.month, value.day)
    else:
        writer.head += b"H"
    writer.head += TIME.pack(value.hour, value.minute, value.second, value.microsecond, value.fold)
    writer.item(value.tzinfo, depth, ".tzinfo")


def put_delta(writer: Writer, value: datetime.timedelta, depth: int) -> None:
    writer.head += b"E" + DELTA.pack(value.days, value.seconds, value.microseconds)


def put_timezone(writer: Writer, value: datetime.timezone, depth: int) -> None:
    offset, *name = value.__getinitargs__()  # type: ignore[attr-defined]
    writer.head += b"Z"
    put_delta(writer, offset, depth)
    writer.put(name[0] if name else None, depth)


def put_zone(writer: Writer, value: Any, depth: int) -> None:
    if value.key is None:
        raise NotPlain(described(type(value)), "it has no key")
    writer.head += b"W"
    writer.text(value.key)


def put_decimal(writer: Writer, value: decimal.Decimal, depth: int) -> None:
    writer.head += b"p"
    writer.text(str(value))


def put_fraction(writer: Writer, value: fractions.Fraction, depth: int) -> None:
    writer.head += b"R"
    for one in (value.numerator, value.denominator):
        if one.bit_length() > WIDEST_FRACTION:
            raise NotPlain(f"a fraction of more than {WIDEST_FRACTION} bits")
        put_integer(writer, one, depth)


def put_path(writer: Writer, value: pathlib.PurePath, depth: int) -> None:
    writer.head += b"P" + bytes([PATHS.index(type(value))])
    writer.text(str(value))


def put_constant(tag: bytes) -> Callable[..., None]:
    def put(writer: Writer, value: Any, depth: int) -> None:
        writer.head += tag

    return put


def enum_writer(number: int, is_flag: bool) -> Callable[..., None]:
    def put(writer: Writer, value: Any, depth: int) -> None:
        names = [one.name for one in value] if is_flag else [value._name_]
        if is_flag and not names and value._value_ != 0:
            raise NotPlain(described(type(value)), "the flag has bits that no member has")
        writer.head += b"n" + COUNT.pack(number)
        writer.body(names, depth, at_index)

    return put


def record_writer(tag: bytes, number: int, names: Sequence[str]) -> Callable[..., None]:
    def put(writer: Writer, value: Any, depth: int) -> None:
        writer.head += tag + COUNT.pack(number)
        values = list(value) if tag == b"m" else [getattr(value, name) for name in names]
        writer.body(values, depth, lambda at: f".{names[at]}")

    return put


def exception_writer(name: str | int) -> Callable[..., None]:
    def put(writer: Writer, value: BaseException, depth: int) -> None:
        writer.head += b"X"
        writer.put(name, depth)
        writer.item(value.args, depth, ".args")
        kept = {key: one for key, one in vars(value).items() if not key.startswith("__")}
        writer.body(list(kept), depth, at_index)
        writer.body(list(kept.values()), depth, lambda at: f".{list(kept)[at]}")

    return put


HANDLERS: dict[type, Callable[..., None]] = {
    type(None): put_constant(b"N"),
    bool: lambda writer, value, depth: writer.head.extend(b"T" if value else b"F"),
    int: put_integer,
    float: lambda writer, value, depth: writer.head.extend(b"f" + FLOAT.pack(value)),
    complex: lambda writer, value, depth: writer.head.extend(b"c" + COMPLEX.pack(value.real, value.imag)),
    str: put_text,
    bytes: put_bytes,
    bytearray: put_bytes,
    **dict.fromkeys(CONTAINERS, put_container),
    dict: put_dict,
    collections.OrderedDict: put_ordered,
    collections.Counter: put_counter,
    collections.defaultdict: put_defaultdict,
    collections.deque: put_deque,
    range: put_range,
    datetime.date: put_date,
    datetime.datetime: put_time,
    datetime.time: put_time,
    datetime.timedelta: put_delta,
    datetime.timezone: put_timezone,
    decimal.Decimal: put_decimal,
    fractions.Fraction: put_fraction,
    **dict.fromkeys(PATHS, put_path),
    uuid.UUID: lambda writer, value, depth: writer.head.extend(b"U" + value.bytes),
}
