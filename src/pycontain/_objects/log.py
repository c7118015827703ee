"""The last of what a container's own command wrote: when, on which stream, and the bytes."""

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
"""The least number of bytes that an entry counts for: single bytes take many times their size."""


@frozen
class Entry:
    """One read of a stream: seconds since the epoch, 1 or 2, and the bytes."""

    at: float
    stream: int
    data: bytes


@frozen
class Selection:
    """Which part of a log is wanted, and how it is given."""

    streams: frozenset[int]
    since: float
    tail: int | None
    timestamps: bool

    @classmethod
    def of(cls, stdout: bool, stderr: bool, since: Since, tail: int | None, timestamps: bool) -> Selection:
        """Raises ValueError and TypeError for malformed values."""
        if not (stdout or stderr):
            raise ValueError("stdout and stderr must not both be False")
        if tail is not None and (isinstance(tail, bool) or not isinstance(tail, int) or tail < 0):
            raise ValueError(f"tail must be a non-negative int, got {tail!r}")
        streams = frozenset(number for number, wanted in ((1, stdout), (2, stderr)) if wanted)
        return cls(streams, _moment(since), tail, timestamps)

    def first_of(self, entries: Iterable[Entry]) -> list[Entry]:
        """The entries that were kept already, as far as they are wanted."""
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
    """The end of the entries with this many lines; one without a newline at the end counts."""
    found: list[Entry] = []
    missing = lines
    # The newline at the very end ends the last line and begins none.
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
    """Puts the time before each line, as RFC 3339 in UTC."""

    def __init__(self) -> None:
        self._inside: dict[int, bool] = {}

    def stamp(self, entry: Entry) -> bytes:
        """Return the entry's bytes with a time before every line that begins in them."""
        moment = datetime.fromtimestamp(entry.at, UTC).isoformat(timespec="microseconds")
        prefix = f"{moment.removesuffix('+00:00')}Z ".encode()
        lines = _lines(entry.data)
        inside = self._inside.get(entry.stream, False)
        self._inside[entry.stream] = not entry.data.endswith(b"\n")
        return b"".join(line if inside and not place else prefix + line for place, line in enumerate(lines))


def _lines(data: bytes) -> list[bytes]:
    """Lines that end with a newline only."""
    parts = data.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


class OutputLog:
    """Entries in the order of their arrival; the oldest are dropped beyond 16 MiB."""

    def __init__(self) -> None:
        self.dropped = 0
        self._entries: collections.deque[Entry] = collections.deque()
        self._kept = 0
        self._first = 0
        self._over = False
        # Taken by itself: a handler's exception in the condition's own __enter__ would leave it locked.
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)

    def add(self, stream: int, data: bytes) -> None:
        """Keep what was read now."""
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
        """Nothing more comes."""
        with self._mutex:
            self._over = True
            self._changed.notify_all()

    def read(self, selection: Selection, follow: bool) -> Iterator[bytes]:
        """The bytes of what is kept; with follow, of what comes until the end too."""
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
