"""Fuzz a live agent and a live launcher from the caller's side: wrong messages, fds and sizes.

After each message the program must answer a small request; after each batch it must do its work
(an exec, a start) and hold no more fds than before.  Exit status: 0 clean, 1 a finding, 77 no
container starts here.

--replay FILE: send what a finding recorded.  --probes: send what is known to be answered by an end.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

from attrs import define, field, frozen

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from pycontain import Container, Engine
from pycontain._kernel import native
from pycontain._kernel.launcher import Launcher
from pycontain._kernel.pidfd import pid_of
from pycontain._kernel.plan import Source, request
from pycontain._kernel.protocol import IN_MEMFD, RecordKind, RequestKind
from pycontain.errors import PycontainError
from tests.fuzz import make_corpus
from tests.fuzz.messages import Maker, Message, Opened, make_scratch, spare_claim

SKIPPED = 77
PATIENCE_MS = 30_000
_BARRIER_ID = 0xFEEDFACE
_GONE = (32, 104, 9)
_TOO_LARGE = (90, 105, 7)  # EMSGSIZE, ENOBUFS, E2BIG: never sent
_SETTLE = 3.0
_KEPT = 1
"""The user namespace of ids on the disk, which a launcher makes on first use and keeps."""


class NoContainer(Exception):
    """No container starts here."""


class Trouble(ConnectionError):
    """A failure of the program; the pool of launchers forgets one that raised it."""


@frozen
class Finding:
    """A failure of one target, with the messages that cause it."""

    target: str
    what: str
    messages: tuple[Message, ...]
    alone: bool

    @property
    def key(self) -> str:
        """A key that findings of one cause share."""
        return f"{self.target}: {self.what}: {self.messages[-1].signature}"

    def save(self, directory: Path) -> Path:
        """Write it for --replay."""
        directory.mkdir(parents=True, exist_ok=True)
        number = len(list(directory.glob("messages-*.json")))
        path = directory / f"messages-{os.getpid()}-{number}.json"
        content = {
            "target": self.target,
            "what": self.what,
            "messages": [message.as_json() for message in self.messages],
        }
        path.write_text(json.dumps(content, indent=1))
        return path


def _fd_count(pid: int) -> int | None:
    """Return the number of fds of a process, or None if /proc does not show it."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def _ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _receive(socket: int) -> native.Record:
    """Return the next record and close its fd.  Raises Trouble."""
    try:
        record = native.receive(socket, PATIENCE_MS)
    except TimeoutError:
        raise Trouble("hangs") from None
    if record is None:
        raise Trouble("ended")
    return record


def _has_started(channel: int) -> bool:
    """Return whether an exec was answered with a pid, and close the fds that came with the answers."""
    started = False
    with contextlib.suppress(TimeoutError):
        while (record := native.receive(channel, 0)) is not None:
            started |= record.kind == RecordKind.STARTED
            if record.fd >= 0:
                os.close(record.fd)
    return started


def _send(socket: int, body: bytes, fds: list[int]) -> bool:
    """Send a message and return whether the socket took it.  Raises Trouble if the peer has closed it."""
    try:
        native.send(socket, body, fds)
    except OSError as error:
        if error.errno in _TOO_LARGE:
            return False
        if error.errno in _GONE:
            raise Trouble("ended") from error
        raise
    return True


@define
class Target:
    """A live program under test."""

    name: str
    engine: Engine
    scratch: Path
    baseline: int | None = None
    done: int = 0
    """Number of messages that started a process."""

    def start(self) -> None:
        """Start it and record its number of fds."""
        raise NotImplementedError

    def stop(self) -> None:
        """End it, whatever state it is in."""
        raise NotImplementedError

    def deliver(self, message: Message) -> None:
        """Send, and wait until it was served.  Raises Trouble."""
        raise NotImplementedError

    def work(self) -> int | None:
        """Let it do normal work and return its number of fds.  Raises Trouble."""
        raise NotImplementedError

    def least(self) -> int | None:
        """Return the lowest number of fds that the target reaches after its processes have ended."""
        return min((count for count in (self.work() for _ in range(3)) if count is not None), default=None)

    def verify(self) -> None:
        """Check that the target answers and has as many fds as before.  Raises Trouble."""
        patience = time.monotonic() + _SETTLE
        try:
            count = self.work()
            while count is not None and self.baseline is not None and count > self.baseline + _KEPT:
                if time.monotonic() > patience:
                    raise Trouble("fds grow")
                time.sleep(0.02)
                count = self.work()
        except Trouble:
            raise
        except (PycontainError, OSError) as error:
            raise Trouble(f"does not work: {type(error).__name__}: {error}") from error

    def restart(self) -> None:
        """Replace it by a fresh one."""
        self.stop()
        self.start()


