"""Filters of the two profiles: SANDBOX_FILTER for untrusted code, and Docker's.

Both are allow-lists.  Calls that are refused on purpose fail with EPERM.  Calls in no list, mainly newer
ones, fail with ENOSYS, so that a libc falls back to an older call.  io_uring fails with ENOSYS as well:
its users then fall back to epoll.

SANDBOX_FILTER allows the calls of language runtimes, compilers, package managers and databases.  It refuses
calls that expose more of the kernel: namespaces, mounts, keyrings, raw handles, and every socket but
AF_UNIX, AF_INET, AF_INET6 and AF_NETLINK's NETLINK_ROUTE.  Docker's filter allows everything that it allows.
Calls that the filters of Docker and Podman allow only since recently (fchmodat2, mseal, pkey_alloc and
similar ones) fail with ENOSYS too.
"""

from __future__ import annotations

import errno

from pycontain._security.seccomp import ALLOW, Condition, Filter, Rule, refuse

_PROCESSES = """
    fork vfork execve execveat exit exit_group wait4 waitid kill tkill tgkill pidfd_open pidfd_send_signal
    getpid getppid gettid getpgid getpgrp setpgid getsid setsid set_tid_address set_robust_list
    get_robust_list rseq restart_syscall prctl arch_prctl seccomp landlock_create_ruleset landlock_add_rule
    landlock_restrict_self futex membarrier uname sysinfo getcpu getrandom times getrusage getrlimit
    setrlimit prlimit64 getpriority setpriority ioprio_get ioprio_set sched_yield sched_getaffinity
    sched_setaffinity sched_getparam sched_setparam sched_getscheduler sched_setscheduler sched_getattr
    sched_setattr sched_get_priority_max sched_get_priority_min sched_rr_get_interval uretprobe uprobe
"""

_IDENTITY = """
    getuid geteuid getgid getegid getresuid getresgid getgroups setuid setgid setreuid setregid setresuid
    setresgid setfsuid setfsgid setgroups capget capset umask
"""

_SIGNALS_AND_TIME = """
    rt_sigaction rt_sigprocmask rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_tgsigqueueinfo
    rt_sigsuspend rt_sigreturn sigaltstack signalfd signalfd4 pause alarm getitimer setitimer nanosleep
    clock_nanosleep clock_gettime clock_getres gettimeofday time timer_create timer_settime timer_gettime
    timer_getoverrun timer_delete timerfd_create timerfd_settime timerfd_gettime
"""

_MEMORY = """
    brk mmap munmap mremap mprotect madvise mincore msync mlock mlock2 munlock mlockall munlockall
    map_shadow_stack memfd_create shmget shmat shmdt shmctl semget semop
    semtimedop semctl msgget msgsnd msgrcv msgctl mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify
    mq_getsetattr
"""

_DESCRIPTORS = """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range dup
    dup2 dup3 fcntl flock pipe pipe2 eventfd eventfd2 poll ppoll select pselect6 epoll_create epoll_create1
    epoll_ctl epoll_wait epoll_pwait epoll_pwait2 inotify_init inotify_init1 inotify_add_watch
    inotify_rm_watch sendfile splice tee copy_file_range readahead fadvise64
"""

_FILES = """
    open openat openat2 creat access faccessat faccessat2 stat fstat lstat newfstatat statx statfs fstatfs
    getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir link linkat symlink symlinkat readlink
    readlinkat unlink unlinkat rename renameat renameat2 chmod fchmod fchmodat chown fchown lchown
    fchownat utime utimes utimensat futimesat truncate ftruncate fallocate fsync fdatasync sync syncfs
    sync_file_range setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr
    flistxattr removexattr lremovexattr fremovexattr
"""

_SOCKETS = """
    bind listen accept accept4 connect shutdown getsockname getpeername getsockopt sendto
    recvfrom sendmsg recvmsg sendmmsg recvmmsg
"""

