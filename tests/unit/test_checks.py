"""Validation of user input: refused with a message before anything is created."""

from __future__ import annotations

import resource
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain import Bind, CgroupLimits, Image, LimitError, Security, Tmpfs
from pycontain._model.sizes import LONGEST, parse_duration, parse_size
from pycontain._model.user import check_user, split_user
from pycontain._runtime import spec
from pycontain._security.policy import rlimit_numbers

MOST = (1 << 63) - 1
LAST_ID = (1 << 32) - 2
DIGITS = 10**5000
"""A number that Python refuses to write as decimal text."""
ENDLESS = pytest.param(DIGITS, id="endless")
LONG = pytest.param("9" * 5000, id="long")


def made(**changes: Any) -> spec.ContainerSpec:
    """Return a spec like that of `Container(image, ['true'])`."""
    limits, asked = spec.limits_of(None, None, None, None)
    options: dict[str, Any] = {
        "id": "0" * 32,
        "image": Image(name="x", directories=("/",)),
        "command": ("true",),
        "name": "x",
        "env": {},
        "workdir": "/",
        "user": "",
        "hostname": "x",
        "limits": limits,
        "asked": asked,
        "rlimits": {},
        "disk": None,
        "mounts": {},
        "read_only": False,
        "init": True,
        "network": "none",
        "security": Security.SANDBOX,
        "lifetime": None,
        "labels": {},
    }
    return spec.ContainerSpec(**{**options, **changes})


def refused(
    function: Any, *args: Any, says: str = "", kind: type[Exception] = LimitError, **named: Any
) -> None:
    with pytest.raises(kind, match=says or None) as error:
        function(*args, **named)
    assert len(str(error.value)) < 300, "a message is read by people"


# Sizes and durations


@pytest.mark.parametrize("size", [1 << 63, "9" * 400, "8388608T", ENDLESS, LONG, "1" + "0" * 30 + "P"])
def test_sizes_beyond_the_kernel_s_counters(size: int | str) -> None:
    refused(parse_size, size, says="size")
    refused(CgroupLimits, memory=size)
    refused(CgroupLimits, memory_high=size)
    refused(CgroupLimits, swap=size)
    refused(Tmpfs, size)
    refused(made, disk=size)


@pytest.mark.parametrize(
    "size", ["٣", "1ib", "1bb", "1.", ".5", "1.5.5", "-0", "+1", "1_0", "1\n2", b"1", [1]]
)
def test_more_that_is_no_size(size: object) -> None:
    refused(parse_size, size)


@given(st.integers(0, MOST))
def test_sizes_are_exact(size: int) -> None:
    assert parse_size(size) == size
    assert parse_size(str(size)) == size


@pytest.mark.parametrize(("text", "size"), [("0.5k", 512), ("1.0001K", 1024), ("10B", 10), ("7.9", 7)])
def test_fractions_of_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("value", [1e10, 10**400, timedelta.max, ENDLESS, 1e308, float("inf")])
def test_long_durations_are_as_good_as_forever(value: float | timedelta) -> None:
    assert parse_duration(value) == LONGEST == 1e9


@pytest.mark.parametrize(
    ("value", "seconds"), [(0, 0.0), (2, 2.0), (0.25, 0.25), (timedelta(days=1), 86400.0)]
)
def test_durations_of_every_type(value: float | timedelta, seconds: float) -> None:
    found = parse_duration(value)
    assert (found, type(found)) == (seconds, float)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        -float("inf"),
        -1,
        -0.1,
        timedelta(-1),
        pytest.param(-DIGITS, id="owed"),
        True,
        "1",
        None,
    ],
)
def test_invalid_durations(value: object) -> None:
    refused(parse_duration, value, says="duration")


# Limits


@pytest.mark.parametrize("cpus", [1e300, 10**400, 0, 0.001, True, "2", -2, float("nan")])
def test_processors_that_no_machine_has(cpus: object) -> None:
    refused(CgroupLimits, cpus=cpus, says="cpus")


@pytest.mark.parametrize("pids", [0, -2, ENDLESS, 1 << 63, True, "5"])
def test_counts_of_processes(pids: object) -> None:
    refused(CgroupLimits, pids=pids, says="pids")


def test_a_container_needs_room_for_its_agent_and_a_command() -> None:
    limits, asked = spec.limits_of(None, None, None, 1)
    refused(made, limits=limits, asked=asked, says="pids must be at least 2, got 1")
    made(limits=spec.limits_of(None, None, None, 2)[0])
    made(limits=limits, init=False)  # the command is the one process


