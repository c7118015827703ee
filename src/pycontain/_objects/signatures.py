"""Options of commands as TypedDicts, for overloads that distinguish text from bytes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TypedDict

from pycontain._model.limits import CgroupLimits
from pycontain._runtime.cancel import CancelToken
from pycontain._runtime.streams import Stream


class CommandOptions(TypedDict, total=False):
    """Options that `Container.exec` and `run` share, except `text`."""

    input: str | bytes | None
    stdin: Stream
    stdout: Stream
    stderr: Stream
    timeout: float | timedelta | None
    check: bool
    encoding: str
    errors: str
    max_output: int | str | None
    shell: bool
    cancel: CancelToken | None


class PopenOptions(TypedDict, total=False):
    """Options of `Container.popen`, except `text`."""

    stdin: Stream
    stdout: Stream
    stderr: Stream
    pty: bool
    encoding: str
    errors: str
    env: Mapping[str, str] | None
    workdir: str | None
    user: str | int | None
    limits: CgroupLimits | None
    shell: bool
    rows: int
    columns: int
    timeout: float | timedelta | None
    max_output: int | str | None
    kill_orphans: bool
    cancel: CancelToken | None


class ExecOptions(CommandOptions, total=False):
    """Options of `Container.exec`, except `text`."""

    env: Mapping[str, str] | None
    workdir: str | None
    user: str | int | None
    limits: CgroupLimits | None
    kill_orphans: bool