@define
class AgentTarget(Target):
    """PID 1 of a container."""

    container: Container | None = None

    def start(self) -> None:
        """Start a container."""
        self.container = Container(engine=self.engine).start()
        self.baseline = self.least()

    def stop(self) -> None:
        """Kill PID 1 first, because a hanging agent does not end with its socket."""
        container, self.container = self.container, None
        if container is None:
            return
        running = container._live()
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(running.pidfd, signal.SIGKILL)
        container.remove()

    def _ask(self, kind: int) -> None:
        """Send a request that is answered on a channel."""
        assert self.container is not None
        control = self.container._live().control
        ours, theirs = native.pair()
        try:
            try:
                _send(control, request(kind, number=_BARRIER_ID), [theirs])
            finally:
                os.close(theirs)
            _receive(ours)
        finally:
            os.close(ours)
        # Late answers to SECURITY arrive here and are discarded.
        with contextlib.suppress(TimeoutError):
            while native.receive(control, 0) is not None:
                continue

    def deliver(self, message: Message) -> None:
        """Send the message, then a KILL_TREE of an unknown exec as a barrier."""
        assert self.container is not None
        with Opened(message, self.scratch) as opened:
            _send(self.container._live().control, message.body, opened.sent)
            self._ask(RequestKind.KILL_TREE)
            if message.kind == RequestKind.EXEC and opened.answers >= 0:
                self.done += _has_started(opened.answers)

    def work(self) -> int | None:
        """End everything that messages started, then a normal exec."""
        assert self.container is not None
        self._ask(RequestKind.KILL_ALL)
        result = self.container.exec(["true"], timeout=PATIENCE_MS / 1000)
        if result.returncode != 0:
            raise Trouble(f"does not work: true ended with {result.returncode} ({result.reason})")
        self._ask(RequestKind.KILL_ALL)
        return _fd_count(self.container.pid)


@define
class LauncherTarget(Target):
    """The one launcher of an engine of its own."""

    def start(self) -> None:
        """Start a launcher by starting a container."""
        # Children pending in this launcher were made by fuzz messages, so the engine must not use them.
        vars(self.engine._session.warm)["ended"] = vars(self.engine._session.warm)["started"] = lambda *_: (
            None
        )
        self.work()
        self.baseline = self.least()

    def stop(self) -> None:
        """End the launcher, and let the pool forget it."""
        with contextlib.suppress(Trouble), self.engine._session.launchers.borrow() as launcher:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(launcher.pidfd, signal.SIGKILL)
            raise Trouble("stopped")

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[Launcher]:
        with self.engine._session.launchers.borrow() as launcher:
            if len(self.engine._session.launchers) != 1:
                raise RuntimeError("the harness has made a second launcher")
            yield launcher

    def deliver(self, message: Message) -> None:
        """Send the message, then a REMOVE of nothing as a barrier.  Each is answered once."""
        with self._borrowed() as launcher, Opened(message, self.scratch) as opened:
            if not _send(launcher.socket, message.body, opened.sent):
                return
            if message.kind in (
                RequestKind.SPAWN,
                RequestKind.REMOVE,
                RequestKind.REPLACE_ROOT,
                RequestKind.RELAY,
            ):
                self._end(_receive(launcher.socket))
            if message.kind == RequestKind.NETWORK:
                while (record := _receive(launcher.socket)).kind == RecordKind.OPENED:
                    os.close(record.fd)
            _send(launcher.socket, request(RequestKind.REMOVE), [])
            barrier = _receive(launcher.socket)
            if barrier.kind != RecordKind.GONE:
                raise Trouble(f"answers out of turn: {barrier}")
            make_scratch(self.scratch)

    def _end(self, record: native.Record) -> None:
        """End a container that a message started."""
        if record.kind == RecordKind.STARTED:
            self.done += 1
        if record.fd < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(record.fd, signal.SIGKILL)
        os.close(record.fd)

    def work(self) -> int | None:
        """Take the pre-cloned child that a message may have left, then a container through this launcher."""
        with self._borrowed() as launcher:
            if _ended(launcher.pidfd):
                raise Trouble("ended")
            claim, fds = spare_claim()
            with Opened(Message(claim, fds), self.scratch) as opened:
                _send(launcher.socket, claim, opened.sent)
                self._end(_receive(launcher.socket))
        with Container(engine=self.engine) as container:
            if container.exec(["true"], timeout=PATIENCE_MS / 1000).returncode != 0:
                raise Trouble("does not work: true failed")
        self.engine.settle()
        with self._borrowed() as launcher:
            return _fd_count(pid_of(launcher.pidfd))


