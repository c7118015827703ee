"""Translation of limits to the files of cgroup v1 and v2.  Only the devices of io_max are looked up."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from pycontain._model.limits import CgroupLimits
from pycontain._model.sizes import UNLIMITED
from pycontain.errors import LimitError

PERIOD = 100_000
"""The period of a processor limit, in microseconds."""

_MAX_V1 = 0x7FFFFFFFFFFFF000

SOCKETS = "memory.kmem.tcp.limit_in_bytes"
"""The v1 file whose first write makes the kernel count the socket buffers (TCP, UDP) of a group.

v1 counts them apart from `memory`, v2 as part of it.  Groups below have to write the file as well; their
buffers count in the groups above too.
"""

_SOCKETS_LEAST = 4 << 20
"""The least limit of socket buffers, in bytes: a few connections at the default buffer size."""


def v2(limits: CgroupLimits) -> dict[str, dict[str, list[str]]]:  # noqa: C901  one line per field
    """Return `{controller: {file: [text, ...]}}` of cgroup v2, in the order of the writes."""
    files: dict[str, dict[str, list[str]]] = {}

    def put(controller: str, name: str, *texts: str) -> None:
        files.setdefault(controller, {})[name] = list(texts)

    if limits.memory is not None:
        put("memory", "memory.max", str(limits.memory))
        put("memory", "memory.swap.max", _most(limits.swap or 0))
    elif limits.swap is not None:
        put("memory", "memory.swap.max", _most(limits.swap))
    if limits.memory_high is not None:
        put("memory", "memory.high", str(limits.memory_high))
    if limits.cpus is not None:
        put("cpu", "cpu.max", f"{max(1000, round(limits.cpus * PERIOD))} {PERIOD}")
    if limits.cpu_weight is not None:
        put("cpu", "cpu.weight", str(limits.cpu_weight))
    if limits.cpuset_cpus is not None:
        put("cpuset", "cpuset.cpus", limits.cpuset_cpus)
    if limits.cpuset_mems is not None:
        put("cpuset", "cpuset.mems", limits.cpuset_mems)
    if limits.pids is not None:
        put("pids", "pids.max", str(limits.pids))
    if limits.io_weight is not None:
        put("io", "io.weight", f"default {limits.io_weight}")
    if limits.io_max:
        put("io", "io.max", *(_io_max(path, values) for path, values in limits.io_max.items()))
    for page, size in (limits.hugetlb or {}).items():
        put("hugetlb", f"hugetlb.{page}.max", str(size))
    return files


def _most(value: int) -> str:
    return "max" if value == UNLIMITED else str(value)


def v1(limits: CgroupLimits) -> dict[str, dict[str, list[str]]]:  # noqa: C901  one line per field
    """Return `{controller: {file: [text, ...]}}` of cgroup v1, in the order of the writes."""
    files: dict[str, dict[str, list[str]]] = {}

    def put(controller: str, name: str, *texts: str) -> None:
        files.setdefault(controller, {})[name] = list(texts)

    if limits.memory is not None:
        put("memory", "memory.limit_in_bytes", str(limits.memory))
        swap = _MAX_V1 if limits.swap == UNLIMITED else limits.swap or 0
        put("memory", "memory.memsw.limit_in_bytes", str(min(limits.memory + swap, _MAX_V1)))
        sockets = UNLIMITED if limits.memory == UNLIMITED else max(limits.memory // 4, _SOCKETS_LEAST)
        put("memory", SOCKETS, str(sockets))
    if limits.cpus is not None:
        put("cpu", "cpu.cfs_period_us", str(PERIOD))
        put("cpu", "cpu.cfs_quota_us", str(max(1000, round(limits.cpus * PERIOD))))
    if limits.cpu_weight is not None:
        put("cpu", "cpu.shares", str(_shares(limits.cpu_weight)))
    if limits.cpuset_cpus is not None:
        put("cpuset", "cpuset.cpus", limits.cpuset_cpus)
    if limits.cpuset_mems is not None:
        put("cpuset", "cpuset.mems", limits.cpuset_mems)
    if limits.pids is not None:
        put("pids", "pids.max", str(limits.pids))
    if limits.io_weight is not None:
        put("blkio", "blkio.bfq.weight", str(max(1, min(1000, limits.io_weight))))
    for path, values in (limits.io_max or {}).items():
        for key, value in values.items():
            name = f"blkio.throttle.{_V1_IO[key]}"
            files.setdefault("blkio", {}).setdefault(name, []).append(f"{_device(path)} {value}")
    for page, size in (limits.hugetlb or {}).items():
        put("hugetlb", f"hugetlb.{page}.limit_in_bytes", str(size))
    return files


def exec_files(
    controller: str, files: Mapping[str, dict[str, list[str]]], sockets: bool
) -> dict[str, list[str]]:
    """Return the v1 files of one controller for the group of one exec.

    Args:
        controller: Its v1 name.
        files: The result of `v1` for the limits of the exec.
        sockets: The kernel can count socket buffers; their limit is in the container's group.
    """
    own = {name: texts for name, texts in files.get(controller, {}).items() if name != SOCKETS}
    return {SOCKETS: ["-1"], **own} if controller == "memory" and sockets else own


_V1_IO = {
    "rbps": "read_bps_device",
    "wbps": "write_bps_device",
    "riops": "read_iops_device",
    "wiops": "write_iops_device",
}


def _shares(weight: int) -> int:
    """Convert a v2 weight (1 to 10000, 100 by default) to v1 shares (2 to 262144, 1024 by default)."""
    return max(2, min(262144, round(weight * 10.24)))


def _device(path: str) -> str:
    """Return 'major:minor' of a block device, or of the device that a file's file system is on."""
    if not path.startswith("/"):
        return path  # MAJOR:MINOR, as CgroupLimits checked it
    try:
        found = os.stat(path)
    except OSError as error:
        raise LimitError(f"io_max: {path}: {error.strerror}") from error
    number = found.st_rdev if stat.S_ISBLK(found.st_mode) else found.st_dev
    return f"{os.major(number)}:{os.minor(number)}"


def _io_max(path: str, values: Mapping[str, int]) -> str:
    return " ".join([_device(path), *(f"{key}={value}" for key, value in values.items())])
