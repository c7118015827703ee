"""Resource limits of containers and of single commands."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import TypeAlias, TypeVar

from attrs import evolve, field, frozen

from pycontain._model.sizes import MOST, UNLIMITED, is_unlimited, parse_size, shown
from pycontain.errors import LimitError

IoMax: TypeAlias = Mapping["str | os.PathLike[str]", Mapping[str, int | str]]
"""Type of `io_max` as callers pass it; it is stored as `{device: {key: number}}`."""

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

MEMORY_FLOOR = 1 << 20
"""Minimum number of bytes; with less, no command can start."""

_CPUS_MOST = 65536
"""Maximum number of processors, eight times the largest number that Linux can be built for."""

_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_NUMBERS = re.compile(r"([0-9]{1,4}):([0-9]{1,7})")
_PATH = re.compile(r"/[^\x00-\x1f\x7f]*")
_PAGE = re.compile(r"[0-9]+[KMG]B")
_RATES = {"rbps": MOST, "wbps": MOST, "riops": 0xFFFFFFFF, "wiops": 0xFFFFFFFF}
"""Highest value of each rate that the kernel stores without truncation."""


def _cpus(value: float | None) -> float | None:
    if value is None:
        return None
    if is_unlimited(value):
        return float(UNLIMITED)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LimitError(f"cpus must be a number of processors such as 1.5, got {shown(value)}")
    if not 0.01 <= value <= _CPUS_MOST:
        raise LimitError(f"cpus must be between 0.01 and {_CPUS_MOST}, got {shown(value)}")
    return float(value)


def _count(name: str, value: int | None, high: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise LimitError(f"{name} must be an int, got {shown(value)}")
    if not 1 <= value <= high:
        raise LimitError(f"{name} must be between 1 and {high}, got {shown(value)}")
    return value


def _cpu_weight(value: int | None) -> int | None:
    return _count("cpu_weight", value, 10000)


def _io_weight(value: int | None) -> int | None:
    return _count("io_weight", value, 10000)


def _pids(value: int | str | None) -> int | None:
    if is_unlimited(value):
        return UNLIMITED
    if isinstance(value, str):
        raise LimitError(f"pids must be an int or 'unlimited', got {shown(value)}")
    return _count("pids", value, 4194304)


def _swap(value: int | str | None) -> int | None:
    if value is None:
        return None
    return UNLIMITED if is_unlimited(value) else parse_size(value)


def _memory(value: int | str | None) -> int | None:
    return _memory_size("memory", value)


def _memory_high(value: int | str | None) -> int | None:
    return _memory_size("memory_high", value)


def _memory_size(name: str, value: int | str | None) -> int | None:
    if value is None:
        return None
    if is_unlimited(value):
        return UNLIMITED
    size = parse_size(value)
    if size < MEMORY_FLOOR:
        raise LimitError(f"{name} must be at least {MEMORY_FLOOR} bytes, got {shown(value)}")
    return size


def _cpuset_cpus(value: str | None) -> str | None:
    return _set("cpuset_cpus", value)


def _cpuset_mems(value: str | None) -> str | None:
    return _set("cpuset_mems", value)


def _set(name: str, value: str | None) -> str | None:
    if value is not None and not (isinstance(value, str) and all(map(_is_range, value.split(",")))):
        raise LimitError(f"{name} must be a list of ranges such as '0-2,7', got {shown(value)}")
    return value


def _is_range(text: str) -> bool:
    found = _RANGE.fullmatch(text)
    return found is not None and (found[2] is None or int(found[1]) <= int(found[2]))


def _io_max(value: IoMax | None) -> dict[str, dict[str, int]] | None:
    if value is None:
        return None
    result: dict[str, dict[str, int]] = {}
    for given, rates in _items("io_max", value):
        device = _device(given)
        if device in result:
            raise LimitError(f"io_max must name a device once, got {device} twice")
        what = f"io_max of {shown(device)}"
        result[device] = {_key(what, key): _rate(what, key, rate) for key, rate in _items(what, rates)}
        if not result[device]:
            raise LimitError(f"{what} must have at least one of {', '.join(_RATES)}, got none")
    return result


def _items(what: str, value: Mapping[_Key, _Value]) -> Iterable[tuple[_Key, _Value]]:
    if not isinstance(value, Mapping):
        raise LimitError(f"{what} must be a mapping, got {shown(value)}")
    return value.items()


def _device(value: object) -> str:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(text, str):
        if _PATH.fullmatch(text):
            return text
        numbers = _NUMBERS.fullmatch(text)
        if numbers and int(numbers[1]) < 1 << 12 and int(numbers[2]) < 1 << 20:
            return f"{int(numbers[1])}:{int(numbers[2])}"
    raise LimitError(f"a device of io_max must be 'MAJOR:MINOR' or an absolute path, got {shown(value)}")


def _key(what: str, key: str) -> str:
    if key not in _RATES:
        raise LimitError(f"a key of {what} must be one of {', '.join(_RATES)}, got {shown(key)}")
    return key


def _rate(what: str, key: str, value: int | str) -> int:
    if key.endswith("bps") and isinstance(value, str):
        try:
            value = parse_size(value)
        except LimitError as error:
            raise LimitError(f"{key} in {what}: {error}") from None
    if isinstance(value, bool) or not isinstance(value, int):
        raise LimitError(f"{key} in {what} must be an int, got {shown(value)}")
    # cgroup v2 refuses 0, and cgroup v1 reads it as no limit.
    if not 1 <= value <= _RATES[key]:
        raise LimitError(f"{key} in {what} must be between 1 and {_RATES[key]}, got {shown(value)}")
    return value


def _hugetlb(value: Mapping[str, int | str] | None) -> dict[str, int] | None:
    if value is None:
        return None
    result = {}
    for page, size in _items("hugetlb", value):
        if not isinstance(page, str) or not _PAGE.fullmatch(page):
            raise LimitError(f"a page size of hugetlb must be such as '2MB', got {shown(page)}")
        result[page] = parse_size(size)
    return result


@frozen(kw_only=True)
class CgroupLimits:
    """Resource limits of a container or of a single command; None means the default.

    By default, a container has 512M of memory and 128 pids, and a command has no limits of its own.
    -1 or 'unlimited' removes the limit for memory, memory_high, swap, cpus and pids.

    Values are checked and copied by the constructor.  Errors that only the kernel can detect, such as a
    processor that does not exist, are raised as LimitError when the container starts.  The meaning of each
    limit is that of Documentation/admin-guide/cgroup-v2.rst of the kernel.

    Attributes:
        memory: Bytes, or text such as '256M', at least 1 MiB.  Includes swap unless `swap` is given.
        memory_high: Bytes, or text, above which the kernel throttles processes instead of killing them.
        swap: Bytes, or text such as '256M'.
        cpus: Processors, such as 1.5, at least 0.01.
        cpu_weight: Share of processor time, 1 to 10000; the kernel's default is 100.
        cpuset_cpus: Processors that may be used, such as '0-2,7'.
        cpuset_mems: Memory nodes that may be used, such as '0-2,7'.
        pids: Processes and threads; a container with an agent needs at least 2, a command at least 1.
        io_weight: Share of disk bandwidth, 1 to 10000; the kernel's default is 100.
        io_max: 'MAJOR:MINOR', or the path of a block device or of a file on it, to a mapping with any of
            'rbps' and 'wbps' (bytes per second, or text such as '10M'), 'riops' and 'wiops' (operations per
            second).
        hugetlb: Page size as the kernel writes it, such as '2MB', to bytes.

    Raises:
        LimitError: A value is malformed or out of range.
    """

    memory: int | None = field(default=None, converter=_memory)
    memory_high: int | None = field(default=None, converter=_memory_high)
    swap: int | None = field(default=None, converter=_swap)
    cpus: float | None = field(default=None, converter=_cpus)
    cpu_weight: int | None = field(default=None, converter=_cpu_weight)
    cpuset_cpus: str | None = field(default=None, converter=_cpuset_cpus)
    cpuset_mems: str | None = field(default=None, converter=_cpuset_mems)
    pids: int | None = field(default=None, converter=_pids)
    io_weight: int | None = field(default=None, converter=_io_weight)
    io_max: Mapping[str, Mapping[str, int]] | None = field(default=None, converter=_io_max)
    hugetlb: Mapping[str, int] | None = field(default=None, converter=_hugetlb)

    @property
    def lifted(self) -> frozenset[str]:
        """Names of the limits that are -1."""
        return frozenset(name for name in _LIFTABLE if getattr(self, name) == UNLIMITED)

    def in_force(self) -> CgroupLimits:
        """Return the limits with None for those that are -1, except `swap`, where None means no swap."""
        lifted = self.lifted - {"swap"}
        return evolve(self, **dict.fromkeys(lifted)) if lifted else self


_LIFTABLE = ("memory", "memory_high", "swap", "cpus", "pids")
