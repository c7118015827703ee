"""Debug messages under the logger `pycontain`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pycontain._model.process import Reason
    from pycontain._runtime.exec import Execution

_DEBUG = 10


def debug(message: str, *values: object) -> None:
    """Log a message of level DEBUG.

    The module `logging` is not imported for it, since a program that has not imported it has no handler.

    Args:
        message: Text with %-placeholders, as `logging` takes it.
        values: Values for the placeholders.
    """
    logging = sys.modules.get("logging")
    if logging is None:
        return
    logger = logging.getLogger("pycontain")
    if logger.isEnabledFor(_DEBUG):
        logger.debug(message, *values)


def debug_end(execution: Execution, returncode: int, reason: Reason) -> None:
    """Log the end of a command.  Its arguments are left out, since they may be secrets."""
    name, program = execution.running.spec.name, execution.command.argv[0]
    debug("command %s in container %s ended with %d: %s", program, name, returncode, reason)
