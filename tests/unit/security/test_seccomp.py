"""Seccomp filters: the assembled program has the meaning of the filter."""

from __future__ import annotations

import errno
import itertools
import time

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycontain._security.profiles import SANDBOX_FILTER
from pycontain._security.seccomp import (
    ALLOW,
    INSTRUCTIONS_MAX,
    KILL_PROCESS,
    LOG,
    TRAP,
    Action,
    Condition,
    Filter,
    Rule,
    assemble,
    refuse,
)
from pycontain._security.syscalls import TABLE, number
from pycontain.errors import UnsupportedError
from tests.support import bpf
from tests.support.filters import (
    ARCH,
    FULL,
    HIGH,
    OPERATORS,
    PROFILES,
    disagreements,
    meaning,
    names_by_number,
    telling_arguments,
    verdict,
)

FOREIGN = {"i386": 0x40000003, "arm": 0x40000028, "riscv64": 0xC00000F3, "zero": 0}
X32 = 0x40000000

EPERM, ENOSYS = refuse(errno.EPERM), refuse(errno.ENOSYS)


def words(text: str) -> list[str]:
    """Return the names in a text."""
    return text.split()


@pytest.mark.security
@pytest.mark.parametrize("machine", sorted(ARCH))
@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_program_matches_the_profile(profile: str, machine: str) -> None:
    """E13: numbers 0 to 600, with arguments on and beside every compared value."""
    assert disagreements(PROFILES[profile], machine, range(601)) == []


@pytest.mark.security
@pytest.mark.parametrize("machine", sorted(ARCH))
@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_foreign_architecture_ends_the_process(profile: str, machine: str) -> None:
    """E14: whatever the number, another architecture's call is not judged by these tables."""
    program = bpf.decode(assemble(PROFILES[profile], machine))
    others = {**FOREIGN, **{name: arch for name, arch in ARCH.items() if name != machine}}

    actions = {
        (name, nr): bpf.run(program, arch=arch, nr=nr).action
        for name, arch in others.items()
        for nr in (0, 1, 20, 102, 400, X32, 0xFFFFFFFF)
    }

    assert {KILL_PROCESS} == set(actions.values())


@pytest.mark.security
@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_x32_numbers_end_the_process(profile: str) -> None:
    """E14: x32 calls have the native architecture and differ only in their number."""
    program = bpf.decode(assemble(PROFILES[profile], "x86_64"))
    numbers = [X32, X32 + 1, X32 + 39, X32 + 520, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE]

    actions = [bpf.run(program, arch=ARCH["x86_64"], nr=nr).action for nr in numbers]

    assert [KILL_PROCESS] * len(numbers) == actions


@pytest.mark.parametrize("machine", sorted(ARCH))
def test_number_minus_one_is_an_unknown_call(machine: str) -> None:
    """A tracer that skips a call leaves -1, which has x32's bit but is none of its calls."""
    program = bpf.decode(assemble(SANDBOX_FILTER, machine))

    assert bpf.run(program, arch=ARCH[machine], nr=0xFFFFFFFF).action == ENOSYS
    assert bpf.run(program, arch=ARCH[machine], nr=number("read", machine)).action == ALLOW


def test_aarch64_has_no_x32() -> None:
    """The bit means nothing there: such a number is just unknown."""
    program = bpf.decode(assemble(SANDBOX_FILTER, "aarch64"))

    assert bpf.run(program, arch=ARCH["aarch64"], nr=X32 + 1).action == ENOSYS


def test_foreign_calls_can_be_refused_instead() -> None:
    """`foreign` replaces the kill for both kinds of foreign calls."""
    program = bpf.decode(assemble(attrs.evolve(SANDBOX_FILTER, foreign=ENOSYS), "x86_64"))

    assert bpf.run(program, arch=FOREIGN["i386"], nr=1).action == ENOSYS
    assert bpf.run(program, arch=ARCH["x86_64"], nr=X32 + 1).action == ENOSYS
    assert bpf.run(program, arch=ARCH["x86_64"], nr=1).action == ALLOW


COMPARISONS = [
    (op, value, mask)
    for op in sorted(OPERATORS)
    for value in (0, 1, 0xFFFFFFFF, HIGH, HIGH + 1, 7 * HIGH + 9, FULL)
    for mask in (FULL, 0xFFFFFFFF, 0xFFFFFFFF00000000, 0xF0, 0xF0 << 32, 0)
    if op not in ("==", "!=") or not value & ~mask
]


