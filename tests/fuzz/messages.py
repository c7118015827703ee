"""Malformed messages to agent and launcher, generated from a seed and stored as text.

Nothing here may harm the host: plans keep all of their namespaces, and the only directories
whose fds are sent are a scratch directory and empty file systems of the harness's own.
"""

from __future__ import annotations

import os
import random
import select
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from pycontain._kernel import native
from pycontain._kernel.netns import SocketSpec
from pycontain._kernel.plan import Op, Source, request
from pycontain._kernel.protocol import IN_MEMFD, NO_FD, ExecFlag, OpFlag, OpKind, PlanFlag, RequestKind
from tests.fuzz import make_corpus

HEADER = 24
MOST_FDS = 253
_MOST_BYTES = 190 * 1024
_NAMESPACES = struct.pack("<Q", 0x7E020080)
_PLAN_NAMESPACES_AT = 16
_WORDS = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    16,
    24,
    899,
    900,
    255,
    4095,
    4096,
    65536,
    1 << 24,
    0x7FFFFFFF,
    0xFFFFFFFE,
    NO_FD,
)
_NAMES = "SPAWN MAPS REMOVE SECURITY EXEC SIGNAL KILL_TREE KILL_ALL OPEN PREPARE".split()


@frozen
class Message:
    """Bytes, kinds of fds in the order sent, and what the fds `memory` and `memory-open` hold."""

    body: bytes
    fds: tuple[str, ...] = ()
    memory: bytes = b""

    @property
    def kind(self) -> int:
        """The request's kind, 0 for what has no whole header."""
        return int(struct.unpack_from("<I", self.body)[0]) if len(self.body) >= HEADER else 0

    @property
    def signature(self) -> str:
        """Return a key that findings with the same cause usually share."""
        if not self.kind:
            return "empty" if not self.body else "short header"
        name = _NAMES[self.kind - 1] if self.kind <= len(_NAMES) else "unknown kind"
        size, flags = struct.unpack_from("<2I", self.body, 4)
        if not flags & IN_MEMFD:
            return name
        lie = " that is smaller than its size" if "memory" in self.fds[0] and size > len(self.memory) else ""
        return f"{name} in {self.fds[0]}{lie}" if self.fds else f"{name} in no fd"

    def as_json(self) -> dict[str, Any]:
        """Return text that `of_json` takes back."""
        return {"body": self.body.hex(), "fds": list(self.fds), "memory": self.memory.hex()}

    @classmethod
    def of_json(cls, found: dict[str, Any]) -> Message:
        """Return the message that `as_json` described."""
        return cls(bytes.fromhex(found["body"]), tuple(found["fds"]), bytes.fromhex(found["memory"]))


def _pair(kind: socket.SocketKind) -> list[int]:
    return [end.detach() for end in socket.socketpair(socket.AF_UNIX, kind)]


def _half(ends: Sequence[int], keep: int) -> list[int]:
    os.close(ends[1 - keep])
    return [ends[keep]]


def _epoll() -> list[int]:
    with select.epoll() as epoll:
        return [os.dup(epoll.fileno())]


def _datagram() -> list[int]:
    return [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()]