@pytest.mark.parametrize(
    "value", ["٣", "0-", "-1", "0,", "3-1", "0 1", "0\n", "", 3, "1-2-3", "9" * 30, LONG, ["0"]]
)
def test_sets_of_processors(value: object) -> None:
    refused(CgroupLimits, cpuset_cpus=value, says="cpuset_cpus must be")
    refused(CgroupLimits, cpuset_mems=value, says="cpuset_mems must be")


def test_sets_as_the_kernel_writes_them() -> None:
    assert CgroupLimits(cpuset_cpus="0-2,7,9-9").cpuset_cpus == "0-2,7,9-9"


def test_io_max_is_read_into_numbers() -> None:
    given: dict[Any, dict[str, Any]] = {"8:0": {"rbps": "1M", "wiops": 100}, Path("/dev/sda"): {"wbps": 4096}}
    limits = CgroupLimits(io_max=given)
    assert limits.io_max == {"8:0": {"rbps": 1 << 20, "wiops": 100}, "/dev/sda": {"wbps": 4096}}
    given["8:0"]["rbps"] = "1\n8:1 rbps=max"
    assert limits.io_max["8:0"]["rbps"] == 1 << 20, "what was checked cannot be changed behind its back"
    assert attrs.evolve(limits, pids=5).io_max == limits.io_max


@pytest.mark.parametrize(
    "value",
    [
        {"8:0\n8:1": {"rbps": 1}},
        {"8:": {"rbps": 1}},
        {"8:0:1": {"rbps": 1}},
        {"sda": {"rbps": 1}},
        {"": {"rbps": 1}},
        {"/dev/a\nb": {"rbps": 1}},
        {"/dev/a\0": {"rbps": 1}},
        {8: {"rbps": 1}},
        {"8:0": {"rbps": "1\nwbps=1"}},
        {"8:0": {"riops": "1\n"}},
        {"8:0": {"riops": "5"}},
        {"8:0": {"riops": 1.5}},
        {"8:0": {"rbps": True}},
        {"8:0": {"rbps": 0}},
        {"8:0": {"riops": 0}},
        {"8:0": {"riops": 1 << 32}},
        {"8:0": {"rbps": -1}},
        {"8:0": {"rbps": None}},
        {"8:0": {"rbps\nx": 1}},
        {"8:0": {3: 1}},
        {"8:0": {}},
        {"8:0": 5},
        {"8:0": "rbps=1"},
        {f"{1 << 12}:0": {"rbps": 1}},
        {"8:0": {"rbps": 1}, "08:00": {"rbps": 2}},
        ["8:0"],
        "8:0",
    ],
)
def test_io_max_that_cannot_be_meant(value: object) -> None:
    refused(CgroupLimits, io_max=value, says="io_max")


def test_hugetlb_is_read_into_numbers() -> None:
    assert CgroupLimits(hugetlb={"2MB": "4M", "1GB": 0, "64KB": 65536}).hugetlb == {
        "2MB": 4 << 20,
        "1GB": 0,
        "64KB": 65536,
    }


@pytest.mark.parametrize(
    "value",
    [{"2M": 1}, {"2mb": 1}, {"../2MB": 1}, {"2MB\n": 1}, {"٣MB": 1}, {2: 1}, {"2MB": -1}, "2MB", ["2MB"]],
)
def test_hugetlb_that_cannot_be_meant(value: object) -> None:
    refused(CgroupLimits, hugetlb=value)


@pytest.mark.parametrize("disk", [0, 65535, "1K"])
def test_disk_is_refused_as_the_other_limits_are(disk: int | str) -> None:
    refused(made, disk=disk, says="disk must be at least 64K")


@pytest.mark.parametrize("limits", [{"memory": "1M"}, "1M", 5, [CgroupLimits()]])
def test_limits_of_another_type(limits: object) -> None:
    refused(spec.limits_of, limits, None, None, None, kind=TypeError, says="limits must be a CgroupLimits")


# Resource limits


def test_rlimits_become_pairs() -> None:
    infinity = (1 << 64) - 1
    found = rlimit_numbers(
        {"nofile": [64, 128], "RLIMIT_CORE": 0, "Stack": "unlimited", "cpu": (1, resource.RLIM_INFINITY)}
    )
    assert found == {
        resource.RLIMIT_NOFILE: (64, 128),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_STACK: (infinity, infinity),
        resource.RLIMIT_CPU: (1, infinity),
    }


