"""Sizes, durations, limits and specs: parsing and refusals."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain import Bind, CgroupLimits, LimitError, NotFound, Security, Tmpfs
from pycontain._cgroups import translate
from pycontain._cgroups.exec_cgroup import keyed
from pycontain._cgroups.layout import own_groups, parse_mounts
from pycontain._model.sizes import parse_duration, parse_size
from pycontain._runtime import spec


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1", 1),
        ("256M", 256 << 20),
        ("1.5G", 3 << 29),
        ("10k", 10240),
        ("2 MiB", 2 << 20),
        ("64Mi", 64 << 20),
        (7, 7),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1X", "1e9", "0x10", "1 2", None, 1.5, True, -1])
def test_invalid_sizes(text: object) -> None:
    with pytest.raises(LimitError):
        parse_size(text)  # type: ignore[arg-type]


@given(st.integers(0, 1 << 50))
def test_sizes_round_trip(size: int) -> None:
    assert parse_size(str(size)) == size


def test_durations() -> None:
    assert parse_duration(timedelta(milliseconds=1500)) == 1.5
    for bad in (-1, float("nan"), "1"):
        with pytest.raises(LimitError):
            parse_duration(bad)  # type: ignore[arg-type]


def test_v2_counts_swap_with_memory() -> None:
    files = translate.v2(CgroupLimits(memory="64M", pids=5, cpus=1.5))
    assert files["memory"] == {"memory.max": [str(64 << 20)], "memory.swap.max": ["0"]}
    assert files["pids"] == {"pids.max": ["5"]}
    assert files["cpu"] == {"cpu.max": ["150000 100000"]}


def test_v1_counts_swap_with_memory() -> None:
    files = translate.v1(CgroupLimits(memory="64M", swap="64M", cpu_weight=100))
    assert files["memory"] == {
        "memory.limit_in_bytes": [str(64 << 20)],
        "memory.memsw.limit_in_bytes": [str(128 << 20)],
        "memory.kmem.tcp.limit_in_bytes": [str(16 << 20)],
    }
    assert files["cpu"] == {"cpu.shares": ["1024"]}


def test_v1_gives_sockets_a_quarter_of_memory_and_at_least_4_mib() -> None:
    for memory, sockets in (("1G", str(256 << 20)), ("2M", str(4 << 20))):
        assert translate.v1(CgroupLimits(memory=memory))["memory"][translate.SOCKETS] == [sockets]


@pytest.mark.parametrize(
    "limits",
    [
        {"cpu_weight": 0},
        {"io_weight": 10001},
        {"cpuset_cpus": "a"},
        {"pids": 1.5},
        {"io_max": {"/dev/x": {"z": 1}}},
    ],
)
def test_limits_that_cannot_be_meant(limits: dict[str, object]) -> None:
    with pytest.raises(LimitError):
        CgroupLimits(**limits)  # type: ignore[arg-type]


def test_mountinfo() -> None:
    lines = [
        "41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n",
        "35 31 0:32 /a /sys/fs/cgroup/memory rw shared:1 - cgroup cgroup rw,memory\n",
        "broken\n",
    ]
    first, second = parse_mounts(lines)
    assert (first.point, first.kind) == ("/sys/fs/cgroup/uni fied", "cgroup2")
    assert "nsdelegate" in first.options
    assert (second.root, second.options[1]) == ("/a", "memory")


def test_own_groups() -> None:
    assert own_groups(["4:cpu,cpuacct:/x\n", "0::/y\n"]) == {"cpu": "/x", "cpuacct": "/x", "": "/y"}


def test_flat_keyed_files() -> None:
    text = b"low 0\noom 3\noom_kill 2\n"
    assert (keyed(text, b"oom"), keyed(text, b"oom_kill"), keyed(text, b"kill")) == (3, 2, None)


@pytest.mark.parametrize("path", ["relative", "", "/a\0b"])
def test_paths_inside(path: str) -> None:
    with pytest.raises(ValueError, match="absolute"):
        spec.inside(path)


def test_paths_are_cleaned() -> None:
    assert spec.inside("//a/../b//c/") == "/b/c"


@pytest.mark.parametrize("place", ["/proc", "/proc/sys", "/dev", "/", "/sys"])
def test_places_of_the_engine(place: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which the engine mounts"):
        spec.mount_points({place: Bind(tmp_path)}, None)


def test_the_start_of_an_id_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = iter(["123456789012" + "f" * 20, "1234567890a2" + "0" * 20])
    monkeypatch.setattr("os.urandom", lambda _: bytes.fromhex(next(tokens)))
    assert spec.new_id() == "1234567890a2" + "0" * 20


def test_mounts_and_tmpfs(tmp_path: Path) -> None:
    points = spec.mount_points({"/a": tmp_path}, {"/b": "1M", "/c": None})
    assert points == {"/a": Bind(tmp_path), "/b": Tmpfs("1M"), "/c": Tmpfs()}
    assert spec.mount_points(None, ["/x"]) == {"/x": Tmpfs()}
    with pytest.raises(NotFound):
        spec.mount_points({"/a": tmp_path / "missing"}, None)
    with pytest.raises(ValueError, match="must have one mount, got two"):
        spec.mount_points({"/a": tmp_path}, ["/a"])


@pytest.mark.parametrize("env", [{"": "x"}, {"A=B": "x"}, {"A\0": "x"}, {"A": "\0"}])
def test_environments(env: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="env must have names without"):
        spec.environment(env)


def test_security_evolves() -> None:
    relaxed = Security.SANDBOX.evolve(capabilities={"cap_net_raw"}, optional={"memory"})
    assert relaxed.capabilities == {"NET_RAW"}
    assert Security.SANDBOX.capabilities == frozenset()
    assert relaxed.name == "custom"
    for bad in ({"capabilities": {"NO_SUCH"}}, {"optional": {"everything"}}):
        with pytest.raises(ValueError, match="unknown"):
            Security.SANDBOX.evolve(**bad)  # type: ignore[arg-type]
