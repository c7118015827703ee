"""Read arrays of numpy and objects of pandas from an answer: the second part of codec.py.

The libraries are the caller's own.  Types are rebuilt from a list of kinds whose values are bytes in place;
values that the library itself could not make are refused.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pycontain._python.source import Malformed

if TYPE_CHECKING:
    from pycontain._python.codec import Reader

_SIMPLE = re.compile(r"[<>|=]([biufcSUV]\d{1,9}|[mM]8(\[\d{0,9}[A-Za-z]{1,7}\])?)", re.ASCII)
_MASKED = re.compile(r"U?Int(8|16|32|64)|Float(32|64)|boolean")
_MOST_DIMENSIONS = 32
_MOST_FIELDS = 1000
_MOST_EMPTY = 1 << 16
"""Elements of an array whose elements have no bytes."""
_WIDEST_CHARACTER = 0x10FFFF


def read(reader: Reader, tag: bytes, depth: int) -> Any:
    """Read what follows a tag of numpy or pandas.  Raises Malformed."""
    if tag == b"w":
        kind = reader.take(1)
        return _PANDAS[kind](_library("pandas"), reader, depth + 1)
    numpy = _library("numpy")
    if tag == b"j":
        return _objects(numpy, reader, depth)
    if tag == b"y":
        return _array(numpy, reader, depth)
    dtype = _dtype(numpy, reader.value(depth + 1))
    if tag == b"k":
        return dtype
    reader.charge(64 + dtype.itemsize)
    data = reader.bytes()
    if len(data) != dtype.itemsize:
        raise Malformed("it holds a number of numpy of another size")
    found = numpy.empty((), dtype)
    _view(numpy, found)[:] = numpy.frombuffer(data, "u1") if data else ()
    return _checked(numpy, found)[()]


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Malformed(f"the result is an object of {name}, which is not installed here") from None


# ---- numpy -----------------------------------------------------------------------------------------------


def _dtype(numpy: Any, raw: Any, depth: int = 0) -> Any:
    """A type of numpy, from its name or from the fields of a structure.  Raises Malformed."""
    if isinstance(raw, str):
        if not _SIMPLE.fullmatch(raw):
            raise Malformed("it holds an array of an unknown type")
        return numpy.dtype(raw)
    if type(raw) is not tuple or len(raw) != 2 or depth > 10:
        raise Malformed("it holds an array of an unknown type")
    size, fields = raw
    names, formats, offsets = [], [], []
    if type(size) is not int or type(fields) is not list or len(fields) > _MOST_FIELDS:
        raise Malformed("it holds a structure of no fields")
    for name, base, shape, offset in fields:
        form = _dtype(numpy, base, depth + 1)
        if type(shape) is not tuple or _product(shape) * form.itemsize > size or type(name) is not str:
            raise Malformed("it holds a structure whose fields do not fit")
        names.append(name)
        formats.append((form, shape) if shape else form)
        offsets.append(offset)
    return numpy.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})


def _product(shape: tuple[Any, ...]) -> int:
    if len(shape) > _MOST_DIMENSIONS or any(type(one) is not int or one < 0 for one in shape):
        raise Malformed("it holds an array of no shape")
    return math.prod(shape)


def _array(numpy: Any, reader: Reader, depth: int) -> Any:
    order = reader.take(1).decode()
    dtype = _dtype(numpy, reader.value(depth + 1))
    shape = reader.value(depth + 1)
    if type(shape) is not tuple or order not in ("C", "F"):
        raise Malformed("it holds an array of no shape")
    count = _product(shape)
    size, fill = reader.buffer()
    if count * dtype.itemsize != size or (dtype.itemsize == 0 and count > _MOST_EMPTY):
        raise Malformed("it holds an array of another size")
    reader.charge(256 + 64 * len(dtype.names or ()))
    found = numpy.empty(shape, dtype, order)
    if size:
        fill(memoryview(_view(numpy, found)))
    return _checked(numpy, found)


def _view(numpy: Any, array: Any) -> Any:
    """Return the bytes of an array in memory order."""
    flat = array.reshape(-1, order="A") if array.ndim else array.reshape(1)
    return flat.view("u1") if array.nbytes else numpy.empty(0, "u1")


def _checked(numpy: Any, array: Any) -> Any:
    """Refuse bytes that are no truth value and no character."""
    if array.dtype.names is not None:
        for name in array.dtype.names:
            _checked(numpy, array[name])
    elif array.dtype.kind == "b" and array.size and array.view("u1").max() > 1:
        raise Malformed("it holds a truth value that is none")
    elif array.dtype.kind == "U" and array.nbytes:
        whole = numpy.ascontiguousarray(array).reshape(-1).view("u1").view(f"{array.dtype.byteorder}u4")
        if whole.max() > _WIDEST_CHARACTER:
            raise Malformed("it holds a character that is none")
    return array


def _objects(numpy: Any, reader: Reader, depth: int) -> Any:
    shape = reader.value(depth + 1)
    values = reader.body(depth)
    if type(shape) is not tuple or _product(shape) != len(values):
        raise Malformed("it holds an array of another size")
    reader.charge(128 + 8 * len(values))
    found = numpy.empty(len(values), object)
    for at, one in enumerate(values):
        found[at] = one  # an assignment of all at once would look into sequences
    return found.reshape(shape)


# ---- pandas ----------------------------------------------------------------------------------------------


def _timestamp(pandas: Any, reader: Reader, depth: int) -> Any:
    value, zone, fold = (reader.value(depth) for _ in range(3))
    reader.charge(200)
    if zone is None:
        return pandas.Timestamp(value)
    return pandas.Timestamp(value).tz_localize("UTC").tz_convert(zone).replace(fold=fold)


def _timedelta(pandas: Any, reader: Reader, depth: int) -> Any:
    reader.charge(200)
    return pandas.Timedelta(reader.value(depth))


def _index(pandas: Any, reader: Reader, depth: int) -> Any:
    values = _column(pandas, reader, depth)
    name, frequency = reader.value(depth), reader.value(depth)
    if frequency is not None and (type(frequency) is not str or len(frequency) > 40):
        raise Malformed("it holds an index of no frequency")
    reader.charge(2000)
    made = pandas.Index(values, name=name, dtype=values.dtype, copy=False)
    if frequency is not None:
        made.freq = frequency
    return made


def _range_index(pandas: Any, reader: Reader, depth: int) -> Any:
    bounds = reader.body(depth)
    reader.charge(2000)
    if not all(type(one) is int for one in bounds):
        raise Malformed("it holds a range of no bounds")
    return pandas.RangeIndex(range(*bounds), name=reader.value(depth))


def _multi_index(pandas: Any, reader: Reader, depth: int) -> Any:
    levels, codes, names = reader.body(depth), reader.body(depth), reader.body(depth)
    reader.charge(2000 * (1 + len(levels)))
    return pandas.MultiIndex(levels=levels, codes=codes, names=names)


def _series(pandas: Any, reader: Reader, depth: int) -> Any:
    values = _column(pandas, reader, depth)
    index, name = reader.value(depth), reader.value(depth)
    reader.charge(4000)
    return pandas.Series(_of_length(pandas, values, index), index=index, name=name, copy=False)


def _frame(pandas: Any, reader: Reader, depth: int) -> Any:
    columns, index = reader.value(depth), reader.value(depth)
    if not isinstance(columns, pandas.Index):
        raise Malformed("it holds a table without columns")
    reader.charge(8000 + 4000 * len(columns))
    found = {at: _of_length(pandas, _column(pandas, reader, depth), index) for at in range(len(columns))}
    made = pandas.DataFrame(found, index=index, copy=False)
    made.columns = columns
    return made


def _of_length(pandas: Any, values: Any, index: Any) -> Any:
    """A column that fits its index: pandas would look up or repeat what does not."""
    if not isinstance(index, pandas.Index) or len(values) != len(index):
        raise Malformed("it holds a column of another length than its index")
    return values


def _column(pandas: Any, reader: Reader, depth: int) -> Any:
    """Return the array of a Series or an Index."""
    kind = reader.take(1)
    reader.charge(1000)
    if kind == b"p":
        return _one_dimensional(reader.value(depth))
    if kind == b"c":
        codes, categories, ordered = (reader.value(depth) for _ in range(3))
        dtype = pandas.CategoricalDtype(categories, ordered is True)
        return pandas.Categorical.from_codes(_one_dimensional(codes), dtype=dtype)
    if kind == b"z":
        values, unit, zone = (reader.value(depth) for _ in range(3))
        if type(unit) is not str or unit not in ("s", "ms", "us", "ns"):
            raise Malformed("it holds times of no unit")
        times = pandas.DatetimeIndex(_one_dimensional(values).view(f"M8[{unit}]"))
        return times.tz_localize("UTC").tz_convert(zone).array
    if kind == b"m":
        name, values, mask = (reader.value(depth) for _ in range(3))
        if type(name) is not str or not _MASKED.fullmatch(name):
            raise Malformed("it holds an array of an unknown type")
        make = pandas.api.types.pandas_dtype(name).construct_array_type()
        return make(_one_dimensional(values), _one_dimensional(mask))
    if kind == b"s":
        absent, values = reader.value(depth), reader.body(depth)
        if not all(one is None or type(one) is str for one in values):
            raise Malformed("it holds texts that are none")
        dtype = pandas.StringDtype(na_value=math.nan) if absent is True else pandas.StringDtype("python")
        return pandas.array(values, dtype=dtype)
    raise Malformed("it holds a column of an unknown type")


def _one_dimensional(values: Any) -> Any:
    if getattr(values, "ndim", None) != 1:
        raise Malformed("it holds a column that is no array")
    return values


def _missing(name: str) -> Callable[[Any, Reader, int], Any]:
    return lambda pandas, reader, depth: getattr(pandas, name)


_PANDAS: dict[bytes, Callable[[Any, Reader, int], Any]] = {
    b"t": _timestamp,
    b"d": _timedelta,
    b"n": _missing("NaT"),
    b"a": _missing("NA"),
    b"i": _index,
    b"r": _range_index,
    b"m": _multi_index,
    b"s": _series,
    b"f": _frame,
}
