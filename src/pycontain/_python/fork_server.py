"""The zygote: the program that runs inside a container, imports once, and forks for each call.

It is sent as text and imports nothing of pycontain.  Its only input is the control socket that it gets for
its standard input.  It never runs or unpickles what a caller sent: the child of one call does.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import importlib
import importlib.machinery
import importlib.util
import io
import json
import marshal
import os
import pickle
import select
import signal
import socket
import struct
import sys
import traceback
import types
import warnings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PR_SET_DUMPABLE = 4
LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF, LANDLOCK_SCOPE_SIGNAL = 444, 446, 2
FAILED, STARTED, EXITED = 2, 3, 4
RECORD = struct.Struct("<IIiiiI5Q")
HEADER = struct.Struct("<QQ")
TAKEN = 1
LONGEST_TEXT = 1 << 18
PARTS = "_pycontain_call"
"""The package as which the writer of answers is installed (ship.py)."""


def described(error: BaseException) -> list[str]:
    """Return an exception as text, even if its own methods raise."""
    kind = type(error)
    try:
        message = str(error)
    except BaseException:  # noqa: BLE001  it is the caller's class
        message = "(its message cannot be formatted)"
    try:
        lines = "".join(traceback.format_exception(kind, error, error.__traceback__))
    except BaseException:  # noqa: BLE001
        lines = f"{kind.__name__}: {message}\n"
    return [kind.__qualname__[:200], message[:LONGEST_TEXT], lines[-LONGEST_TEXT:]]


def record(kind: int, value: int = 0, error: int = 0, usage: Any = None) -> bytes:
    """struct pc_record of protocol.h."""
    used = (0, 0, 0, 0, 0)
    if usage is not None:
        cpu = (int(usage.ru_utime * 1e6), int(usage.ru_stime * 1e6))
        used = (*cpu, usage.ru_maxrss * 1024, usage.ru_inblock * 512, usage.ru_oublock * 512)
    return RECORD.pack(kind, 0, error, -1, value, 0, *used)


class Zygote:
    """The fork server: it forks for each request, and reports the end of a child on the child's socket."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.ends: dict[int, int] = {}
        self.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.libc: Any = ctypes.CDLL(None, use_errno=True)
        self.awake, self.waker = socket.socketpair()
        for one in (self.awake, self.waker):
            one.setblocking(False)

    def hide(self) -> None:
        """No process of the same user reads or writes this memory, or takes its fds; children inherit it."""
        if self.libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "PR_SET_DUMPABLE")

    def say(self, **what: Any) -> None:
        """One message to the caller."""
        self.control.send(json.dumps(what).encode())

    def prepare(self) -> bool:
        """Tell who this is, and do the imports; False where there is nothing to go on with."""
        version = ".".join(map(str, sys.version_info[:3]))
        magic = importlib.util.MAGIC_NUMBER.hex()
        self.say(implementation=sys.implementation.name, version=version, magic=magic)
        data, fds, _, _ = socket.recv_fds(self.control, 1 << 17, 4)
        if not data:
            return False
        try:
            request = json.loads(data)
            with open(fds[0], "rb") as shipped:
                shipped.seek(0)
                install(marshal.load(shipped))
            complete_path()
            for name in request["imports"]:
                importlib.import_module(name)
        except BaseException as error:  # noqa: BLE001  the caller gets it
            self.say(error=described(error))
            return False
        return True

    def serve(self) -> None:
        """Until the caller lets go of the control socket."""
        sys.stdout.flush()
        sys.stderr.flush()
        for fd in (1, 2):
            os.dup2(self.null, fd)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)  # a call that is killed has said what it had said
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.waker.fileno(), warn_on_full_buffer=False)
        gc.collect()
        gc.freeze()
        self.say(ready=True)
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(self.awake, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if self.awake.fileno() in ready:
                self.reap()
            if self.control.fileno() in ready:
                data, fds, _, _ = socket.recv_fds(self.control, 64, 32)
                if not data:
                    return
                self.fork(fds)

    def fork(self, fds: list[int]) -> None:
        """One child, with the fds of its call: input, output, errors, result, end, and what it enters by."""
        try:
            pid = os.fork()
        except OSError as error:
            with socket.socket(fileno=fds[4]) as end:
                end.send(record(FAILED, error=error.errno or errno.EAGAIN))
            for fd in fds[:4] + fds[5:]:
                os.close(fd)
            return
        if pid == 0:
            status = 125
            try:
                self.become_child()
                status = Child(fds, self.null, self.libc).run()
            finally:
                os._exit(status)
        self.ends[pid] = fds[4]
        for fd in fds[:4] + fds[5:]:
            os.close(fd)

    def become_child(self) -> None:
        """Close the sockets and signal handling of the zygote."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for one in (self.control, self.awake, self.waker):
            one.close()
        for fd in self.ends.values():
            os.close(fd)
        self.ends.clear()

    def reap(self) -> None:
        """Report the children that ended."""
        try:
            while self.awake.recv(256):
                pass
        except BlockingIOError:
            pass
        while self.ends:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            try:
                # Before it is reaped, so that its number is not reused yet.
                os.killpg(ended.si_pid, signal.SIGKILL)
            except OSError:
                pass
            pid, status, usage = os.wait4(ended.si_pid, 0)
            fd = self.ends.pop(pid, None)
            if fd is not None:
                with socket.socket(fileno=fd) as end:
                    try:
                        end.send(record(EXITED, status, usage=usage))
                    except OSError:
                        pass


class Child:
    """One call."""

    def __init__(self, fds: list[int], null: int, libc: Any) -> None:
        self.input, self.output, self.errors, self.result, self.end = fds[:5]
        self.tasks = fds[5:]
        self.null = null
        self.libc: Any = libc

    def run(self) -> int:
        """Enter the call's groups, wait for the function, run it; the exit status."""
        try:
            for fd in self.tasks:
                os.write(fd, b"0")
                os.close(fd)
            os.setsid()
            for fd, place in ((self.null, 0), (self.output, 1), (self.errors, 2)):
                os.dup2(fd, place)
            for fd in (self.null, self.output, self.errors):
                os.close(fd)
            self.confine()
        except OSError as error:
            os.write(self.end, record(FAILED, error=error.errno or errno.EIO))
            return 125
        reseed()
        os.write(self.end, record(STARTED, os.getpid()))
        with open(self.input, "rb") as source:
            cap, size = HEADER.unpack(source.read(HEADER.size) or bytes(HEADER.size))
            payload = source.read() if size else b""
        if not size or len(payload) != size:
            return 0  # the caller has dropped this child
        # From here on it may be hostile, so it has no descriptor of the zygote.
        os.pwrite(self.result, HEADER.pack(TAKEN, 0), 0)
        os.close(self.end)
        answer, status = self.answer(payload, cap)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                pass
        size = 0
        for part in answer:
            view = memoryview(part)
            while view:
                done = os.pwrite(self.result, view, HEADER.size + size)
                size, view = size + done, view[done:]
        os.pwrite(self.result, HEADER.pack(TAKEN, size), 0)
        return status

    def confine(self) -> None:
        """No signals to the zygote and other calls, where the kernel can (Linux 6.12)."""
        attributes = struct.pack("<3Q", 0, 0, LANDLOCK_SCOPE_SIGNAL)
        fd = self.libc.syscall(LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
        if fd >= 0:
            self.libc.syscall(LANDLOCK_RESTRICT_SELF, fd, 0)
            os.close(fd)

    def answer(self, payload: bytes, most: int) -> tuple[list[Any], int]:
        """Return the parts of the encoded result, of `most` bytes at most, and the exit status."""
        writer = sys.modules[f"{PARTS}.writer"]
        try:
            function, arguments, keywords, names, initializer = pickle.loads(payload)
            if initializer is not None:
                initializer()
            value = function(*arguments, **keywords)
        except BaseException as error:  # noqa: BLE001  the caller gets it
            return writer.encode_error(*described(error)), 1
        try:
            return writer.encode(value, names, most), 0
        except writer.TooLong as error:
            return writer.encode_error("OverflowError", str(error), ""), 1
        except (writer.NotPlain, RecursionError, MemoryError) as error:
            return writer.encode_error("NotPlain", str(error), ""), 1
        except Exception as error:  # noqa: BLE001  a method of the caller's class, as its fields are read
            return writer.encode_error(*described(error)), 1


def reseed() -> None:
    """No two calls draw the same numbers.  `random` sees to itself after a fork; numpy's old way does not."""
    legacy = sys.modules.get("numpy.random")
    if legacy is not None:
        legacy.seed()


def install(sources: list[tuple[str, bool, Any]]) -> None:
    """The caller's own cloudpickle, so that both ends have the same one."""
    for name, is_package, _ in sources:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=is_package)
        module.__package__ = name if is_package else name.rpartition(".")[0]
        if is_package:
            module.__path__ = []
        sys.modules[name] = module
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
    for name, _, code in reversed(sources):  # a package's own code asks for what is in it
        exec(code, sys.modules[name].__dict__)


def complete_path() -> None:
    """Add the packages' directories to sys.path, which begins with nothing but the standard library.

    The interpreter starts with -I -S: until here, nothing is imported from a directory that a guest without
    privileges writes to.  PYTHONPATH is the image's or the caller's.  Lines of .pth files count as paths
    only; code in them, sitecustomize and usercustomize are not run.
    """
    import site

    site.addpackage = add_paths  # type: ignore[assignment]
    known: Any = site.venv(site.removeduppaths())
    site.addsitepackages(known)
    for name in ("setquit", "setcopyright", "sethelper"):
        getattr(site, name)()
    chosen = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [one for one in chosen if os.path.isabs(one)]


def add_paths(directory: str, name: str, known: Any) -> Any:
    """Add the directories that a .pth file names; in place of site.addpackage."""
    try:
        with open(os.path.join(directory, name), encoding="utf-8") as file:
            lines = file.read(1 << 20).splitlines()
    except (OSError, ValueError):
        return known
    for line in map(str.rstrip, lines):
        if line and not line.startswith(("#", "import ", "import\t")):
            path = os.path.abspath(os.path.join(directory, line))
            if path not in sys.path and os.path.isdir(path):
                sys.path.append(path)
    return known


def main() -> None:
    """Take the control socket from standard input, prepare, serve."""
    control = socket.socket(fileno=os.dup(0))
    zygote = Zygote(control)
    os.dup2(zygote.null, 0)
    zygote.hide()
    if zygote.prepare():
        zygote.serve()


if __name__ == "__main__":
    main()