_EVERYDAY = Rule(
    names=_PROCESSES + _IDENTITY + _SIGNALS_AND_TIME + _MEMORY + _DESCRIPTORS + _FILES + _SOCKETS,
    action=ALLOW,
)

_DOCKER_MORE = """
    adjtimex cachestat clock_adjtime fanotify_mark fchmodat2 futex_requeue futex_wait futex_waitv futex_wake
    get_thread_area getxattrat io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit ioctl
    listxattrat memfd_secret mknod mknodat modify_ldt mseal name_to_handle_at
    pkey_alloc pkey_free pkey_mprotect process_mrelease process_vm_readv process_vm_writev ptrace setsockopt
    remap_file_pages removexattrat set_thread_area setxattrat socketpair vmsplice
"""

_BY_CAPABILITY = {
    "BPF": "bpf",
    "DAC_READ_SEARCH": "open_by_handle_at",
    "PERFMON": "perf_event_open",
    "SYSLOG": "syslog",
    "SYS_ADMIN": """
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr
        move_mount open_tree open_tree_attr perf_event_open quotactl quotactl_fd setdomainname sethostname
        setns syslog umount2 unshare
    """,
    "SYS_BOOT": "reboot",
    "SYS_CHROOT": "chroot",
    "SYS_MODULE": "delete_module init_module finit_module",
    "SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "SYS_PACCT": "acct",
    "SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "SYS_RAWIO": "iopl ioperm",
    "SYS_TIME": "clock_settime settimeofday",
    "SYS_TTY_CONFIG": "vhangup",
}
"""Calls that Docker's filter allows with a capability."""

_FORBIDDEN = Rule(
    names="""
        acct add_key adjtimex bpf chroot clock_adjtime clock_settime create_module delete_module
        fanotify_init fanotify_mark finit_module fsconfig fsmount fsopen fspick get_kernel_syms
        get_mempolicy init_module ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie mbind
        migrate_pages modify_ldt mount mount_setattr move_mount move_pages name_to_handle_at nfsservctl
        open_by_handle_at open_tree open_tree_attr perf_event_open pidfd_getfd pivot_root process_madvise
        process_vm_readv process_vm_writev query_module quotactl quotactl_fd reboot request_key
        set_mempolicy set_mempolicy_home_node setdomainname sethostname setns settimeofday swapoff swapon
        syslog umount2 unshare userfaultfd uselib vhangup vmsplice
    """,
    action=refuse(errno.EPERM),
)
"""Calls that are refused unless an earlier rule allows them."""

_UNREADABLE = Rule(
    names="clone3 io_uring_setup io_uring_enter io_uring_register", action=refuse(errno.ENOSYS)
)
"""Calls whose arguments are in memory, where a filter cannot read them."""

_INT = 0xFFFFFFFF

_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET; clone does not accept NEWTIME."""

_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""PER_LINUX and PER_LINUX32, each with and without UNAME26, and the query."""

_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK, _AF_ALG, _AF_VSOCK = 1, 2, 10, 16, 38, 40
_NETLINK_ROUTE = 0
_INTERNET_PROTOCOLS = (0, 1, 6, 17, 58)
"""The default protocol, ICMP, TCP, UDP and ICMPv6; not SCTP, DCCP, L2TP and others that load modules."""

_SET_ID = 0o6000
"""S_ISUID and S_ISGID."""
_CREATES = 0o20000100
"""O_CREAT and the distinct bit of O_TMPFILE: without either, open(2) ignores its mode."""

