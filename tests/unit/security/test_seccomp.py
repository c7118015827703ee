"""Filters of system calls: what the assembled program says is what the filter means."""

from __future__ import annotations

import ctypes
import errno
import itertools
import operator
import time
from collections.abc import Iterable, Iterator

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycontain._security.profiles import DOCKER_FILTER, SANDBOX_FILTER, docker_filter
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

ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
FOREIGN = {"i386": 0x40000003, "arm": 0x40000028, "riscv64": 0xC00000F3, "zero": 0}
X32 = 0x40000000
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

EPERM, ENOSYS = refuse(errno.EPERM), refuse(errno.ENOSYS)
EAFNOSUPPORT, EPROTONOSUPPORT = refuse(errno.EAFNOSUPPORT), refuse(errno.EPROTONOSUPPORT)


def words(text: str) -> list[str]:
    """The names in a text."""
    return text.split()


def meaning(filter_: Filter, name: str | None, args: tuple[int, ...]) -> Action:
    """What a filter says of a call, read off its rules."""
    padded = (*args, *(6 - len(args)) * (0,))
    for rule in filter_.rules:
        if name in rule.names and all(
            OPERATORS[condition.op](padded[condition.arg] & condition.mask, condition.value)
            for condition in rule.conditions
        ):
            return rule.action
    return filter_.default


def names_by_number(machine: str) -> dict[int, str]:
    """The table of a machine, turned round."""
    return {nr: name for name, nr in TABLE[machine].items()}


def telling_arguments(filter_: Filter, name: str | None) -> Iterator[tuple[int, ...]]:
    """Arguments on, beside and above every value that the filter compares for this call."""
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
    """Calls of which the assembled program says something else than the filter."""
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
    """What the assembled program says of a named call."""
    program = bpf.decode(assemble(filter_, machine))
    return bpf.run(program, arch=ARCH[machine], nr=number(name, machine), args=args).action


# The assembler


@pytest.mark.security
@pytest.mark.parametrize("machine", sorted(ARCH))
@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_program_says_what_the_profile_means(profile: str, machine: str) -> None:
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
    """E14: x32 calls come with the native architecture; only their number tells."""
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


def test_allowing_and_denying_win_over_what_was_there() -> None:
    """Both give copies; the last change is the first rule."""
    changed = SANDBOX_FILTER.allowing("ptrace", "chroot").denying("chroot", "read", errno=errno.EIO)

    assert verdict(changed, "ptrace") == ALLOW
    assert refuse(errno.EIO) == verdict(changed, "chroot")
    assert refuse(errno.EIO) == verdict(changed, "read")
    assert verdict(SANDBOX_FILTER, "ptrace") == EPERM


def every_call_differently(conditions: int) -> Filter:
    """A filter whose ranges cannot merge, with this many conditions for each call."""
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
    """Whatever the rules, program and filter agree on every number, with random and telling arguments."""
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
        (lambda: Rule(names="read", action=Action(5)), "no action"),
        (lambda: Rule(names="read", action=Action(0x00050000)), "no action"),
        (lambda: Filter(default=Action(0x7FFF0001)), "no action"),
        (lambda: Filter(foreign=ALLOW), "no rule has seen"),
        (lambda: Filter(foreign=LOG), "no rule has seen"),
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
    """They never compare equal, so the rule cannot be meant."""
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
    """It happens once per profile, but on the way to the first container."""
    best = min(_seconds_to_assemble() for _ in range(5))

    assert best < 0.005


def _seconds_to_assemble() -> float:
    start = time.perf_counter()
    assemble(SANDBOX_FILTER, "x86_64")
    return time.perf_counter() - start


# The tables

LIBSECCOMP_FLOOR = 300


@pytest.fixture(scope="module")
def libseccomp() -> ctypes.CDLL:
    """The library as an oracle for numbers."""
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


# The profiles


@pytest.mark.security
@pytest.mark.parametrize("machine", sorted(ARCH))
def test_sandbox_passes_nothing_that_docker_refuses(machine: str) -> None:
    """Allowed in the sandbox is allowed in Docker's shape, with every telling argument of either."""
    sandbox = bpf.decode(assemble(SANDBOX_FILTER, machine))
    docker = bpf.decode(assemble(DOCKER_FILTER, machine))
    excess = []
    for nr in range(601):
        name = names_by_number(machine).get(nr)
        for filter_ in PROFILES.values():
            for args in telling_arguments(filter_, name):
                allowed = bpf.run(sandbox, arch=ARCH[machine], nr=nr, args=args).action == ALLOW
                if allowed and bpf.run(docker, arch=ARCH[machine], nr=nr, args=args).action != ALLOW:
                    excess.append((name, args))

    assert excess == []


