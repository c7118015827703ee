"""A filter in two parts, of which the agent loads the first."""

from __future__ import annotations

import pytest

from pycontain._security.policy import _AGENT_CALLS
from pycontain._security.seccomp import ALLOW, LOG, TRAP, Filter, assemble, split
from pycontain._security.syscalls import number
from tests.support import bpf
from tests.support.filters import ARCH, PROFILES, names_by_number, telling_arguments

_SEVERITY = {0x80000000: 0, TRAP: 1, 0x00050000: 2, LOG: 3, ALLOW: 4}
_CLASS = 0xFFFF0000


def strictest(actions: list[int]) -> int:
    """Return the kernel's choice among filters: the strictest action, then the last added (seccomp(2))."""
    return min(reversed(actions), key=lambda action: _SEVERITY[action & _CLASS])


FILTERS = {
    **PROFILES,
    "deny": PROFILES["sandbox"].denying("openat", "read"),
    "ioctl": PROFILES["sandbox"].denying("ioctl"),
    "open": Filter(default=LOG),
}


@pytest.mark.security
@pytest.mark.parametrize("machine", sorted(ARCH))
@pytest.mark.parametrize("name", sorted(FILTERS))
def test_split_filter_equals_the_whole_filter(name: str, machine: str) -> None:
    whole = FILTERS[name]
    programs = [bpf.decode(assemble(part, machine)) for part in (whole, *split(whole, _AGENT_CALLS))]
    names = names_by_number(machine)
    wrong = []
    for nr in (*range(601), 0x40000000, 0x40000001, 0xFFFFFFFF):
        for arch in (ARCH[machine], 0x40000003):
            for args in telling_arguments(whole, names.get(nr)):
                expected, *parts = (bpf.run(p, arch=arch, nr=nr, args=args).action for p in programs)
                if strictest(parts) != expected:
                    wrong.append((nr, names.get(nr), args, hex(expected), [hex(part) for part in parts]))
    assert not wrong


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_the_agent_may_do_its_work(name: str) -> None:
    first, _ = split(FILTERS[name], _AGENT_CALLS)
    program = bpf.decode(assemble(first, "x86_64"))
    refused = [
        call
        for call, *args in _AGENT_CALLS
        if bpf.run(program, arch=ARCH["x86_64"], nr=number(call, "x86_64"), args=args).action != ALLOW
    ]
    assert not refused


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_per_process_part_is_short(name: str) -> None:
    """The length is what an exec pays for."""
    _, last = split(PROFILES[name], _AGENT_CALLS)
    assert len(assemble(last, "x86_64")) // 8 < 24