@pytest.mark.parametrize(
    ("rlimits", "kind", "says"),
    [
        ({"nofile": 1 << 64}, LimitError, "nofile"),
        ({"nofile": (0, 1 << 64)}, LimitError, "nofile"),
        ({"nofile": DIGITS}, LimitError, "nofile"),
        ({"nofile": -2}, LimitError, "nofile"),
        ({"nofile": (128, 64)}, LimitError, "soft"),
        ({"nofile": (-1, 64)}, LimitError, "soft"),
        ({"no_such": 1}, LimitError, "no_such"),
        ({"nofile": 1, "RLIMIT_NOFILE": 2}, LimitError, "twice"),
        ({"nofile": "12"}, TypeError, "nofile"),
        ({"nofile": (1, 2, 3)}, TypeError, "nofile"),
        ({"nofile": (1,)}, TypeError, "nofile"),
        ({"nofile": (1, None)}, TypeError, "nofile"),
        ({"nofile": 1.5}, TypeError, "nofile"),
        ({"nofile": True}, TypeError, "nofile"),
        ({"nofile": {1, 2}}, TypeError, "nofile"),
        ({7: 1}, TypeError, "rlimit"),
        (["nofile"], TypeError, "rlimits"),
    ],
)
def test_rlimits_that_cannot_be_meant(rlimits: Any, kind: type[Exception], says: str) -> None:
    refused(rlimit_numbers, rlimits, kind=kind, says=says)
    refused(made, rlimits=rlimits, kind=kind, says=says)
    refused(Security.SANDBOX.evolve, rlimits=rlimits, kind=kind, says=says)


def test_a_checked_rlimit_cannot_be_changed_behind_its_back() -> None:
    mine = {"nofile": [64, 128]}
    held = made(rlimits=mine)
    custom = Security.SANDBOX.evolve(rlimits=mine)
    mine["nofile"][0] = -7
    mine["no_such"] = [1, 1]
    assert held.rlimits == custom.rlimits == {"nofile": (64, 128)}


# Security's options


@pytest.mark.parametrize("name", ["masked_paths", "readonly_paths"])
def test_one_path_is_one_path(name: str) -> None:
    assert getattr(Security.SANDBOX.evolve(**{name: "/etc"}), name) == ("/etc",)  # type: ignore[arg-type]
    paths = [PurePosixPath("/proc/x"), "//sys//y/"]
    assert getattr(Security.SANDBOX.evolve(**{name: paths}), name) == ("/proc/x", "/sys/y")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("paths", "kind"),
    [(["etc"], ValueError), (["/a\0b"], ValueError), (["/"], ValueError), ([5], TypeError), (5, TypeError)],
)
def test_paths_that_cannot_be_covered(paths: Any, kind: type[Exception]) -> None:
    refused(Security.SANDBOX.evolve, masked_paths=paths, kind=kind)


def test_one_name_is_one_name() -> None:
    assert Security.SANDBOX.evolve(optional="landlock").optional == {"landlock"}
    assert Security.SANDBOX.evolve(capabilities="cap_net_raw").capabilities == {"NET_RAW"}
    for options in ({"optional": "everything"}, {"capabilities": "ALMIGHTY"}):
        refused(Security.SANDBOX.evolve, kind=ValueError, says="everything|ALMIGHTY", **options)


# Mounts


def test_bind_by_position() -> None:
    assert Bind("/tmp", True) == Bind(Path("/tmp"), read_only=True)
    assert (Bind("/tmp").read_only, Bind("/tmp").idmap) == (False, None)
    assert Bind("/tmp").propagation == "private"
    with pytest.raises(ValueError, match="propagation"):
        Bind("/tmp", propagation="shared")  # type: ignore[arg-type]
    assert [Bind("/tmp", idmap=idmap).idmap for idmap in (None, True, False)] == [None, True, False]


@pytest.mark.parametrize(
    ("args", "named", "kind"),
    [
        (("/tmp", "ro"), {}, TypeError),
        (("/tmp",), {"read_only": 1}, TypeError),
        (("/tmp",), {"idmap": "yes"}, TypeError),
        ((b"/tmp",), {}, TypeError),
        ((5,), {}, TypeError),
        (("",), {}, ValueError),
        (("/a\0",), {}, ValueError),
        (("\ud800",), {}, ValueError),
    ],
)
def test_binds_that_cannot_be_meant(args: Any, named: Any, kind: type[Exception]) -> None:
    refused(Bind, *args, kind=kind, **named)


def test_tmpfs_by_position() -> None:
    assert (Tmpfs("1M").size, Tmpfs().size, Tmpfs(4096, mode=0o700).mode) == (1 << 20, None, 0o700)


def test_a_tmpfs_without_a_byte_would_have_no_limit() -> None:
    refused(Tmpfs, 0)


