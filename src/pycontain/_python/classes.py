"""The classes of the caller that a result may have objects of, and how those are made from data.

They are found before the call, in what the caller's function and arguments belong to, and sent by name; the
guest answers with a number.  No constructor, validator or `__post_init__` of theirs runs: the attributes are
set, as unpickling does.
"""

from __future__ import annotations

import builtins
import dataclasses
import enum
import functools
import operator
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from attrs import frozen

from pycontain._python.source import Malformed

_MOST_SCANNED = 1000
"""Elements of an argument whose classes are looked at."""
_BUILTIN_EXCEPTIONS: Mapping[str, type[BaseException]] = {
    name: one
    for name, one in vars(builtins).items()
    if isinstance(one, type) and issubclass(one, BaseException) and one.__name__ == name
}


@frozen
class Known:
    """A class that a result may name, by its number in what is sent."""

    kind: type

    @property
    def name(self) -> tuple[str, str]:
        """Module and qualified name, by which the other side identifies the class."""
        return self.kind.__module__, self.kind.__qualname__

    def member(self, names: Sequence[Any]) -> Any:
        """Return the enumeration member of this name, or the flag of these names.  Raises Malformed."""
        if not issubclass(self.kind, enum.Enum):
            raise Malformed("it holds a member of what is no enumeration")
        try:
            members = [self.kind._member_map_[name] for name in names]
        except (KeyError, TypeError):
            raise Malformed("it holds a member that the enumeration lacks") from None
        if issubclass(self.kind, enum.Flag):
            return functools.reduce(operator.or_, members, self.kind(0))
        if len(members) != 1:
            raise Malformed("it holds a member without its name")
        return members[0]

    def record(self, values: Sequence[Any]) -> Any:
        """Return a namedtuple, dataclass or attrs object with these fields.  Raises Malformed."""
        names = _fields(self.kind)
        if names is None or len(names) != len(values):
            raise Malformed(f"it holds a {self.kind.__qualname__} with other fields")
        if issubclass(self.kind, tuple):
            return tuple.__new__(self.kind, values)
        made = object.__new__(self.kind)
        for name, value in zip(names, values, strict=True):
            object.__setattr__(made, name, value)
        return made


def exception(known: Any, arguments: tuple[Any, ...], attributes: Mapping[Any, Any]) -> BaseException:
    """Return an exception of the language or of the caller.  Raises Malformed."""
    if isinstance(known, str) and known in _BUILTIN_EXCEPTIONS:
        made = _BUILTIN_EXCEPTIONS[known](*arguments)
    elif isinstance(known, Known) and issubclass(known.kind, BaseException):
        base = next(one for one in known.kind.__mro__ if one in _BUILTIN_EXCEPTIONS.values())
        made = base.__new__(known.kind, *arguments)
        made.args = arguments
    else:
        raise Malformed("it holds an exception of an unknown class")
    for name, value in attributes.items():
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("__"):
            raise Malformed("it holds an exception with an attribute of no name")
        object.__setattr__(made, name, value)
    return made


def _fields(kind: type) -> list[str] | None:
    """Return the fields of a record class, None for another class."""
    if issubclass(kind, tuple):
        return list(kind._fields) if hasattr(kind, "_fields") else None
    if dataclasses.is_dataclass(kind):
        return [one.name for one in dataclasses.fields(kind)]
    if hasattr(kind, "__attrs_attrs__"):
        return [one.name for one in kind.__attrs_attrs__]
    return None


def can_be_carried(kind: object) -> bool:
    """Tell whether objects of a class are made from data here, without running code of the class."""
    if not isinstance(kind, type) or hasattr(kind, "__del__"):
        return False
    if issubclass(kind, enum.Enum):
        return True
    if issubclass(kind, BaseException):
        return kind.__module__ != "builtins"
    fields = _fields(kind)
    if fields is None:
        return False
    if issubclass(kind, tuple):
        return True
    # A descriptor with code of its own would run when the field is set; slots have none.
    found = (_descriptor(kind, name) for name in fields)
    return kind.__new__ is object.__new__ and all(
        one is None or isinstance(one, types.MemberDescriptorType) for one in found
    )


def _descriptor(kind: type, name: str) -> object:
    for one in kind.__mro__:
        if name in vars(one):
            return vars(one)[name] if hasattr(type(vars(one)[name]), "__set__") else None
    return None


def collect(function: Any, values: Iterable[Any], named: Sequence[type]) -> tuple[Known, ...]:
    """Find the classes that the result of a call may have objects of.

    These are the classes that are named, those of the function's module and closure, and those of the
    arguments and their modules.  Classes of pycontain count only where they are named.

    Args:
        function: The function that is called.
        values: Its arguments.
        named: Classes that the caller names.

    Raises:
        TypeError: A named class is none that can be carried.
    """
    for one in named:
        if not can_be_carried(one):
            raise TypeError(
                "types must be dataclasses, attrs classes, namedtuples, enumerations or exceptions, "
                f"got {one!r}"
            )
    found: dict[tuple[str, str], Known] = {Known(one).name: Known(one) for one in named}
    for one in _reachable(function, values):
        if can_be_carried(one) and one.__module__.partition(".")[0] != "pycontain":
            found.setdefault(Known(one).name, Known(one))
    return tuple(found.values())


def _reachable(function: Any, values: Iterable[Any]) -> Iterator[Any]:
    for one in _parts(function):
        if isinstance(one, types.FunctionType):
            yield from list(one.__globals__.values())
            for cell in one.__closure__ or ():
                try:
                    yield cell.cell_contents
                except ValueError:  # the function that it belongs to has not set it yet
                    continue
        else:
            yield from _with_module(one)
    for value in values:
        for one in _elements(value):
            yield from _with_module(type(one))


def _parts(function: Any) -> Iterator[Any]:
    """Return the functions and classes that a callable consists of."""
    while isinstance(function, functools.partial):
        for value in (*function.args, *function.keywords.values()):
            yield from map(type, _elements(value))
        function = function.func
    owner = getattr(function, "__self__", None)
    if owner is not None and not isinstance(owner, types.ModuleType):
        yield owner if isinstance(owner, type) else type(owner)
    function = getattr(function, "__func__", function)
    yield function if isinstance(function, types.FunctionType | type) else type(function)
    wrapped = getattr(function, "__wrapped__", None)
    if isinstance(wrapped, types.FunctionType):
        yield wrapped


def _elements(value: Any) -> Iterator[Any]:
    """Return a value and its direct elements."""
    yield value
    if type(value) in (list, tuple, set, frozenset, dict):
        inner: Callable[[], Iterable[Any]] = value.values if type(value) is dict else value.__iter__
        for number, one in enumerate(inner()):
            if number >= _MOST_SCANNED:
                return
            yield one


def _with_module(kind: type) -> Iterator[Any]:
    """A class, and the classes beside it; those of the language and of numpy bring nothing."""
    yield kind
    if can_be_carried(kind):
        module = sys.modules.get(kind.__module__)
        yield from list(vars(module).values()) if module is not None else ()
