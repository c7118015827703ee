"""Mounts: number, targets, and errors that name the cause."""

from __future__ import annotations

from pathlib import Path

import pytest

from pycontain import Bind, Container, StartError, Tmpfs
from pycontain.errors import CommandNotExecutable, CommandNotFound, WorkdirError

_COUNT = "grep -c ' /m/' /proc/self/mountinfo"


@pytest.mark.parametrize("count", [239, 240, 241, 400])
def test_hundreds_of_mounts_are_there(tmp_path: Path, count: int) -> None:
    tmp_path.chmod(0o755)
    for at in range(count):
        (tmp_path / str(at)).mkdir()
        (tmp_path / str(at) / "f").write_text(f"{at}\n")
    mounts = {f"/m/{at}": Bind(tmp_path / str(at)) for at in range(count)}
    with Container(mounts=mounts) as container:
        found = container.exec(f"{_COUNT}; sort -n /m/*/f | uniq | wc -l; cat /m/{count - 1}/f", shell=True)
    assert found.stdout.split() == [str(count), str(count), str(count - 1)]


def test_mounts_do_not_leak_into_the_next_start() -> None:
    with Container(tmpfs=[f"/m/{at}" for at in range(300)]) as container:
        assert container.exec(_COUNT, shell=True).stdout == "300\n"
    with Container() as container:
        assert container.exec(_COUNT, shell=True).stdout == "0\n"


@pytest.mark.parametrize("size", ["1M", "256M"])
@pytest.mark.parametrize("option", ["tmpfs", "mounts"])
def test_shared_memory_is_of_the_size_asked_for(size: str, option: str) -> None:
    given = size if option == "tmpfs" else Tmpfs(size)
    with Container(**{option: {"/dev/shm": given}}) as container:  # type: ignore[arg-type]
        found = container.exec(["stat", "-f", "-c", "%s %b", "/dev/shm"]).stdout.split()
        kind = container.exec("grep ' /dev/shm ' /proc/mounts", shell=True).stdout
    assert int(found[0]) * int(found[1]) == int(size[:-1]) << 20
    assert kind.count("\n") == 1


@pytest.mark.parametrize(
    ("place", "is_file", "hint"),
    [
        ("/etc", True, "mount the file over a file"),
        ("/etc/passwd", False, "mount a directory over a directory"),
        ("/etc/passwd/x", False, "at no path below a file"),
        ("/usr/nonesuch", False, "mount at a path that exists"),
    ],
)
def test_a_mount_that_cannot_be_made_says_why(tmp_path: Path, place: str, is_file: bool, hint: str) -> None:
    source = tmp_path / "f"
    source.touch() if is_file else source.mkdir()
    with pytest.raises(StartError, match=hint) as error, Container(mounts={place: source}):
        pass
    assert error.value.path == place
    assert "stage" not in str(error.value)


def test_a_command_that_cannot_start_says_why_once(container: Container) -> None:
    with pytest.raises(CommandNotFound) as missing:
        container.exec(["nonesuch"])
    assert str(missing.value).count("nonesuch") == 1
    assert missing.value.hint is not None
    with pytest.raises(CommandNotExecutable, match="give the file execute permission"):
        container.exec(["/etc/passwd"])
    with pytest.raises(WorkdirError, match=r"'/nonesuch': No such file or directory \(hint: create"):
        container.exec(["true"], workdir="/nonesuch")
    for much in (3_000, 20_000):
        with pytest.raises(StartError, match=r"Argument list too long \(hint: pass large data with input="):
            container.exec(["true", *["x" * 1000] * much])
    with pytest.raises(StartError, match="a path has at most 4095 bytes"):
        container.exec(["/" + "x" * 300])


def test_names_of_the_guest_are_escaped(container: Container) -> None:
    for run in (["a\x1b[31m\nb"], ["sh", "-c", "true"]):
        with pytest.raises(StartError) as error:
            container.exec(run, workdir="/\x1b[2Jx")
        assert str(error.value).isprintable()
