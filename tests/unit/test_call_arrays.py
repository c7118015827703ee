"""Arrays of numpy and objects of pandas in results of calls."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from pycontain._python import codec, writer
from pycontain._python.source import Malformed
from pycontain._python.writer import SIZE

np: Any = pytest.importorskip("numpy", reason="numpy is not installed")


def _sent(value: Any) -> Any:
    return codec.decode(b"".join(map(bytes, writer.encode(value, [], 1 << 28))))[1]


def _altered(value: Any, old: bytes, new: bytes) -> bytes:
    answer = b"".join(map(bytes, writer.encode(value, [], 1 << 28)))
    assert old in answer
    head = answer[1 + SIZE.size :].replace(old, new)
    return b"=" + SIZE.pack(len(head)) + head


ARRAYS = [
    np.arange(5),
    np.ones((3, 4)),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.arange(10)[::2],
    np.array(3),
    np.zeros((0, 3)),
    np.array(["a", "bcd"]),
    np.array([b"x"]),
    np.array(["2024-01-01"], "M8[D]"),
    np.array([1, 2], "m8[ns]"),
    np.array([True, False]),
    np.arange(3, dtype=">i4"),
    np.zeros(2, [("a", "i4"), ("b", "f8", (2,)), ("c", "U3")]),
    np.ones(100_000),
    np.array([1 + 2j]),
    np.ones(3, "f2"),
    np.array([{"a": 1}, None], object),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda one: f"{one.dtype}{one.shape}")
def test_array_comes_back_and_can_be_written(array: Any) -> None:
    back = _sent({"x": array})["x"]
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert np.array_equal(back, array)
    assert back.flags.writeable


@pytest.mark.parametrize(
    "scalar",
    [np.float64(1.5), np.int8(3), np.bool_(True), np.str_("x"), np.datetime64("2024-01-01")],
    ids=repr,
)
def test_scalar_keeps_its_type(scalar: Any) -> None:
    back = _sent([scalar])[0]
    assert (type(back), back) == (type(scalar), scalar)


def test_array_that_is_no_data_is_refused_with_its_place() -> None:
    with pytest.raises(writer.NotPlain, match=r"result\['a'\]\[0\] is of type object"):
        _sent({"a": np.array([object()])})


@pytest.mark.parametrize(
    ("value", "old", "new"),
    [
        (np.ones(3, bool), b"\1\1\1", b"\1\2\1"),
        (np.array(["ab"]), b"a\0\0\0", b"a\0\0\xff"),
        (np.ones(3), b"<f8", b"|O8"),
        (np.ones(3), b"<f8", b"<f4"),
        (np.ones(3), b"<f8", b"xyz"),
        (np.array([1], "m8[ns]"), b"[ns]", b"[zz]"),
        (np.zeros((0, 3)), b"y" + b"C", b"y" + b"Q"),
    ],
)
def test_forged_array_is_refused(value: Any, old: bytes, new: bytes) -> None:
    with pytest.raises(Malformed):
        codec.decode(_altered(value, old, new))


def test_array_without_bytes_is_no_way_to_a_large_one() -> None:
    with pytest.raises(Malformed, match="another size"):
        codec.decode(_altered(np.zeros((3,) * 4, "V0"), b"\3" * 4, b"\xff" * 4))


def test_numpy_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = _altered(np.ones(3), b"f8", b"f8")
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(Malformed, match="numpy, which is not installed here"):
        codec.decode(answer)


def _frame(pd: Any) -> Any:
    return pd.DataFrame(
        {
            "a": [1, 2, 3],
            "b": ["x", "y", None],
            "c": pd.Categorical(["u", "v", "u"]),
            "d": pd.date_range("2024", periods=3, tz="UTC"),
            "e": pd.array([1, None, 3], "Int64"),
            "f": [1.5, np.nan, 2],
            "g": pd.date_range("2024", periods=3),
            "h": pd.array([True, None, False], "boolean"),
            "i": pd.array(["a", None, "b"], "string"),
        }
    )


def test_tables_come_back() -> None:
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = _frame(pd)
    grouped = frame.groupby("c", observed=True)["f"].agg(["mean", "max"])
    twice = pd.DataFrame([[1, 2]], columns=["a", "a"])
    for one in (
        frame,
        frame.set_index(["a", "b"]),
        grouped,
        twice,
        frame.T,
        frame.describe(),
        pd.DataFrame(),
    ):
        pd.testing.assert_frame_equal(_sent(one), one)


def test_series_and_indexes_come_back() -> None:
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = _frame(pd)
    days = pd.date_range("2024", periods=3, tz="Europe/Berlin", freq="D")
    for one in (
        frame["a"],
        frame["d"],
        pd.Series([], dtype=float),
        days.to_series(),
        pd.Series([[1], {"a": 2}]),
    ):
        pd.testing.assert_series_equal(_sent(one), one)
    several = pd.MultiIndex.from_tuples([(1, "a")], names=["x", None])
    for one in (frame.index, frame.columns, pd.RangeIndex(5, name="q"), days, several):
        pd.testing.assert_index_equal(_sent(one), one)


def test_times_of_pandas_come_back() -> None:
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    for one in (
        pd.Timestamp("2024-01-01"),
        pd.Timestamp("2024-06-01 12:00:00.123456789", tz="Europe/Berlin"),
        pd.Timedelta("1D 3ns"),
    ):
        assert (type(_sent(one)), _sent(one)) == (type(one), one)
    assert _sent([pd.NaT, pd.NA]) == [pd.NaT, pd.NA] or _sent(pd.NaT) is pd.NaT


def test_column_of_an_unknown_type_is_refused_with_its_place() -> None:
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pd.DataFrame({"p": pd.period_range("2024", periods=2)})
    with pytest.raises(writer.NotPlain, match=r"result\['p'\] is of type .*Period"):
        _sent(frame)
