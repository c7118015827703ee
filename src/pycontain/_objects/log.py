"""Log of a container's command: the last 16 MiB of output with time and stream."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from attrs import frozen

from pycontain._model.sizes import parse_duration

Since: TypeAlias = float | datetime | timedelta | None

_KEPT = 16 << 20
_ENTRY = 128
"""Minimum size of an entry in bytes, since single bytes take much more memory than their size."""


@frozen
class Entry:
    """Result of one read.

    Attributes:
        at: Seconds since the epoch.
        stream: 1 for standard output, 2 for standard error.
        data: The bytes.
    """

    at: float
    stream: int
    data: bytes


@frozen
class Selection:
    """Arguments of `Container.logs`, checked."""

    streams: frozenset[int]
    since: float
    tail: int | None
    timestamps: bool

    @classmethod
    def of(cls, stdout: bool, stderr: bool, since: Since, tail: int | None, timestamps: bool) -> Selection:
        """Check the arguments.

        Raises:
            ValueError: An argument is malformed.
            TypeError: An argument has the wrong type.
        """
        if not (stdout or stderr):
            raise ValueError("stdout and stderr must not both be False")
        if tail is not None and (isinstance(tail, bool) or not isinstance(tail, int) or tail < 0):
            raise ValueError(f"tail must be a non-negative int, got {tail!r}")
        streams = frozenset(number for number, wanted in ((1, stdout), (2, stderr)) if wanted)
        return cls(streams, _moment(since), tail, timestamps)

    def first_of(self, entries: Iterable[Entry]) -> list[Entry]:
        """Return the selected part of the entries that are in the log already."""
        wanted = [one for one in entries if one.stream in self.streams and one.at >= self.since]
        return wanted if self.tail is None else _last_lines(wanted, self.tail)


def _moment(since: Since) -> float:
    if since is None:
        return 0.0
    if isinstance(since, datetime):
        return since.timestamp()
    if isinstance(since, timedelta):
        return time.time() - parse_duration(since)
    if isinstance(since, bool) or not isinstance(since, int | float):
        raise TypeError(f"since must be seconds since the epoch, a datetime or a timedelta, got {since!r}")
    return float(since)


def _last_lines(entries: list[Entry], lines: int) -> list[Entry]:
    """Return the last lines of entries; an unfinished last line counts."""
    found: list[Entry] = []
    missing = lines
    # A newline at the very end finishes the last line and does not begin another one.
    ends_whole = bool(entries) and entries[-1].data.endswith(b"\n")
    missing += 1 if ends_whole else 0
    for one in reversed(entries):
        if lines == 0:
            break
        at = len(one.data)
        while missing > 0 and (at := one.data.rfind(b"\n", 0, at)) >= 0:
            missing -= 1
        if missing > 0:
            found.append(one)
            continue
        if at + 1 < len(one.data):
            found.append(Entry(one.at, one.stream, one.data[at + 1 :]))
        break
    return found[::-1]


class Stamper:
    """Adds the time to lines, in UTC as in RFC 3339."""

    def __init__(self) -> None:
        self._inside: dict[int, bool] = {}

    def stamp(self, entry: Entry) -> bytes:
        """Return the bytes of an entry with the time before each line that begins in them."""
        moment = datetime.fromtimestamp(entry.at, UTC).isoformat(timespec="microseconds")
        prefix = f"{moment.removesuffix('+00:00')}Z ".encode()
        lines = _lines(entry.data)
        inside = self._inside.get(entry.stream, False)
        self._inside[entry.stream] = not entry.data.endswith(b"\n")
        return b"".join(line if inside and not place else prefix + line for place, line in enumerate(lines))


def _lines(data: bytes) -> list[bytes]:
    """Split bytes after newlines only."""
    parts = data.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


class OutputLog:
    """Entries in order of arrival; above 16 MiB the oldest are dropped."""

    def __init__(self) -> None:
        self.dropped = 0
        self._entries: collections.deque[Entry] = collections.deque()
        self._kept = 0
        self._first = 0
        self._over = False
        # Acquired directly: an exception of a signal handler in Condition.__enter__ would leave it locked.
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)

    def add(self, stream: int, data: bytes) -> None:
        """Append bytes that were just read."""
        with self._mutex:
            self._entries.append(Entry(time.time(), stream, data))
            self._kept += max(len(data), _ENTRY)
            while self._kept > _KEPT:
                size = len(self._entries.popleft().data)
                self._kept -= max(size, _ENTRY)
                self.dropped += size
                self._first += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Mark the log as complete."""
        with self._mutex:
            self._over = True
            self._changed.notify_all()

    def read(self, selection: Selection, follow: bool) -> Iterator[bytes]:
        """Iterate over selected bytes, with `follow` until the log is complete."""
        stamper = Stamper() if selection.timestamps else None
        at, first = 0, True
        while True:
            with self._mutex:
                while follow and not self._over and self._first + len(self._entries) <= at:
                    self._changed.wait()
                skipped = max(0, at - self._first)
                ready = list(self._entries)[skipped:]
                at = self._first + len(self._entries)
                over = self._over
            kept = (
                selection.first_of(ready)
                if first
                else [one for one in ready if one.stream in selection.streams]
            )
            first = False
            for one in kept:
                yield stamper.stamp(one) if stamper is not None else one.data
            if not follow or (over and not ready):
                return