@pytest.mark.parametrize(("op", "value", "mask"), COMPARISONS)
def test_conditions_compare_both_halves(op: str, value: int, mask: int) -> None:
    """Every operator over 64 bits, with neighbours of the value in each half."""
    filter_ = Filter(
        rules=[Rule(names="read", action=ALLOW, conditions=[Condition(arg=5, op=op, value=value, mask=mask)])]
    )
    program = bpf.decode(assemble(filter_, "x86_64"))
    around = (0, 1, HIGH, HIGH - 1, value, value - 1, value + 1, value + HIGH, value - HIGH, 7 * HIGH, FULL)

    for given_value in around:
        args = (FULL, FULL, FULL, FULL, FULL, given_value & FULL)
        expected = meaning(filter_, "read", args)

        assert expected == bpf.run(program, arch=ARCH["x86_64"], nr=0, args=args).action, hex(given_value)


def test_first_rule_that_holds_decides() -> None:
    """Later rules of the same call are alternatives, up to the first without conditions."""
    filter_ = Filter(
        rules=[
            Rule(names="read", action=TRAP, conditions=[Condition(arg=0, value=1)]),
            Rule(names="read", action=LOG, conditions=[Condition(arg=0, op="<", value=9)]),
            Rule(names="read write", action=ALLOW),
            Rule(names="read write", action=KILL_PROCESS),
        ]
    )

    assert verdict(filter_, "read", 1) == TRAP
    assert verdict(filter_, "read", 2) == LOG
    assert verdict(filter_, "read", 9) == ALLOW
    assert verdict(filter_, "write", 1) == ALLOW


def test_allow_and_deny_override_earlier_rules() -> None:
    """Both give copies; the last change is the first rule."""
    changed = SANDBOX_FILTER.allowing("setns", "chroot").denying("chroot", "read", errno=errno.EIO)

    assert verdict(changed, "setns") == ALLOW
    assert refuse(errno.EIO) == verdict(changed, "chroot")
    assert refuse(errno.EIO) == verdict(changed, "read")
    assert verdict(SANDBOX_FILTER, "setns") == EPERM


def every_call_differently(conditions: int) -> Filter:
    """Return a filter whose ranges cannot merge, with this many conditions for each call."""
    names = sorted(set().union(*TABLE.values()))
    return Filter(
        rules=[
            Rule(
                names=name,
                action=refuse(index + 1),
                conditions=[Condition(arg=arg, value=(index << 32) + 5) for arg in range(conditions)],
            )
            for index, name in enumerate(names)
        ]
    )


@pytest.mark.parametrize("conditions", [0, 1, 2])
@pytest.mark.parametrize("machine", sorted(ARCH))
def test_jumps_reach_across_long_programs(machine: str, conditions: int) -> None:
    """Programs of many hundred instructions, which no conditional jump can cross."""
    filter_ = every_call_differently(conditions)

    assert len(assemble(filter_, machine)) // 8 > (600 if conditions == 0 else 1200)
    assert disagreements(filter_, machine, range(480)) == []


def test_programs_longer_than_the_kernel_takes_are_refused() -> None:
    """The assembler says so, with both numbers, before the kernel would say EINVAL."""
    with pytest.raises(
        ValueError, match=f"takes 1?[0-9]{{4}} instructions; the kernel takes {INSTRUCTIONS_MAX}"
    ):
        assemble(every_call_differently(6), "x86_64")


CONDITIONS = st.builds(
    lambda arg, op, value, mask: Condition(
        arg=arg, op=op, value=value & mask if op in ("==", "!=") else value, mask=mask
    ),
    arg=st.integers(0, 5),
    op=st.sampled_from(sorted(OPERATORS)),
    value=st.one_of(st.integers(0, 3), st.integers(0, FULL), st.integers(0, 3).map(lambda v: v << 32)),
    mask=st.one_of(st.just(FULL), st.just(0xFFFFFFFF), st.integers(0, FULL), st.integers(0, 3)),
)
ACTIONS = st.sampled_from([ALLOW, LOG, TRAP, KILL_PROCESS, EPERM, ENOSYS, refuse(4095)])
RULES = st.builds(
    Rule,
    names=st.lists(st.sampled_from(sorted(TABLE["x86_64"])), max_size=12),
    action=ACTIONS,
    conditions=st.lists(CONDITIONS, max_size=3),
)
FILTERS = st.builds(Filter, rules=st.lists(RULES, max_size=12), default=ACTIONS)


