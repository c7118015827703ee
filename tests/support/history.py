"""A record of file operations below a directory, from strace(1)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypeAlias

from attrs import frozen

Kind: TypeAlias = Literal[
    "create",
    "directory",
    "link",
    "node",
    "write",
    "truncate",
    "rename",
    "unlink",
    "mode",
    "time",
    "sync",
    "sync-all",
    "mark",
]

_CALLS = (
    "open,openat,creat,write,pwrite64,writev,pwritev,pwritev2,lseek,ftruncate,truncate,fallocate,rename,"
    "renameat,renameat2,link,linkat,unlink,unlinkat,rmdir,mkdir,mkdirat,symlink,symlinkat,mknod,mknodat,"
    "fsync,fdatasync,syncfs,sync,sync_file_range,copy_file_range,sendfile,splice,chmod,fchmod,fchmodat,"
    "utimensat"
)
_STRANGE = (
    "writev pwritev pwritev2 copy_file_range sendfile splice link linkat truncate fallocate sync_file_range"
).split()
"""Calls that change a file, and that the reader below does not know: a store that makes one is a surprise."""
_LINE = re.compile(r"(\d+) +(.*)")
_DONE = re.compile(r"([a-z0-9_]+)\((.*)\) += (-?\d+)(<[^>]*>)?.*")
_ARGUMENT = re.compile(r'"[^"]*"(?:\.\.\.)?|\[[^\]]*\]|\{[^}]*\}|[^,\s"\[{(]+(?:\([^)]*\))?')
_SECONDS = re.compile(r"tv_sec=(-?\d+), tv_nsec=(\d+)")


@frozen(kw_only=True)
class Event:
    """One change.  path: what of, below the directory.  other: the new name, or what a link says."""

    kind: Kind
    path: str
    other: str = ""
    offset: int = 0
    data: bytes = b""
    number: int = 0
    """A mode, a size, or nanoseconds since the epoch."""


def record(work: Callable[[], object]) -> list[str]:
    """Return the lines of a trace of `work`, done in a forked child."""
    waits, lets = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.read(waits, 1)
            work()
            code = 0
        except BaseException as error:  # noqa: BLE001  the parent sees the code
            print(repr(error), file=sys.stderr)
        finally:
            os._exit(code)
    with tempfile.TemporaryDirectory(prefix="pyc-trace-") as directory:
        trace = os.path.join(directory, "trace")
        command = ["strace", "-f", "-y", "-xx", "-s", "4000000", "-o", trace, "-e", f"trace={_CALLS}"]
        tracer = subprocess.Popen([*command, "-p", str(pid)], stderr=subprocess.PIPE)
        assert tracer.stderr is not None
        tracer.stderr.readline()
        os.write(lets, b"!")
        status = os.waitpid(pid, 0)[1]
        tracer.communicate()
        os.close(waits)
        os.close(lets)
        assert status == 0, f"the recorded work ended with {status}"
        return Path(trace).read_text().splitlines()


def _whole(lines: list[str]) -> Iterator[str]:
    """Yield completed calls in the order of their ends."""
    begun: dict[str, str] = {}
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            continue
        pid, text = match.groups()
        if text.endswith("<unfinished ...>"):
            begun[pid] = text.removesuffix("<unfinished ...>")
        elif text.startswith("<... "):
            yield begun.pop(pid, "") + text.partition("resumed>")[2]
        else:
            yield text


def _text(argument: str) -> bytes:
    assert not argument.endswith("..."), "the trace is cut"
    return bytes.fromhex(argument.strip('"').replace("\\x", ""))


def _place(argument: str) -> str:
    """Return the path of a descriptor: 5<path>."""
    return bytes.fromhex(argument.partition("<")[2].partition(">")[0].replace("\\x", "")).decode(
        errors="replace"
    )


class Reader:
    """Makes events of a trace; changes outside of `top` are left out.

    marks: where the work makes directories to say how far it is.
    """

    def __init__(self, top: str, marks: str) -> None:
        self._top, self._marks = top + "/", marks + "/"
        self._at: dict[str, int] = {}

    def read(self, lines: list[str]) -> list[Event]:
        """Return every change, in order."""
        events: list[Event] = []
        for line in _whole(lines):
            match = _DONE.match(line)
            if match is None or int(match[3]) < 0:
                continue
            arguments = _ARGUMENT.findall(match[2])
            events += self._events(match[1], arguments, int(match[3]))
        return events

    def _name(self, path: str) -> str | None:
        path = os.path.normpath(path)
        if path == self._top[:-1]:
            return ""
        return path[len(self._top) :] if path.startswith(self._top) else None

    def _joined(self, arguments: list[str], at: bool) -> str:
        if at and arguments[1] == "NULL":
            return _place(arguments[0])
        name = _text(arguments[1 if at else 0]).decode()
        return os.path.join(_place(arguments[0]), name) if at else name

    def _events(self, call: str, arguments: list[str], result: int) -> Iterator[Event]:
        at = call.endswith(("at", "at2")) and call != "creat"
        if call in ("syncfs", "sync"):
            yield Event(kind="sync-all", path="")
            return
        if arguments[0][0] != '"' and not at:
            yield from self._of_descriptor(call, arguments, result)
            return
        if call.startswith("symlink"):
            place = self._name(self._joined(arguments[1:], at))
            if place is not None:
                yield Event(kind="link", path=place, other=_text(arguments[0]).decode())
            return
        raw = self._joined(arguments, at)
        path = self._name(raw)
        if call == "mkdir" and raw.startswith(self._marks):
            yield Event(kind="mark", path=raw.removeprefix(self._marks))
        if path is None:
            return
        assert call not in _STRANGE, call
        yield from self._of_name(call, path, arguments[2:] if at else arguments[1:])

    def _of_name(self, call: str, path: str, rest: list[str]) -> Iterator[Event]:
        if call in ("open", "openat", "creat"):
            if "O_CREAT" in rest[0]:
                self._at[path] = 0
                yield Event(kind="create", path=path, number=int(rest[1], 8))
            if "O_TRUNC" in rest[0]:
                yield Event(kind="truncate", path=path)
        elif call.startswith("mkdir"):
            yield Event(kind="directory", path=path, number=int(rest[0], 8))
        elif call.startswith("rename"):
            other = self._name(self._joined(rest, len(rest) > 1))
            assert other is not None, "something is renamed out of the store"
            self._at[other] = self._at.pop(path, 0)
            yield Event(kind="rename", path=path, other=other)
        elif call.startswith(("unlink", "rmdir")):
            yield Event(kind="unlink", path=path)
        elif call.startswith("mknod"):
            yield Event(kind="node", path=path)
        elif call in ("chmod", "fchmodat"):
            yield Event(kind="mode", path=path, number=int(rest[0], 8))
        elif call == "utimensat":
            seconds, nanoseconds = _SECONDS.findall(rest[0])[-1]
            yield Event(kind="time", path=path, number=int(seconds) * 10**9 + int(nanoseconds))

    def _of_descriptor(self, call: str, arguments: list[str], result: int) -> Iterator[Event]:
        path = self._name(_place(arguments[0]))
        if path is None or path.endswith("(deleted)"):
            return
        assert call not in _STRANGE, (call, path)
        if call == "write":
            start = self._at.get(path, 0)
            self._at[path] = start + result
            yield Event(kind="write", path=path, offset=start, data=_text(arguments[1])[:result])
        elif call == "pwrite64":
            yield Event(kind="write", path=path, offset=int(arguments[3]), data=_text(arguments[1])[:result])
        elif call == "lseek":
            self._at[path] = result
        elif call == "ftruncate":
            yield Event(kind="truncate", path=path, number=int(arguments[1]))
        elif call == "fchmod":
            yield Event(kind="mode", path=path, number=int(arguments[1], 8))
        elif call in ("fsync", "fdatasync"):
            yield Event(kind="sync", path=path)
