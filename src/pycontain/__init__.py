"""Container engine as an embeddable Python library, without a daemon and without root.

>>> from pycontain import Container
>>> with Container(memory="256M") as c:
...     result = c.exec(["python3", "-c", "print(6 * 7)"], timeout=5)
"""

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycontain._images.bounds import LayerLimits
    from pycontain._images.progress import Progress
    from pycontain._model.change import Change
    from pycontain._model.limits import CgroupLimits
    from pycontain._model.mounts import Bind, Tmpfs
    from pycontain._model.process import CallResult, ExecResult, ExitStatus, Usage
    from pycontain._networks.egress import Refused
    from pycontain._objects.beneath import open_beneath
    from pycontain._objects.container import Container
    from pycontain._objects.egress import Egress
    from pycontain._objects.engine import Engine
    from pycontain._objects.faults import Partition
    from pycontain._objects.image import Image
    from pycontain._objects.network import Endpoint, Network
    from pycontain._objects.path import ContainerPath
    from pycontain._objects.process import Process
    from pycontain._objects.run import run
    from pycontain._objects.snapshot import Snapshot
    from pycontain._objects.volume import Volume
    from pycontain._objects.zygote import Zygote
    from pycontain._runtime.cancel import CancelToken
    from pycontain._runtime.isolation import Isolation
    from pycontain._runtime.stats import Stats
    from pycontain._runtime.streams import BUFFER, DEVNULL, PIPE, STDOUT, Descriptor
    from pycontain._security.policy import Security
    from pycontain.errors import (
        AuthError,
        BuildError,
        CallError,
        CommandFailed,
        CommandNotExecutable,
        CommandNotFound,
        CommandTimeout,
        Conflict,
        ContainerEnded,
        DigestMismatch,
        ImageError,
        InvalidReference,
        LimitError,
        NotFound,
        PathError,
        PullError,
        PushError,
        PycontainError,
        StartError,
        StateError,
        UnsupportedError,
        WorkdirError,
    )
    from pycontain.executor import SandboxExecutor, sandboxed

__version__ = "0.1.0"

__all__ = [
    "BUFFER",
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "AuthError",
    "Bind",
    "BuildError",
    "CallError",
    "CallResult",
    "CancelToken",
    "CgroupLimits",
    "Change",
    "CommandFailed",
    "CommandNotExecutable",
    "CommandNotFound",
    "CommandTimeout",
    "Conflict",
    "Container",
    "ContainerEnded",
    "ContainerPath",
    "Descriptor",
    "DigestMismatch",
    "Egress",
    "Endpoint",
    "Engine",
    "ExecResult",
    "ExitStatus",
    "Image",
    "ImageError",
    "InvalidReference",
    "Isolation",
    "LayerLimits",
    "LimitError",
    "Network",
    "NotFound",
    "Partition",
    "PathError",
    "Process",
    "Progress",
    "PullError",
    "PushError",
    "PycontainError",
    "Refused",
    "SandboxExecutor",
    "Security",
    "Snapshot",
    "StartError",
    "StateError",
    "Stats",
    "Tmpfs",
    "UnsupportedError",
    "Usage",
    "Volume",
    "WorkdirError",
    "Zygote",
    "open_beneath",
    "run",
    "sandboxed",
]

_HOMES = {
    "SandboxExecutor": "executor",
    "sandboxed": "executor",
    "Engine": "_objects.engine",
    "LayerLimits": "_images.bounds",
    "Progress": "_images.progress",
    "CgroupLimits": "_model.limits",
    "Bind": "_model.mounts",
    "Tmpfs": "_model.mounts",
    "CallResult": "_model.process",
    "ExecResult": "_model.process",
    "ExitStatus": "_model.process",
    "Usage": "_model.process",
    "Change": "_model.change",
    "open_beneath": "_objects.beneath",
    "Container": "_objects.container",
    "Egress": "_objects.egress",
    "Endpoint": "_objects.network",
    "Network": "_objects.network",
    "Partition": "_objects.faults",
    "Refused": "_networks.egress",
    "ContainerPath": "_objects.path",
    "Image": "_objects.image",
    "Process": "_objects.process",
    "run": "_objects.run",
    "Snapshot": "_objects.snapshot",
    "Volume": "_objects.volume",
    "Zygote": "_objects.zygote",
    "Isolation": "_runtime.isolation",
    "Stats": "_runtime.stats",
    "CancelToken": "_runtime.cancel",
    "BUFFER": "_runtime.streams",
    "DEVNULL": "_runtime.streams",
    "Descriptor": "_runtime.streams",
    "PIPE": "_runtime.streams",
    "STDOUT": "_runtime.streams",
    "Security": "_security.policy",
    "AuthError": "errors",
    "BuildError": "errors",
    "CallError": "errors",
    "CommandFailed": "errors",
    "CommandNotExecutable": "errors",
    "CommandNotFound": "errors",
    "CommandTimeout": "errors",
    "Conflict": "errors",
    "ContainerEnded": "errors",
    "DigestMismatch": "errors",
    "ImageError": "errors",
    "InvalidReference": "errors",
    "LimitError": "errors",
    "NotFound": "errors",
    "PathError": "errors",
    "PullError": "errors",
    "PushError": "errors",
    "PycontainError": "errors",
    "StartError": "errors",
    "StateError": "errors",
    "UnsupportedError": "errors",
    "WorkdirError": "errors",
}
"""Module of each public name; a module is imported when one of its names is first used."""


def __getattr__(name: str) -> object:
    if name in ("errors", "lowlevel", "oci"):
        return import_module(f"pycontain.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'pycontain' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"pycontain.{home}"), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "errors", "lowlevel", "oci"]
