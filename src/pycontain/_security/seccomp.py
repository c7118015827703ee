"""System call filters as values, and their assembly to BPF programs.

A `Filter` is a list of rules: the first rule that names the call and whose conditions all hold decides,
else the default.  So `allowing` and `denying`, which put a rule in front, always win.  `assemble` turns a
filter into classic BPF over `struct seccomp_data` (seccomp(2)).

The program loads the machine, then searches the call's number in ranges of equal outcome: about seven
comparisons whatever the length of the lists.  It is written from its end to its beginning, so that
the distance of every jump is known when the jump is written.  If a target is further away than the 255
instructions of a conditional jump, a copy of the return or a long jump is inserted.
"""

from __future__ import annotations

import errno as errnos
import operator
import struct
from typing import TYPE_CHECKING, NewType

import attrs
from attrs import field, frozen, validators

from pycontain.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Action = NewType("Action", int)
"""The action for a call: a value that a filter program returns (seccomp(2))."""

ALLOW = Action(0x7FFF0000)
LOG = Action(0x7FFC0000)
TRAP = Action(0x00030000)
KILL_PROCESS = Action(0x80000000)

_ERRNO, _ERRNO_MAX = 0x00050000, 4095

INSTRUCTIONS_MAX = 4096
"""BPF_MAXINSNS: longest program that the kernel accepts."""

_WORD = 0xFFFFFFFF
_FULL = 0xFFFFFFFFFFFFFFFF
_REACH = 255

_COMPARE = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

_LD_WORD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMP, _JEQ, _JGT, _JGE, _JSET = 0x05, 0x15, 0x25, 0x35, 0x45

_NR_OFFSET, _ARCH_OFFSET, _ARGS_OFFSET = 0, 4, 16

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000
_NOTHING = 0xFFFFFFFF
"""The number -1, which a tracer writes to skip a call; it is not an x32 call."""


def refuse(errno: int) -> Action:
    """Return the action that fails with this errno.  Raises ValueError outside 1 to 4095."""
    if not 1 <= errno <= _ERRNO_MAX:
        raise ValueError(f"errno must be between 1 and {_ERRNO_MAX}, got {errno}")
    return Action(_ERRNO | errno)


def _action(instance: object, attribute: attrs.Attribute[Action], value: Action) -> None:
    if value not in (ALLOW, LOG, TRAP, KILL_PROCESS) and not 1 <= value - _ERRNO <= _ERRNO_MAX:
        raise ValueError(f"{attribute.name} must be an action, got {value!r}")


def _refusal(instance: object, attribute: attrs.Attribute[Action], value: Action) -> None:
    _action(instance, attribute, value)
    if value in (ALLOW, LOG):
        raise ValueError(f"{attribute.name} must be a refusal, got {value!r}")


def _names(value: str | Iterable[str]) -> tuple[str, ...]:
    return tuple(value.split()) if isinstance(value, str) else tuple(value)


def _conditions(value: Iterable[Condition]) -> tuple[Condition, ...]:
    return tuple(value)


def _rules(value: Iterable[Rule]) -> tuple[Rule, ...]:
    return tuple(value)


@frozen(kw_only=True)
class Condition:
    """A comparison `argument & mask OP value`, unsigned.

    Attributes:
        arg: Number of the argument, 0 to 5.
        op: One of ==, !=, <, <=, > and >=.
        value: The number to compare with.
        mask: Bits to compare, all 64 by default. Use 0xFFFFFFFF if the kernel reads only an int, or a guest
            can evade the comparison by setting higher bits.

    Raises:
        ValueError: Unknown operator, or a number out of range.
    """

    arg: int = field(validator=validators.in_(range(6)))
    op: str = field(default="==", validator=validators.in_(("==", "!=", "<", "<=", ">", ">=")))
    value: int = field(validator=[validators.ge(0), validators.le(_FULL)])
    mask: int = field(default=_FULL, validator=[validators.ge(0), validators.le(_FULL)])

    @value.validator
    def _can_be_equal(self, attribute: attrs.Attribute[int], value: int) -> None:
        if value & ~self.mask and self.op in ("==", "!="):
            raise ValueError(f"argument & {self.mask:#x} is never {value:#x}")


@frozen(kw_only=True)
class Rule:
    """An action for the named calls if every condition holds.

    Attributes:
        names: Names of calls; also accepted as a string with blanks.
        action: The action.
        conditions: Comparisons of arguments.
    """

    names: tuple[str, ...] = field(converter=_names)
    action: Action = field(validator=_action)
    conditions: tuple[Condition, ...] = field(default=(), converter=_conditions)


