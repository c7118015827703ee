"""A user's program for test_typing.py: mypy --strict accepts it, except for the marked lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, assert_type

from pycontain import (
    PIPE,
    Bind,
    CallResult,
    CgroupLimits,
    CommandFailed,
    CommandTimeout,
    Container,
    ContainerEnded,
    ExecResult,
    ExitStatus,
    Image,
    Network,
    Process,
    PycontainError,
    Security,
    Tmpfs,
    Usage,
    Volume,
    run,
)


def text_is_the_default(container: Container) -> list[str]:
    result = container.exec(["ls", "/"], timeout=5, check=True, env={"LANG": "C"}, user="nobody")
    assert_type(result, ExecResult[str])
    assert_type(result.stdout, str)
    result.stdout.decode()  # type: ignore[attr-defined]
    return result.stdout.splitlines() + result.stderr.splitlines()


def bytes_where_asked_for(container: Container, *, text: bool) -> bytes:
    result = container.exec("cat", input=b"x", text=False, shell=True, max_output="1M")
    assert_type(result, ExecResult[bytes])
    result.stdout.splitlines().index("x")  # type: ignore[arg-type]
    assert_type(container.exec(["true"], text=text).stdout, Any)
    return result.stdout + result.stderr


def one_command() -> tuple[str, bytes]:
    found = run(None, ["uname"], memory="64M", cpus=1.5, network="none", timeout=3)
    raw = run("debian:12", ["uname"], text=False, tmpfs={"/tmp": Tmpfs("16M")})
    assert_type(found, ExecResult[str])
    assert_type(raw, ExecResult[bytes])
    run(None, ["uname"], memory=b"64M")  # type: ignore[call-overload]
    return found.stdout, raw.stdout


def kept(result: ExecResult) -> Mapping[str, float]:
    assert_type(result.stdout, str)
    assert_type(result.usage, Usage)
    if result.reason == "timeout" or result.truncated:
        result.check_returncode()
    return result.timings


def failures(container: Container) -> str:
    try:
        container.exec("echo hi; sleep 5", shell=True, timeout=0.3, check=True)
    except CommandTimeout as error:
        if error.stdout is not None and "hi" in error.stdout:
            return f"{error.timeout} {error.usage.wall}"
    except CommandFailed as error:
        return f"{error.returncode} {error.reason} {error.stderr}"
    except ContainerEnded as error:
        return str(error.reason)
    except PycontainError as error:
        return str(error)
    return ""


def double(number: int) -> int:
    return number * 2


def calls(container: Container) -> int:
    assert_type(container.call(double, 4), int)
    with container.zygote(["json"]) as zygote:
        result = zygote.run(double, 4)
        assert_type(result, CallResult[int])
        return zygote.call(double, 2) + result.value


def processes(container: Container) -> int:
    with container.popen(["cat"], stdin=PIPE, stdout=PIPE) as process:
        assert_type(process, Process[str])
        assert_type(process.communicate("x"), tuple[str, str])
    with container.popen(["cat"], text=False) as raw:
        assert_type(raw, Process[bytes])
        assert_type(raw.stdout, IO[bytes] | None)
        process.communicate("x", timeout=1)
        return process.wait()


def files(container: Container, here: Path) -> Iterator[str]:
    container.copy_in(here, "/srv")
    for place in container.path("/srv").rglob("*.txt"):
        yield place.read_text() + place.name
    yield container.path("/etc/hostname").read_bytes()  # type: ignore[misc]


def main(here: Path) -> ExitStatus:
    limits = CgroupLimits(pids=64)
    security = Security.SANDBOX.evolve(optional={"pids"})
    with (
        Volume() as volume,
        Network(internal=True) as network,
        Container(
            Image.host(),
            ["sleep", "1"],
            limits=limits,
            security=security,
            network=network,
            volumes={"/data": volume, "/here": Bind(here)},
        ) as container,
    ):
        print(container.name, container.status, *text_is_the_default(container))
        return container.wait(timeout=10)