def passing(filter_: Filter, machine: str = "x86_64") -> set[str]:
    """Calls that pass with some telling arguments."""
    program = bpf.decode(assemble(filter_, machine))
    return {
        name
        for name, nr in TABLE[machine].items()
        for args in telling_arguments(filter_, name)
        if bpf.run(program, arch=ARCH[machine], nr=nr, args=args).action == ALLOW
    }


@pytest.mark.security
def test_sandbox_refuses_what_opens_the_kernel() -> None:
    """E13, E21, K01: all that never passes; ENOSYS where libraries then step back."""
    forbidden = words("""
        unshare setns mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick open_tree open_tree_attr
        move_mount mount_setattr bpf perf_event_open userfaultfd kexec_load kexec_file_load init_module
        finit_module delete_module create_module get_kernel_syms query_module open_by_handle_at
        name_to_handle_at fanotify_init fanotify_mark quotactl quotactl_fd swapon swapoff syslog kcmp vmsplice
        keyctl add_key request_key ptrace process_vm_readv process_vm_writev pidfd_getfd process_madvise
        reboot acct iopl ioperm modify_ldt settimeofday clock_settime adjtimex clock_adjtime sethostname
        setdomainname mbind get_mempolicy set_mempolicy set_mempolicy_home_node move_pages migrate_pages
        vhangup lookup_dcookie nfsservctl uselib
    """)
    absent = words("""
        clone3 io_uring_setup io_uring_enter io_uring_register io_setup io_submit io_getevents io_pgetevents
        io_cancel io_destroy futex_wait futex_wake futex_waitv futex_requeue cachestat memfd_secret
        process_mrelease remap_file_pages get_thread_area set_thread_area setxattrat getxattrat listxattrat
        removexattrat file_getattr file_setattr statmount listmount listns lsm_get_self_attr lsm_set_self_attr
        lsm_list_modules rseq_slice_yield epoll_ctl_old epoll_wait_old ustat sysfs _sysctl getpmsg putpmsg
        afs_syscall tuxcall security vserver
    """)

    assert {EPERM} == {verdict(SANDBOX_FILTER, name) for name in forbidden}
    assert {ENOSYS} == {verdict(SANDBOX_FILTER, name) for name in absent}
    assert {*forbidden, *absent} == set(TABLE["x86_64"]) - passing(SANDBOX_FILTER)


@pytest.mark.security
@pytest.mark.parametrize("machine", sorted(ARCH))
def test_unknown_and_new_calls_do_not_exist(machine: str) -> None:
    """E13: CVE-2021-41133 was a list that did not know the new calls."""
    program = bpf.decode(assemble(SANDBOX_FILTER, machine))
    new = [
        "futex_wake",
        "futex_wait",
        "futex_requeue",
        "statmount",
        "listns",
        "rseq_slice_yield",
        "file_setattr",
    ]
    numbers = [*(number(name, machine) for name in new), *range(472, 601)]

    assert {ENOSYS} == {bpf.run(program, arch=ARCH[machine], nr=nr).action for nr in numbers}


CLONE_NEW = {
    "NEWNS": 0x00020000,
    "NEWCGROUP": 0x02000000,
    "NEWUTS": 0x04000000,
    "NEWIPC": 0x08000000,
    "NEWUSER": 0x10000000,
    "NEWPID": 0x20000000,
    "NEWNET": 0x40000000,
}


@pytest.mark.security
@pytest.mark.parametrize("machine", sorted(ARCH))
@pytest.mark.parametrize("flag", sorted(CLONE_NEW))
@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_clone_makes_no_namespaces(profile: str, flag: str, machine: str) -> None:
    """E21: each flag alone, beside a thread's flags, and below set high bits."""
    filter_, bit, thread, sigchld = PROFILES[profile], CLONE_NEW[flag], 0x3D0F00, 17

    for flags in (bit, bit | thread, bit | sigchld, bit | HIGH, bit | 0xFFFFFFFF00000000):
        assert verdict(filter_, "clone", flags, machine=machine) == EPERM
    assert verdict(filter_, "clone", thread, machine=machine) == ALLOW
    assert verdict(filter_, "clone", 0x01200000 | sigchld, machine=machine) == ALLOW


