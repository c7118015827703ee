"""What a container may use."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from attrs import converters, field, frozen

from pycontain._model.sizes import parse_size
from pycontain.errors import LimitError

MEMORY_FLOOR = 1 << 20
"""Bytes below which not even the smallest command starts."""

_SET = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


def _cpus(value: float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise LimitError(f"cpus is a number of processors such as 1.5, not {value!r}")
    if value < 0.01:
        raise LimitError(f"cpus is at least 0.01: {value!r}")
    return float(value)


def _count(name: str, value: int | None, high: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise LimitError(f"{name} is an int, not {value!r}")
    if not 1 <= value <= high:
        raise LimitError(f"{name} is between 1 and {high}: {value}")
    return value


def _weight(value: int | None) -> int | None:
    return _count("a weight", value, 10000)


def _pids(value: int | None) -> int | None:
    return _count("pids", value, 4194304)


def _memory(value: int | str | None) -> int | None:
    if value is None:
        return None
    size = parse_size(value)
    if size < MEMORY_FLOOR:
        raise LimitError(f"memory below {MEMORY_FLOOR} bytes starts nothing: {value!r}")
    return size


def _cpu_set(value: str | None) -> str | None:
    if value is not None and not _SET.fullmatch(value):
        raise LimitError(f"a set of processors or nodes is written like '0-2,7': {value!r}")
    return value


def _io_max(value: Mapping[str, Mapping[str, int]] | None) -> Mapping[str, Mapping[str, int]] | None:
    for device, limits in (value or {}).items():
        unknown = set(limits) - {"rbps", "wbps", "riops", "wiops"}
        if unknown:
            raise LimitError(f"io_max of {device} has unknown keys: {', '.join(sorted(unknown))}")
    return value


def _hugetlb(value: Mapping[str, int | str] | None) -> Mapping[str, int] | None:
    return None if value is None else {page: parse_size(size) for page, size in value.items()}


@frozen(kw_only=True)
class CgroupLimits:
    """Limits of a whole container, or of one exec; None leaves a resource unlimited.

    memory, memory_high, swap: bytes.  `memory` counts swap as well unless `swap` is given.
    cpus: processors, such as 1.5.  cpu_weight: 1 to 10000, 100 is the default share.
    cpuset_cpus, cpuset_mems: sets such as '0-2,7'.  pids: processes and threads.
    io_weight: 1 to 10000.  io_max: device path to {'rbps', 'wbps', 'riops', 'wiops'}.
    hugetlb: page size such as '2MB' to bytes.

    Raises LimitError for values that cannot be meant.  Meanings are those of the kernel's
    Documentation/admin-guide/cgroup-v2.rst.
    """

    memory: int | None = field(default=None, converter=_memory)
    memory_high: int | None = field(default=None, converter=_memory)
    swap: int | None = field(default=None, converter=converters.optional(parse_size))
    cpus: float | None = field(default=None, converter=_cpus)
    cpu_weight: int | None = field(default=None, converter=_weight)
    cpuset_cpus: str | None = field(default=None, converter=_cpu_set)
    cpuset_mems: str | None = field(default=None, converter=_cpu_set)
    pids: int | None = field(default=None, converter=_pids)
    io_weight: int | None = field(default=None, converter=_weight)
    io_max: Mapping[str, Mapping[str, int]] | None = field(default=None, converter=_io_max)
    hugetlb: Mapping[str, int] | None = field(default=None, converter=_hugetlb)
