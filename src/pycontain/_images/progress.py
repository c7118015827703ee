"""Progress of a pull or push, as one number for the whole image."""

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
    """The progress of a transfer.

    Attributes:
        reference: The image.
        phase: The current phase.
        done: Bytes transferred so far.
        total: Bytes to transfer; content that is present already does not count.
        layers_done: Number of complete layers.
        layers: Number of all layers.
    """

    reference: str
    phase: Phase
    done: int = 0
    total: int = 0
    layers_done: int = 0
    layers: int = 0


ProgressOption: TypeAlias = "Callable[[Progress], object] | bool | None"
"""A callback for each change, True or False for a progress bar, None for a bar on a terminal only."""


class Meter:
    """A thread-safe counter that reports each change."""

    def __init__(self, reference: str, report: Callable[[Progress], object]) -> None:
        self._reference, self._report = reference, report
        self._mutex = threading.Lock()
        self._done = self._total = self._layers_done = self._layers = 0
        self._phase: Phase = "resolving"
        self._changed()

    def _changed(self) -> None:
        self._report(
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
        """Begin to transfer `total` bytes in `layers` layers, `there` of which are present."""
        with self._mutex:
            self._total, self._layers, self._layers_done = total, layers, there
            self._phase = "transferring"
            self._changed()

    def add(self, size: int) -> None:
        """Count bytes; a negative size where bytes are transferred again."""
        with self._mutex:
            self._done += size
            self._changed()

    def layer(self) -> None:
        """Count one complete layer."""
        with self._mutex:
            self._layers_done += 1
            self._changed()

    def phase(self, phase: Phase) -> None:
        """Enter a phase."""
        with self._mutex:
            self._phase = phase
            self._changed()


@contextlib.contextmanager
def metering(reference: str, option: ProgressOption) -> Iterator[Meter]:
    """Yield a meter that reports as the option asks."""
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
    """Return a progress bar of rich on standard error, and its callback."""
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

    def update(progress: Progress) -> None:
        text = f"{reference} [{progress.layers_done}/{progress.layers} layers] {progress.phase}"
        bars.update(task, description=text, total=progress.total or None, completed=progress.done)

    return bars, update
