"""Encode objects of numpy and pandas: the second part of writer.py, loaded with the first such object."""

from __future__ import annotations

import sys

from .writer import NotPlain, Writer, at_index, described

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

SIMPLE_KINDS = "biufcSUmMV"
"""Kinds of numpy's types whose values are bytes in place."""
WRAPPERS = ("NumpyExtensionArray", "PandasArray")
"""Names of pandas' array class for numpy arrays, by version."""


def handler(kind: type) -> Callable[..., None] | None:
    """Return the writer of a class of numpy or pandas, None for an unsupported one."""
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        if kind is numpy.ndarray:
            return put_array
        if issubclass(kind, numpy.generic):
            return put_scalar
        if issubclass(kind, numpy.dtype):
            return put_type
    pandas = sys.modules.get("pandas")
    if pandas is None:
        return None
    exact: dict[Any, Callable[..., None]] = {
        pandas.Series: put_series,
        pandas.DataFrame: put_frame,
        pandas.Timestamp: put_timestamp,
        pandas.Timedelta: put_timedelta,
        pandas.RangeIndex: put_range_index,
        pandas.MultiIndex: put_multi_index,
        type(pandas.NaT): put_missing(b"n"),
        type(pandas.NA): put_missing(b"a"),
    }
    if kind in exact:
        return exact[kind]
    indexes = (pandas.Index, pandas.DatetimeIndex, pandas.TimedeltaIndex, pandas.CategoricalIndex)
    return put_index if kind in indexes else None


# ---- numpy -----------------------------------------------------------------------------------------------


def type_name(dtype: Any) -> Any:
    """Return a dtype as data: its name, or the fields of a structure.  Raises NotPlain for others."""
    is_simple = dtype.kind in SIMPLE_KINDS and not dtype.hasobject and dtype.isbuiltin != 2
    if not is_simple or dtype.subdtype is not None:
        raise NotPlain(f"a numpy array of type {str(dtype)[:100]}")
    if dtype.names is None:
        return dtype.str
    fields = []
    for name in dtype.names:
        field, offset = dtype.fields[name][:2]
        base, shape = field.subdtype if field.subdtype is not None else (field, ())
        fields.append((name, type_name(base), shape, offset))
    return (dtype.itemsize, fields)


def put_type(writer: Writer, value: Any, depth: int) -> None:
    writer.head += b"k"
    writer.put(type_name(value), depth)


def put_scalar(writer: Writer, value: Any, depth: int) -> None:
    writer.head += b"u"
    writer.put(type_name(value.dtype), depth)
    writer.buffer(value.tobytes())


def put_array(writer: Writer, value: Any, depth: int) -> None:
    if value.dtype == object:
        writer.head += b"j"
        writer.put(value.shape, depth)
        writer.body(value.ravel().tolist(), depth, at_index)
        return
    by_column = value.ndim > 1 and value.flags.f_contiguous and not value.flags.c_contiguous
    writer.head += b"y" + (b"F" if by_column else b"C")
    writer.put(type_name(value.dtype), depth)
    writer.put(value.shape, depth)
    numpy = sys.modules["numpy"]
    flat = numpy.ascontiguousarray(value.T if by_column else value)
    writer.buffer(flat.reshape(-1).view("u1") if flat.nbytes else b"")


# ---- pandas ----------------------------------------------------------------------------------------------


def put_missing(tag: bytes) -> Callable[..., None]:
    def put(writer: Writer, value: Any, depth: int) -> None:
        writer.head += b"w" + tag

    return put


def put_timestamp(writer: Writer, value: Any, depth: int) -> None:
    writer.head += b"wt"
    put_scalar(writer, value.asm8, depth)
    put_zone(writer, value.tzinfo, depth)
    writer.put(value.fold, depth)


def put_timedelta(writer: Writer, value: Any, depth: int) -> None:
    writer.head += b"wd"
    put_scalar(writer, value.asm8, depth)


def put_zone(writer: Writer, zone: Any, depth: int) -> None:
    """A time zone, where it has a name that the caller can look up."""
    if zone is not None and type(zone).__module__.partition(".")[0] == "pytz":
        from zoneinfo import ZoneInfo

        zone = ZoneInfo(zone.zone)
    writer.item(zone, depth, ".tz")


def put_index(writer: Writer, value: Any, depth: int) -> None:
    writer.head += b"wi"
    put_column(writer, value.array, depth)
    writer.item(value.name, depth, ".name")
    writer.put(getattr(value, "freqstr", None), depth)


def put_range_index(writer: Writer, value: Any, depth: int) -> None:
    writer.head += b"wr"
    writer.body([value.start, value.stop, value.step], depth, at_index)
    writer.item(value.name, depth, ".name")


def put_multi_index(writer: Writer, value: Any, depth: int) -> None:
    writer.head += b"wm"
    writer.body(list(value.levels), depth, lambda at: f".levels[{at}]")
    writer.body([one.astype("int64") for one in map(as_array, value.codes)], depth, at_index)
    writer.body(list(value.names), depth, lambda at: f".names[{at}]")


def as_array(value: Any) -> Any:
    """Return the numpy array of a sequence."""
    return sys.modules["numpy"].asarray(value)


def put_series(writer: Writer, value: Any, depth: int) -> None:
    writer.head += b"ws"
    put_column(writer, value.array, depth)
    writer.item(value.index, depth, ".index")
    writer.item(value.name, depth, ".name")


def put_frame(writer: Writer, value: Any, depth: int) -> None:
    writer.head += b"wf"
    writer.item(value.columns, depth, ".columns")
    writer.item(value.index, depth, ".index")
    for at in range(len(value.columns)):
        try:
            put_column(writer, value.iloc[:, at].array, depth)
        except NotPlain as error:
            error.path.append(f"[{value.columns[at]!r}]")
            raise


def put_column(writer: Writer, value: Any, depth: int) -> None:
    """Append the array of a Series or an Index."""
    pandas = sys.modules["pandas"]
    dtype = value.dtype
    if isinstance(dtype, pandas.CategoricalDtype):
        writer.head += b"c"
        writer.put(as_array(value.codes).astype("int64"), depth)
        writer.item(value.categories, depth, ".categories")
        writer.put(bool(value.ordered), depth)
    elif isinstance(dtype, pandas.DatetimeTZDtype):
        writer.head += b"z"
        put_array(writer, value.asi8, depth)
        writer.put(dtype.unit, depth)
        put_zone(writer, dtype.tz, depth)
    elif hasattr(value, "_mask") and hasattr(value, "_data"):
        writer.head += b"m"
        writer.put(str(dtype), depth)
        put_array(writer, value._data, depth)
        put_array(writer, value._mask, depth)
    elif isinstance(dtype, pandas.StringDtype):
        writer.head += b"s"
        writer.put(dtype.na_value is not pandas.NA, depth)
        writer.body([one if isinstance(one, str) else None for one in value.tolist()], depth, at_index)
    elif isinstance(dtype, sys.modules["numpy"].dtype) or type(value).__name__ in WRAPPERS:
        writer.head += b"p"
        writer.put(value.to_numpy(), depth)
    else:
        raise NotPlain(f"{described(type(value))} ({str(dtype)[:100]})")
