"""exec: output, status, users, errors, caps and deadlines."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from pycontain import (
    DEVNULL,
    STDOUT,
    CgroupLimits,
    CommandFailed,
    CommandNotExecutable,
    CommandNotFound,
    CommandTimeout,
    Container,
    NotFound,
    Security,
    StartError,
    StateError,
    WorkdirError,
    run,
)

ECHO_BOTH = """
import os
while chunk := os.read(0, 1 << 20):
    for fd in (1, 2):
        view = memoryview(chunk)
        while view:
            view = view[os.write(fd, view):]
"""

SLEEPERS = """
import os, signal, time
for _ in range(200):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(1000)
        os._exit(0)
    os.wait()
print('up', flush=True)
time.sleep(1000)
"""


def test_result_is_that_of_subprocess(container: Container) -> None:
    result = container.exec(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert isinstance(result, subprocess.CompletedProcess)
    assert (result.stdout, result.stderr, result.returncode) == ("out\n", "err\n", 3)
    assert result.reason == "exit"
    assert result.usage.wall > 0


def test_signal_is_negative(container: Container) -> None:
    result = container.exec(["sh", "-c", "kill -TERM $$"])
    assert (result.returncode, result.reason) == (-15, "signal")


def test_streams_can_be_joined_or_dropped(container: Container) -> None:
    both = container.exec("echo a; echo b >&2", shell=True, stderr=STDOUT)
    assert vars(both)["stderr"] is None
    assert both.stdout == "a\nb\n"
    assert container.exec("echo a", shell=True, stdout=DEVNULL).stdout is None


def test_output_goes_to_a_file(container: Container, tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb") as file:
        container.exec(["echo", "x"], stdout=file)
    assert (tmp_path / "out").read_text() == "x\n"


def test_stdin_is_empty_without_input(container: Container) -> None:
    assert container.exec(["cat"], timeout=5).stdout == ""


def test_unread_input(container: Container) -> None:
    assert container.exec(["true"], input=b"x" * (1 << 20)).returncode == 0


@pytest.mark.parametrize("user", ["nobody", "65534:65534"])
def test_user(container: Container, user: str) -> None:
    if container.isolation.identity == "single":
        with pytest.raises(StartError, match="has only 0"):
            container.exec(["id"], user=user)
        pytest.skip("the single-id map has one id inside")
    result = container.exec(["sh", "-c", "id -u; id -g"], user=user)
    assert result.stdout.split()[:2] == ["65534", "65534"]


def test_numbers_need_no_passwd(container: Container) -> None:
    if container.isolation.identity == "single":
        pytest.skip("the single-id map has one id inside")
    result = container.exec(["id"], user="4711:4712")
    assert "uid=4711" in result.stdout
    assert "gid=4712" in result.stdout


def test_unknown_user(container: Container) -> None:
    with pytest.raises(NotFound, match=r"no user .bob."):
        container.exec(["true"], user="bob")


@pytest.mark.parametrize("user", ["a:b:c", ":1", "1:", "-1:x y", "4294967295", "a b"])
def test_malformed_user(container: Container, user: str) -> None:
    with pytest.raises((ValueError, NotFound)):
        container.exec(["true"], user=user)


def test_environment_is_exactly_as_passed(container: Container) -> None:
    os.environ["PYC_SECRET"] = "swordfish"
    result = container.exec(["env"], env={"A": "1 2"})
    assert "A=1 2" in result.stdout.splitlines()
    assert "swordfish" not in result.stdout
    assert {line.split("=")[0] for line in result.stdout.splitlines()} <= {"A", "HOME", "PATH", "LANG"}


def test_workdir(container: Container) -> None:
    assert container.exec(["pwd"], workdir="/usr").stdout == "/usr\n"
    with pytest.raises(WorkdirError, match="/nowhere"):
        container.exec(["true"], workdir="/nowhere")


def test_missing_and_unusable_commands(container: Container) -> None:
    with pytest.raises(CommandNotFound) as missing:
        container.exec(["no-such-command"])
    assert missing.value.returncode == 127
    assert isinstance(missing.value, FileNotFoundError)
    with pytest.raises(CommandNotExecutable) as unusable:
        container.exec(["/etc/passwd"])
    assert unusable.value.returncode == 126


def test_check(container: Container) -> None:
    with pytest.raises(CommandFailed) as failed:
        container.exec("echo partial; exit 9", shell=True, check=True)
    assert isinstance(failed.value, subprocess.CalledProcessError)
    assert (failed.value.returncode, failed.value.stdout, failed.value.reason) == (9, "partial\n", "exit")
    assert failed.value.usage.wall > 0


@pytest.mark.parametrize("args", [[], [""], ["a\0b"]])
def test_malformed_arguments(container: Container, args: list[str]) -> None:
    with pytest.raises(ValueError, match=r"argument|NUL"):
        container.exec(args)


def test_long_arguments_and_environment(container: Container) -> None:
    long = "x" * 120_000
    result = container.exec(["sh", "-c", "echo ${#1} ${#BIG}", "-", long], env={"BIG": long})
    assert result.stdout == "120000 120000\n"


def test_timeout_leaves_nothing_of_a_hostile_tree() -> None:
    relaxed = Security.SANDBOX.evolve(optional={"pids", "landlock", "time"})
    with Container(pids=600, security=relaxed) as container:
        begun = time.monotonic()
        with pytest.raises(CommandTimeout) as expired:
            container.exec(["python3", "-c", SLEEPERS], timeout=1)
        assert time.monotonic() - begun < 1.5
        assert isinstance(expired.value, subprocess.TimeoutExpired)
        assert expired.value.usage.wall >= 1
        alive = container.exec("ls -d /proc/[0-9]*", shell=True).stdout.split()
        assert len(alive) <= 3, alive


def test_timeout_keeps_partial_output(container: Container) -> None:
    with pytest.raises(CommandTimeout) as expired:
        container.exec("echo early; sleep 100", shell=True, timeout=0.3)
    assert str(expired.value.stdout) == "early\n"


def test_output_cap(container: Container) -> None:
    result = container.exec(["yes"], max_output="1M", timeout=30)
    assert (result.reason, len(result.stdout), result.truncated) == ("output", 1 << 20, True)
    assert container.exec(["true"]).returncode == 0


def test_output_of_exactly_the_cap(container: Container) -> None:
    result = container.exec(["head", "-c", "4096", "/dev/zero"], max_output=4096)
    assert (result.reason, len(result.stdout), result.truncated) == ("exit", 4096, False)


@pytest.mark.parametrize("round_", range(20))
def test_hundred_megabytes_both_ways(round_: int, needs_big: Container) -> None:
    data = os.urandom(int(os.environ.get("PYC_MEGABYTES", "100")) << 20)
    result = needs_big.exec(["python3", "-c", ECHO_BOTH], input=data, text=False, max_output=None, timeout=60)
    assert result.reason == "exit"
    assert result.stdout == data
    assert result.stderr == data


@pytest.fixture(scope="module")
def needs_big() -> object:
    with Container() as container:
        yield container


def test_orphans_do_not_hold_the_result(container: Container) -> None:
    begun = time.monotonic()
    result = container.exec("sleep 60 & echo done", shell=True)
    assert result.stdout == "done\n"
    assert time.monotonic() - begun < 30


def test_per_exec_limits(needs_memory: None) -> None:
    with Container(memory="512M") as container:
        big = ["python3", "-c", "x = bytearray(200 << 20)"]
        assert container.exec(big, limits=CgroupLimits(memory="64M")).reason == "oom"
        assert container.exec(big).reason == "exit"


def test_seccomp_death_is_named(container: Container) -> None:
    # i386's getpid through int 0x80: another architecture than the filter's.
    code = (
        "import ctypes, mmap\n"
        "m = mmap.mmap(-1, 4096, prot=7)\n"
        "m.write(b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3')\n"
    )
    code += "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()\n"
    if os.uname().machine != "x86_64":
        pytest.skip("the probe is x86_64 code")
    if "User Mode Linux" in Path("/proc/cpuinfo").read_text():
        pytest.skip("user-mode-linux has no i386 system calls")
    assert container.exec(["python3", "-c", code]).reason in ("seccomp", "signal")


def test_threads_share_a_container(container: Container) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda n: container.exec(["echo", str(n)]).stdout, range(200)))
    assert results == [f"{n}\n" for n in range(200)]


def test_run_is_one_call() -> None:
    result = run(None, ["cat"], input="x", env={"A": "b"})
    assert (result.stdout, result.returncode) == ("x", 0)


def test_exec_after_the_end() -> None:
    container = Container()
    with pytest.raises(StateError):
        container.exec(["true"])
    container.start()
    container.remove()
    with pytest.raises(StateError):
        container.exec(["true"])
