"""The view of /sys in a container: its own limits and the processors, and nothing else of the host."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pycontain import Bind, Container, Engine, Image, StartError
from tests.support.roots import make_root

pytestmark = pytest.mark.kernel

LIMITS = """
import glob
found = []
for name in ("memory.max", "memory.limit_in_bytes"):
    for path in glob.glob(f"/sys/fs/cgroup/**/{name}", recursive=True):
        found.append(open(path).read().strip())
print(*found)
"""
OWN = """
import re
lines = dict(line.strip().split(":", 2)[1:] for line in open("/proc/self/cgroup"))
mounts = {}
for line in open("/proc/self/mountinfo"):
    left, right = line.split(" - ")
    root, point, kind, names = *left.split()[3:5], right.split()[0], right.split()[2]
    if kind in ("cgroup", "cgroup2"):
        mounts.setdefault("" if kind == "cgroup2" else names.split(",")[-1], (root, point))
for name, (root, point) in mounts.items():
    print(name, root, lines.get(name, "none"), open(f"{point}/cgroup.procs").read().count("1") >= 0)
"""


def _held(engine: Engine, *names: str) -> None:
    if not all(engine._session.cgroups.layout.has(name) for name in names):
        pytest.skip(f"no cgroup here can hold {' and '.join(names)}")


def test_limits_are_found_where_runtimes_look(engine: Engine) -> None:
    _held(engine, "memory")
    with Container(engine=engine, memory="256M") as container:
        found = container.exec(["python3", "-c", LIMITS], check=True).stdout.split()
    assert found
    assert all(value in (str(256 << 20), "max") for value in found)
    assert str(256 << 20) in found


def test_a_container_made_ahead_shows_its_own_limits(engine: Engine) -> None:
    _held(engine, "memory")
    for size in (100, 100, 100, 200, 200):
        with Container(engine=engine, memory=f"{size}M") as container:
            found = container.exec(["python3", "-c", LIMITS], check=True).stdout.split()
            assert str(size << 20) in found
            assert all(value in (str(size << 20), "max") for value in found)


def test_mounts_agree_with_the_groups_of_a_process(engine: Engine) -> None:
    """A JVM needs the root of a cgroup mount to be an ancestor of its own group."""
    if not engine._session.cgroups.layout.legacy:
        pytest.skip("no cgroup v1 here")
    for cpus in (None, 0.5):
        with Container(engine=engine, cpus=cpus) as container:
            lines = container.exec(["python3", "-c", OWN], check=True).stdout.splitlines()
        assert {line.split()[0] for line in lines} >= {"memory", "cpu", "cpuacct", "cpuset"} & set(
            engine._session.cgroups.layout.legacy
        )
        assert all(line.split()[1] == "/" for line in lines), lines


def test_java_and_node_follow_the_limits(engine: Engine) -> None:
    _held(engine, "memory", "cpu")
    if "memory" not in engine._session.cgroups.layout.legacy:
        pytest.skip(
            "on cgroup v2 a command's group is '/../eN' in /proc/self/cgroup, which no runtime resolves"
        )
    with Container(engine=engine, memory="300M", cpus=1) as container:
        if shutil.which("java"):
            shown = container.exec(
                ["java", "-XshowSettings:system", "-version"], timeout=60, check=True
            ).stderr
            assert "Memory Limit: 300.00M" in shown
            assert "Effective CPU Count: 1" in shown
        if shutil.which("node"):
            script = ["node", "-p", "process.constrainedMemory()"]
            assert int(container.exec(script, timeout=60, check=True).stdout) == 300 << 20
        if not shutil.which("java") and not shutil.which("node"):
            pytest.skip("neither java nor node on this host")


def test_nothing_else_of_the_host_is_below_sys(engine: Engine) -> None:
    with Container(engine=engine) as container:
        script = "ls /sys /sys/fs /sys/devices /sys/devices/system"
        result = container.exec(script, shell=True, check=True)
        names = {name for name in result.stdout.split() if not name.endswith(":")}
        assert names <= {"devices", "fs", "cgroup", "system", "cpu", "node"}
        assert container.exec(["cat", "/sys/devices/system/cpu/online"], check=True).stdout.strip()
        for path in ("/sys/x", "/sys/fs/cgroup/x", "/sys/devices/system/cpu/x"):
            assert container.exec(["mkdir", path]).returncode == 1
        script = "for f in $(find /sys -type f); do (echo 0 > $f) 2>/dev/null && echo $f; done; true"
        assert container.exec(script, shell=True, check=True).stdout == ""


def test_no_container_sees_the_group_of_another(engine: Engine) -> None:
    _held(engine, "cpu")
    with Container(engine=engine, cpus=1) as one, Container(engine=engine, cpus=1) as other:
        seen = one.exec("find /sys/fs -type d; cat /proc/self/mountinfo", shell=True, check=True).stdout
        assert other.id not in seen
        assert one.exec("cat /proc/self/cgroup", shell=True).stdout.count(one.id) == 0


def test_a_mount_of_the_caller_does_not_land_in_sys(tmp_path: Path, engine: Engine) -> None:
    """E08: the mount point is a link of the image."""
    tmp_path.chmod(0o755)
    root = make_root(tmp_path / "root")
    (root / "link").symlink_to("/sys/fs/cgroup")
    source = tmp_path / "source"
    source.mkdir()
    with pytest.raises(StartError):
        Container(Image.from_rootfs(root), engine=engine, mounts={"/link": Bind(source)}).start()
    assert not os.listdir(source)
