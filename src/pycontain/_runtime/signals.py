"""Deferral of Python's signal handlers while something is undone."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

_MOST_INTERRUPTIONS = 1000
"""Handlers in a row that may raise before deferral is given up."""


def shielded(work: Callable[[], None]) -> None:
    """Call a function so that no signal handler interrupts it; handlers run afterwards.

    Python runs handlers in the main thread only, so they are replaced there meanwhile.  No thread does the
    work instead: where memory is short, none may be available, or it may die before it begins.

    Args:
        work: The function.

    Raises:
        BaseException: The exception of `work`, or else the one of a deferred handler.
    """
    if threading.current_thread() is not threading.main_thread():
        work()
        return
    saved: dict[int, Any] = {}
    arrived: list[int] = []
    pending = _repeat(lambda: _replace(saved, lambda number, _: arrived.append(number)))
    try:
        work()
    finally:
        pending = _repeat(lambda: _restore(saved)) or pending
    for number in arrived:
        saved[number](number, sys._getframe())
    if pending is not None:
        raise pending


def _repeat(work: Callable[[], None]) -> BaseException | None:
    """Repeat a function until no handler raised in it; return the last exception, or None."""
    pending: BaseException | None = None
    for _ in range(_MOST_INTERRUPTIONS):
        try:
            work()
            break
        except BaseException as error:  # noqa: BLE001  the caller raises it
            pending = error
    return pending


def _replace(saved: dict[int, Any], note: Callable[[int, object], None]) -> None:
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if callable(handler) and number not in saved:
            saved[number] = handler
            signal.signal(number, note)


def _restore(saved: dict[int, Any]) -> None:
    for number, handler in saved.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)
