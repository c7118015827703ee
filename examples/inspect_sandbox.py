"""Sandbox provider for Inspect (inspect_ai): each sample gets a container of its own.

Import this module where tasks are defined, and name the provider: `Task(..., sandbox="pycontain")`, or
`sandbox=("pycontain", "registry.example.org/image")` for another image than the default one.
"""

from __future__ import annotations

import errno
import functools
import os
import posixpath
from collections.abc import Callable
from typing import Any, Literal, overload

import anyio
import anyio.to_thread
from inspect_ai.util import (
    ExecResult,
    OutputLimitExceededError,
    SandboxEnvironment,
    SandboxEnvironmentLimits,
    SandboxUserUnsupportedError,
    sandboxenv,
)

from pycontain import (
    CancelToken,
    CommandNotFound,
    CommandTimeout,
    Container,
    NotFound,
    PathError,
    Security,
)

_USER = "1000"
_WORKDIR = "/tmp"
_SECURITY = Security.SANDBOX.evolve(capabilities={"CHOWN", "DAC_OVERRIDE", "FOWNER"})


@sandboxenv(name="pycontain")
class PycontainSandbox(SandboxEnvironment):
    """Sandbox in one container.

    Commands and files have the rights of the container's user. `exec(..., user="root")` runs as its root,
    which may also write to the files of other users and give files away, so that it can add users.

    Args:
        container: A running container.
    """

    def __init__(self, container: Container) -> None:
        super().__init__()
        self.container = container

    @classmethod
    def default_concurrency(cls) -> int | None:
        """Return how many samples run at once: each command blocks a thread."""
        return 2 * (os.cpu_count() or 1)

    @classmethod
    async def sample_init(
        cls, task_name: str, config: Any, metadata: dict[str, str]
    ) -> dict[str, SandboxEnvironment]:
        """Start the container of a sample.

        Args:
            task_name: Ignored.
            config: The image's name, or None for the default image.
            metadata: Ignored.
        """
        container = Container(config, user=_USER, workdir=_WORKDIR, memory="2G", pids=512, security=_SECURITY)
        await anyio.to_thread.run_sync(container.start)
        return {"default": cls(container)}

    @classmethod
    async def sample_cleanup(
        cls, task_name: str, config: Any, environments: dict[str, SandboxEnvironment], interrupted: bool
    ) -> None:
        """Remove the containers of a sample, also after a cancellation."""
        with anyio.CancelScope(shield=True):
            for environment in environments.values():
                await anyio.to_thread.run_sync(environment.as_type(cls).container.remove)

    async def exec(
        self,
        cmd: list[str],
        input: str | bytes | None = None,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        user: str | None = None,
        timeout: int | None = None,
        timeout_retry: bool = True,
        concurrency: bool = True,
    ) -> ExecResult[str]:
        """Run a command to its end; its processes are killed when the awaiting task is cancelled.

        Raises:
            TimeoutError: `timeout` seconds passed.
            PermissionError: The command cannot be executed.
            OutputLimitExceededError: It wrote more than Inspect's limit.
            SandboxUserUnsupportedError: The image has no such user.
        """
        token = CancelToken()
        run = functools.partial(
            self.container.exec,
            cmd,
            input=input,
            workdir=None if cwd is None else self._absolute(cwd),
            env=env,
            user=user,
            timeout=timeout,
            max_output=SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE,
            cancel=token,
        )
        try:
            done = await anyio.to_thread.run_sync(run, abandon_on_cancel=True)
        except CommandTimeout as error:
            raise TimeoutError(str(error)) from error
        except CommandNotFound as error:
            return ExecResult(False, error.returncode, "", str(error))
        except NotFound as error:
            raise SandboxUserUnsupportedError(str(error)) from error
        except anyio.get_cancelled_exc_class():
            token.cancel()
            raise
        if done.reason == "output":
            raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE_STR, done.stdout)
        # A shell's number for a signal, as docker has it.
        code = done.returncode if done.returncode >= 0 else 128 - done.returncode
        return ExecResult(code == 0, code, done.stdout, done.stderr)

    async def write_file(self, file: str, contents: str | bytes) -> None:
        """Write a file, and make the directories above it."""
        data = contents.encode() if isinstance(contents, str) else contents
        path = self.container.path(self._absolute(file))

        def write() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

        await anyio.to_thread.run_sync(write)

    @overload
    async def read_file(self, file: str, text: Literal[True] = True) -> str: ...

    @overload
    async def read_file(self, file: str, text: Literal[False]) -> bytes: ...

    async def read_file(self, file: str, text: bool = True) -> str | bytes:
        """Read a file, as UTF-8 unless `text` is false.

        Raises:
            OutputLimitExceededError: It has more bytes than Inspect's limit.
        """
        path = self.container.path(self._absolute(file))
        read: Callable[[], bytes] = functools.partial(
            path.read_bytes, max_bytes=SandboxEnvironmentLimits.MAX_READ_FILE_SIZE
        )
        try:
            data = await anyio.to_thread.run_sync(read)
        except PathError as error:
            if error.errno != errno.EFBIG:
                raise
            raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_READ_FILE_SIZE_STR, None) from error
        return data.decode() if text else data

    def _absolute(self, path: str) -> str:
        return posixpath.join(_WORKDIR, path)
