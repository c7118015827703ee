"""A container engine inside your Python process: no daemon, no root, no command line underneath.

>>> from pycontain import Container
>>> with Container(memory="256M") as c:
...     result = c.exec(["python3", "-c", "print(6 * 7)"], timeout=5)
"""

from pycontain._engine import Engine
from pycontain._model.limits import CgroupLimits
from pycontain._model.mounts import Bind, Tmpfs
from pycontain._model.process import ExecResult, Usage
from pycontain._objects.container import Container
from pycontain._objects.image import Image
from pycontain._objects.process import Process
from pycontain._objects.run import run
from pycontain._runtime.isolation import Isolation
from pycontain._runtime.stats import Stats
from pycontain._runtime.streams import DEVNULL, PIPE, STDOUT
from pycontain._security.policy import Security
from pycontain.errors import (
    AuthError,
    BuildError,
    CommandFailed,
    CommandNotExecutable,
    CommandNotFound,
    CommandTimeout,
    Conflict,
    DigestMismatch,
    ImageError,
    LimitError,
    NotFound,
    PathError,
    PullError,
    PycontainError,
    StartError,
    StateError,
    UnsupportedError,
    WorkdirError,
)

__version__ = "0.1.0"

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "AuthError",
    "Bind",
    "BuildError",
    "CgroupLimits",
    "CommandFailed",
    "CommandNotExecutable",
    "CommandNotFound",
    "CommandTimeout",
    "Conflict",
    "Container",
    "DigestMismatch",
    "Engine",
    "ExecResult",
    "Image",
    "ImageError",
    "Isolation",
    "LimitError",
    "NotFound",
    "PathError",
    "Process",
    "PullError",
    "PycontainError",
    "Security",
    "StartError",
    "StateError",
    "Stats",
    "Tmpfs",
    "UnsupportedError",
    "Usage",
    "WorkdirError",
    "run",
]
