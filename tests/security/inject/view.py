"""Views of a container from inside and from the host, without values that differ from run to run."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pycontain import Container, Engine

LIMITS = frozenset(
    "memory.max memory.limit_in_bytes memory.memsw.limit_in_bytes memory.swap.max pids.max cpu.max"
    " cpu.cfs_quota_us memory.oom.group cgroup.subtree_control".split()
)


def namespaces() -> list[str]:
    return sorted(name for name in os.listdir("/proc/self/ns") if "_for_" not in name)


def limits(container: Container) -> str:
    """Return the limits, cgroup owners and PID 1's cgroup, which a guest cannot see."""
    running = container._live()
    lines = [f"host: {line}\n" for line in Path(f"/proc/{running.pid}/cgroup").read_text().splitlines()]
    for path in running.group.paths().values() if running.group is not None else ():
        for directory, _, names in os.walk(path):
            for name in sorted(LIMITS.intersection(names)):
                file = Path(directory, name)
                lines.append(f"host: {file} uid={file.stat().st_uid} {file.read_text().strip()}\n")
    return "".join(lines)


def normal(engine: Engine, container: Container, text: str) -> str:
    for name, stands in ((container.id, "ID"), (engine._session.owner.name, "OWNER")):
        text = text.replace(name, stands)
    text = re.sub(r"^(/proc/self/[ug]id_map: +\d+ +)(1[4-8]\d{8})\b", r"\1BLOCK", text, flags=re.M)
    text = re.sub(r"^(/proc/self/mountinfo: )\d+ \d+ \d+:\d+ ", r"\1", text, flags=re.M)
    text = re.sub(r"/s\d+(?=[/\n])", "/ID", text)  # the group of a pre-cloned child keeps its name
    # One launcher names layers one by one, another in one string: it is the same mount.
    text = re.sub(r" - overlay \w+ (.*)lowerdir\+?=", r" - overlay \1lowerdir=", text)
    text = re.sub(r"(?<=[ug]id=)1[4-8]\d{8}\b", "BLOCK", text)
    text = re.sub(r"^(fd \d+: (?:pipe|socket):)\[\d+\]", r"\1", text, flags=re.M)
    return re.sub(r"/e\d+$", "/LEAF", text, flags=re.M)
