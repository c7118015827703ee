"""The answers of calls: what one end writes the other reads, and nothing else is read."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain._zygote import codec
from pycontain._zygote.inside import NotPlain, packed


@st.composite
def scalars(draw: st.DrawFn) -> Any:
    number = st.integers() | st.integers().map(lambda one: one**5) | st.floats(allow_nan=False)
    other = st.none() | st.booleans() | st.complex_numbers(allow_nan=False) | st.text() | st.binary()
    return draw(number | other)


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
            | st.tuples(inner, inner)
            | st.dictionaries(keys(), inner, max_size=4)
            | st.sets(keys(), max_size=4)
        ),
        max_leaves=10,
    )
    return draw(containers)


def _sent(value: Any) -> Any:
    return codec.decode(json.dumps(["=", packed(value)]).encode())[1]


@given(values())
def test_value_is_read_as_it_was(value: Any) -> None:
    back = _sent(value)
    assert back == value
    assert repr(back) == repr(value) or isinstance(value, set | frozenset | list | tuple | dict)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        codec.decode(data)
    except codec.Malformed:
        pass


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from("=!ltsfdbainc") | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=30,
)


@given(JSON)
def test_any_document_is_read_or_refused(document: Any) -> None:
    for one in (document, ["=", document]):
        try:
            codec.decode(json.dumps(one).encode())
        except codec.Malformed:
            pass


def test_nan_and_types_come_back() -> None:
    assert math.isnan(_sent(math.nan))
    assert type(_sent(True)) is bool
    assert type(_sent(1.0)) is float
    assert math.copysign(1, _sent(-0.0)) == -1


def test_keys_of_one_hash_are_refused() -> None:
    many = [f"{one * (2**61 - 1):x}" for one in range(1 << 10)]
    text = json.dumps(["=", ["s", *[["i", one] for one in many]]]).encode()
    with pytest.raises(codec.Malformed, match="hash"):
        codec.decode(text)
    # Tuples of such keys as well.
    text = json.dumps(["=", ["d", *[part for one in many for part in (["t", ["i", one]], 1)]]]).encode()
    with pytest.raises(codec.Malformed, match="hash"):
        codec.decode(text)


@pytest.mark.parametrize("depth", [100, 101])
def test_depth_is_bounded_on_both_ends(depth: int) -> None:
    value: Any = 1
    raw: Any = 1
    for _ in range(depth):
        value, raw = [value], ["l", raw]
    text = json.dumps(["=", raw]).encode()
    if depth == 100:
        assert _sent(value) == value == codec.decode(text)[1]
    else:
        with pytest.raises(NotPlain):
            packed(value)
        with pytest.raises(codec.Malformed):
            codec.decode(text)


def test_subclasses_are_no_plain_data() -> None:
    class Text(str):
        pass

    class Number(int):
        pass

    for value in (Text("x"), Number(1), {Text("x"): 1}, [object()], range(3), memoryview(b"x")):
        with pytest.raises(NotPlain, match="plain data"):
            packed(value)
