"""How far a pull or push has come: one number for the whole image."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

from attrs import frozen

Phase: TypeAlias = Literal["resolving", "transferring", "finishing", "done"]


@frozen(kw_only=True)
class Progress:
    """Where it stands.

    done, total: bytes to be transferred, those already there not counted.  layers_done, layers: how
    many of all.
    """

    reference: str
    phase: Phase
    done: int = 0
    total: int = 0
    layers_done: int = 0
    layers: int = 0


ProgressOption: TypeAlias = "Callable[[Progress], object] | bool | None"
"""A function that is called with each change, True or False for a bar, None for one on a terminal."""


class Meter:
    """Counts, and tells."""

    def __init__(self, reference: str, tell: Callable[[Progress], object]) -> None:
        self._reference, self._tell = reference, tell
        self._mutex = threading.Lock()
        self._done = self._total = self._layers_done = self._layers = 0
        self._phase: Phase = "resolving"
        self._say()

    def _say(self) -> None:
        self._tell(
            Progress(
                reference=self._reference,
                phase=self._phase,
                done=self._done,
                total=self._total,
                layers_done=self._layers_done,
                layers=self._layers,
            )
        )

    def begin(self, total: int, layers: int, there: int) -> None:
        """So much is to come, in so many layers, of which some are there."""
        with self._mutex:
            self._total, self._layers, self._layers_done = total, layers, there
            self._phase = "transferring"
            self._say()

    def add(self, size: int) -> None:
        """So many bytes came, or went back where they are sent again."""
        with self._mutex:
            self._done += size
            self._say()

    def layer(self) -> None:
        """One more is whole."""
        with self._mutex:
            self._layers_done += 1
            self._say()

    def phase(self, phase: Phase) -> None:
        """From here on it is this."""
        with self._mutex:
            self._phase = phase
            self._say()


@contextlib.contextmanager
def metering(reference: str, option: ProgressOption) -> Iterator[Meter]:
    """A meter that tells whom it should."""
    if callable(option):
        yield Meter(reference, option)
        return
    wanted = sys.stderr is not None and sys.stderr.isatty() if option is None else bool(option)
    if not wanted:
        yield Meter(reference, lambda _: None)
        return
    try:
        bar = _bar(reference)
    except ImportError:
        yield Meter(reference, lambda _: None)
        return
    with bar[0]:
        yield Meter(reference, bar[1])


def _bar(reference: str) -> tuple[Any, Callable[[Progress], object]]:
    """A bar of rich's on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    bars = Bars(*columns, console=Console(stderr=True))
    task = bars.add_task(reference, total=None)

    def tell(progress: Progress) -> None:
        text = f"{reference} [{progress.layers_done}/{progress.layers} layers] {progress.phase}"
        bars.update(task, description=text, total=progress.total or None, completed=progress.done)

    return bars, tell
