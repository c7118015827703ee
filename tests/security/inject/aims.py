"""Fault injection targets: every (process, call, error) combination, or a sample of them."""

from __future__ import annotations

import collections
import signal
from collections.abc import Mapping

from tests.security.inject.model import Aim, Clean

DELAY = 0.02
NO_RETURN = ("exit", "exit_group", "rt_sigreturn")
BLOCKING = "ppoll recvmsg sendmsg read write wait4 nanosleep openat openat2 fsconfig clone3".split()
RESOURCE = {
    **dict.fromkeys("openat openat2 open_tree fsopen fsmount fcntl dup3 signalfd4 recvmsg".split(), "EMFILE"),
    **dict.fromkeys("fsconfig move_mount mount_setattr pivot_root umount2 mount statx".split(), "ENOMEM"),
    **dict.fromkeys(
        "seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self".split(), "ENOMEM"
    ),
    **dict.fromkeys(
        "unshare setns setresuid setresgid setgroups socketpair socket sendmsg".split(), "ENOMEM"
    ),
    **dict.fromkeys("clone3 kill setsid ioctl".split(), "EAGAIN"),
    **dict.fromkeys("write mkdirat fchownat symlinkat".split(), "ENOSPC"),
    **dict.fromkeys("execve execveat mmap ppoll sethostname prctl keyctl".split(), "ENOMEM"),
}
"""Errnos of exhausted resources by call; these can occur at any time."""


def every_aim(clean: Clean) -> list[Aim]:
    """Return each call of each process with EPERM and with the errno of an exhausted resource.

    Of each name in each process the first also comes late, is interrupted, and is the last one.  A launcher
    that starts makes a hundred directories in a row: of those a few do.
    """
    aims = _aims_of("plain", clean.counts())
    until = [name for _, name, _ in clean.calls["fresh"]].index("recvmsg")  # then it serves as any other does
    fresh = clean.calls["fresh"][:until]
    started = collections.Counter((role, name) for role, name, _ in fresh)
    aims += [one for one in _aims_of("fresh", started) if one.n <= 6 or one.n == started[one.role, one.name]]
    for way in ("precloned", "warm"):
        both = {key: n for key, n in clean.counts(way).items() if key[0] in ("launcher", "child")}
        aims += [one for one in _aims_of(way, both) if one.kind == "signal" or one.value == "EPERM"]
    return aims


def _aims_of(way: str, counts: Mapping[tuple[str, str], int]) -> list[Aim]:
    aims = []
    for (role, name), count in counts.items():
        if name in NO_RETURN:
            continue
        for n in range(1, count + 1):
            aims.append(Aim(role, name, n, "error", "EPERM", way))
            if name in RESOURCE:
                aims.append(Aim(role, name, n, "error", RESOURCE[name], way))
            if name in BLOCKING and n > 1:
                aims.append(Aim(role, name, n, "error", "EINTR", way))
        aims.append(Aim(role, name, 1, "error", "EINTR", way))
        aims.append(Aim(role, name, 1, "delay", DELAY, way))
        aims.append(Aim(role, name, 1, "signal", int(signal.SIGKILL), way))
    return aims


def some_aims(clean: Clean, most: int = 60) -> list[Aim]:
    """Return a fixed sample: each call once with an error, then the others in turn."""
    everything = every_aim(clean)
    by_name: dict[str, list[Aim]] = {}
    for aim in everything:
        if aim.way == "plain" and aim.kind == "error" and aim.value != "EINTR":
            by_name.setdefault(aim.name, []).append(aim)
    chosen = [aims[(len(aims) - 1) // 2] for aims in by_name.values()]
    rest = [aim for aim in everything if aim.way != "plain" or aim.kind != "error" or aim.value == "EINTR"]
    more = max(0, most - len(chosen))
    return chosen + [rest[at * len(rest) // more] for at in range(more)]
