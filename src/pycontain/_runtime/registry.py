"""Registry of the live containers of a session, and of the names that they use."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from pycontain.errors import Conflict, NotFound, StateError

if TYPE_CHECKING:
    from pycontain._runtime.running import Running
    from pycontain._runtime.spec import ContainerSpec


class Registry:
    """The live containers of one session, in the order of their starts."""

    def __init__(self) -> None:
        self.closed = False
        self._lock = threading.Lock()
        self._running: dict[str, Running] = {}
        self._names: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._running)

    def claim(self, spec: ContainerSpec) -> None:
        """Claim the name of a container that is about to start.

        Raises:
            Conflict: Another live container has the name.
        """
        with self._lock:
            if self._names.setdefault(spec.name, spec.id) != spec.id:
                raise Conflict(
                    f"container name {spec.name!r} is already in use",
                    hint="remove that container, or use another name",
                )

    def release(self, spec: ContainerSpec) -> None:
        """Free the name of a container.  Idempotent."""
        with self._lock:
            if self._names.get(spec.name) == spec.id:
                del self._names[spec.name]

    def add(self, running: Running) -> None:
        """Add a container that has started.

        Raises:
            StateError: The session is closed; the caller ends the container.
        """
        with self._lock:
            if self.closed:
                raise StateError("the engine is closed")
            self._running[running.spec.id] = running

    def remove(self, running: Running) -> bool:
        """Remove a container that has ended, and return whether it was there."""
        with self._lock:
            if self._running.get(running.spec.id) is not running:
                return False
            del self._running[running.spec.id]
            running.handle = None
            return True

    def get(self, name: str) -> Running | None:
        """Return the live container of this id, or None."""
        with self._lock:
            return self._running.get(name)

    def find(self, name: str) -> Running:
        """Return the live container of this name, id or short id.

        Raises:
            NotFound: There is none.
        """
        for running in self.live():
            if name in (running.spec.name, running.spec.id, running.spec.id[:12]):
                return running
        raise NotFound(f"no running container {name!r} in this engine")

    def live(self) -> list[Running]:
        """Return the live containers."""
        with self._lock:
            return list(self._running.values())

    def forget(self) -> None:
        """Close the containers' descriptors in a forked child, without taking the lock."""
        self.closed = True
        for running in list(self._running.values()):
            running.forget()
