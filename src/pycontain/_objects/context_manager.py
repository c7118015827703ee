"""Base class of objects with a `close` method."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class ClosingContextManager:
    """A context manager that calls `close` on exit."""

    def close(self) -> None:
        """Release the object's resources."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