@settings(max_examples=150, deadline=None)
@given(filter_=FILTERS, machine=st.sampled_from(sorted(ARCH)), args=st.tuples(*[st.integers(0, FULL)] * 6))
def test_random_filters(filter_: Filter, machine: str, args: tuple[int, ...]) -> None:
    """Program and filter agree on every number, with random and boundary arguments, for random rules."""
    program = bpf.decode(assemble(filter_, machine))
    names = names_by_number(machine)
    for nr in range(480):
        name = names.get(nr)
        for given_args in (args, *itertools.islice(telling_arguments(filter_, name), 60)):
            expected = meaning(filter_, name, given_args)

            assert expected == bpf.run(program, arch=ARCH[machine], nr=nr, args=given_args).action


def test_calls_of_other_machines_are_passed_over() -> None:
    """aarch64 has no open: the rule's other names still count."""
    filter_ = Filter(rules=[Rule(names="open openat", action=ALLOW)])

    assert verdict(filter_, "openat", machine="aarch64") == ALLOW


@pytest.mark.parametrize("machine", sorted(ARCH))
def test_names_of_no_machine_are_refused(machine: str) -> None:
    """A misspelt name must not weaken or tighten a filter in silence."""
    with pytest.raises(ValueError, match="unknown system call 'opennat'"):
        assemble(Filter(rules=[Rule(names="read opennat", action=ALLOW)]), machine)


def test_unknown_machines_are_refused() -> None:
    """Rather than a filter with the numbers of another machine."""
    with pytest.raises(UnsupportedError, match="s390x"):
        assemble(SANDBOX_FILTER, "s390x")


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: refuse(0), "between 1 and 4095"),
        (lambda: refuse(4096), "between 1 and 4095"),
        (lambda: Rule(names="read", action=Action(5)), "must be an action"),
        (lambda: Rule(names="read", action=Action(0x00050000)), "must be an action"),
        (lambda: Filter(default=Action(0x7FFF0001)), "must be an action"),
        (lambda: Filter(foreign=ALLOW), "must be a refusal"),
        (lambda: Filter(foreign=LOG), "must be a refusal"),
        (lambda: Condition(arg=6, value=0), "arg"),
        (lambda: Condition(arg=0, op="=", value=0), "op"),
        (lambda: Condition(arg=0, value=FULL + 1), "value"),
        (lambda: Condition(arg=0, value=-1), "value"),
        (lambda: Condition(arg=0, value=0, mask=FULL + 1), "mask"),
    ],
)
def test_impossible_values_are_refused(build: object, match: str) -> None:
    """Values that the kernel would read as something else, or never meet."""
    assert callable(build)
    with pytest.raises(ValueError, match=match):
        build()


@pytest.mark.parametrize("op", ["==", "!="])
def test_values_outside_of_the_mask_are_refused(op: str) -> None:
    """Such a rule never matches, so it is a mistake of the caller."""
    with pytest.raises(ValueError, match="is never 0x10"):
        Condition(arg=0, op=op, value=0x10, mask=0xF)


def test_filters_are_values() -> None:
    """Equal rules make equal filters with equal hashes, so that assembled programs can be cached."""
    assert attrs.evolve(SANDBOX_FILTER) == SANDBOX_FILTER
    assert hash(SANDBOX_FILTER) == hash(attrs.evolve(SANDBOX_FILTER))
    assert SANDBOX_FILTER.denying("read") != SANDBOX_FILTER


# Size and time

HOT = words("read write futex epoll_wait mmap clock_gettime sendto recvfrom openat close newfstatat getpid")


@pytest.mark.parametrize("machine", sorted(ARCH))
@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_hot_calls_take_few_instructions(profile: str, machine: str) -> None:
    """Every call pays for the filter, so the usual ones decide in a handful of steps."""
    program = bpf.decode(assemble(PROFILES[profile], machine))
    table = TABLE[machine]

    steps = {
        name: bpf.run(program, arch=ARCH[machine], nr=table[name]).steps for name in HOT if name in table
    }
    ioctl = bpf.run(program, arch=ARCH[machine], nr=table["ioctl"], args=(0, 0x5401)).steps

    assert max(steps.values()) <= 14, steps
    assert ioctl <= 24
    assert len(program) <= 260


def test_assembling_is_fast() -> None:
    """A profile is assembled once, but the first start waits for it."""
    best = min(_seconds_to_assemble() for _ in range(5))

    assert best < 0.005


def _seconds_to_assemble() -> float:
    start = time.perf_counter()
    assemble(SANDBOX_FILTER, "x86_64")
    return time.perf_counter() - start
