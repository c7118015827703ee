"""Fault injection: each system call on the way to a guest's execve fails once, and the start fails closed.

Four processes take part.  The command plans and judges.  The *lab* is a child with an engine of its own, in
which one start, two execs and the end go on.  The *tracer* is the lab's child and, by ptrace(2), makes one
system call of one process fail, come late, or be its last.  And there is the launcher with what it starts.

strace's `--inject=...:when=N` counts for each process by itself, so that the launcher's third openat would
hide the child's third; here an aim names the process too.

Run it: `python -m tests.security.inject [--quick] [--seconds S]`.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import errno
import faulthandler
import json
import os
import platform
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from attrs import asdict, evolve, frozen

if TYPE_CHECKING:
    from pycontain import Container, Engine, Image

PATIENCE = 10.0
"""Seconds for one run; a longer one hangs."""
DELAY = 0.02
WAYS = {
    "plain": "a launcher that runs, and nothing made ahead",
    "fresh": "the launcher itself starts first",
    "spare": "the container is made of a spare",
    "ahead": "the whole container is made ahead",
}
NO_RETURN = ("exit", "exit_group", "rt_sigreturn")
DONE_ALL_THE_SAME = ("close", "close_range", "munmap", "exit_group")
"""Calls that the kernel has carried out also where it tells of an error."""
LIMITS = frozenset(
    "memory.max memory.limit_in_bytes memory.memsw.limit_in_bytes memory.swap.max pids.max cpu.max"
    " cpu.cfs_quota_us memory.oom.group cgroup.subtree_control".split()
)
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
"""What each call says where something is used up, which may be at any time."""

PROBE = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void
show_file (const char *path)
{
  char line[8192];
  FILE *file = fopen (path, "r");
  if (file == NULL)
    {
      printf ("%s: errno %d\n", path, errno);
      return;
    }
  while (fgets (line, sizeof line, file) != NULL)
    printf ("%s: %s", path, line);
  fclose (file);
}

static void
show_open (const char *path, int flags)
{
  int fd = open (path, flags, 0600);
  printf ("open %s %x: %d\n", path, flags, fd < 0 ? errno : 0);
  if (fd >= 0)
    close (fd);
  if (fd >= 0 && (flags & O_CREAT))
    unlink (path);
}

static void
show_stat (const char *path)
{
  struct stat seen;
  if (lstat (path, &seen) < 0)
    printf ("stat %s: errno %d\n", path, errno);
  else
    printf ("stat %s: %o uid %u gid %u dev %lx\n", path, seen.st_mode, seen.st_uid, seen.st_gid,
            (unsigned long) seen.st_rdev);
}

static void
show_descriptors (void)
{
  for (int fd = 0; fd < 4096; fd++)
    {
      char path[64], target[512];
      if (fcntl (fd, F_GETFD) < 0)
        continue;
      snprintf (path, sizeof path, "/proc/self/fd/%d", fd);
      ssize_t n = readlink (path, target, sizeof target - 1);
      printf ("fd %d: %.*s\n", fd, n < 0 ? 0 : (int) n, target);
    }
}

static void
show_status (void)
{
  static const char *wanted[] = { "Umask", "Uid", "Gid", "Groups", "Sig", "Shd", "Cap", "NoNewPrivs",
                                  "Seccomp", "Cpus_allowed_list" };
  char line[4096];
  FILE *file = fopen ("/proc/self/status", "r");
  while (file != NULL && fgets (line, sizeof line, file) != NULL)
    for (unsigned i = 0; i < sizeof wanted / sizeof *wanted; i++)
      if (strncmp (line, wanted[i], strlen (wanted[i])) == 0 && strncmp (line, "SigQ", 4) != 0)
        printf ("status %s", line);
  if (file != NULL)
    fclose (file);
}

/* Domains stack up to a limit: how many may still be added tells how many are there. */
static void
show_landlock (void)
{
  __u64 handled = 1;
  int added = 0;
  int fd = (int) syscall (SYS_landlock_create_ruleset, &handled, sizeof handled, 0);
  while (fd >= 0 && added < 64 && syscall (SYS_landlock_restrict_self, fd, 0) == 0)
    added++;
  printf ("landlock: ruleset %d, %d more, errno %d\n", fd < 0 ? -1 : 0, added, errno);
}

int
main (int argc, char **argv)
{
  static const char *files[] = { "/proc/self/uid_map", "/proc/self/gid_map", "/proc/self/setgroups",
    "/proc/self/mountinfo", "/proc/self/cgroup", "/proc/self/oom_score_adj", "/proc/self/limits",
    "/proc/self/timens_offsets", "/proc/1/cgroup" };
  static const char *covered[] = { "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/iomem",
    "/proc/kallsyms", "/proc/kcore", "/proc/keys", "/proc/pressure", "/proc/sched_debug", "/proc/scsi",
    "/proc/timer_list", "/proc/1/status", "/proc/1/fd", "/dev/null", "/dev/pts", "/dev/shm", "/tmp", "/" };
  char name[256];
  struct ifreq loopback = { .ifr_name = "lo" };

  show_descriptors ();
  show_status ();
  printf ("securebits %d, dumpable %d, pdeathsig %d, subreaper %d\n", prctl (PR_GET_SECUREBITS),
          prctl (PR_GET_DUMPABLE), 0, 0);
  for (int i = 1; i < argc; i++)
    {
      char path[64], target[64] = "";
      char *colon = strchr (argv[i], ':');
      snprintf (path, sizeof path, "/proc/self/ns/%.*s", (int) (colon - argv[i]), argv[i]);
      ssize_t n = readlink (path, target, sizeof target - 1);
      char *inode = n < 0 ? NULL : strchr (target, '[');
      printf ("namespace %.*s: %s\n", (int) (colon - argv[i]), argv[i],
              inode == NULL ? "unknown" : strtoul (inode + 1, NULL, 10) == strtoul (colon + 1, NULL, 10)
              ? "the host's" : "differs");
    }
  for (unsigned i = 0; i < sizeof files / sizeof *files; i++)
    show_file (files[i]);
  for (unsigned i = 0; i < sizeof covered / sizeof *covered; i++)
    show_stat (covered[i]);
  gethostname (name, sizeof name);
  printf ("hostname %s\n", name);
  printf ("session: leader %d, group %d, terminal %d\n", getsid (0) == getpid (), getpgrp () == getpid (),
          open ("/dev/tty", O_RDWR));
  printf ("parent %d, cwd %s\n", getppid (), getcwd (name, sizeof name) ? name : "?");
  printf ("nice %d, policy %d, personality %x\n", getpriority (PRIO_PROCESS, 0), sched_getscheduler (0),
          (unsigned) personality (0xffffffff));
  int fd = socket (AF_INET, SOCK_DGRAM, 0);
  printf ("loopback: %d flags %x\n", ioctl (fd, SIOCGIFFLAGS, &loopback), loopback.ifr_flags);
  close (fd);
  show_file ("/proc/self/net/route");
  show_open ("/new", O_WRONLY | O_CREAT);
  show_open ("/ro/new", O_WRONLY | O_CREAT);
  show_open ("/tmp/new", O_WRONLY | O_CREAT);
  show_open ("/proc/sys/kernel/hostname", O_WRONLY);
  show_open ("/proc/sysrq-trigger", O_WRONLY);
  show_open ("/proc/1/mem", O_RDONLY);
  show_open ("/proc/1/environ", O_RDONLY);
  show_open ("/proc/1/root", O_RDONLY);
  show_open ("/proc/1/fd/3", O_RDWR);
  printf ("mknod: %d\n", mknod ("/dev/shm/device", S_IFCHR | 0600, 0) < 0 ? errno : 0);
  printf ("unshare: %d\n", unshare (CLONE_NEWUSER) < 0 ? errno : 0);
  printf ("keyring: %ld errno %d\n", syscall (SYS_keyctl, 0, -3, 0, 0, 0) > 0 ? 1L : 0L, errno);
  show_landlock ();
  printf ("end\n");
  return 0;
}
"""