def _full() -> list[int]:
    """Return a channel whose buffer is full and that has no reader."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    try:
        while True:
            theirs.send(bytes(64))
    except BlockingIOError:
        pass
    theirs.setblocking(True)
    return [theirs.detach(), ours.detach()]


_OPENERS: dict[str, Callable[[], list[int]]] = {
    "socket": lambda: _pair(socket.SOCK_SEQPACKET),
    "socket-closed": lambda: _half(_pair(socket.SOCK_SEQPACKET), 0),
    "socket-full": _full,
    "stream": lambda: _pair(socket.SOCK_STREAM),
    "datagram": _datagram,
    "null": lambda: [os.open("/dev/null", os.O_RDWR)],
    "pipe-read": lambda: list(os.pipe()),
    "pipe-write": lambda: list(reversed(os.pipe())),
    "pipe-broken": lambda: _half(os.pipe(), 1),
    "event": lambda: [os.eventfd(0)],
    "epoll": _epoll,
    "pidfd": lambda: [os.pidfd_open(os.getpid())],
    "namespace-net": lambda: [os.open("/proc/self/ns/net", os.O_RDONLY)],
    "namespace-ipc": lambda: [os.open("/proc/self/ns/ipc", os.O_RDONLY)],
    "namespace-uts": lambda: [os.open("/proc/self/ns/uts", os.O_RDONLY)],
}
_SCRATCH = {
    "file": ("file", os.O_RDWR),
    "file-path": ("file", os.O_PATH),
    "directory": ("tree", os.O_RDONLY | os.O_DIRECTORY),
    "directory-path": ("tree", os.O_PATH | os.O_DIRECTORY),
}
KINDS = sorted({*_OPENERS, *_SCRATCH, "mount", "memory", "memory-open"} - {"socket-full"})
"""Every kind of fd that a random message may carry."""


def _memory(data: bytes) -> int:
    fd = os.memfd_create("pyc-fuzz", os.MFD_CLOEXEC)
    os.write(fd, data)
    return fd


class Opened:
    """Open fds of one message: `sent` go with it, `answers` is the other end of the first of them."""

    _SAME_FROM = 6

    def __init__(self, message: Message, scratch: Path) -> None:
        self.sent: list[int] = []
        self.answers = -1
        self._all: list[int] = []
        by_kind: dict[str, list[int]] = {}
        try:
            for kind in message.fds:
                same = by_kind.setdefault(kind, [])
                if len(same) < self._SAME_FROM:
                    opened = self._open(kind, message, scratch)
                    self._all += opened
                    same.append(opened[0])
                self.sent.append(same[-1])
        except BaseException:
            self.close()
            raise
        if message.fds[:1] == ("socket",):
            self.answers = self._all[1]

    @staticmethod
    def _open(kind: str, message: Message, scratch: Path) -> list[int]:
        if kind == "memory":
            return [native.sealed("pyc-fuzz", message.memory)]
        if kind == "memory-open":
            return [_memory(message.memory)]
        if kind in _SCRATCH:
            name, flags = _SCRATCH[kind]
            return [os.open(scratch / name, flags | os.O_CLOEXEC)]
        if kind == "mount":
            fd = int(native.lib.pcx_clone_mount(b"tmpfs"))
            return [fd if fd >= 0 else os.open(scratch / "tree", os.O_PATH | os.O_CLOEXEC)]
        return _OPENERS[kind]()

    def close(self) -> None:
        """Close everything.  Idempotent."""
        while self._all:
            os.close(self._all.pop())

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def make_scratch(directory: Path) -> None:
    """Create the files that the kinds of `_SCRATCH` open."""
    (directory / "tree" / "a" / "b").mkdir(parents=True, exist_ok=True)
    (directory / "tree" / "a" / "b" / "leaf").touch()
    (directory / "store").mkdir(exist_ok=True)
    (directory / "file").touch()


def _by_path(path: Path) -> Source:
    found = path.stat()
    device = os.major(found.st_dev) << 32 | os.minor(found.st_dev)
    return Source(path=str(path), device=device, inode=found.st_ino)


class Maker:
    """Random messages; the same seed and the same calls give the same ones."""

    def __init__(self, seed: int, scratch: Path, without: Sequence[str] = ()) -> None:
        self._layer = _by_path(scratch / "tree")
        self._store = _by_path(scratch / "store")
        self._plain = os.geteuid() != 0
        self.random = random.Random(seed)
        self._kinds = [kind for kind in KINDS if kind not in without]
        self._lies = "lies" not in without
        self._joins = "joins" not in without

    def agent(self) -> Message:
        """Return a message for an agent."""
        make = self.random.choice(
            [self._exec, self._exec, self._exec, self._exec_in_memory, self._open, self._control, self._noise]
        )
        return self._finish(make())

    def launcher(self) -> Message:
        """Return a message for a launcher."""
        make = self.random.choice(
            [
                self._spawn,
                self._spawn,
                self._spawn,
                self._spawn_in_memory,
                self._spare,
                self._spare,
                self._remove,
                self._replace_root,
                self._relay,
                self._network,
                self._control,
                self._noise,
            ]
        )
        return _harmless(self._finish(make()))

    def _finish(self, message: Message) -> Message:
        message = self._spoil(message)
        return message if self._lies else _honest(message)

    # Building blocks of the messages.

    def _chance(self, one_in: int) -> bool:
        return self.random.randrange(one_in) == 0

    def _word(self) -> int:
        return self.random.choice([*_WORDS, self.random.getrandbits(32), self.random.randrange(256)])

    def _some_fds(self, most: int) -> tuple[str, ...]:
        return tuple(self.random.choices(self._kinds, k=self.random.randint(0, most)))

    def mutated(self, data: bytes) -> bytes:
        """Return `data` with a few bits, words or blocks changed, shortened or lengthened."""
        out = bytearray(data)
        for _ in range(self.random.choice([1, 1, 2, 4])):
            if len(out) < 8:
                break
            at = self.random.randrange(len(out))
            word = min(at & ~3, len(out) - 4)
            match self.random.randrange(7):
                case 0:
                    out[at] ^= 1 << self.random.randrange(8)
                case 1 | 2:
                    struct.pack_into("<I", out, word, self._word())
                case 3:
                    near = struct.unpack_from("<I", out, word)[0] + self.random.randint(-16, 16)
                    struct.pack_into("<I", out, word, near & 0xFFFFFFFF)
                case 4:
                    del out[at:]
                case 5:
                    out += self.random.randbytes(self.random.randrange(64))
                case _:
                    out[at : at + 16] = out[word : word + 16]
        return bytes(out)

    def _repaired(self, data: bytes) -> bytes:
        """Return the message with a correct size field most of the time, since that is checked first."""
        if len(data) < 12 or self._chance(6):
            return data
        return data[:8] + struct.pack("<I", len(data)) + data[12:]

    def _payload(self, data: bytes) -> bytes:
        return data if self._chance(3) else self._repaired(self.mutated(data))

    def _spoil(self, message: Message) -> Message:
        """Damage one message in three: wrong fds, a wrong header, or a cut."""
        if not self._chance(3):
            return message
        match self.random.randrange(6):
            case 0:
                return evolve(message, fds=self._some_fds(12))
            case 1:
                return evolve(message, fds=self._some_fds(MOST_FDS))
            case 2:
                fds = list(message.fds)
                if fds:
                    fds[self.random.randrange(len(fds))] = self.random.choice(self._kinds)
                return evolve(message, fds=tuple(fds))
            case 3:
                return evolve(message, fds=message.fds[: self.random.randint(0, len(message.fds))])
            case 4:
                body = self.mutated(message.body[:HEADER]) + message.body[HEADER:]
                return evolve(message, body=body or b"\0")
            case _:
                return evolve(message, body=message.body[: self.random.randint(1, max(1, len(message.body)))])

    def _in_memory(self, kind: int, payload: bytes, fds: tuple[str, ...]) -> Message:
        """Return a payload in a memfd, its size in the header true or not."""
        size, held = len(payload), payload
        match self.random.randrange(4):
            case 0:
                size = self.random.choice(
                    [0, 1, size - 1, size + 1, 4096, 8192, 1 << 20, 16 << 20, (16 << 20) + 1]
                )
                if len(payload) >= 12 and self._chance(2):
                    held = payload[:8] + struct.pack("<I", size) + payload[12:]
            case 1:
                held = payload[: self.random.choice([0, 1, 100, 4096, 8192])]
            case _:
                pass
        carrier = self.random.choice(["memory", "memory", "memory-open"])
        if self._chance(6):
            carrier = self.random.choice(self._kinds)
        place = 0 if not self._chance(8) else self.random.randint(0, len(fds))
        return Message(
            request(kind, number=self._word(), flags=IN_MEMFD, size=size & 0xFFFFFFFF),
            (*fds[:place], carrier, *fds[place:]),
            held,
        )

    def _noise(self) -> Message:
        size = self.random.choice([1, 4, 23, 24, 25, 60, 200, 5000, 131071, 131072, 131073, _MOST_BYTES])
        return Message(self.random.randbytes(size), self._some_fds(4))

    def _control(self) -> Message:
        """Return a request of any kind with any fields, and payloads of other programs."""
        payload = self.random.choice([b"", b"x", make_corpus.security(), self.random.randbytes(30)])
        body = request(
            # Those above are for a launcher of their own, which ends with them and answers in other words.
            self.random.choice(
                [*range(11), RequestKind.REPLACE_ROOT, RequestKind.NETWORK, RequestKind.RELAY, self._word()]
            ),
            self._payload(payload),
            number=self._word(),
            value=self.random.choice([0, 1, 9, 15, 19, 64, 65, -1, 1 << 30]),
            flags=self.random.choice([0, 0, 1, self._word()]),
        )
        return Message(body, self._some_fds(3))

    # To an agent.

    def _command(self) -> tuple[bytes, tuple[str, ...]]:
        flags = self.random.getrandbits(5)
        tasks = self.random.choice([0, 0, 0, 1, 3, 16])
        bits = (ExecFlag.STDIN, ExecFlag.STDOUT, ExecFlag.STDERR)
        fds = ["socket"]
        fds += [self.random.choice(["null", "pipe-write", "file"]) for bit in bits if flags & bit]
        fds += ["directory"] if flags & ExecFlag.CGROUP else []
        fds += ["null"] * tasks
        argv = self.random.choice(
            [[b"true"], [b"true"], [b"sleep", b"1000"], [b"/no/such"], [b""], [b"true"] * 500]
        )
        data = make_corpus.command(
            flags=flags,
            number=self._word(),
            tasks=tasks,
            uid=self.random.choice([0, 0, 1000, self._word()]),
            gid=self.random.choice([0, 0, 1000, self._word()]),
            groups=[self._word() for _ in range(self.random.choice([0, 0, 3, 40]))],
            argv=argv,
            workdir=self.random.choice(["/", "/", "/tmp", "", "x" * 5000]),
            rlimits={self.random.randrange(20): (self._word(), self._word())} if self._chance(3) else {},
        )
        return data, tuple(fds)

    def _exec(self) -> Message:
        data, fds = self._command()
        return Message(request(RequestKind.EXEC, self._payload(data), number=self._word()), fds)

    def _exec_in_memory(self) -> Message:
        data, fds = self._command()
        return self._in_memory(RequestKind.EXEC, self._payload(data), fds)

    def _open(self) -> Message:
        """Return an open request, never of a file that a later `true` needs (O_TRUNC may be set)."""
        path = self.random.choice(
            [
                b"/",
                b"tmp/x",
                b"proc/self/fd",
                b"/proc/1/root",
                b"dev/ptmx",
                b"../..",
                b"",
                b"a" * 5000,
                b"dev/null\0junk",
            ]
        )
        body = request(RequestKind.OPEN, path, value=self.random.getrandbits(31) if self._chance(2) else 0)
        return Message(body, self.random.choice([("socket",), ("socket",), (), ("null",)]))

    # To a launcher.

    def _ops(self) -> list[Op]:
        ops = [
            Op(OpKind.UPPER, data=b"size=1m,mode=755"),
            Op(OpKind.FILE, "etc/hostname", b"name\n", mode=0o644),
            Op(OpKind.OVERLAY, source=0, count=1, attributes=6),
            Op(OpKind.FILESYSTEM, "proc", b"proc", attributes=14),
            Op(OpKind.DEV, "dev", flags=int(OpFlag.NOFOLLOW)),
            Op(OpKind.FILESYSTEM, "tmp", b"tmpfs\0size=64k,mode=1777", attributes=6),
            Op(OpKind.MOUNT, "srv/deep/er", source=1),
            Op(OpKind.MASK, "proc/kcore"),
            Op(OpKind.READONLY, "proc/sys"),
            Op(OpKind.SEAL),
        ]
        for _ in range(self.random.choice([0, 0, 0, 1, 3])):
            at = self.random.randrange(len(ops))
            match self.random.randrange(4):
                case 0:
                    del ops[at]
                case 1:
                    ops.insert(at, self.random.choice(ops))
                case 2:
                    target = self.random.choice(["", "..", "a/" * 300, "a/../b", "/", "x" * 255])
                    ops[at] = evolve(ops[at], target=target)
                case _:
                    data = self.random.choice(
                        [b"", b"\0", b"no-such-fs", b"tmpfs\0,,=,x=", b"tmpfs\0" + b"x" * 300]
                    )
                    ops[at] = evolve(ops[at], data=data)
        return ops

    def _plan(self, flags: int = 0) -> tuple[bytes, tuple[str, ...]]:
        """Return a valid plan over empty file systems, sometimes with one or two invalid fields."""
        joins = [
            (self.random.choice([4, 5, 6, 200]), self.random.choice([1 << 30, 1 << 27, 1 << 26, 1 << 28]))
            for _ in range(self.random.choice([0, 0, 0, 1, 2, 4]))
        ]
        by_path = self._plain or self._chance(8)
        fds = ["socket", "socket", "mount", "mount", "namespace-net", "namespace-ipc", "namespace-uts"]
        sources = [Source(fd=3, flags=12, attributes=7), Source(fd=2, attributes=6)]
        changes: dict[str, Any] = {
            "tasks_fd": 7,
            "tasks": self.random.choice([0, 0, 0, 1, 16]),
            "store": self._store if by_path else Source(fd=self.random.choice([2, 2, 2, NO_FD, 0])),
            "ops": self._ops(),
            "sources": [self._layer, self._layer] if by_path else sources,
            "joins": joins if self._joins else [],
            "security": make_corpus.security(landlock=(0, 0, 0, 0, 0)),
        }
        if self._chance(8):
            flags |= PlanFlag.COMMAND_IS_INIT
            changes["command"] = make_corpus.command()
        if flags:
            changes["flags"] = int(flags)
        if self._chance(4):
            changes[self.random.choice(["control_fd", "exit_fd", "cgroup_fd", "tasks_fd"])] = self._word()
        if self._chance(8):
            changes["sources"] = [Source(fd=3)] * self.random.choice([1, 100, 201, 300])
        if self._plain:
            changes |= {"uid_map": "0 0 1\n", "gid_map": "0 0 1\n"}
        return make_corpus.plan(**changes), (*fds, *["null"] * 3)

    def _spawn(self) -> Message:
        data, fds = self._plan()
        return Message(request(RequestKind.SPAWN, self._payload(data)), fds)

    def _spawn_in_memory(self) -> Message:
        data, fds = self._plan()
        return self._in_memory(RequestKind.SPAWN, self._payload(data), fds)

    def _replace_root(self) -> Message:
        """Return a request whose pidfd is the harness itself: its namespaces cannot be joined."""
        data, fds = self._plan()
        value = self.random.choice([0, -1, 1, os.getpid()])
        return Message(request(RequestKind.REPLACE_ROOT, self._payload(data), value=value), fds)

    def _relay(self) -> Message:
        """Return a relay request whose relay ends with the message's fds, or an invalid one."""
        fds = self._some_fds(3) if self._chance(2) else ("socket",)
        return Message(request(RequestKind.RELAY, value=self._word() & 0x7FFFFFFF), fds)

    def _network(self) -> Message:
        """Return a request for sockets of a namespace, with invalid settings."""
        wanted = [
            SocketSpec(
                self.random.choice([1, 2, 10, 16]),
                self.random.choice([1, 2, 3, 5, 0x801]),
                self.random.choice([0, 6, 12, 17]),
                self.random.choice(["127.0.0.1", "127.0.0.11", "203.0.113.9"]),
                self.random.choice([0, 0, 1, 65535]),
                self.random.choice([0, 1, 64]),
            )
            for _ in range(self.random.choice([0, 1, 3, 8, 9]))
        ]
        text = self.random.choice([b"", b"pyc/none\0" + b"1\0", b"pyc/none\0", b"pyc", b"\0\0\0"])
        counts = struct.pack("=II", len(wanted), self.random.choice([len(text), len(text), 0, self._word()]))
        body = b"".join([counts, *(one.packed() for one in wanted), text, b"\0"])
        return Message(request(RequestKind.NETWORK, body), self._some_fds(2) if self._chance(2) else ())

    def _script(self, place: int) -> bytes:
        """Return file operations in the scratch tree; no bit flip of a name leaves the tree."""
        if self._chance(2):
            good = [b"t%ca/b/leaf\0", b"d%ca\0", b"w%ca/b/leaf\0text\0", b"c%ca\0" + b"0\0"]
            return b"".join(one % place for one in self.random.choices(good, k=self.random.randint(0, 4)))
        script = b""
        for _ in range(self.random.choice([1, 1, 3, 60])):
            kind = self.random.choice([b"m", b"c", b"w", b"d", b"t", b"t", b"x"])
            name = self.random.choice([b"a", b"a", b"a/b/leaf", b"a/b/leaf", b"m0", b"m1", b"", b"b" * 300])
            text = self.random.choice([b"0", b"99999999999", b"", b"text"]) + b"\0" if kind in b"wc" else b""
            at = place if not self._chance(6) else self.random.randrange(256)
            script += kind + bytes([at]) + name + b"\0" + text
        return script

    def _spare(self) -> Message:
        """Prepare a pre-cloned child, or claim the one that waits, or one that does not."""
        kind = self.random.choice([RequestKind.PREPARE, RequestKind.SPAWN])
        data, fds = self._plan(0 if kind == RequestKind.PREPARE or self._chance(6) else int(PlanFlag.SPARE))
        if self._chance(3):
            data = self._payload(data)
        script = self._script(len(fds))
        value = len(data)
        if self._chance(6):
            value = self.random.choice(
                [0, -1, 1, value - 1, value + 1, value + len(script), 1 << 30, -(1 << 31)]
            )
        if self._chance(6):
            script = self.mutated(script)
        return Message(request(kind, data + script, value=value), (*fds, "directory"))

    def _remove(self) -> Message:
        names = [
            b"a",
            b"a",
            b"",
            b".",
            b"..",
            b"a/b",
            b"/",
            b"n" * 300,
            b"m0",
            b"m1",
            b"\xff" * 20,
            b"n" * 100000,
        ]
        chosen = self.random.choices(names, k=self.random.choice([1, 1, 2, 5]))
        payload = b"".join(
            self.random.choice([b"t", b"t", b"g", b"x", b""]) + name + b"\0" for name in chosen
        )
        fds = self.random.choices(
            ["directory", "mount", "directory-path", "null", "socket", "file"], k=len(chosen)
        )
        return Message(
            request(RequestKind.REMOVE, payload[: 120 * 1024], flags=2 * self._chance(4)), tuple(fds)
        )