@define
class Round:
    """Batches to one target, and what they found."""

    target: Target
    make: Callable[[], Message]
    size: int
    sent: int = 0
    batches: int = 0
    seen: collections.Counter[str] = field(factory=collections.Counter)
    _ENOUGH: ClassVar[int] = 2

    def run(self) -> Finding | None:
        """Run one batch; the target is replaced after a finding."""
        batch: list[Message] = []
        self.batches += 1
        try:
            for _ in range(self.size):
                batch.append(self.make())
                self.target.deliver(batch[-1])
                self.sent += 1
        except Trouble as trouble:
            return self._found(str(trouble), batch, batch[-1:])
        try:
            self.target.verify()
        except Trouble as trouble:
            return self._found(str(trouble), batch, batch)
        return None

    def _found(self, what: str, batch: list[Message], suspects: list[Message]) -> Finding | None:
        """Return the finding, reduced to a single message if possible; None for a known one."""
        cause = what if len(suspects) > 1 else f"{what}: {suspects[0].signature}"
        self.seen[cause] += 1
        if self.seen[cause] > self._ENOUGH:
            self.target.restart()
            return None
        for message in suspects:
            self.target.restart()
            if replay(self.target, [message]) is not None:
                self.target.restart()
                return Finding(self.target.name, what, (message,), True)
        self.target.restart()
        return Finding(self.target.name, what, tuple(batch), False)


def replay(target: Target, messages: list[Message]) -> str | None:
    """Send the messages to a fresh target and return its failure, or None."""
    try:
        for message in messages:
            target.deliver(message)
        target.verify()
    except Trouble as trouble:
        return str(trouble)
    return None


def _with_fds(count: int) -> tuple[str, ...]:
    return ("socket", "socket", "mount", "mount", *["namespace-net"] * count)


def probes() -> dict[str, tuple[str, Message]]:
    """Return named messages: past findings, and edge cases found by reading the code."""
    long_exec = make_corpus.command(argv=[b"true", b"x" * 5000], flags=0, tasks=0)
    long_plan = make_corpus.plan(hostname="x" * 5000)
    joins = make_corpus.plan(tasks=0, joins=[(4, 1 << 30), (5, 1 << 30)], store=Source(fd=2))
    join = make_corpus.plan(tasks=0, joins=[(4, 1 << 30)], store=Source(fd=2))
    memfd = IN_MEMFD
    return {
        "agent-empty": ("agent", Message(b"")),
        "launcher-empty": ("launcher", Message(b"")),
        "agent-short-memory": (
            "agent",
            Message(
                request(RequestKind.EXEC, flags=memfd, size=len(long_exec)),
                ("memory", "socket"),
                long_exec[:4096],
            ),
        ),
        "launcher-short-memory": (
            "launcher",
            Message(
                request(RequestKind.SPAWN, flags=memfd, size=len(long_plan)),
                ("memory", "socket"),
                long_plan[:4096],
            ),
        ),
        "agent-full-channel": (
            "agent",
            Message(request(RequestKind.EXEC, make_corpus.command(flags=0, tasks=0)), ("socket-full",)),
        ),
        "launcher-join": ("launcher", Message(request(RequestKind.SPAWN, join), _with_fds(1))),
        "launcher-double-join": ("launcher", Message(request(RequestKind.SPAWN, joins), _with_fds(2))),
    }