class Unable(Exception):
    """This host cannot run it; the text says why."""


@frozen
class Aim:
    """One system call of one process, counted from 1, and what becomes of it.

    kind: 'error' with an errno's name, 'delay' with seconds, or 'signal' with a number.  way: one of WAYS.
    """

    role: str
    name: str
    n: int
    kind: str
    value: Any
    way: str = "plain"

    def __str__(self) -> str:
        where = "" if self.way == "plain" else f", {self.way}"
        return f"{self.name} #{self.n} of the {self.role}{where}: {self.kind} {self.value}"


@frozen
class Run:
    """What one run came to.  where: the step or the error that was told."""

    aim: Aim | None
    verdict: str
    where: str = ""
    call: str = ""
    names_step: bool = False
    details: tuple[str, ...] = ()
    leaks: tuple[str, ...] = ()

    @property
    def findings(self) -> list[str]:
        """What is wrong with it, a line each."""
        head = f"{self.aim or 'no injection'} {self.call}"
        found = []
        if self.verdict not in ("refused", "same", "missed"):
            found.append(f"{self.verdict}: {head} [{self.where}] {'; '.join(self.details)}")
        if self.leaks:
            found.append(f"leak: {head} [{self.verdict}: {self.where}] {'; '.join(self.leaks)}")
        return found


# ---------------------------------------------------------------------------------------------- the tracer

_POKEUSER, _CONT, _DETACH, _SYSCALL, _SETOPTIONS = 6, 7, 17, 24, 0x4200
_SEIZE, _INTERRUPT, _LISTEN, _SYSCALL_INFO = 0x4206, 0x4207, 0x4208, 0x420E
_OPTIONS = 1 | 2 | 4 | 8 | 16  # system calls marked; forks, clones and execve reported and followed
_EVENT_EXEC, _EVENT_STOP = 4, 128
_RESULT, _NUMBER = 10 * 8, 15 * 8  # rax and orig_rax of struct user, x86_64
_STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, pid: int, address: int = 0, data: Any = 0) -> int:
    result: int = _libc.ptrace(request, pid, address, data)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