def spare_claim() -> tuple[bytes, tuple[str, ...]]:
    """Return a request and its fds that claims the pre-cloned child of a launcher, if there is one."""
    data = make_corpus.plan(flags=int(PlanFlag.SPARE), tasks=0, store=Source(fd=2), sources=[], ops=[])
    return request(RequestKind.SPAWN, data, value=len(data)), ("socket", "socket", "mount")


def _honest(message: Message) -> Message:
    """Return the message without memory or files that are smaller than the header says."""
    if not message.kind or not message.fds:
        return message
    size, flags = struct.unpack_from("<2I", message.body, 4)
    if not flags & IN_MEMFD:
        return message
    if message.fds[0] == "file":
        return evolve(message, fds=("null", *message.fds[1:]))
    size = min(size, len(message.memory))
    return evolve(message, body=message.body[:4] + struct.pack("<I", size) + message.body[8:])


def _harmless(message: Message) -> Message:
    """Every plan in it makes all of its namespaces, whatever was mutated; no wait for what never ends; no
    request that a launcher serves until its end."""
    body, memory = bytearray(message.body), bytearray(message.memory)
    for buffer, start in ((body, HEADER), (memory, 0)):
        at = start + _PLAN_NAMESPACES_AT
        if len(buffer) >= at + 8:
            buffer[at : at + 8] = _NAMESPACES
    if message.kind == RequestKind.REMOVE and (
        not message.fds or message.fds[0] not in ("null", "file", "directory")
    ):
        struct.pack_into("<I", body, 8, struct.unpack_from("<I", body, 8)[0] & ~2)
    if message.kind == RequestKind.FILES:
        struct.pack_into("<I", body, 0, RequestKind.FILES + 100)
    return evolve(message, body=bytes(body), memory=bytes(memory))