@frozen(kw_only=True, cache_hash=True)
class Filter:
    """A filter of system calls: the first rule that holds decides, else the default.

    Attributes:
        rules: Rules in order.
        default: Action for calls without a rule, such as newer ones.
        foreign: Action for calls of another architecture (i386 and x32 on x86_64), to whose numbers the rules
            do not apply; not ALLOW or LOG.
    """

    rules: tuple[Rule, ...] = field(default=(), converter=_rules)
    default: Action = field(default=refuse(errnos.ENOSYS), validator=_action)
    foreign: Action = field(default=KILL_PROCESS, validator=_refusal)

    def allowing(self, *names: str) -> Filter:
        """Return a copy that allows these calls with any arguments."""
        return self._first(Rule(names=names, action=ALLOW))

    def denying(self, *names: str, errno: int = errnos.EPERM) -> Filter:
        """Return a copy that refuses these calls with any arguments."""
        return self._first(Rule(names=names, action=refuse(errno)))

    def _first(self, rule: Rule) -> Filter:
        return attrs.evolve(self, rules=(rule, *self.rules))


def judge(filter_: Filter, name: str, *args: int) -> Action:
    """Return the action for a call by name; missing arguments are 0."""
    given = (*args, *(6 - len(args)) * (0,))
    for rule in filter_.rules:
        if name in rule.names and all(
            _holds(condition, given[condition.arg]) for condition in rule.conditions
        ):
            return rule.action
    return filter_.default


def _holds(condition: Condition, argument: int) -> bool:
    return bool(_COMPARE[condition.op](argument & condition.mask, condition.value))


def split(filter_: Filter, calls: Iterable[tuple[str, *tuple[int, ...]]]) -> tuple[Filter, Filter]:
    """Return two filters that together equal this one; the first allows `calls`.

    Of several filters the kernel obeys the strictest (seccomp(2)).  So a process that makes these calls can
    load nearly all of a filter for its children, and each child adds only the short second part.

    Args:
        filter_: The whole filter.
        calls: Names of calls, with arguments if only certain ones are used.
    """
    conditional = {name for rule in filter_.rules if rule.conditions for name in rule.names}
    chosen = frozenset(
        name
        for name, *args in calls
        if judge(filter_, name, *args) != ALLOW or (not args and name in conditional)
    )
    first = filter_.allowing(*sorted(chosen))
    rest = tuple(attrs.evolve(rule, names=chosen.intersection(rule.names)) for rule in filter_.rules)
    undecided = Rule(names=sorted(chosen), action=filter_.default)
    return first, attrs.evolve(filter_, rules=(*rest, undecided), default=ALLOW)


def assemble(filter_: Filter, machine: str) -> bytes:
    """Return the filter as an array of `struct sock_filter`.

    Calls that exist only on another machine are skipped.

    Raises:
        ValueError: A name that no machine has, or a filter of more than 4096 instructions.
        UnsupportedError: A machine without a table of system calls.
    """
    from pycontain._security.syscalls import TABLE

    if machine not in _ARCHITECTURES:
        raise UnsupportedError(f"system call filters on {machine}")
    outcomes = _outcomes(filter_, TABLE, machine)
    program = _Program()
    start = program.search(_ranges(filter_, outcomes, machine))
    start = program.load(_NR_OFFSET, then=start)
    start = program.jump(_JEQ, _ARCHITECTURES[machine], start, program.result(filter_.foreign))
    program.load(_ARCH_OFFSET, then=start)
    return program.finish()


_Outcome = tuple[tuple[tuple[Condition, ...], Action], ...]
"""Alternatives in order; the last one has no conditions."""

_Range = tuple[int, _Outcome]
"""The first number of a range, and the outcome up to the next range."""


def _outcomes(filter_: Filter, tables: Mapping[str, Mapping[str, int]], machine: str) -> dict[int, _Outcome]:
    table = tables[machine]
    known: set[str] = set().union(*tables.values())
    open_: dict[int, _Outcome] = {}
    decided: dict[int, _Outcome] = {}
    for rule in filter_.rules:
        alternative = ((rule.conditions, rule.action),)
        for name in rule.names:
            number = table.get(name)
            if number is None:
                if name not in known:
                    raise ValueError(f"unknown system call {name!r}")
            elif number not in decided:
                if rule.conditions:
                    open_[number] = open_.get(number, ()) + alternative
                else:
                    decided[number] = open_.pop(number, ()) + alternative
    default = (((), filter_.default),)
    return decided | {number: outcome + default for number, outcome in open_.items()}