class Tracer:
    """Follows one launcher, or the lab's next one, and all that it starts up to the guest's execve."""

    def __init__(self, names: dict[int, str]) -> None:
        self._names = names
        self._roles: dict[int, str] = {}
        self._forged: dict[int, int] = {}
        self._held: dict[int, float] = {}
        self._counts: collections.Counter[tuple[str, str]] = collections.Counter()
        self._commands = 0
        self._aim: Aim | None = None
        self.hit = ""
        self.calls: list[tuple[str, str, str]] = []

    def begin(self, pid: int, aim: Aim | None, role: str) -> None:
        """Attach to the launcher, or to the lab, whose own calls are left alone.  Raises OSError."""
        self.__init__(self._names)  # type: ignore[misc]
        self._aim = aim
        _ptrace(_SEIZE, pid, 0, _OPTIONS if role == "launcher" else 1 | 2 | 4)
        self._roles[pid] = role
        _ptrace(_INTERRUPT, pid)
        os.waitpid(pid, 0x40000000)
        self._go(pid)

    def _go(self, pid: int, number: int = 0) -> None:
        _ptrace(_CONT if self._roles[pid] == "lab" else _SYSCALL, pid, 0, number)

    def drain(self) -> float | None:
        """Serve whoever has stopped; seconds until somebody's delay ends, or None."""
        while True:
            try:
                pid, status = os.waitpid(-1, 0x40000000 | os.WNOHANG)
            except ChildProcessError:
                pid = status = 0
            if pid == 0:
                break
            with contextlib.suppress(ProcessLookupError):  # killed while it was stopped
                self._stopped(pid, status)
        now = time.monotonic()
        for pid in [one for one, until in self._held.items() if until <= now]:
            del self._held[pid]
            with contextlib.suppress(ProcessLookupError):
                _ptrace(_SYSCALL, pid)
        return max(0.0, min(self._held.values()) - now) if self._held else None

    def end(self) -> None:
        """Detach from everybody."""
        self.drain()
        for pid in list(self._roles):
            with contextlib.suppress(OSError):  # it is dead by now, or dying
                if pid in self._held or self._interrupted(pid):
                    _ptrace(_DETACH, pid)
        self._roles.clear()
        self._held.clear()

    @staticmethod
    def _interrupted(pid: int) -> bool:
        _ptrace(_INTERRUPT, pid)
        return os.WIFSTOPPED(os.waitpid(pid, 0x40000000)[1])

    def _stopped(self, pid: int, status: int) -> None:
        if not os.WIFSTOPPED(status):
            self._roles.pop(pid, None)
            self._held.pop(pid, None)
            return
        number, event = os.WSTOPSIG(status), status >> 16
        if pid not in self._roles:
            self._roles[pid] = self._new_role(pid)
            _ptrace(_SETOPTIONS, pid, 0, _OPTIONS)
        if event == _EVENT_STOP and number in _STOPS:
            _ptrace(_LISTEN, pid)
        elif event == _EVENT_EXEC:
            self._executed(pid)
        elif number == signal.SIGTRAP | 0x80:
            self._called(pid)
        else:
            self._go(pid, 0 if event else number)

    def _new_role(self, pid: int) -> str:
        text = Path(f"/proc/{pid}/stat").read_text()
        parent = self._roles.get(int(text.rpartition(")")[2].split()[1]), "?")
        if parent in ("lab", "middle", "launcher"):
            return {"lab": "middle", "middle": "newborn", "launcher": "child"}[parent]
        if parent != "agent":
            return f"{parent}'s child"
        self._commands += 1
        return f"command {self._commands}"

    def _executed(self, pid: int) -> None:
        """A newborn has become the launcher, a child the agent; any other is the guest now, and let go."""
        becomes = {"newborn": "launcher", "child": "agent"}.get(self._roles[pid])
        if becomes is not None:
            self._roles[pid] = becomes
            self._forged.pop(pid, None)
            _ptrace(_SYSCALL, pid)
        else:
            del self._roles[pid]
            _ptrace(_DETACH, pid)

    def _called(self, pid: int) -> None:
        info = ctypes.create_string_buffer(128)
        _ptrace(_SYSCALL_INFO, pid, len(info), ctypes.addressof(info))
        if info.raw[0] == 1:
            self._entered(pid, *struct.unpack_from("<QQQQ", info, 24))
        else:
            if pid in self._forged:
                _ptrace(_POKEUSER, pid, _RESULT, -self._forged.pop(pid))
            _ptrace(_SYSCALL, pid)

    def _entered(self, pid: int, nr: int, *arguments: int) -> None:
        role, name = self._roles[pid], self._names.get(nr, str(nr))
        key = role, name
        self._counts[key] += 1
        call = f"({', '.join(f'{one:#x}' for one in arguments)})"
        self.calls.append((role, name, call))
        aim = self._aim
        if aim is None or key != (aim.role, aim.name) or self._counts[key] != aim.n:
            _ptrace(_SYSCALL, pid)
            return
        self.hit = call
        if aim.kind == "delay":
            self._held[pid] = time.monotonic() + aim.value
            return
        if aim.kind == "signal":
            os.kill(pid, aim.value)
        else:
            self._forged[pid] = getattr(errno, aim.value)
            if name not in DONE_ALL_THE_SAME:
                _ptrace(_POKEUSER, pid, _NUMBER, -1)
        _ptrace(_SYSCALL, pid)


