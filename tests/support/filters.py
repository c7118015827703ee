"""Reference semantics of seccomp filters, independent of the assembled program."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator

from pycontain._security.profiles import DOCKER_FILTER, SANDBOX_FILTER
from pycontain._security.seccomp import ALLOW, Action, Filter, assemble
from pycontain._security.syscalls import TABLE, number
from tests.support import bpf

ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
HIGH = 1 << 32
FULL = (1 << 64) - 1
PROFILES = {"sandbox": SANDBOX_FILTER, "docker": DOCKER_FILTER}
OPERATORS = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def meaning(filter_: Filter, name: str | None, args: tuple[int, ...]) -> Action:
    """Return the action of a filter for a call, from its rules."""
    padded = (*args, *(6 - len(args)) * (0,))
    for rule in filter_.rules:
        if name in rule.names and all(
            OPERATORS[condition.op](padded[condition.arg] & condition.mask, condition.value)
            for condition in rule.conditions
        ):
            return rule.action
    return filter_.default


def names_by_number(machine: str) -> dict[int, str]:
    """Return the names of system calls by number."""
    return {nr: name for name, nr in TABLE[machine].items()}


def telling_arguments(filter_: Filter, name: str | None) -> Iterator[tuple[int, ...]]:
    """Yield arguments on, beside and above every value that the filter compares for this call."""
    yield ()
    yield (FULL,) * 6
    conditions = [c for rule in filter_.rules if name in rule.names for c in rule.conditions]
    values: list[set[int]] = [{0} for _ in range(6)]
    for c in conditions:
        near = (c.value, c.value - 1, c.value + 1, c.value ^ HIGH, c.value | 1 << 63, c.mask, ~c.mask, FULL)
        values[c.arg].update(value & FULL for value in near)
    if conditions:
        yield from itertools.islice(itertools.product(*values), 4000)


def disagreements(filter_: Filter, machine: str, numbers: Iterable[int]) -> list[object]:
    """Return the calls for which program and filter differ."""
    program = bpf.decode(assemble(filter_, machine))
    names = names_by_number(machine)
    found: list[object] = []
    for nr in numbers:
        for args in telling_arguments(filter_, names.get(nr)):
            expected = meaning(filter_, names.get(nr), args)
            actual = bpf.run(program, arch=ARCH[machine], nr=nr, args=args).action
            if expected != actual:
                found.append((nr, names.get(nr), args, hex(expected), hex(actual)))
    return found


def verdict(filter_: Filter, name: str, *args: int, machine: str = "x86_64") -> int:
    """Return the action of the assembled program for a named call."""
    program = bpf.decode(assemble(filter_, machine))
    return bpf.run(program, arch=ARCH[machine], nr=number(name, machine), args=args).action


def passing(filter_: Filter, machine: str = "x86_64") -> set[str]:
    """Return the calls that are allowed with some boundary arguments."""
    program = bpf.decode(assemble(filter_, machine))
    return {
        name
        for name, nr in TABLE[machine].items()
        for args in telling_arguments(filter_, name)
        if bpf.run(program, arch=ARCH[machine], nr=nr, args=args).action == ALLOW
    }
