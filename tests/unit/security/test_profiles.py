"""The filters of the security profiles: calls that they allow and refuse."""

from __future__ import annotations

import errno
import itertools

import pytest

from pycontain._security.profiles import DOCKER_FILTER, SANDBOX_FILTER, docker_filter, restrict_suid_sgid
from pycontain._security.seccomp import ALLOW, Filter, assemble, refuse
from pycontain._security.syscalls import TABLE, number
from tests.support import bpf
from tests.support.filters import (
    ARCH,
    HIGH,
    PROFILES,
    names_by_number,
    passing,
    telling_arguments,
    verdict,
)

EPERM, ENOSYS = refuse(errno.EPERM), refuse(errno.ENOSYS)
EAFNOSUPPORT, EPROTONOSUPPORT = refuse(errno.EAFNOSUPPORT), refuse(errno.EPROTONOSUPPORT)


def words(text: str) -> list[str]:
    """Return the names in a text."""
    return text.split()


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


@pytest.mark.security
def test_sandbox_refuses_dangerous_system_calls() -> None:
    """E13, E21, K01: all that never passes; ENOSYS where libraries then step back."""
    forbidden = words("""
        unshare setns mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick open_tree open_tree_attr
        move_mount mount_setattr bpf perf_event_open userfaultfd kexec_load kexec_file_load init_module
        finit_module delete_module create_module get_kernel_syms query_module open_by_handle_at
        name_to_handle_at fanotify_init fanotify_mark quotactl quotactl_fd swapon swapoff syslog kcmp vmsplice
        keyctl add_key request_key process_vm_readv process_vm_writev pidfd_getfd process_madvise
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
        afs_syscall tuxcall security vserver fchmodat2 mseal pkey_alloc pkey_free pkey_mprotect
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
    """E21: each flag by itself, with a thread's flags, and with high bits set."""
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


SET_ID_CALLS = [
    ("chmod", 1, ()),
    ("fchmod", 1, ()),
    ("fchmodat", 2, ()),
    ("fchmodat2", 2, ()),
    ("creat", 1, ()),
    ("mknod", 1, ()),
    ("mknodat", 2, ()),
    ("open", 2, ((1, 0o100),)),
    ("open", 2, ((1, 0o20200000),)),
    ("openat", 3, ((2, 0o101),)),
    ("openat", 3, ((2, 0o20200002),)),
]


@pytest.mark.security
@pytest.mark.parametrize("machine", sorted(ARCH))
@pytest.mark.parametrize("profile", sorted(PROFILES))
@pytest.mark.parametrize(("name", "arg", "more"), SET_ID_CALLS)
def test_restricted_filter_sets_no_set_id_bits(
    name: str, arg: int, more: tuple[tuple[int, int], ...], profile: str, machine: str
) -> None:
    """U21: each bit, both, and below set high bits; other modes are judged as before."""
    if name not in TABLE[machine]:
        pytest.skip(f"{machine} has no {name}")
    before = PROFILES[profile]
    after = restrict_suid_sgid(before)

    def asked(filter_: Filter, mode: int) -> int:
        args = [0] * 6
        args[arg] = mode
        for at, value in more:
            args[at] = value
        return verdict(filter_, name, *args, machine=machine)

    for mode in (0o4000, 0o2000, 0o6777, 0o4755 | HIGH, 0o2755 | 1 << 63):
        assert asked(after, mode) == EPERM
    for mode in (0, 0o1777, 0o755):
        assert asked(after, mode) == asked(before, mode)


@pytest.mark.security
def test_restricted_filter_ignores_modes_that_the_kernel_ignores() -> None:
    """open(2) without O_CREAT and O_TMPFILE has garbage where the mode would be."""
    filter_ = restrict_suid_sgid(SANDBOX_FILTER)
    assert verdict(filter_, "open", 0, 0o200000, 0o7777) == ALLOW
    assert verdict(filter_, "openat", 0, 0, 0o2, 0o7777) == ALLOW
    assert {ENOSYS} == {verdict(filter_, name) for name in ("openat2", "io_uring_setup")}


@pytest.mark.security
@pytest.mark.parametrize("machine", sorted(ARCH))
def test_ptrace_passes_for_debuggers_only(machine: str) -> None:
    """B11: no request that reads filters, that is newer than the list, or that has high bits set."""
    passed = {nr for nr in range(0x5000) if verdict(SANDBOX_FILTER, "ptrace", nr, machine=machine) == ALLOW}
    assert passed == {*range(34), *range(0x4200, 0x420C), 0x420E}
    for nr in (HIGH, HIGH | 16, 1 << 63, 0xFFFFFFFFFFFFFFFF):
        assert verdict(SANDBOX_FILTER, "ptrace", nr, machine=machine) == EPERM