def tracer_main() -> None:
    """Serve the lab: a line to begin, a line to end, each with an answer."""
    from pycontain._security.syscalls import TABLE

    tracer = Tracer({number: name for name, number in TABLE[platform.machine()].items()})
    ours, theirs = os.pipe()
    for fd in (ours, theirs):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(theirs)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([0, ours], [], [], tracer.drain())
        if ours in ready:
            os.read(ours, 4096)
        if 0 not in ready:
            continue
        line = sys.stdin.readline()
        if not line:
            return
        answer: dict[str, Any] = {}
        order = json.loads(line)
        if "pid" in order:
            try:
                aim = Aim(**order["aim"]) if order["aim"] else None
                tracer.begin(order["pid"], aim, order["role"])
            except OSError as error:
                answer["error"] = str(error)
        else:
            tracer.end()
            answer = {"hit": tracer.hit, "calls": tracer.calls if order["calls"] else []}
        print(json.dumps(answer), flush=True)


# ------------------------------------------------------------------------------------------------- the lab


def _kinds_of_fds(pid: int | str) -> collections.Counter[str]:
    found: collections.Counter[str] = collections.Counter()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found[re.sub(r"[0-9a-f]{8,}|\d+", "N", os.readlink(f"/proc/{pid}/fd/{name}"))] += 1
    return found


def _children(pid: int) -> set[int]:
    try:
        return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except (FileNotFoundError, ProcessLookupError):
        return set()


def _pid_of(pidfd: int) -> int:
    text = Path(f"/proc/self/fdinfo/{pidfd}").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("Pid:")))


