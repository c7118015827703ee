"""ptrace(2): requests, events, and the registers of a system call on x86_64."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Any

POKEUSER, CONT, DETACH, SYSCALL, SETOPTIONS = 6, 7, 17, 24, 0x4200
SEIZE, INTERRUPT, LISTEN, SYSCALL_INFO = 0x4206, 0x4207, 0x4208, 0x420E
OPTIONS = 1 | 2 | 4 | 8 | 16  # system calls marked; forks, clones and execve reported and followed
EVENT_EXEC, EVENT_STOP = 4, 128
RESULT, NUMBER = 10 * 8, 15 * 8  # rax and orig_rax of struct user, x86_64
STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def ptrace(request: int, pid: int, address: int = 0, data: Any = 0) -> int:
    result: int = libc.ptrace(request, pid, address, data)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
