"""Filters of system calls as values, and as the programs that the kernel runs.

A `Filter` is a list of rules: the first rule that names the call and whose conditions all hold decides;
a call that no rule decides gets the default.  So `allowing` and `denying`, which put a rule in front,
always win.  `assemble` turns a filter into classic BPF over `struct seccomp_data` (seccomp(2)).

The program loads the machine, then searches the call's number in ranges of equal outcome: about seven
comparisons whatever the length of the lists.  It is written from its end to its beginning, so that the
distance of every jump is known when the jump is written; where one reaches further than the 255
instructions that a conditional jump can, a copy of the return or a long jump is put in between.
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
"""What becomes of a call: a value that a filter program returns (seccomp(2))."""

ALLOW = Action(0x7FFF0000)
LOG = Action(0x7FFC0000)
TRAP = Action(0x00030000)
KILL_PROCESS = Action(0x80000000)

_ERRNO, _ERRNO_MAX = 0x00050000, 4095

INSTRUCTIONS_MAX = 4096
"""BPF_MAXINSNS: the kernel takes no longer program."""

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
"""The number -1: what a tracer writes to skip a call; it is none of x32's."""


def refuse(errno: int) -> Action:
    """The call fails with this errno.  Raises ValueError outside 1 to 4095."""
    if not 1 <= errno <= _ERRNO_MAX:
        raise ValueError(f"an errno is between 1 and {_ERRNO_MAX}, not {errno}")
    return Action(_ERRNO | errno)


def _action(instance: object, attribute: attrs.Attribute[Action], value: Action) -> None:
    if value not in (ALLOW, LOG, TRAP, KILL_PROCESS) and not 1 <= value - _ERRNO <= _ERRNO_MAX:
        raise ValueError(f"{attribute.name} is no action: {value!r}")


def _refusal(instance: object, attribute: attrs.Attribute[Action], value: Action) -> None:
    _action(instance, attribute, value)
    if value in (ALLOW, LOG):
        raise ValueError(f"{attribute.name} would let calls pass that no rule has seen")


def _names(value: str | Iterable[str]) -> tuple[str, ...]:
    return tuple(value.split()) if isinstance(value, str) else tuple(value)


def _conditions(value: Iterable[Condition]) -> tuple[Condition, ...]:
    return tuple(value)


def _rules(value: Iterable[Rule]) -> tuple[Rule, ...]:
    return tuple(value)


@frozen(kw_only=True)
class Condition:
    """`argument & mask OP value`, unsigned, where OP is ==, !=, <, <=, > or >=.

    arg: 0 to 5.  mask: 64 bits by default; where the kernel reads only an int, give 0xFFFFFFFF, or a guest
    evades the comparison by setting higher bits.

    Raises ValueError for other operators and for numbers that do not fit.
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
    """What becomes of the named calls where every condition holds.

    names: an iterable, or a string with blanks between.
    """

    names: tuple[str, ...] = field(converter=_names)
    action: Action = field(validator=_action)
    conditions: tuple[Condition, ...] = field(default=(), converter=_conditions)


@frozen(kw_only=True, cache_hash=True)
class Filter:
    """What becomes of every system call: the first rule that holds decides, else the default.

    default: for calls without a rule, those newer than the filter among them.
    foreign: for calls of another architecture than the machine's own (i386 and x32 on x86_64), whose numbers
    the rules cannot judge; not ALLOW or LOG.
    """

    rules: tuple[Rule, ...] = field(default=(), converter=_rules)
    default: Action = field(default=refuse(errnos.ENOSYS), validator=_action)
    foreign: Action = field(default=KILL_PROCESS, validator=_refusal)

    def allowing(self, *names: str) -> Filter:
        """A copy in which these calls pass whatever their arguments."""
        return self._first(Rule(names=names, action=ALLOW))

    def denying(self, *names: str, errno: int = errnos.EPERM) -> Filter:
        """A copy in which these calls fail whatever their arguments."""
        return self._first(Rule(names=names, action=refuse(errno)))

    def _first(self, rule: Rule) -> Filter:
        return attrs.evolve(self, rules=(rule, *self.rules))


def judge(filter_: Filter, name: str, *args: int) -> Action:
    """What a filter says of a call by name; missing arguments are 0."""
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
    """Two filters that, one on top of the other, judge as this one does; the first lets `calls` pass.

    calls: a name, and arguments where it is not made with any.  Of several filters the kernel obeys the
    strictest (seccomp(2)).  A process that makes these calls itself can so take on nearly all of a filter
    for its children, each of which adds only the short second part.
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
    """The filter as an array of `struct sock_filter`.

    Calls that exist on another machine only are passed over.  Raises ValueError for a name that no machine
    has and for a filter of more than 4096 instructions, UnsupportedError for a machine without a table.
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
"""The first number of a range, and what becomes of it up to the next range."""


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
    """Instructions from the last to the first; a place is an index into them."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int]] = []
        self._results: dict[int, int] = {}
        self._decisions: dict[_Outcome, int] = {}

    def finish(self) -> bytes:
        """The program in the order in which the kernel runs it.  Raises ValueError where it is too long."""
        if len(self._code) > INSTRUCTIONS_MAX:
            raise ValueError(
                f"the filter takes {len(self._code)} instructions; the kernel takes {INSTRUCTIONS_MAX}"
            )
        return b"".join(struct.pack("<HBBI", *instruction) for instruction in reversed(self._code))

    def result(self, action: Action) -> int:
        """A place that returns the action, near enough to jump to."""
        place = self._results.get(action)
        if place is None or len(self._code) - place >= _REACH:
            place = self._results[action] = self._put(_RETURN, action)
        return place

    def load(self, offset: int, *, then: int) -> int:
        """Load a word of the call's data, then go on at a place."""
        if self._distance(then) > 0:
            self._nearer(then)
        return self._put(_LD_WORD, offset)

    def jump(self, test: int, value: int, yes: int, no: int) -> int:
        """Go on at one of two places, by a test of what was loaded last."""
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
        """Compare one 32-bit half of an argument, unless the outcome is plain without."""
        if mask == 0:
            return yes if test != _JGT and value == 0 else no
        if yes == no:
            return yes
        start = self.jump(test, value, yes, no)
        if mask != _WORD:
            start = self._put(_AND, mask)
        return self.load(_ARGS_OFFSET + 8 * arg + half, then=start)

    def _distance(self, place: int) -> int:
        """Instructions that a jump written now would pass over."""
        return len(self._code) - 1 - place

    def _nearer(self, place: int) -> int:
        """A place at hand that does the same."""
        code, _, _, value = self._code[place]
        if code == _RETURN:
            return self._put(_RETURN, value)
        return self._put(_JUMP, self._distance(place))

    def _put(self, code: int, value: int, yes: int = 0, no: int = 0) -> int:
        self._code.append((code, yes, no, value))
        return len(self._code) - 1
