"""The ptrace tracer: it identifies processes, counts calls and injects the fault."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import errno
import json
import os
import platform
import select
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

from tests.security.inject.model import Aim
from tests.security.inject.ptrace import (
    CONT,
    DETACH,
    EVENT_EXEC,
    EVENT_STOP,
    INTERRUPT,
    LISTEN,
    NUMBER,
    OPTIONS,
    POKEUSER,
    RESULT,
    SEIZE,
    SETOPTIONS,
    STOPS,
    SYSCALL,
    SYSCALL_INFO,
    ptrace,
)

DONE_ALL_THE_SAME = ("close", "close_range", "munmap", "exit_group")
"""Calls that have taken effect even when they return an error."""


class Tracer:
    """A tracer of one launcher, or the lab's next one, and its children up to the guest's execve."""

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
        """Attach to the launcher, or to the lab without tracing its own calls.  Raises OSError."""
        self.__init__(self._names)  # type: ignore[misc]
        self._aim = aim
        ptrace(SEIZE, pid, 0, OPTIONS if role == "launcher" else 1 | 2 | 4)
        self._roles[pid] = role
        ptrace(INTERRUPT, pid)
        os.waitpid(pid, 0x40000000)
        self._go(pid)

    def _go(self, pid: int, number: int = 0) -> None:
        ptrace(CONT if self._roles[pid] == "lab" else SYSCALL, pid, 0, number)

    def drain(self) -> float | None:
        """Handle stopped processes and return the seconds until the next delay ends, or None."""
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
                ptrace(SYSCALL, pid)
        return max(0.0, min(self._held.values()) - now) if self._held else None

    def end(self) -> None:
        """Detach from all processes."""
        self.drain()
        for pid in list(self._roles):
            with contextlib.suppress(OSError):  # it is dead by now, or dying
                if pid in self._held or self._interrupted(pid):
                    ptrace(DETACH, pid)
        self._roles.clear()
        self._held.clear()

    @staticmethod
    def _interrupted(pid: int) -> bool:
        ptrace(INTERRUPT, pid)
        return os.WIFSTOPPED(os.waitpid(pid, 0x40000000)[1])

    def _stopped(self, pid: int, status: int) -> None:
        if not os.WIFSTOPPED(status):
            self._roles.pop(pid, None)
            self._held.pop(pid, None)
            return
        number, event = os.WSTOPSIG(status), status >> 16
        if pid not in self._roles:
            self._roles[pid] = self._new_role(pid)
            ptrace(SETOPTIONS, pid, 0, OPTIONS)
        if event == EVENT_STOP and number in STOPS:
            ptrace(LISTEN, pid)
        elif event == EVENT_EXEC:
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
        """Classify a process at its execve: launcher, agent, or a guest, which is detached."""
        becomes = {"newborn": "launcher", "child": "agent"}.get(self._roles[pid])
        if becomes is not None:
            self._roles[pid] = becomes
            self._forged.pop(pid, None)
            ptrace(SYSCALL, pid)
        else:
            del self._roles[pid]
            ptrace(DETACH, pid)

    def _called(self, pid: int) -> None:
        info = ctypes.create_string_buffer(128)
        ptrace(SYSCALL_INFO, pid, len(info), ctypes.addressof(info))
        if info.raw[0] == 1:
            self._entered(pid, *struct.unpack_from("<QQQQ", info, 24))
        else:
            if pid in self._forged:
                ptrace(POKEUSER, pid, RESULT, -self._forged.pop(pid))
            ptrace(SYSCALL, pid)

    def _entered(self, pid: int, nr: int, *arguments: int) -> None:
        role, name = self._roles[pid], self._names.get(nr, str(nr))
        key = role, name
        self._counts[key] += 1
        call = f"({', '.join(f'{one:#x}' for one in arguments)})"
        self.calls.append((role, name, call))
        aim = self._aim
        if aim is None or key != (aim.role, aim.name) or self._counts[key] != aim.n:
            ptrace(SYSCALL, pid)
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
                ptrace(POKEUSER, pid, NUMBER, -1)
        ptrace(SYSCALL, pid)


def tracer_main() -> None:
    """Serve the lab: one line to begin, one to end, each with an answer."""
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