@pytest.mark.security
@pytest.mark.parametrize("machine", sorted(ARCH))
def test_sandbox_sockets(machine: str) -> None:
    """E13: 50 families by 270 protocols; only UNIX, the internet and NETLINK_ROUTE open."""
    program = bpf.decode(assemble(SANDBOX_FILTER, machine))
    nr, opened, refused = number("socket", machine), set(), set()
    for family, kind, protocol in itertools.product(range(50), (1, 2, 3, 5, 10), range(270)):
        action = bpf.run(program, arch=ARCH[machine], nr=nr, args=(family, kind | 0x80800, protocol)).action
        if action == ALLOW:
            opened.add((family, protocol))
        else:
            refused.add((family, action))
    unix = {(1, protocol) for protocol in range(270)}
    internet = {(family, protocol) for family in (2, 10) for protocol in (0, 1, 6, 17, 58)}

    assert unix | internet | {(16, 0)} == opened
    assert {(2, EPROTONOSUPPORT), (10, EPROTONOSUPPORT)} == {f for f in refused if f[0] in (2, 10)}
    assert {EAFNOSUPPORT} == {action for family, action in refused if family not in (2, 10)}


@pytest.mark.security
def test_sandbox_sockets_are_compared_as_the_kernel_reads_them() -> None:
    """The family is an int: bits above it neither hide AF_ALG nor break AF_UNIX."""
    assert verdict(SANDBOX_FILTER, "socket", HIGH | 38, 5, 0) == EAFNOSUPPORT
    assert verdict(SANDBOX_FILTER, "socket", HIGH | 16, 3, HIGH | 9) == EAFNOSUPPORT
    assert verdict(SANDBOX_FILTER, "socket", HIGH | 1, 1, 0) == ALLOW
    assert verdict(SANDBOX_FILTER, "socketpair", 1, 1, 0) == ALLOW
    assert verdict(SANDBOX_FILTER, "socketpair", 30, 5, 0) == EAFNOSUPPORT


@pytest.mark.security
@pytest.mark.parametrize("command", [0x5412, 0x541C, 0x5423])
@pytest.mark.parametrize("high", [0, HIGH, 0xFFFFFFFF00000000])
def test_sandbox_pushes_nothing_into_terminals(command: int, high: int) -> None:
    """E18: TIOCSTI, TIOCLINUX and TIOCSETD, also with high bits that the kernel drops (CVE-2019-10063)."""
    assert verdict(SANDBOX_FILTER, "ioctl", 0, high | command) == EPERM
    assert verdict(SANDBOX_FILTER, "ioctl", 0, high | 0x5401) == ALLOW


@pytest.mark.security
@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_personalities(profile: str) -> None:
    """Only Linux, 32-bit uname, the old uname, both, and the question."""
    allowed = {
        value
        for value in (*(1 << bit for bit in range(32)), *range(32), 0x20000, 0x20008, 0x40008, 0xFFFFFFFF)
        if verdict(PROFILES[profile], "personality", value) == ALLOW
    }

    assert {0, 8, 0x20000, 0x20008, 0xFFFFFFFF} == allowed
    assert verdict(PROFILES[profile], "personality", 0x40000) == EPERM


@pytest.mark.security
def test_sandbox_makes_no_devices() -> None:
    """E20: files, pipes and sockets only; the kind is in the same bits for mknod and mknodat."""
    for kind, expected in {0: ALLOW, 1: ALLOW, 8: ALLOW, 12: ALLOW, 2: EPERM, 6: EPERM, 4: EPERM}.items():
        mode = kind << 12 | 0o644

        assert expected == verdict(SANDBOX_FILTER, "mknod", 0, mode, 0x103)
        assert expected == verdict(SANDBOX_FILTER, "mknodat", 0, 0, HIGH | mode, 0x103, machine="aarch64")


def test_docker_opens_calls_by_capability() -> None:
    """Each capability adds calls and takes none away; SYS_ADMIN makes namespaces."""
    none = passing(docker_filter(frozenset()))

    assert {"chroot"} == passing(DOCKER_FILTER) - none
    assert {"unshare", "mount", "clone3", "setns"} <= passing(docker_filter(frozenset({"SYS_ADMIN"}))) - none
    assert {"perf_event_open"} == passing(docker_filter(frozenset({"PERFMON", "CHOWN"}))) - none
    assert verdict(docker_filter(frozenset({"SYS_ADMIN"})), "clone", CLONE_NEW["NEWUSER"]) == ALLOW


@pytest.mark.security
def test_docker_sockets() -> None:
    """Every family but AF_ALG and AF_VSOCK."""
    refused = {
        family for family in range(50) if verdict(DOCKER_FILTER, "socket", HIGH | family, 1, 0) != ALLOW
    }

    assert {38, 40} == refused