def _ranges(filter_: Filter, outcomes: dict[int, _Outcome], machine: str) -> list[_Range]:
    default: _Outcome = (((), filter_.default),)
    points = dict(outcomes)
    for number in outcomes:
        points.setdefault(number + 1, default)
    points.setdefault(0, default)
    if machine == "x86_64":
        points[_X32_BIT] = (((), filter_.foreign),)
        points[_NOTHING] = default
    ranges: list[_Range] = []
    for number in sorted(points):
        if not ranges or ranges[-1][1] != points[number]:
            ranges.append((number, points[number]))
    return ranges


class _Program:
    """A program under construction, from its last instruction to its first; a place is an index into it."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int]] = []
        self._results: dict[int, int] = {}
        self._decisions: dict[_Outcome, int] = {}

    def finish(self) -> bytes:
        """Return the program in the kernel's order.  Raises ValueError if it is too long."""
        if len(self._code) > INSTRUCTIONS_MAX:
            raise ValueError(
                f"the filter takes {len(self._code)} instructions; the kernel takes {INSTRUCTIONS_MAX}"
            )
        return b"".join(struct.pack("<HBBI", *instruction) for instruction in reversed(self._code))

    def result(self, action: Action) -> int:
        """Return a place that returns the action and is near enough to jump to."""
        place = self._results.get(action)
        if place is None or len(self._code) - place >= _REACH:
            place = self._results[action] = self._put(_RETURN, action)
        return place

    def load(self, offset: int, *, then: int) -> int:
        """Load a word of the call's data, then continue at a place."""
        if self._distance(then) > 0:
            self._nearer(then)
        return self._put(_LD_WORD, offset)

    def jump(self, test: int, value: int, yes: int, no: int) -> int:
        """Continue at one of two places, by a test of the loaded word."""
        while True:
            if self._distance(yes) > _REACH:
                yes = self._nearer(yes)
            elif self._distance(no) > _REACH:
                no = self._nearer(no)
            else:
                return self._put(test, value, self._distance(yes), self._distance(no))

    def search(self, ranges: list[_Range]) -> int:
        """Find the range that the loaded number is in."""
        if len(ranges) == 1:
            return self._decide(ranges[0][1])
        middle = len(ranges) // 2
        above = self.search(ranges[middle:])
        below = self.search(ranges[:middle])
        return self.jump(_JGE, ranges[middle][0], above, below)

    def _decide(self, outcome: _Outcome) -> int:
        *conditional, (_, last) = outcome
        if not conditional:
            return self.result(last)
        if outcome in self._decisions:
            return self._decisions[outcome]
        start = self.result(last)
        for conditions, action in reversed(conditional):
            no, start = start, self.result(action)
            for condition in reversed(conditions):
                start = self._condition(condition, start, no)
        self._decisions[outcome] = start
        return start

    def _condition(self, condition: Condition, yes: int, no: int) -> int:
        value, mask = condition.value, condition.mask
        if condition.op in ("!=", "<", "<="):
            yes, no = no, yes
        if condition.op in ("==", "!="):
            start = self._equal(condition.arg, 0, value & _WORD, mask & _WORD, yes, no)
            return self._equal(condition.arg, 4, value >> 32, mask >> 32, start, no)
        test = _JGT if condition.op in (">", "<=") else _JGE
        start = self._half(test, condition.arg, 0, value & _WORD, mask & _WORD, yes, no)
        start = self._half(_JEQ, condition.arg, 4, value >> 32, mask >> 32, start, no)
        return self._half(_JGT, condition.arg, 4, value >> 32, mask >> 32, yes, start)

    def _equal(self, arg: int, half: int, value: int, mask: int, yes: int, no: int) -> int:
        if value == 0 and 0 < mask < _WORD and yes != no:
            start = self.jump(_JSET, mask, no, yes)
            return self.load(_ARGS_OFFSET + 8 * arg + half, then=start)
        return self._half(_JEQ, arg, half, value, mask, yes, no)

    def _half(self, test: int, arg: int, half: int, value: int, mask: int, yes: int, no: int) -> int:
        """Compare one 32-bit half of an argument, unless the outcome is known."""
        if mask == 0:
            return yes if test != _JGT and value == 0 else no
        if yes == no:
            return yes
        start = self.jump(test, value, yes, no)
        if mask != _WORD:
            start = self._put(_AND, mask)
        return self.load(_ARGS_OFFSET + 8 * arg + half, then=start)

    def _distance(self, place: int) -> int:
        """Return the number of instructions that a jump from here would skip."""
        return len(self._code) - 1 - place

    def _nearer(self, place: int) -> int:
        """Return a nearby place with the same effect."""
        code, _, _, value = self._code[place]
        if code == _RETURN:
            return self._put(_RETURN, value)
        return self._put(_JUMP, self._distance(place))

    def _put(self, code: int, value: int, yes: int = 0, no: int = 0) -> int:
        self._code.append((code, yes, no, value))
        return len(self._code) - 1