class Lab:
    """An engine, and what is to be seen of it between two runs."""

    def __init__(self, top: Path) -> None:
        from pycontain import Engine, Image

        _libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: what a dead launcher leaves comes here
        self._engine: Engine = Engine(top / "store", ahead=0)
        self._image: Image = Image.from_rootfs(top / "rootfs", engine=self._engine)
        self._top = top
        self._namespaces = [f"{name}:{os.stat(f'/proc/self/ns/{name}').st_ino}" for name in _namespaces()]
        many = self._engine.features.privileged or self._engine.sub_ids > 1000
        self._users = ("0:0", "1000:1000" if many else "0:0")
        self._litter: list[Callable[[], object]] = []
        self._tracer = subprocess.Popen(
            [sys.executable, "-m", "tests.security.inject", "--tracer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2):
            self._start({}, "plain")
        self._before = self._state()

    def close(self) -> None:
        """End tracer and engine."""
        self._tracer.communicate()
        self._engine.close()

    def serve(self, order: dict[str, Any]) -> dict[str, Any]:
        """One run: `aim` or none, its `way`, `security` to change, `litter` to leave on purpose."""
        pool, way, traced = self._engine.launchers, order["way"], order.get("trace", True)
        for one in [one for one in pool._free if _pid_of(one.pidfd) < 0]:  # killed when it had done its work
            pool._free.remove(one)
            pool.drop(one)
        with pool.borrow():
            pass
        launcher, role = _pid_of(pool._free[-1].pidfd), "launcher"
        if way == "fresh":
            launcher, role = os.getpid(), "lab"
            pool.drop(pool._free.pop())
        if traced:
            self._ask({"pid": launcher, "role": role, "aim": order.get("aim")})
        if order.get("litter"):
            self._leave(order["litter"])
        report = self._start(order.get("security") or {}, way)
        if traced:
            report |= self._ask({"calls": order.get("calls", False)})
        report["leaks"] = self._leaks()
        while self._litter:
            self._litter.pop()()
        self._engine.collector.errors.clear()
        return report

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._tracer.stdin is not None
        assert self._tracer.stdout is not None
        self._tracer.stdin.write(json.dumps(order) + "\n")
        self._tracer.stdin.flush()
        answer: dict[str, Any] = json.loads(self._tracer.stdout.readline())
        if "error" in answer:
            raise Unable(f"ptrace refuses: {answer['error']}")
        return answer

    def _container(self, security: dict[str, Any]) -> Container:
        from pycontain import Bind, Container, Security

        return Container(
            self._image,
            hostname="pyc-host",
            mounts={"/ro": Bind(self._top / "shown", read_only=True)},
            tmpfs=["/tmp"],
            security=Security.SANDBOX.evolve(**security),
            engine=self._engine,
        )

    def _start(self, security: dict[str, Any], way: str) -> dict[str, Any]:
        """Start, twice the guest's own view, end."""
        self._engine.ahead._last = float("-inf")  # no start follows another one: nothing is made ahead
        report: dict[str, Any] = {"views": [], "codes": [], "error": None}
        try:
            self._make_ahead(security, way)
            container = self._container(security)
            try:
                container.start()
                self._look(container, report)
            finally:
                container.remove()
                self._engine.ahead.discard()
                self._engine.settle()
        except Exception as error:  # noqa: BLE001  which one it is is what the run is about
            report |= _told(error)
        return report

    def _make_ahead(self, security: dict[str, Any], way: str) -> None:
        if way not in ("spare", "ahead"):
            return
        from pycontain._runtime.compile import template_of

        engine, spec = self._engine, self._container(security).spec
        if way == "ahead":
            engine.ahead._make(spec, spec.hostname)
            return
        with engine.launchers.borrow() as launcher:
            engine.ahead.spares.refill(launcher, template_of(engine, spec))

    def _look(self, container: Container, report: dict[str, Any]) -> None:
        limits = self._limits(container)
        for user in self._users:
            result = container.exec(["/bin/probe", *self._namespaces], user=user)
            report["codes"].append(result.returncode)
            text = result.stdout + result.stderr
            report["views"].append(self._normal(container, text + limits if text else ""))

    @staticmethod
    def _limits(container: Container) -> str:
        """What no guest sees: its limits, who owns its groups, and where its PID 1 stands."""
        running = container._live()
        lines = [f"host: {line}\n" for line in Path(f"/proc/{running.pid}/cgroup").read_text().splitlines()]
        for path in running.group.paths().values() if running.group is not None else ():
            for directory, _, names in os.walk(path):
                for name in sorted(LIMITS.intersection(names)):
                    file = Path(directory, name)
                    lines.append(f"host: {file} uid={file.stat().st_uid} {file.read_text().strip()}\n")
        return "".join(lines)

    def _normal(self, container: Container, text: str) -> str:
        for name, stands in ((container.id, "ID"), (self._engine.owner.name, "OWNER")):
            text = text.replace(name, stands)
        text = re.sub(r"^(/proc/self/[ug]id_map: +\d+ +)(1[4-8]\d{8})\b", r"\1BLOCK", text, flags=re.M)
        text = re.sub(r"^(/proc/self/mountinfo: )\d+ \d+ \d+:\d+ ", r"\1", text, flags=re.M)
        text = re.sub(r"/s\d+(?=[/\n])", "/ID", text)  # a spare's group keeps its name
        # One launcher names layers one by one, another in one string: it is the same mount.
        text = re.sub(r" - overlay \w+ (.*)lowerdir\+?=", r" - overlay \1lowerdir=", text)
        text = re.sub(r"(?<=[ug]id=)1[4-8]\d{8}\b", "BLOCK", text)
        text = re.sub(r"^(fd \d+: (?:pipe|socket):)\[\d+\]", r"\1", text, flags=re.M)
        return re.sub(r"/e\d+$", "/LEAF", text, flags=re.M)

    def _state(self) -> dict[str, Any]:
        self._reap()
        engine = self._engine
        janitor = engine.collector._janitor
        fds = _kinds_of_fds("self")
        helpers = [*engine.launchers._all, *([janitor] if janitor is not None else [])]
        fds["socket:[N]"] -= len(helpers)
        fds["anon_inode:[pidfd]"] -= len(helpers)
        fds.subtract(_links(engine.cgroups.held))
        spares = engine.launchers.spares()
        waiting = {spare.group.name for spare in spares}
        ids = {(spare.block - 0x58000000) // 65536 for spare in spares}
        programs = {_pid_of(one.pidfd) for one in helpers}
        state: dict[str, Any] = {
            "fds": {kind: count for kind, count in fds.items() if count},
            "cgroups": sorted(path for path in _groups(engine) if not waiting & {*path.split("/")}),
            "directories": os.listdir(engine.owner.live),
            "mounts": [line for line in _mounts("self") if str(self._top) in line],
            "ids": sorted(engine.owner.blocks._used - ids),
            "collector": list(engine.collector.errors),
            "live": sorted(engine._running),
            "processes": sorted(_names(self._strangers(programs))),
        }
        alive = [pid for one in engine.launchers._free if (pid := _pid_of(one.pidfd)) > 0]
        for pid in alive[-1:]:
            state["launcher's fds"] = dict(_kinds_of_fds(pid))
            state["launcher's mounts"] = len(_mounts(pid))
        return state

    def _strangers(self, programs: set[int]) -> set[int]:
        """Processes that are neither helpers nor the tracer."""
        found = _children(os.getpid()) - programs - {self._tracer.pid}
        return found.union(*map(_children, programs))

    def _reap(self) -> None:
        """Take the end of what comes to this process as the subreaper, launchers among it."""
        for pid in _children(os.getpid()) - {self._tracer.pid}:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def _leaks(self) -> list[str]:
        """What is there that was not before the first run; a moment for what is on its way out."""
        deadline = time.monotonic() + 1.0
        while True:
            try:
                now, before = self._state(), self._before
            except OSError as error:  # a launcher that died just now
                now, before = {"launcher": str(error)}, {"launcher": ""}
            more = [f"{key}: {before[key]} -> {now[key]}" for key in now if now[key] != before[key]]
            if not more or time.monotonic() > deadline:
                return more
            time.sleep(0.01)

    def _leave(self, what: str) -> None:
        """Litter, as the control of `_leaks`."""
        if what == "directory":
            path = os.path.join(self._engine.owner.live, "pyc-litter")
        elif what == "cgroup":
            bases = sorted(_bases(self._engine))
            if not bases:
                raise Unable("no cgroup that this user may make groups in")
            path = os.path.join(bases[0], "pyc-litter")
        elif what == "fd":
            fd = os.open("/dev/null", os.O_RDONLY)
            self._litter.append(lambda: os.close(fd))
            return
        else:
            sleeper = os.fork()
            if sleeper == 0:
                os.execvp("sleep", ["sleep", "20"])
            self._litter += [lambda: os.waitpid(sleeper, 0), lambda: os.kill(sleeper, signal.SIGKILL)]
            return
        os.mkdir(path)
        self._litter.append(lambda: os.rmdir(path))


def _told(error: Exception) -> dict[str, Any]:
    from pycontain import PycontainError, StartError

    typed = isinstance(error, PycontainError | OSError)
    step = error.step if isinstance(error, StartError) else ""
    return {"error": f"{type(error).__name__}: {error}", "typed": typed, "step": step}


def _namespaces() -> list[str]:
    return sorted(name for name in os.listdir("/proc/self/ns") if "_for_" not in name)


def _links(fds: Sequence[int]) -> collections.Counter[str]:
    paths = (os.readlink(f"/proc/self/fd/{fd}") for fd in fds)
    return collections.Counter(re.sub(r"[0-9a-f]{8,}|\d+", "N", path) for path in paths)


def _bases(engine: Engine) -> set[str]:
    bases = {f"{path}/pycontain/{engine.owner.name}" for path in engine.cgroups.layout.legacy.values()}
    if engine.cgroups.unified:
        bases.add(engine.cgroups.unified)
    return {base for base in bases if os.path.isdir(base)}


def _groups(engine: Engine) -> Iterator[str]:
    for base in _bases(engine):
        for directory, names, _ in os.walk(base):
            yield from (os.path.join(directory, name) for name in names)


def _mounts(pid: int | str) -> list[str]:
    return Path(f"/proc/{pid}/mountinfo").read_text().splitlines()


def _names(pids: set[int]) -> Iterator[str]:
    for pid in pids:
        with contextlib.suppress(OSError):
            yield Path(f"/proc/{pid}/comm").read_text().strip()


def lab_main(top: str) -> None:
    """Serve the command: a line for a run, a line with what it came to."""
    _libc.prctl(
        1, int(signal.SIGKILL), 0, 0, 0
    )  # PR_SET_PDEATHSIG: a lab that hangs hears of no end of input
    lab = Lab(Path(top))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        faulthandler.dump_traceback_later(PATIENCE - 1)
        try:
            answer = lab.serve(json.loads(line))
        except Unable as reason:
            answer = {"unable": str(reason)}
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(answer), flush=True)
    lab.close()


# --------------------------------------------------------------------------------------------- the command


@frozen
class Clean:
    """What runs without injection show: both views, and of each way every (process, name, call) in order."""

    views: tuple[str, ...]
    calls: dict[str, list[tuple[str, str, str]]]

    def counts(self, way: str = "plain") -> collections.Counter[tuple[str, str]]:
        """How often each process makes each call."""
        return collections.Counter((role, name) for role, name, _ in self.calls[way])

    @property
    def names(self) -> set[str]:
        """Every system call that some process makes in a plain start."""
        return {name for _, name in self.counts()}


@frozen
class Total:
    """What a set of runs came to."""

    clean: Clean
    runs: tuple[Run, ...]
    left: int = 0
    seconds: float = 0.0

    @property
    def findings(self) -> list[str]:
        """Every finding of every run."""
        return [line for run in self.runs for line in run.findings]

    def __str__(self) -> str:
        verdicts = collections.Counter(run.verdict for run in self.runs)
        verdicts["leak"] = sum(bool(run.leaks) for run in self.runs)
        refused = [run for run in self.runs if run.verdict == "refused"]
        named = sum(run.names_step for run in refused)
        aims = [run.aim for run in self.runs if run.aim is not None]
        everything = {(way, *call[:2]) for way in WAYS for call in self.clean.calls[way]}
        lines = [
            f"{len({name for _, _, name in everything})} system calls by name, "
            f"{len(self.clean.calls['plain'])} in a plain start with two execs; "
            f"injected: {len({one.name for one in aims})} by name, "
            f"{len({(one.way, one.role, one.name, one.n) for one in aims})} in all",
            f"{len(self.runs)} runs in {self.seconds:.0f} s, {self.left} left out: "
            + ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())),
            f"{named} of {len(refused)} refusals name a step",
        ]
        for way, meaning in WAYS.items():
            counts = self.clean.counts(way)
            lines += ["", f"who calls what, and how often: {way}, {meaning}"]
            for role in dict.fromkeys(role for role, _ in counts):
                if way != "plain" and role not in ("newborn", "launcher", "child"):
                    continue
                own = (f"{name} {n}" for (who, name), n in sorted(counts.items()) if who == role)
                lines.append(f"  {role}: " + ", ".join(own))
        lines += ["", "what goes on as if nothing had happened:", *_grouped(self.runs, "same")]
        lines += ["", "refused without the name of a step:", *_grouped(self.runs, "refused", named=False)]
        lines += ["", "aims that met nothing:", *_grouped(self.runs, "missed")]
        lines += ["", f"{len(self.findings)} findings", *(f"  {line}" for line in self.findings)]
        return "\n".join(lines)


