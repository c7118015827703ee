"""Results of calls beyond containers: classes of the caller, arrays, exceptions; keyword arguments."""

from __future__ import annotations

import dataclasses
import enum
import functools
from typing import Any

import pytest

from pycontain import CallError, Container

pytest.importorskip("cloudpickle", reason="pycontain[call] is not installed")


@dataclasses.dataclass
class Point:
    """A class of this module, as the type of a result."""

    x: int
    y: Any


class Colour(enum.Enum):
    """Another class of this module."""

    RED = "r"


def _points(x: int, *, count: int = 1, timeout: Any = None) -> list[Any]:
    return [Point(x, (Colour.RED, timeout))] * count


def test_objects_of_the_callers_classes_come_back(container: Container) -> None:
    made = container.call(_points, 1, count=2, timeout=30)
    assert made == [Point(1, (Colour.RED, None))] * 2
    assert container.call(lambda one: one, Point(1, 2)) == Point(1, 2)


def test_keyword_arguments_travel(container: Container) -> None:
    assert container.call(int, "ff", base=16) == 255
    assert container.call(dict, function=1, self=2) == {"function": 1, "self": 2}
    assert container.call(functools.partial(_points, timeout=1), 1, timeout=30) == _points(1, timeout=1)


def test_class_has_to_be_known_or_named(container: Container) -> None:
    made = dataclasses.make_dataclass("Made", ["x"])

    def build() -> Any:
        return dataclasses.make_dataclass("Made", ["x"])(1)

    with pytest.raises(CallError, match=r"types=\[\.\.\.\]"):
        container.call(build)
    with pytest.raises(TypeError, match="dataclasses"):
        container.call(build, types=[dict])
    assert type(container.call(build, types=[made])) is made


def test_exceptions_come_back_as_values(container: Container) -> None:
    def failures() -> list[Any]:
        return [ValueError("x", 1), KeyError("k")]

    assert repr(container.call(failures)) == repr(failures())


def test_array_is_read_into_its_own_memory(container: Container) -> None:
    pytest.importorskip("numpy", reason="numpy is not installed")

    def large() -> Any:
        import numpy

        return {"small": numpy.float64(2.5), "large": numpy.arange(3_000_000, dtype="i8")}

    try:
        found = container.call(large, max_output="64M")
    except CallError as error:
        if error.type_name != "ModuleNotFoundError":
            raise
        pytest.skip("the interpreter inside has no numpy")
    assert found["small"] == 2.5
    assert found["large"].sum() == 3_000_000 * 2_999_999 // 2
    assert found["large"].flags.owndata
    assert found["large"].flags.writeable