@frozen
class Session:
    """Both targets over a temporary store."""

    targets: dict[str, Target]
    scratch: Path


def _start_all(targets: list[Target]) -> None:
    try:
        for target in targets:
            target.start()
    except PycontainError as error:
        raise NoContainer(str(error)) from error


@contextlib.contextmanager
def session() -> Iterator[Session]:
    """Provide two engines, so that the end of the one's launcher is not the other's.  Raises NoContainer."""
    top = Path(tempfile.mkdtemp(prefix="pyc-fuzz-"))
    os.environ["PYCONTAIN_ROOT"] = str(top / "default")
    scratch = top / "scratch"
    try:
        make_scratch(scratch)
        with Engine(top / "agent") as first, Engine(top / "launcher") as second:
            targets = [
                AgentTarget("agent", first, scratch),
                LauncherTarget("launcher", second, scratch),
            ]
            try:
                _start_all(targets)
                yield Session({target.name: target for target in targets}, scratch)
            finally:
                for target in targets:
                    target.stop()
    finally:
        shutil.rmtree(top, ignore_errors=True)


def _fuzz(live: Session, arguments: argparse.Namespace) -> int:
    maker = Maker(arguments.seed, live.scratch, arguments.without)
    rounds = [
        Round(live.targets["agent"], maker.agent, arguments.batch),
        Round(live.targets["launcher"], maker.launcher, arguments.batch),
    ]
    found: dict[str, Finding] = {}
    end = time.monotonic() + arguments.seconds
    while time.monotonic() < end and len(found) < arguments.most:
        for one in rounds:
            finding = one.run()
            if finding is not None and finding.key not in found:
                found[finding.key] = finding
                path = finding.save(arguments.artifacts)
                alone = "one message" if finding.alone else f"{len(finding.messages)} messages"
                print(f"messages: FINDING: {finding.key} ({alone}): --replay {path}", flush=True)
    for one in rounds:
        fds = one.target.baseline if one.target.baseline is not None else "not readable here"
        counts = f"sent={one.sent} started={one.target.done} batches={one.batches} fds={fds}"
        print(f"messages: {one.target.name}: {counts}")
    print(f"messages: seed={arguments.seed} findings={len(found)}")
    return int(bool(found))


def _replay(live: Session, path: Path) -> int:
    content = json.loads(path.read_text())
    result = replay(live.targets[content["target"]], [Message.of_json(one) for one in content["messages"]])
    print(f"messages: {content['target']}: {result or 'survived'}")
    return int(result is not None)


def _probe(live: Session) -> int:
    bad = 0
    for name, (target, message) in probes().items():
        result = replay(live.targets[target], [message])
        print(f"messages: probe {name}: {result or 'survived'}", flush=True)
        bad += result is not None
        live.targets[target].restart()
    return int(bool(bad))


def main() -> int:
    """Fuzz, replay or probe, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--most", type=int, default=10, help="findings after which to stop")
    parser.add_argument(
        "--without",
        nargs="*",
        default=[],
        help="kinds of fds to leave out; also `lies` (wrong sizes) and `joins`",
    )
    parser.add_argument("--artifacts", type=Path, help="where findings are kept")
    parser.add_argument("--replay", type=Path)
    parser.add_argument("--probes", action="store_true")
    arguments = parser.parse_args()
    arguments.artifacts = arguments.artifacts or Path(tempfile.gettempdir()) / f"pyc-fuzz-{os.getuid()}"
    try:
        with session() as live:
            if arguments.replay:
                return _replay(live, arguments.replay)
            return _probe(live) if arguments.probes else _fuzz(live, arguments)
    except NoContainer as error:
        print(f"messages: skipped: no container starts here: {error}")
        return SKIPPED


if __name__ == "__main__":
    sys.exit(main())