def _grouped(runs: Sequence[Run], verdict: str, *, named: bool | None = None) -> list[str]:
    found: dict[str, list[str]] = {}
    for run in runs:
        if run.verdict != verdict or run.aim is None or (named is not None and run.names_step != named):
            continue
        aim = run.aim
        key = f"  {aim.way}, {aim.role}: {aim.name} {aim.kind} {aim.value} [{run.where[:100]}]"
        found.setdefault(key, []).append(str(run.aim.n))
    return [f"{key} #{','.join(numbers)}" for key, numbers in found.items()]


class Bench:
    """The command's side: a lab that is replaced when a run hangs."""

    def __init__(self) -> None:
        self._check()
        self.top = Path(tempfile.mkdtemp(prefix="pyc-inject-"))
        self._lab: subprocess.Popen[str] | None = None
        self._complaints: IO[str] | None = None
        try:
            self._build()
            self.clean = self._observe()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _check() -> None:
        if platform.machine() != "x86_64":
            raise Unable("results are forged in the registers of x86_64 alone")
        if shutil.which("gcc") is None:
            raise Unable("no gcc for the probe")

    def _build(self) -> None:
        self.top.chmod(0o755)
        root = self.top / "rootfs"
        for name in ("bin", "etc", "proc", "dev", "tmp", "run", "sys", "root", "ro"):
            (root / name).mkdir(parents=True)
        (self.top / "shown").mkdir()
        (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
        self._copy_code()
        source = self.top / "probe.c"
        source.write_text(PROBE)
        done = subprocess.run(
            ["gcc", "-static", "-O1", "-o", str(root / "bin/probe"), str(source)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Unable(f"the probe does not compile: {done.stderr[:300]}")

    def _copy_code(self) -> None:
        """The code of now: a lab that comes later is judged by what the first one showed."""
        import pycontain

        code, here = self.top / "code", Path(__file__)
        shutil.copytree(Path(pycontain.__file__).parent, code / "pycontain")
        (code / "tests/security").mkdir(parents=True)
        for path in ("tests/__init__.py", "tests/security/__init__.py", "tests/security/inject.py"):
            shutil.copy(here.parents[2] / path, code / path)

    def _observe(self) -> Clean:
        """Untraced and traced views have to be the same, or no later one could be judged."""
        plain = self._ask({"way": "plain", "trace": False})
        if plain.get("error"):
            raise Unable(f"no container starts here: {plain['error']}")
        views = tuple(plain["views"])
        calls = {}
        for way in WAYS:
            self._watched(way, views)  # the first of a way meets what later ones do not
            calls[way] = [(role, name, call) for role, name, call in self._watched(way, views)]
        return Clean(views, calls)

    def _watched(self, way: str, views: tuple[str, ...]) -> list[list[str]]:
        report = self._ask({"way": way, "calls": True})
        run = judge(None, report, views)
        if run.verdict != "same" or run.leaks:
            raise AssertionError(f"clean runs differ, {way}: {run.findings}"[:4000])
        calls: list[list[str]] = report["calls"]
        return calls

    def close(self) -> None:
        """End the lab and remove everything."""
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._retire()
            owners = self.top / "store/run/owners"
            if owners.is_dir() and os.listdir(owners):
                self._spawn()  # collects what a killed lab left
                self._retire()
        finally:
            shutil.rmtree(self.top, ignore_errors=True)

    def _retire(self) -> None:
        """Let the lab end in order."""
        try:
            if self._lab is not None:
                self._lab.communicate(timeout=30)
        finally:
            self._kill()

    def _spawn(self) -> subprocess.Popen[str]:
        self._complaints = tempfile.TemporaryFile("w+", prefix="pyc-inject-")  # noqa: SIM115  closed by _kill
        lab = self._lab = subprocess.Popen(
            [sys.executable, "-m", "tests.security.inject", "--lab", str(self.top)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            cwd=self.top / "code",
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(self.top / "code"), *filter(None, sys.path)]),
            },
        )
        if self._line(30) is None:
            raise Unable(f"the lab does not start: {self._kill()[-2000:]}")
        return lab

    def _line(self, patience: float) -> str | None:
        """A line of the lab's, or None where it is silent or gone."""
        assert self._lab is not None
        assert self._lab.stdout is not None
        if not select.select([self._lab.stdout], [], [], patience)[0]:
            return None
        return self._lab.stdout.readline() or None

    def _kill(self) -> str:
        """End the lab for good; what it had to say on standard error."""
        lab, self._lab = self._lab, None
        if lab is not None:
            lab.kill()
            lab.wait()
            for stream in (lab.stdin, lab.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        said = ""
        if self._complaints is not None:
            self._complaints.seek(0)
            said = self._complaints.read()
            self._complaints.close()
            self._complaints = None
        return said

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        lab = self._lab or self._spawn()
        assert lab.stdin is not None
        lab.stdin.write(json.dumps(order) + "\n")
        lab.stdin.flush()
        line = self._line(PATIENCE)
        if line is None:
            silent = lab.poll() is None
            said = self._kill()
            return {"hang" if silent else "crash": said[-1500:]}
        answer: dict[str, Any] = json.loads(line)
        if "unable" in answer:
            raise Unable(answer["unable"])
        return answer

    def run(
        self, aim: Aim | None, *, security: dict[str, Any] | None = None, litter: str = "", trace: bool = True
    ) -> Run:
        """One run and its verdict."""
        order = {
            "aim": asdict(aim) if aim else None,
            "way": aim.way if aim else "plain",
            "security": security,
            "litter": litter,
            "trace": trace,
        }
        run = judge(aim, self._ask(order), self.clean.views)
        if run.leaks:  # what is there now would be found after every later run too
            self._retire()
        return run

    def run_all(
        self, aims: Sequence[Aim], seconds: float, tell: Callable[[str], object] = lambda _: None
    ) -> Total:
        """Every aim until the time is over.  tell: hears of each finding at once."""
        begun = time.monotonic()
        runs = []
        for aim in aims:
            if time.monotonic() - begun > seconds:
                break
            runs.append(self.run(aim))
            for line in runs[-1].findings:
                tell(line)
        left = len(aims) - len(runs)
        return Total(self.clean, tuple(runs), left, time.monotonic() - begun)


def _difference(clean: tuple[str, ...], seen: tuple[str, ...]) -> tuple[str, ...]:
    lines = []
    for number, (before, after) in enumerate(zip(clean, seen, strict=False)):
        old, new = before.splitlines(), after.splitlines()
        lines += [f"view {number}: - {line}" for line in old if line not in new]
        lines += [f"view {number}: + {line}" for line in new if line not in old]
    return tuple(lines)


def _innermost(said: str) -> tuple[str, ...]:
    """Where a lab was when it hung (faulthandler begins there), or what it died of (that comes last)."""
    lines = [line.strip() for line in said.splitlines() if "tests/security" not in line]
    at = next((at for at, line in enumerate(lines) if line.startswith("Timeout")), None)
    return tuple(lines[-3:] if at is None else lines[at + 2 : at + 5])


def judge(aim: Aim | None, report: dict[str, Any], clean: tuple[str, ...]) -> Run:
    """The verdict on one run.  A guest that ran and saw something else is weaker, whatever came after."""
    for kind in ("hang", "crash"):
        if kind in report:
            return Run(aim, kind, details=_innermost(report[kind]))
    views, leaks = tuple(report["views"]), tuple(report["leaks"])
    run = Run(aim, "same", call=report.get("hit", ""), leaks=leaks)
    ran = [(before, now) for before, now in zip(clean, views, strict=False) if now]
    different = _difference(*zip(*ran, strict=True)) if ran else ()
    if different:
        return evolve(run, verdict="weaker", where=report["error"] or "", details=different[:12])
    if report["error"]:
        verdict = "refused" if report["typed"] else "untyped"
        return evolve(run, verdict=verdict, where=report["error"], names_step=bool(report["step"]))
    if views != clean:  # a command that wrote nothing, and whose end was told
        told = all(code != 0 for code, view in zip(report["codes"], views, strict=True) if not view)
        return evolve(run, verdict="refused" if told else "wrong", where=f"return codes {report['codes']}")
    if any(report["codes"]):
        return evolve(run, verdict="wrong", where=f"the guest ran, return codes {report['codes']}")
    if aim is not None and not run.call:
        return evolve(run, verdict="missed")
    return run


def every_aim(clean: Clean) -> list[Aim]:
    """Each call of each process once with EPERM and once with what it says when something is used up.

    Of each name in each process the first also comes late, is interrupted, and is the last one.  A launcher
    that starts makes a hundred directories in a row: of those a few do.
    """
    aims = _aims_of("plain", clean.counts())
    until = [name for _, name, _ in clean.calls["fresh"]].index("recvmsg")  # then it serves as any other does
    fresh = clean.calls["fresh"][:until]
    started = collections.Counter((role, name) for role, name, _ in fresh)
    aims += [one for one in _aims_of("fresh", started) if one.n <= 6 or one.n == started[one.role, one.name]]
    for way in ("spare", "ahead"):
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
    """A sample that is the same every time: each name once with an error, then of everything else in turn."""
    everything = every_aim(clean)
    by_name: dict[str, list[Aim]] = {}
    for aim in everything:
        if aim.way == "plain" and aim.kind == "error" and aim.value != "EINTR":
            by_name.setdefault(aim.name, []).append(aim)
    chosen = [aims[(len(aims) - 1) // 2] for aims in by_name.values()]
    rest = [aim for aim in everything if aim.way != "plain" or aim.kind != "error" or aim.value == "EINTR"]
    more = max(0, most - len(chosen))
    return chosen + [rest[at * len(rest) // more] for at in range(more)]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.security.inject", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="a sample of about 60 runs")
    parser.add_argument("--seconds", type=float, default=900.0, help="begin no run after that")
    parser.add_argument("--only", default="", help="aims whose text holds this")
    parser.add_argument("--lab", help=argparse.SUPPRESS)
    parser.add_argument("--tracer", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.tracer:
        tracer_main()
        return 0
    if given.lab:
        lab_main(given.lab)
        return 0
    try:
        with Bench() as bench:
            aims = some_aims(bench.clean) if given.quick else every_aim(bench.clean)
            chosen = [aim for aim in aims if given.only in str(aim)]
            total = bench.run_all(
                chosen, given.seconds, lambda line: print(line, file=sys.stderr, flush=True)
            )
    except Unable as reason:
        print(f"skipped: {reason}")
        return 0
    print(total)
    return 1 if total.findings else 0


if __name__ == "__main__":
    sys.exit(main())
