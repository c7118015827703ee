"""States of a container and the permitted transitions between them."""

from __future__ import annotations

import threading
from enum import StrEnum

from pycontain.errors import StateError


class ContainerState(StrEnum):
    """State of a container, as `Container.status` has it."""

    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    EXITED = "exited"
    REMOVED = "removed"


_State = ContainerState

TRANSITIONS: dict[ContainerState, frozenset[ContainerState]] = {
    _State.CREATED: frozenset({_State.STARTING, _State.REMOVED}),
    _State.STARTING: frozenset({_State.RUNNING, _State.STOPPING, _State.EXITED}),
    _State.RUNNING: frozenset({_State.PAUSED, _State.STOPPING}),
    _State.PAUSED: frozenset({_State.RUNNING, _State.STOPPING}),
    _State.STOPPING: frozenset({_State.EXITED}),
    _State.EXITED: frozenset({_State.STARTING, _State.REMOVED}),
    _State.REMOVED: frozenset(),
}
"""State to the states that may follow it.  `docs/explanation/states.md` has the same table with causes."""


class StateMachine:
    """The state of one container.

    Attributes:
        lock: Held by every method that changes the state, for as long as the change takes.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._current = ContainerState.CREATED

    @property
    def current(self) -> ContainerState:
        """Return the state, without the lock: it may change at any time."""
        return self._current

    def change(self, to: ContainerState) -> None:
        """Change the state; no-op for the current one.

        Raises:
            StateError: The transition is not permitted.
        """
        with self.lock:
            if to is self._current:
                return
            if to not in TRANSITIONS[self._current]:
                raise StateError(f"a container that is {self._current} cannot become {to}")
            self._current = to
