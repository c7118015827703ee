"""The tables of system calls, against libseccomp's."""

from __future__ import annotations

import ctypes

import pytest

from pycontain._security.syscalls import TABLE, number
from tests.support.filters import ARCH, names_by_number

LIBSECCOMP_FLOOR = 300


@pytest.fixture(scope="module")
def libseccomp() -> ctypes.CDLL:
    """Return the library as an oracle for numbers."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        pytest.skip(f"no libseccomp to ask: {error}")
    library.seccomp_syscall_resolve_name_arch.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
    library.seccomp_syscall_resolve_num_arch.argtypes = [ctypes.c_uint32, ctypes.c_int]
    library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p
    return library


@pytest.mark.parametrize("machine", sorted(ARCH))
def test_numbers_are_those_of_libseccomp(libseccomp: ctypes.CDLL, machine: str) -> None:
    """Every name that libseccomp knows on the machine has its number in the table."""
    resolved = {
        name: libseccomp.seccomp_syscall_resolve_name_arch(ARCH[machine], name.encode())
        for name in set().union(*TABLE.values())
    }
    known = {name: nr for name, nr in resolved.items() if nr >= 0}

    assert len(known) >= LIBSECCOMP_FLOOR
    assert known == {name: TABLE[machine].get(name) for name in known}


@pytest.mark.parametrize("machine", sorted(ARCH))
def test_no_number_of_libseccomp_is_missing(libseccomp: ctypes.CDLL, machine: str) -> None:
    """Every number that libseccomp can name has that name in the table."""
    libc = ctypes.CDLL(None)
    libc.free.argtypes = [ctypes.c_void_p]
    named = {}
    for nr in range(600):
        text = libseccomp.seccomp_syscall_resolve_num_arch(ARCH[machine], nr)
        if text:
            named[nr] = ctypes.string_at(text).decode()
            libc.free(text)

    assert len(named) >= LIBSECCOMP_FLOOR
    assert named == {nr: name for nr, name in names_by_number(machine).items() if nr in named}


@pytest.mark.parametrize("machine", sorted(ARCH))
def test_tables_give_each_number_once(machine: str) -> None:
    """A slip in a run of names would shift or double what follows."""
    numbers = sorted(TABLE[machine].values())

    assert sorted(set(numbers)) == numbers
    assert list(range(424, 472)) == numbers[-48:]
    assert all(name.isidentifier() and name.islower() for name in TABLE[machine])


@pytest.mark.parametrize(
    ("name", "x86_64", "aarch64"),
    [
        ("read", 0, 63),
        ("execve", 59, 221),
        ("kexec_file_load", 320, 294),
        ("rseq", 334, 293),
        ("clone3", 435, 435),
        ("cachestat", 451, 451),
        ("mseal", 462, 462),
        ("file_setattr", 469, 469),
        ("rseq_slice_yield", 471, 471),
    ],
)
def test_well_known_numbers(name: str, x86_64: int, aarch64: int) -> None:
    """Fixed points, newer ones than libseccomp's among them."""
    assert (x86_64, aarch64) == (number(name, "x86_64"), number(name, "aarch64"))


@pytest.mark.parametrize(("name", "machine"), [("open", "aarch64"), ("nothing", "x86_64"), ("read", "vax")])
def test_number_of_an_unknown_call(name: str, machine: str) -> None:
    """A name that the machine lacks is an error with both in it."""
    with pytest.raises(ValueError, match=f"'{name}' on {machine}"):
        number(name, machine)