_SOL_SOCKET, _IPPROTO_IPV6 = 1, 41
_SO_ATTACH_FILTER, _SO_ATTACH_BPF, _SO_ATTACH_REUSEPORT_CBPF, _SO_ATTACH_REUSEPORT_EBPF = 26, 50, 51, 52
_IPV6_FLOWLABEL_MGR = 32
_UNCOUNTED_OPTIONS = {
    _SOL_SOCKET: (_SO_ATTACH_FILTER, _SO_ATTACH_BPF, _SO_ATTACH_REUSEPORT_CBPF, _SO_ATTACH_REUSEPORT_EBPF),
    _IPPROTO_IPV6: (_IPV6_FLOWLABEL_MGR,),
}
"""Options by level that use kernel memory without a cgroup charge, or tables of the whole host.

A filter of a socket keeps up to 64 KiB beside the JIT's pages (net.core.bpf_jit_limit is one bound for all
users), and all network namespaces together have 4096 flow labels.
"""

_TIOCSTI, _TIOCLINUX, _TIOCSETD = 0x5412, 0x541C, 0x5423
_F_SETLEASE, _F_SETDELEG = 1024, 1040
_S_IFMT = 0xF000
_S_IFIFO, _S_IFREG, _S_IFSOCK = 0x1000, 0x8000, 0xC000


def _argument(arg: int, value: int, mask: int = _INT) -> Condition:
    return Condition(arg=arg, op="==", value=value, mask=mask)


def _argument_in(name: str, arg: int, values: tuple[int, ...], mask: int = _INT) -> tuple[Rule, ...]:
    """Return rules that allow the call if the argument is one of the values."""
    return tuple(Rule(names=name, action=ALLOW, conditions=[_argument(arg, value, mask)]) for value in values)


def _refused(names: str, error: int) -> Rule:
    return Rule(names=names, action=refuse(error))


_NO_LEASES = tuple(
    Rule(names="fcntl", action=refuse(errno.EACCES), conditions=[_argument(1, command)])
    for command in (_F_SETLEASE, _F_SETDELEG)
)
"""A lease on a file of the host, also through a read-only bind, blocks the open(2) of other processes."""


_CLONE = (
    Rule(names="clone", action=ALLOW, conditions=[_argument(0, 0, _NAMESPACES)]),
    _refused("clone", errno.EPERM),
)

_PERSONALITY = (
    *_argument_in("personality", 0, _PERSONALITIES),
    _refused("personality", errno.EPERM),
)

_SANDBOX_SOCKET = (
    Rule(names="socket socketpair", action=ALLOW, conditions=[_argument(0, _AF_UNIX)]),
    *(
        Rule(names="socket", action=ALLOW, conditions=[_argument(0, family), _argument(2, protocol)])
        for family in (_AF_INET, _AF_INET6)
        for protocol in _INTERNET_PROTOCOLS
    ),
    *(
        Rule(names="socket", action=refuse(errno.EPROTONOSUPPORT), conditions=[_argument(0, family)])
        for family in (_AF_INET, _AF_INET6)
    ),
    Rule(names="socket", action=ALLOW, conditions=[_argument(0, _AF_NETLINK), _argument(2, _NETLINK_ROUTE)]),
    _refused("socket socketpair", errno.EAFNOSUPPORT),
)

_SANDBOX_IOCTL = (
    # The kernel reads only the lower half of the command (CVE-2019-10063 was a filter that compared both).
    *(
        Rule(names="ioctl", action=refuse(errno.EPERM), conditions=[_argument(1, command)])
        for command in (_TIOCSTI, _TIOCLINUX, _TIOCSETD)
    ),
    Rule(names="ioctl", action=ALLOW),
)

_SANDBOX_SETSOCKOPT = (
    *(
        Rule(
            names="setsockopt",
            action=refuse(errno.EPERM),
            conditions=[_argument(1, level), _argument(2, option)],
        )
        for level, options in _UNCOUNTED_OPTIONS.items()
        for option in options
    ),
    Rule(names="setsockopt", action=ALLOW),
)

_SANDBOX_MKNOD = (
    *_argument_in("mknod", 1, (0, _S_IFREG, _S_IFIFO, _S_IFSOCK), _S_IFMT),
    *_argument_in("mknodat", 2, (0, _S_IFREG, _S_IFIFO, _S_IFSOCK), _S_IFMT),
    _refused("mknod mknodat", errno.EPERM),
)

