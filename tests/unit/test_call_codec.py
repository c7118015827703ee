"""The codec of call results: round trips, and refusal of malformed input."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import math
import os
import pathlib
import uuid
import zoneinfo
from typing import Any, NamedTuple

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycontain._python import classes, codec, writer
from pycontain._python.source import Malformed, Source, TooLarge
from pycontain._python.writer import COUNT, SIZE, NotPlain


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    """A dataclass without a dictionary."""

    a: int = 1
    b: Any = None


class Pair(NamedTuple):
    """A tuple with names."""

    left: Any
    right: Any


@attrs.frozen
class Attrs:
    """An attrs class."""

    a: int
    b: Any


class Colour(enum.Enum):
    """An enumeration."""

    RED = 1
    GREEN = "g"


class Rights(enum.Flag):
    """A flag."""

    READ = 1
    WRITE = 2


class Failure(Exception):
    """An exception with a constructor of its own."""

    def __init__(self, code: int, extra: Any) -> None:
        super().__init__(f"code {code}")
        self.code, self.extra = code, extra


class Checked:
    """A class that is no record."""


KNOWN = classes.collect(lambda: Slotted, (), ())


def _answer(value: Any) -> bytes:
    parts = writer.encode(value, [one.name for one in KNOWN], 1 << 28)
    return b"".join(map(bytes, parts))


def _sent(value: Any) -> Any:
    return codec.decode(_answer(value), None, KNOWN)[1]


def _raw(head: bytes) -> bytes:
    return b"=" + SIZE.pack(len(head)) + head


@st.composite
def scalars(draw: st.DrawFn) -> Any:
    number = st.integers() | st.integers().map(lambda one: one**5) | st.floats(allow_nan=False)
    other = st.none() | st.booleans() | st.complex_numbers(allow_nan=False) | st.text() | st.binary()
    times = st.datetimes() | st.dates() | st.times() | st.timedeltas() | st.uuids()
    exact = st.decimals(allow_nan=False) | st.fractions()
    return draw(number | other | times | exact)


@st.composite
def keys(draw: st.DrawFn) -> Any:
    one = scalars()
    return draw(one | st.tuples(one, st.tuples(one, one)) | st.frozensets(one, max_size=3))


@st.composite
def values(draw: st.DrawFn) -> Any:
    containers = st.recursive(
        scalars() | st.binary().map(bytearray),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.lists(st.integers(), max_size=4)
            | st.lists(st.text(), max_size=4)
            | st.tuples(inner, inner)
            | st.dictionaries(keys(), inner, max_size=4)
            | st.sets(keys(), max_size=4)
            | st.builds(Slotted, inner, inner)
            | st.builds(Pair, inner, inner)
        ),
        max_leaves=10,
    )
    return draw(containers)


@given(values())
def test_value_round_trip(value: Any) -> None:
    back = _sent(value)
    assert back == value
    assert type(back) is type(value)
    assert repr(back) == repr(value) or isinstance(value, set | frozenset | list | tuple | dict | Slotted)


@pytest.mark.parametrize(
    "value",
    [
        Attrs(1, [Slotted(2, Pair(1, "x"))]),
        Colour.GREEN,
        Rights.READ | Rights.WRITE,
        Rights(0),
        {Colour.RED: [Colour.GREEN]},
        datetime.datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC, fold=1),
        datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone(datetime.timedelta(hours=-2), "X")),
        datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo("UTC")),
        decimal.Decimal("-1E+500"),
        decimal.Decimal("Infinity"),
        fractions.Fraction(-3, 7),
        uuid.UUID(int=5),
        pathlib.Path("/a/b"),
        pathlib.PureWindowsPath("c:/x"),
        range(1, 10, 3),
        collections.deque([1, 2], 5),
        collections.Counter("aab"),
        collections.OrderedDict(a=1),
        collections.defaultdict(list, a=[1]),
        b"x" * 100_000,
        bytearray(b"y" * 100_000),
        [1] * 1000,
        [-1, 1 << 40],
        [1 << 70, 1],
        [1.5] * 10,
        ["", "ä", "\ud800"],
        [True, False],
        [1, True],
    ],
    ids=repr,
)
def test_types_come_back(value: Any) -> None:
    back = _sent([value])[0]
    assert back == value
    assert type(back) is type(value)
    assert repr(back) == repr(value)


def test_nan_and_signs_come_back() -> None:
    assert math.isnan(_sent(math.nan))
    assert type(_sent(True)) is bool
    assert type(_sent(1.0)) is float
    assert math.copysign(1, _sent(-0.0)) == -1
    assert _sent(decimal.Decimal("NaN")).is_nan()


def test_exceptions_come_back_without_their_constructors() -> None:
    back = _sent(Failure(3, [1]))
    assert (type(back), back.args, back.code, back.extra) == (Failure, ("code 3",), 3, [1])
    for error in (ValueError("x", 1), OSError(2, "no"), UnicodeDecodeError("utf8", b"x", 0, 1, "r")):
        back = _sent(error)
        assert (type(back), str(back)) == (type(error), str(error))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": [1, 2, 3, object()]}, "result['a'][3] is of type object"),
        (Pair(1, (2, Checked())), "result.right[1] is of type"),
        ({(1, Checked()): 1}, "result.key("),
        (Attrs(1, {2: lambda: 0}), "result.b[2] is of type function"),
        (type("Text", (str,), {})("x"), "return str(value)"),
        (memoryview(b"x"), "return bytes(value)"),
        ({}.keys(), "return list(value)"),
        (1 << (writer.WIDEST_INTEGER + 1), "integer of"),
        (dataclasses.make_dataclass("Other", ["x"])(1), "types=[...]"),
    ],
    ids=lambda one: one if isinstance(one, str) else type(one).__name__,
)
def test_refusal_names_the_place_and_the_type(value: Any, said: str) -> None:
    with pytest.raises(NotPlain) as caught:
        _answer(value)
    assert said in str(caught.value)


@settings(deadline=None)  # a tag of pandas loads it
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for answer in (data, _raw(data), b"!" + SIZE.pack(len(data)) + data):
        try:
            codec.decode(answer, None, KNOWN)
        except Malformed:
            pass


@settings(deadline=None)
@given(values(), st.data())
def test_a_damaged_answer_is_read_or_refused(value: Any, data: st.DataObject) -> None:
    answer = bytearray(_answer(value))
    for _ in range(data.draw(st.integers(1, 3))):
        answer[data.draw(st.integers(0, len(answer) - 1))] = data.draw(st.integers(0, 255))
    for one in (bytes(answer), bytes(answer[: data.draw(st.integers(0, len(answer)))])):
        try:
            codec.decode(one, None, KNOWN)
        except Malformed:
            pass


def test_keys_of_one_hash_are_refused() -> None:
    many = [one * (2**61 - 1) for one in range(1 << 10)]
    head = b"".join(b"I" + COUNT.pack(12) + one.to_bytes(12, "little") for one in many)
    with pytest.raises(Malformed, match="hash"):
        codec.decode(_raw(b"ev" + COUNT.pack(len(many)) + head))
    # Tuples of such keys as well.
    head = b"".join(
        b"tv" + COUNT.pack(1) + b"I" + COUNT.pack(12) + one.to_bytes(12, "little") for one in many
    )
    keys = b"v" + COUNT.pack(len(many)) + head
    with pytest.raises(Malformed, match="hash"):
        codec.decode(_raw(b"d" + keys + b"b" + COUNT.pack(len(many)) + bytes(len(many))))


@pytest.mark.parametrize("depth", [100, 102])
def test_depth_is_bounded_on_both_ends(depth: int) -> None:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    answer = _raw((b"lv" + COUNT.pack(1)) * depth + b"i" + bytes(8))
    if depth == 100:
        assert _sent(value) == value
        codec.decode(answer)
    else:
        with pytest.raises(NotPlain, match="nested"):
            _answer(value)
        with pytest.raises(Malformed, match="nested"):
            codec.decode(answer)


def test_too_large_answer_is_refused_while_written() -> None:
    with pytest.raises(writer.TooLong, match="max_output"):
        writer.encode([["x" * 100] * 100] * 1000, [], 1 << 16)


def test_memory_is_counted_before_allocation() -> None:
    answer = _answer([set() for _ in range(100_000)])
    with pytest.raises(TooLarge, match="MiB"):
        codec.decode(answer)
    assert len(codec.decode(answer, 1 << 26)[1]) == 100_000


@pytest.mark.parametrize(
    "kind",
    [dict, int, type("Closing", (), {"__del__": lambda self: None}), ValueError, Checked],
)
def test_class_that_cannot_be_made_from_data_is_refused(kind: type) -> None:
    with pytest.raises(TypeError, match="types must be"):
        classes.collect(len, (), (kind,))


def test_classes_with_code_at_their_fields_are_not_made() -> None:
    class Setter:
        def __set__(self, owner: Any, value: Any) -> None:
            raise AssertionError

    namespace = {"x": Setter()}
    made = dataclasses.make_dataclass("Made", [("x", int)], namespace=namespace)
    assert not classes.can_be_carried(made)
    assert not classes.can_be_carried(dataclasses.make_dataclass("Dict", ["x"], bases=(dict,)))


def test_classes_of_arguments_are_known() -> None:
    local = dataclasses.make_dataclass("Local", ["x"])
    assert local in {one.kind for one in classes.collect(len, ([local(1)],), ())}
    assert Slotted in {one.kind for one in classes.collect(len, (Colour.RED,), ())}
    assert not classes.collect(len, (1, "x"), ())


def test_answer_is_read_from_a_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "answer"
    path.write_bytes(b"head" + _answer([b"x" * 100_000, 1]))
    with path.open("rb") as file:
        source = Source(file.fileno(), 4, os.fstat(file.fileno()).st_size - 4)
        assert codec.decode(source)[1] == [b"x" * 100_000, 1]
        with pytest.raises(Malformed, match="after its end"):
            codec.decode(Source(file.fileno(), 4, 1 << 20))


def test_words_of_an_error_are_bounded() -> None:
    parts = writer.encode_error("T" * 1000, "m" * (1 << 20), "t" * (1 << 20))
    kind, name, message, trace = codec.decode(b"".join(map(bytes, parts)))
    assert (kind, len(name)) == ("!", 200)
    assert len(message) == len(trace) == codec.LONGEST_TEXT
