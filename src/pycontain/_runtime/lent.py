"""Streams that a caller lends to a command: copied through pipes, so that the guest never has the file
itself.

With a descriptor that is open for appending, a guest could truncate the file.  With one that is open for
reading, it could open the file again through /proc/self/fd, also for writing if it has the id of the owner.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import select
import signal
import stat
import termios
import threading

from attrs import define

from pycontain.errors import PathIsDirectory

_CHUNK = 65536
_ATOMIC = 4096
"""Bytes for which a pipe has room when poll(2) calls it writable."""
_NAMES = ("stdin", "stdout", "stderr")


def check(number: int, fd: int) -> None:
    """Check that a descriptor can be this stream.

    Raises:
        PathIsDirectory: It is one of a directory, below which a guest could open files.
        ValueError: It is not open for reading, or not for writing.
        OSError: It is not open.
    """
    name, kind = _NAMES[number], os.fstat(fd).st_mode
    if stat.S_ISDIR(kind):
        raise PathIsDirectory(
            f"{name} must be a file, a pipe, a socket or a terminal, got a directory",
            errno=errno.EISDIR,
            hint="mount the directory with Bind, or copy it with copy_in",
        )
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    unfit = os.O_WRONLY if number == 0 else os.O_RDONLY
    if flags & os.O_PATH or flags & os.O_ACCMODE == unfit:
        raise ValueError(f"{name} must be open for {'writing' if number else 'reading'}")


@define(eq=False)
class _Way:
    """One lent stream: data that is read from `source` is written to `sink`."""

    source: int
    sink: int
    output: bool
    chunk: int
    readable: bool = False

    @property
    def open(self) -> bool:
        """Return whether more data may come."""
        return self.source >= 0

    def close(self) -> None:
        """Close both ends."""
        for fd in (self.source, self.sink):
            if fd >= 0:
                os.close(fd)
        self.source = self.sink = -1

    def carry(self) -> None:
        """Copy one chunk; close both ends at the end of the input and after an error of the output."""
        try:
            data = os.read(self.source, self.chunk)
            view = memoryview(data)
            while view:
                view = view[self._write(view) :]
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()

    def _write(self, view: memoryview) -> int:
        while True:
            try:
                return os.write(self.sink, view)
            except BlockingIOError:  # the descriptor of the caller is non-blocking
                poll = select.poll()
                poll.register(self.sink, select.POLLOUT)
                poll.poll()


class Carrier:
    """The lent streams of one command, copied by a thread after `start`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ways: list[_Way] = []

    def output(self, fd: int) -> int:
        """Lend a descriptor for writing; return the guest's end, which the caller closes."""
        ours, guest = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(ours, False)
        os.fchmod(guest, 0o200)  # a guest that opens it by name can only write too
        self._add(ours, fd, guest, output=True)
        return guest

    def input(self, fd: int) -> int:
        """Lend a descriptor for reading; return the guest's end, which the caller closes."""
        guest, ours = os.pipe2(os.O_CLOEXEC)
        os.fchmod(guest, 0o400)
        self._add(fd, ours, guest, output=False)
        return guest

    def _add(self, source: int, sink: int, guest: int, *, output: bool) -> None:
        ours, lent = (source, sink) if output else (sink, source)
        try:
            copy = fcntl.fcntl(lent, fcntl.F_DUPFD_CLOEXEC, 3)
        except BaseException:
            os.close(ours)
            os.close(guest)
            raise
        file = output and stat.S_ISREG(os.fstat(copy).st_mode)
        pair = (ours, copy) if output else (copy, ours)
        self._ways.append(_Way(*pair, output, _CHUNK if file else _ATOMIC))

    def start(self) -> None:
        """Start the thread, which ends with the last stream."""
        threading.Thread(target=self._run, name="pycontain-lent", daemon=True).start()

    def settle(self) -> None:
        """Copy all output so far, except for a stream whose receiver does not read."""
        with self._lock:
            for way in self._ways:
                while way.open and way.output and _pending(way.source) and _is_ready(way.sink):
                    way.carry()

    def close(self) -> None:
        """Close all descriptors of a command that did not start."""
        with self._lock:
            for way in self._ways:
                way.close()

    def _run(self) -> None:
        # A caller may have given SIGPIPE its default action, which ends the process.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
        while ways := [way for way in self._ways if way.open]:
            poll = select.poll()
            for way in ways:
                if not way.readable:
                    poll.register(way.source, select.POLLIN)
                # Without POLLOUT, poll(2) still reports that the last reader has closed.
                poll.register(way.sink, select.POLLOUT if way.readable else 0)
            for fd, events in poll.poll():
                self._serve(ways, fd, events)

    def _serve(self, ways: list[_Way], fd: int, events: int) -> None:
        for way in ways:
            # Without the lock for input: the read blocks if another reader of the caller's pipe is faster.
            with self._lock if way.output else contextlib.nullcontext():
                if fd == way.source:
                    way.readable = True
                elif fd == way.sink and way.readable:
                    way.readable = False
                    way.carry()
                elif fd == way.sink and events & (select.POLLERR | select.POLLNVAL):
                    way.close()


def _pending(pipe: int) -> int:
    count = array.array("i", [0])
    with contextlib.suppress(OSError):
        fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


def _is_ready(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))