_PTRACE_REQUESTS = ((0, 33), (0x4200, 0x420B), (0x420E, 0x420E))
"""Requests of debuggers and sanitizers: TRACEME to SINGLEBLOCK, SETOPTIONS to SETSIGMASK, GET_SYSCALL_INFO;
not SECCOMP_GET_FILTER."""

_SANDBOX_PTRACE = (
    # The kernel runs the filter after the tracer (since 4.8), so a tracer cannot evade it.  /proc/PID/mem
    # gives the same rights over the same processes, the dumpable ones of the user, without the agent.
    *(
        Rule(
            names="ptrace",
            action=ALLOW,
            conditions=[Condition(arg=0, op=">=", value=first), Condition(arg=0, op="<=", value=last)],
        )
        for first, last in _PTRACE_REQUESTS
    ),
    _refused("ptrace", errno.EPERM),
)

SANDBOX_FILTER = Filter(
    rules=(
        *_NO_LEASES,
        _EVERYDAY,
        *_SANDBOX_PTRACE,
        *_CLONE,
        *_PERSONALITY,
        *_SANDBOX_SOCKET,
        *_SANDBOX_IOCTL,
        *_SANDBOX_SETSOCKOPT,
        *_SANDBOX_MKNOD,
        _UNREADABLE,
        _FORBIDDEN,
    )
)
"""The filter of `Security.SANDBOX`."""

_DOCKER_SOCKET = (
    *(
        Rule(names="socket", action=refuse(errno.EPERM), conditions=[_argument(0, family)])
        for family in (_AF_ALG, _AF_VSOCK)
    ),
    Rule(names="socket", action=ALLOW),
)


def docker_filter(capabilities: frozenset[str]) -> Filter:
    """Return Docker's default filter for a process with these capabilities.

    It is stricter in two points: calls of 32-bit and x32 programs kill the process, and leases on files are
    refused.

    Args:
        capabilities: Names as in `capabilities.NAMES`.
    """
    granted = " ".join(_BY_CAPABILITY[name] for name in sorted(capabilities) if name in _BY_CAPABILITY)
    return Filter(
        rules=(
            *_NO_LEASES,
            Rule(names=granted, action=ALLOW),
            _EVERYDAY,
            Rule(names=_DOCKER_MORE, action=ALLOW),
            *_CLONE,
            *_PERSONALITY,
            *_DOCKER_SOCKET,
            _UNREADABLE,
            _FORBIDDEN,
        )
    )


DOCKER_FILTER = docker_filter(frozenset({"SYS_CHROOT"}))
"""The filter of `Security.DOCKER`: of Docker's capabilities, only SYS_CHROOT adds a call."""


def _some_of(arg: int, bits: int) -> Condition:
    return Condition(arg=arg, op="!=", value=0, mask=bits)


def _no_set_id(name: str, arg: int, *more: Condition) -> Rule:
    return Rule(names=name, action=refuse(errno.EPERM), conditions=[*more, _some_of(arg, _SET_ID)])


_RESTRICTED = (
    *(_no_set_id(name, 1) for name in ("chmod", "fchmod", "creat", "mknod")),
    *(_no_set_id(name, 2) for name in ("fchmodat", "fchmodat2", "mknodat")),
    _no_set_id("open", 2, _some_of(1, _CREATES)),
    _no_set_id("openat", 3, _some_of(2, _CREATES)),
    _refused("openat2 io_uring_setup", errno.ENOSYS),
)
"""Rules for every call that can set the bits, except mkdir(2), from whose mode the kernel drops them.

openat2 and io_uring have the mode in memory, where a filter cannot read it.
"""


def restrict_suid_sgid(filter_: Filter) -> Filter:
    """Return a copy that refuses to set the set-user-ID and set-group-ID bits of any file."""
    return Filter(rules=(*_RESTRICTED, *filter_.rules), default=filter_.default, foreign=filter_.foreign)
