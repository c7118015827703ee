"""An interpreter of the part of classic BPF that seccomp runs."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

LENGTH_MAX = 4096

_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMP = 0x05
_TESTS = {
    0x15: lambda a, k: a == k,
    0x25: lambda a, k: a > k,
    0x35: lambda a, k: a >= k,
    0x45: lambda a, k: a & k != 0,
}

_DATA = struct.Struct("<IIQ6Q")
_WORDS = struct.Struct(f"<{_DATA.size // 4}I")


class Instruction(NamedTuple):
    """One struct sock_filter."""

    code: int
    yes: int
    no: int
    value: int


class Verdict(NamedTuple):
    """The return value of a program and the number of executed instructions."""

    action: int
    steps: int


class Invalid(Exception):
    """A program that the kernel refuses to load."""


def decode(program: bytes) -> list[Instruction]:
    """Return the instructions of a program, checked as the kernel checks them.  Raises Invalid."""
    if len(program) % 8 or not 0 < len(program) // 8 <= LENGTH_MAX:
        raise Invalid(f"{len(program)} bytes")
    code = [Instruction(*fields) for fields in struct.iter_unpack("<HBBI", program)]
    for place, instruction in enumerate(code):
        furthest = _furthest(instruction)
        if place + furthest >= len(code):
            raise Invalid(f"instruction {place} jumps past the end: {instruction}")
    if code[-1].code != _RETURN:
        raise Invalid(f"the last instruction is {code[-1]}")
    return code


def _furthest(instruction: Instruction) -> int:
    """Return the longest jump of an instruction.  Raises Invalid if seccomp does not accept it."""
    if instruction.code == _LOAD:
        if instruction.value % 4 or instruction.value >= _DATA.size:
            raise Invalid(f"a load outside of the data: {instruction}")
        return 1
    if instruction.code == _JUMP:
        return 1 + instruction.value
    if instruction.code in _TESTS:
        return 1 + max(instruction.yes, instruction.no)
    if instruction.code in (_AND, _RETURN):
        return 0
    raise Invalid(f"an unknown instruction: {instruction}")


def run(
    program: Sequence[Instruction], *, arch: int, nr: int, args: Sequence[int] = (), ip: int = 0
) -> Verdict:
    """Run a decoded program on a call; missing arguments are 0."""
    words = _WORDS.unpack(_DATA.pack(nr, arch, ip, *args, *(6 - len(args)) * [0]))
    accumulator = place = steps = 0
    while True:
        code, yes, no, value = program[place]
        place += 1
        steps += 1
        if code == _RETURN:
            return Verdict(value, steps)
        if code == _LOAD:
            accumulator = words[value // 4]
        elif code == _AND:
            accumulator &= value
        elif code == _JUMP:
            place += value
        else:
            place += yes if _TESTS[code](accumulator, value) else no
