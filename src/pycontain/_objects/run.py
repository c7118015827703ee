"""Function `run`: a command in a container of its own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

from pycontain._model.options import check_options
from pycontain._objects.container import Container
from pycontain._objects.signatures import CommandOptions
from pycontain._runtime.streams import DEVNULL, PIPE, Stream
from pycontain.errors import Args

if TYPE_CHECKING:
    from pycontain._model.limits import CgroupLimits
    from pycontain._model.ports import Ports
    from pycontain._model.process import ExecResult
    from pycontain._objects.engine import Engine
    from pycontain._objects.image import Image
    from pycontain._objects.network_spec import Networks
    from pycontain._runtime.cancel import CancelToken
    from pycontain._runtime.spec import Mounts, TmpfsOption
    from pycontain._security.policy import Rlimits, Security


class ContainerOptions(TypedDict, total=False):
    """Options of `Container` that `run` accepts."""

    name: str | None
    env: Mapping[str, str] | None
    workdir: str | os.PathLike[str] | None
    user: str | int | None
    hostname: str | None
    memory: int | str | None
    cpus: float | str | None
    pids: int | str | None
    disk: int | str | None
    limits: CgroupLimits | None
    rlimits: Rlimits | None
    network: Networks
    ports: Ports | None
    volumes: Mounts | None
    mounts: Mounts | None
    tmpfs: TmpfsOption | None
    read_only: bool
    security: Security
    runtime: str | None
    entrypoint: Args | None
    shm_size: int | str | None
    sysctls: Mapping[str, str | int] | None
    group_add: Iterable[str | int] | str | int | None
    stop_timeout: float | timedelta | None
    labels: Mapping[str, str] | None
    engine: Engine | None


class RunOptions(ContainerOptions, CommandOptions, total=False):
    """Options of `run` except `text`."""


@overload
def run(
    image: Image | str | None, args: Args, *, text: Literal[True] = True, **options: Unpack[RunOptions]
) -> ExecResult[str]: ...


@overload
def run(
    image: Image | str | None, args: Args, *, text: Literal[False], **options: Unpack[RunOptions]
) -> ExecResult[bytes]: ...


@overload
def run(
    image: Image | str | None, args: Args, *, text: bool, **options: Unpack[RunOptions]
) -> ExecResult[Any]: ...


def run(
    image: Image | str | None,
    args: Args,
    *,
    timeout: float | timedelta | None = None,
    check: bool = False,
    input: str | bytes | None = None,
    stdin: Stream = DEVNULL,
    stdout: Stream = PIPE,
    stderr: Stream = PIPE,
    text: bool = True,
    encoding: str = "utf-8",
    errors: str = "replace",
    max_output: int | str | None = "16M",
    shell: bool = False,
    cancel: CancelToken | None = None,
    **options: Unpack[ContainerOptions],
) -> ExecResult[Any]:
    """Start a container, run a command in it, and remove the container.

    Arguments before `options` have the meaning that they have in `Container.exec`.

    Args:
        image: The image, its name, or None for `Image.host()`.
        args: The command as a sequence, or one string with `shell=True`.
        timeout: Seconds after which the command is killed.
        check: Raise CommandFailed for a status other than 0.
        input: Text or bytes for standard input.
        stdin: Standard input instead of `input`: a file, a descriptor, or DEVNULL.
        stdout: PIPE to capture, a file, a descriptor, or DEVNULL.
        stderr: As `stdout`, or STDOUT to combine both.
        text: Return output as text instead of bytes.
        encoding: Encoding of text.
        errors: Handling of encoding errors, as in `bytes.decode`.
        max_output: Bytes per stream above which the command is killed; None for no maximum.
        shell: Run the string `args` by /bin/sh.
        cancel: A token by which another thread ends the command.
        **options: Options of `Container`.

    Raises:
        StartError: The container cannot be started.
        CommandTimeout: The timeout passed; further errors are those of `Container` and `Container.exec`.
    """
    check_options("run", options, ContainerOptions)
    with Container(image, **options) as container:
        return container.exec(
            args,
            timeout=timeout,
            check=check,
            input=input,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=text,
            encoding=encoding,
            errors=errors,
            max_output=max_output,
            shell=shell,
            cancel=cancel,
        )
