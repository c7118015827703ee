"""Wait for descriptors and read the clock, whatever has been patched in this process.

gevent and eventlet replace `select` so that a wait lets other greenlets run.  A wait in C would stop
all of them: there a call of C is given no time, and the wait between two calls is the hub's.
"""

from __future__ import annotations

import contextlib
import importlib
import select
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from pycontain._kernel import native

Wait: TypeAlias = Callable[[Mapping[int, int], "float | None"], list[int]]

IN, OUT, PRIORITY = 1, 4, 2
"""Events of poll(2), which eventlet takes out of `select`."""
_LONGEST_POLL = 2_000_000
"""Seconds: poll(2) takes an int of milliseconds."""


def now() -> float:
    """Return CLOCK_MONOTONIC in seconds, even if a test has frozen `time`."""
    return now_ns() / 1e9


def now_ns() -> int:
    """Return CLOCK_MONOTONIC in nanoseconds."""
    return int(native.lib.pcx_clock())


def cooperative() -> Wait | None:
    """The wait of a patched process; None where a thread may simply block."""
    # A look into sys.modules: neither library is imported for this.
    modules = sys.modules
    if "gevent.monkey" in modules and modules["gevent.monkey"].is_module_patched("select"):
        return _by_gevent
    if "eventlet.patcher" in modules and modules["eventlet.patcher"].is_monkey_patched("select"):
        return _by_eventlet
    return None


def ready(wanted: Mapping[int, int], seconds: float | None = None) -> list[int]:
    """Descriptors of which something has come; none at the timeout.

    wanted: descriptor to IN, OUT or PRIORITY.
    """
    return (cooperative() or _by_poll)(wanted, seconds)


def is_ready(fd: int, seconds: float | None = None) -> bool:
    """Return whether this descriptor can be read or has ended; False at the timeout."""
    return bool(ready({fd: IN}, seconds))


def _by_poll(wanted: Mapping[int, int], seconds: float | None, kind: Any = None) -> list[int]:
    poll = kind() if kind is not None else select.poll()
    for fd, events in wanted.items():
        poll.register(fd, events)
    return [fd for fd, _ in poll.poll(None if seconds is None else min(seconds, _LONGEST_POLL) * 1000)]


def _by_gevent(wanted: Mapping[int, int], seconds: float | None) -> list[int]:
    hub, current = _attributes("gevent", "get_hub", "getcurrent")
    # The hub itself cannot wait for the hub, so a finalizer that runs in it blocks.
    if current() is hub():
        (original,) = _attributes("gevent.monkey", "get_original")
        return _by_poll(wanted, seconds, original("select", "poll"))
    return _by_poll(wanted, seconds, *_attributes("gevent.select", "poll"))


def _by_eventlet(wanted: Mapping[int, int], seconds: float | None) -> list[int]:
    (hub,) = _attributes("eventlet.hubs", "get_hub")
    (current,) = _attributes("greenlet", "getcurrent")
    (original,) = _attributes("eventlet.patcher", "original")
    if seconds == 0 or current() is hub().greenlet:
        return _by_poll(wanted, seconds, original("select").poll)
    # One descriptor for all: after a wait for several, a second event that came with the first would end the
    # greenlet's next wait, whatever that is for.
    (trampoline,) = _attributes("eventlet.hubs", "trampoline")
    epoll = original("select").epoll()
    try:
        for fd, events in wanted.items():
            epoll.register(fd, events)
        with contextlib.suppress(_LateError):
            trampoline(epoll.fileno(), read=True, timeout=seconds, timeout_exc=_LateError)
        return [fd for fd, _ in epoll.poll(0)]
    finally:
        epoll.close()


class _LateError(Exception):
    """The timeout of a wait."""


def _attributes(module: str, *names: str) -> list[Any]:
    """Of a library that is there already, or is a part of one."""
    found = importlib.import_module(module)
    return [getattr(found, name) for name in names]
