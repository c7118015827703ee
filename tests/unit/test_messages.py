"""Messages: foreign text is escaped, and bad input is refused before anything is created."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from pycontain import Bind, CgroupLimits, Container, Image, LimitError, NotFound, Tmpfs, UnsupportedError
from pycontain import errors as all_errors
from pycontain._cgroups.refusals import refusal
from pycontain._model.process import Usage
from pycontain._objects.exec import Invocation
from pycontain._runtime import spec
from pycontain._runtime.users import check_known
from pycontain.errors import (
    CallError,
    CommandFailed,
    CommandTimeout,
    PathError,
    PycontainError,
    StartError,
    escaped,
    path_error,
)

HOSTILE = "a\x1b[31m\n\x07\x9b\u202e\udcff\u2028b"
USAGE = Usage(wall=0, cpu_user=0, cpu_system=0)


def test_terminal_control_characters_are_escaped() -> None:
    assert escaped("plain, ünïcode") == "plain, ünïcode"
    assert escaped(HOSTILE) == r"a\x1b[31m\n\x07\x9b\u202e\udcff\u2028b"


def _raised() -> list[PycontainError]:
    made: list[PycontainError] = [
        StartError(HOSTILE, step="execve", errno=2, path=HOSTILE, hint=HOSTILE),
        all_errors.CommandNotFound(HOSTILE, step="execve", errno=2, path=HOSTILE),
        all_errors.CommandNotExecutable(HOSTILE, step="execve", errno=13, path=HOSTILE),
        all_errors.WorkdirError(HOSTILE, step="chdir", errno=2, path=HOSTILE),
        CommandFailed(HOSTILE, 3, HOSTILE, HOSTILE, reason="exit", usage=USAGE),
        CommandFailed([HOSTILE], 0, HOSTILE, HOSTILE, reason="output", usage=USAGE),
        CommandTimeout(HOSTILE, 1, HOSTILE, HOSTILE, usage=USAGE),
        CommandTimeout([HOSTILE], 1, None, None, usage=USAGE),
        CallError(HOSTILE, HOSTILE, HOSTILE),
        UnsupportedError(HOSTILE, HOSTILE),
        all_errors.ContainerEnded(HOSTILE, reason="exit"),
        path_error("cannot open", HOSTILE, 2),
        PathError(HOSTILE, path=HOSTILE),
    ]
    known = {type(one) for one in made}
    for one in vars(all_errors).values():
        if isinstance(one, type) and issubclass(one, PycontainError) and one not in known:
            made.append(one(HOSTILE))
    return made


@pytest.mark.parametrize("error", _raised(), ids=lambda error: type(error).__name__)
def test_no_message_of_any_class_carries_control_characters(error: PycontainError) -> None:
    assert str(error).isprintable()
    assert "a" in str(error)


@pytest.mark.parametrize(
    "path", ["/" + "x" * 256, "/" + "x/" * 2048, "/a/" + "ü" * 128, "/\ud800"], ids=lambda path: path[:8]
)
def test_paths_that_no_file_system_takes(path: str) -> None:
    with pytest.raises(ValueError, match="a path inside a container must"):
        spec.inside(path)
    with pytest.raises(ValueError, match="a path inside a container must"):
        spec.mount_points({path: Tmpfs()}, None)


def test_the_longest_paths() -> None:
    assert spec.inside("/" + "x" * 255) == "/" + "x" * 255
    assert len(spec.inside("/" + "/".join(["x" * 99] * 40))) == 4000


def test_arguments_that_execve_refuses() -> None:
    with pytest.raises(ValueError, match="an argument must have at most 131071 bytes, got 131072"):
        spec.command(["true", "x" * 131072])
    with pytest.raises(ValueError, match="an argument must have at most"):
        spec.command(["true", "ü" * 65536])
    assert spec.command(["true", "x" * 131071]) is not None
    with pytest.raises(ValueError, match="an argument must be text that UTF-8 can hold"):
        spec.command(["\ud800"])


def test_variables_that_execve_refuses() -> None:
    with pytest.raises(ValueError, match="the variable 'A' must have at most 131071 bytes, got 131072"):
        spec.environment({"A": "x" * 131070})
    with pytest.raises(ValueError, match=r"^the variable 'A' must be text that UTF-8 can hold$"):
        spec.environment({"A": "secret\ud800"})
    assert spec.environment({"A": "x" * 131069})


def test_more_mounts_than_a_start_can_carry() -> None:
    spec.mount_points(None, [f"/m/{at}" for at in range(400)])
    with pytest.raises(LimitError, match="mounts must be at most 400, got 401"):
        spec.mount_points(None, [f"/m/{at}" for at in range(401)])


def test_mounts_below_a_file_or_from_nothing(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "dangling").symlink_to("/nowhere")
    with pytest.raises(ValueError, match="must not be below a file, which is mounted at '/a'"):
        spec.mount_points({"/a": tmp_path / "f", "/a/b/c": tmp_path}, None)
    # In directories that guests write, a link is refused before its target is checked.
    with pytest.raises((NotFound, PathError), match=r"is a dangling link|will not follow the symbolic link"):
        spec.mount_points({"/a": tmp_path / "dangling"}, None)


@pytest.mark.parametrize("place", ["/dev/x", "/dev/pts", "/dev/null", "/dev/shmx"])
def test_only_shared_memory_is_mounted_in_dev(place: str) -> None:
    with pytest.raises(ValueError, match="mount point must not be"):
        spec.mount_points({place: Tmpfs()}, None)
    assert spec.mount_points({"/dev/shm": Tmpfs("1G")}, None) == {"/dev/shm": Tmpfs("1G")}


def _image(*layers: Path) -> Image:
    return Image(name="x", directories=tuple(map(str, layers)))


def _layer(path: Path, passwd: str | None = None, group: str | None = None) -> Path:
    (path / "etc").mkdir(parents=True)
    for name, text in (("passwd", passwd), ("group", group)):
        if text is not None:
            (path / "etc" / name).write_text(text)
    return path


def test_users_are_looked_up_before_a_container_is_created(tmp_path: Path) -> None:
    upper = _layer(tmp_path / "u", "app:x:7:8:app:/:/bin/sh\n")
    lower = _layer(tmp_path / "l", "old:x:9:9:old:/:/bin/sh\n", "staff:x:50:\n")
    image = _image(upper, lower)
    for good in ("app", "app:staff", "7", "65535", "", "0:0"):
        check_known(image, (), good, 65536)
    for bad, says in (("old", "no user 'old'"), ("app:crew", "no group 'crew'")):
        with pytest.raises(NotFound, match=says):
            check_known(image, (), bad, 65536)
    for bad in ("65536", "app:65536"):
        with pytest.raises(ValueError, match="0 to 65535 here, got 65536"):
            check_known(image, (), bad, 65536)
    for covered in ("/etc", "/etc/passwd"):
        check_known(image, (covered,), "old", 65536)
    with pytest.raises(NotFound):
        check_known(image, ("/etc/passwd2", "/et"), "old", 65536)


def test_passwd_behind_a_link_is_left_to_the_start(tmp_path: Path) -> None:
    layer = _layer(tmp_path / "u")
    (layer / "etc" / "passwd").symlink_to("/etc/passwd")
    check_known(_image(layer), (), "root2", 65536)
    with pytest.raises(NotFound):
        check_known(_image(_layer(tmp_path / "v")), (), "root2", 65536)


def test_an_unknown_user_is_refused_when_the_container_is_made() -> None:
    with pytest.raises(NotFound, match=r"the image has no user 'nonesuch' \(hint: use an id"):
        Container(user="nonesuch")
    with pytest.raises(ValueError, match="the ids of a container are 0 to"):
        Container(user=70000)


@pytest.mark.parametrize("data", [5, ["a"], object()])
def test_input_of_another_type(data: Any) -> None:
    from pycontain._objects.exec import _input_bytes

    with pytest.raises(TypeError, match="input must be text or bytes, got"):
        _input_bytes(data, "utf-8")


def test_a_shell_takes_one_string() -> None:
    with pytest.raises(ValueError, match="with shell=True the command must be one string"):
        Invocation.of(["a", "b"], True, None, None, None, None)


def test_all_limits_that_a_host_lacks_are_named_at_once() -> None:
    both = {"pids": UnsupportedError("no pids", "do it"), "memory": UnsupportedError("no memory", "do it")}
    error = refusal(both)
    assert "the limits memory, pids (no memory; no pids)" in str(error)
    assert "optional={'landlock', 'time', 'memory', 'pids'}" in str(error)


@pytest.mark.parametrize("name", [field.name for field in attrs.fields(CgroupLimits)])
def test_every_limit_can_be_optional(name: str) -> None:
    from pycontain import Security

    assert Security.SANDBOX.evolve(optional={name}).optional == {name}


def test_a_bind_that_no_file_system_holds() -> None:
    with pytest.raises(ValueError, match="the path of a Bind must be text"):
        Bind("/\ud800")