@pytest.mark.parametrize("mode", [-1, 0o10000, "700", True, 1.0])
def test_modes(mode: object) -> None:
    refused(Tmpfs, mode=mode, kind=(ValueError, TypeError), says="mode")  # type: ignore[arg-type]


# Users, directories, commands, environments


@pytest.mark.parametrize(
    ("user", "parts"),
    [
        ("", ("", "")),
        ("root", ("root", "")),
        ("0:0", ("0", "0")),
        (1000, ("1000", "")),
        (LAST_ID, (str(LAST_ID), "")),
        (f"1:{LAST_ID}", ("1", str(LAST_ID))),
        ("www-data:adm", ("www-data", "adm")),
        ("user@example.org", ("user@example.org", "")),
    ],
)
def test_users(user: str | int, parts: tuple[str, str]) -> None:
    assert split_user(user) == parts
    assert check_user(user) == str(user)
    assert made(user=user).user == str(user)


@pytest.mark.parametrize(
    "user",
    [
        ":",
        ":1",
        "1:",
        "a:b:c",
        "a b",
        "a\tb",
        " ",
        "a\0",
        "a\n",
        "a\x1b[31m",
        "a:\0",
        -1,
        "-1",
        "1:-1",
        LAST_ID + 1,
        str(LAST_ID + 1),
        f"0:{LAST_ID + 1}",
        LONG,
        ENDLESS,
        pytest.param("a" * 1000, id="long name"),
        "\ud800",
    ],
)
def test_malformed_users(user: str | int) -> None:
    refused(check_user, user, kind=ValueError)
    refused(made, user=user, kind=ValueError)


@pytest.mark.parametrize("user", [True, 1.5, b"root", None, ["root"]])
def test_users_of_another_type(user: object) -> None:
    refused(check_user, user, kind=TypeError, says="user")


def test_directories_inside() -> None:
    assert spec.inside(PurePosixPath("/srv//x")) == "/srv/x"
    assert made(workdir=PurePosixPath("/srv")).workdir == "/srv"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("x", ValueError),
        ("", ValueError),
        ("/\0", ValueError),
        ("/\ud800", ValueError),
        (b"/x", TypeError),
        (5, TypeError),
    ],
)
def test_directories_that_are_none(path: Any, kind: type[Exception]) -> None:
    refused(made, workdir=path, kind=kind)


@pytest.mark.parametrize(
    ("args", "argv"),
    [
        (None, None),
        ("ls", ("ls",)),
        (b"ls", ("ls",)),
        (PurePosixPath("/bin/ls"), ("/bin/ls",)),
        ([PurePosixPath("/bin/ls"), b"-l", "/"], ("/bin/ls", "-l", "/")),
        (iter(["a", "b"]), ("a", "b")),
        (["a", b"\xff"], ("a", "\udcff")),
    ],
)
def test_commands(args: Any, argv: tuple[str, ...] | None) -> None:
    assert spec.command(args) == argv


@pytest.mark.parametrize(
    ("args", "kind"),
    [
        ([], ValueError),
        ("", ValueError),
        (["a\0"], ValueError),
        (["\ud800"], ValueError),
        (5, TypeError),
        (["a", 5], TypeError),
        (["a", None], TypeError),
        ({"a": "b"}, TypeError),
        ({"a", "b"}, TypeError),
    ],
)
def test_invalid_commands(args: Any, kind: type[Exception]) -> None:
    refused(spec.command, args, kind=kind)


@pytest.mark.parametrize(
    ("env", "kind"),
    [
        ({"A": 1}, TypeError),
        ({1: "a"}, TypeError),
        ({"A": None}, TypeError),
        (["A=b"], TypeError),
        ("A=b", TypeError),
        ({"A": "\ud800"}, ValueError),
    ],
)
def test_invalid_environments(env: Any, kind: type[Exception]) -> None:
    refused(spec.environment, env, kind=kind)


def test_values_of_variables_stay_out_of_messages() -> None:
    for bad in ({"A=": "swordfish"}, {"A": "sword\0fish"}, {1: "swordfish"}, ["A=swordfish"]):
        with pytest.raises((TypeError, ValueError)) as error:
            spec.environment(bad)
        assert "fish" not in str(error.value)


@pytest.mark.parametrize("name", [5, None, "a\n", "", "-a", "a" * 129])
def test_names(name: Any) -> None:
    refused(made, name=name, kind=(ValueError, TypeError), says="name")  # type: ignore[arg-type]
    refused(made, hostname=name, kind=(ValueError, TypeError), says="name")  # type: ignore[arg-type]
