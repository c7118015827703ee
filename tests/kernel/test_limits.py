"""Limits are enforced, and results name the limit that was reached."""

from __future__ import annotations

import pytest

from pycontain import CgroupLimits, CommandTimeout, Container, Engine, LimitError, Security, UnsupportedError

ALLOCATE = ["python3", "-c", "x = bytearray(512 << 20)"]


def test_oom_is_reported(needs_memory: None) -> None:
    with Container(memory="64M") as container:
        result = container.exec(ALLOCATE)
        assert (result.reason, result.returncode) == ("oom", -9)
        assert result.usage.memory_peak is None or result.usage.memory_peak <= 80 << 20
        assert container.exec(["echo", "usable"]).stdout == "usable\n"


def test_tmpfs_is_charged(needs_memory: None) -> None:
    with Container(memory="64M", tmpfs={"/big": "400M"}) as container:
        assert container.exec("head -c 300M /dev/zero > /big/x", shell=True).reason == "oom"


def test_fork_bomb_is_contained(needs_pids: None) -> None:
    with Container(pids=32) as container:
        bomb = "import os\nwhile True:\n    os.fork()"
        try:
            result = container.exec(["python3", "-c", bomb], timeout=10, kill_orphans=True)
        except CommandTimeout:
            pass
        else:
            assert result.reason == "pids" or "unavailable" in result.stderr
        assert container.exec(["echo", "usable"]).stdout == "usable\n"


def test_cpus(engine: Engine) -> None:
    if not engine._session.cgroups.layout.has("cpu"):
        pytest.skip("no cpu controller is delegated to this user")
    with Container(cpus=0.2) as container, pytest.raises(CommandTimeout) as expired:
        container.exec(["python3", "-c", "while True: pass"], timeout=1)
    assert 0.05 < expired.value.usage.cpu_user + expired.value.usage.cpu_system < 0.5


def test_disk_limit_is_reported() -> None:
    with Container(disk="1M") as container:
        result = container.exec("head -c 2M /dev/zero > /x", shell=True)
        assert result.reason == "disk"


def test_usage_counts_cpu(container: Container) -> None:
    result = container.exec(["python3", "-c", "sum(range(5_000_000))"])
    assert result.usage.cpu_user > 0.02
    assert result.usage.memory_peak is not None
    assert result.usage.memory_peak > 1 << 20


@pytest.mark.parametrize(
    "limits",
    [
        {"memory": "12Q"},
        {"memory": -2},
        {"memory": "4K"},
        {"pids": 0},
        {"cpus": -2},
        {"cpus": float("nan")},
        {"limits": CgroupLimits(memory="64M"), "memory": "64M"},
        {"limits": CgroupLimits(pids=5), "pids": 5},
    ],
)
def test_impossible_limits(limits: dict[str, object], engine: Engine) -> None:
    before = len(engine.containers)
    with pytest.raises(ValueError):  # noqa: PT011  every message is its own
        Container(**limits)  # type: ignore[arg-type]
    assert len(engine.containers) == before


def test_limits_are_refused_where_nothing_enforces_them(engine: Engine) -> None:
    if engine._session.cgroups.layout.has("memory"):
        pytest.skip("this host enforces memory limits")
    with pytest.raises(UnsupportedError, match="memory"):
        Container(memory="64M")
    relaxed = Security.SANDBOX.evolve(optional={"memory", "landlock", "time"})
    with Container(memory="256M", security=relaxed) as container:
        assert "memory limit" in container.isolation.missing


def test_a_value_that_the_kernel_refuses(engine: Engine) -> None:
    if not engine._session.cgroups.layout.has("cpuset"):
        pytest.skip("no cpuset controller is delegated to this user")
    with pytest.raises(LimitError, match="cpuset"):
        Container(limits=CgroupLimits(cpuset_cpus="9999")).start()


def test_pause(needs_freezer: None, container: Container) -> None:
    import time

    process = container.popen(["sh", "-c", "while :; do echo x; sleep 0.01; done"])
    assert process.stdout is not None
    process.stdout.readline()
    container.pause()
    assert container.status == "paused"
    before = container.stats()
    time.sleep(0.2)
    after = container.stats()
    assert before.cpu_user is not None
    assert before.cpu_system is not None
    assert after.cpu_user is not None
    assert after.cpu_system is not None
    # The kernel splits one measured sum in two by estimate, so that the parts may move a little.
    assert after.cpu_user + after.cpu_system - before.cpu_user - before.cpu_system < 0.001
    container.unpause()
    process.stdout.readline()
    process.kill()
    process.wait()
    process.close()


def test_a_paused_container_can_be_removed(needs_freezer: None) -> None:
    container = Container().start()
    container.pause()
    container.remove()
    assert container.status == "removed"


def test_limit_of_one_command_is_not_the_next_ones(container: Container, needs_memory: None) -> None:
    with container.popen(["sleep", "100"]) as beside:  # it has the exec cgroup that waited
        small = container.exec(["true"], limits=CgroupLimits(memory="16M"))
        assert small.returncode == 0
        eat = ["python3", "-c", "print(len(bytearray(64 << 20)))"]
        assert container.exec(eat).stdout == f"{64 << 20}\n"
        beside.kill()
