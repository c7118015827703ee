"""Options of a container: an accepted option has its effect inside, or raises."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain import (
    Bind,
    Container,
    Engine,
    Image,
    NotFound,
    Security,
    StartError,
    Tmpfs,
    UnsupportedError,
    Volume,
    run,
)


def _inside(command: str, **options: object) -> str:
    with Container(**options) as container:  # type: ignore[arg-type]
        done = container.exec(command, shell=True)
    assert done.returncode == 0, done
    output: str = done.stdout.strip()
    return output


@pytest.mark.parametrize(("size", "pages"), [(None, 16384), ("1M", 256), ("256M", 65536), (4096, 1)])
def test_shm_size(size: str | int | None, pages: int) -> None:
    assert _inside("stat -f -c '%b %s' /dev/shm", shm_size=size) == f"{pages} 4096"


def test_shm_size_and_a_mount_of_ones_own() -> None:
    assert _inside("stat -f -c %b /dev/shm", shm_size="1M", tmpfs={"/dev/shm": "2M"}) == "512"


def _made(image: Image, entrypoint: tuple[str, ...], command: tuple[str, ...]) -> Image:
    import attrs

    return attrs.evolve(image, entrypoint=entrypoint, command=command)


@pytest.mark.parametrize(
    ("command", "entrypoint", "line"),
    [
        (["x"], None, "own x"),
        (Image.DEFAULT, None, "own default"),
        (["x"], ["echo", "other"], "other x"),
        (Image.DEFAULT, ["echo", "other"], "other"),
        (None, ["echo", "other"], "other"),
        (["echo", "x"], (), "x"),
    ],
)
def test_entrypoint(command: list[str], entrypoint: list[str], line: str) -> None:
    image = _made(Image.host(), ("echo", "own"), ("default",))
    with Container(image, command, entrypoint=entrypoint) as container:
        assert container.wait(10) == 0
        assert b"".join(container.logs()).decode().strip() == line


def test_no_entrypoint_and_no_command_is_refused() -> None:
    image = _made(Image.host(), ("echo",), ("default",))
    with pytest.raises(ValueError, match="has no command"):
        Container(image, Image.DEFAULT, entrypoint=())


def test_sysctls_of_the_network_namespace_only(container: Container) -> None:
    path = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
    before = Path(path).read_text()
    assert _inside(f"cat {path}", sysctls={"net.ipv4.ip_unprivileged_port_start": 7}) == "7"
    assert container.exec(["cat", path]).stdout == "1024\n"
    assert Path(path).read_text() == before


def test_sysctls_of_the_ipc_namespace() -> None:
    try:
        shown = _inside("cat /proc/sys/kernel/shmmni", sysctls={"kernel.shmmni": 77})
    except StartError as refused:
        if refused.step != "sysctl":
            raise
        pytest.skip("this kernel lets only the host's root set parameters of IPC")
    assert shown == "77"


@pytest.mark.parametrize(
    "name", ["kernel.hostname", "vm.swappiness", "kernel.core_pattern", "net", "net/../x"]
)
def test_sysctls_of_the_host_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="sysctl"):
        Container(sysctls={name: "1"})


def test_sysctls_of_a_shared_network_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must not have net\.\* where the network is shared"):
        Container(network="host", sysctls={"net.ipv4.ip_forward": 1})


def test_a_sysctl_that_the_kernel_refuses() -> None:
    for sysctls in ({"net.ipv4.nonesuch": 1}, {"net.ipv4.ip_forward": "many"}):
        with (
            pytest.raises(StartError, match="sysctl '/proc/sys/net/ipv4") as error,
            Container(sysctls=sysctls),
        ):
            pass
        assert error.value.step == "sysctl"


def test_group_add(engine: Engine) -> None:
    if engine._session.ids_inside == 1:
        with pytest.raises(UnsupportedError, match="group_add"):
            Container(group_add=[5])
        return
    groups = "grep ^Groups: /proc/self/status"
    with Container(user=1000, group_add=["tty", 77, "77"]) as container:
        for user in (None, "0", "1000:1000"):
            assert {"5", "77"} <= set(container.exec(groups, shell=True, user=user).stdout.split())
        assert container.popen(groups, shell=True).communicate()[0].split()[1:] == ["5", "77"]
    with pytest.raises(NotFound, match="no group 'nonesuch'"):
        Container(group_add="nonesuch")


def test_group_add_to_a_command_that_is_pid_1(engine: Engine) -> None:
    if engine._session.ids_inside == 1:
        pytest.skip("a single id has no further groups")
    groups = ["grep", "^Groups:", "/proc/self/status"]
    with Container(None, groups, init=False, group_add=["77"]) as container:
        assert container.wait(10) == 0
        assert "77" in b"".join(container.logs()).decode().split()
    with pytest.raises(UnsupportedError, match="the group 'tty' with init=False"):
        Container(None, groups, init=False, group_add=["tty"]).start()


@pytest.mark.parametrize("init", [True, False])
def test_processor_time_of_a_main_command(init: bool) -> None:
    endless = ["sh", "-c", "while :; do :; done"]
    with Container(None, endless, init=init, rlimits={"cpu": 1}) as container:
        container.wait(30)
        assert container.reason == "cpu"


def test_stop_timeout() -> None:
    stubborn = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"]
    with Container(None, stubborn, stop_timeout=0.5) as container:
        next(container.logs(follow=True))
        begun = time.monotonic()
        container.stop()
        assert 0.4 < time.monotonic() - begun < 8


@pytest.mark.parametrize("kind", ["bind", "tmpfs", "volume"])
@pytest.mark.parametrize("noexec", [False, True])
@pytest.mark.usefixtures("needs_idmap")
def test_noexec(tmp_path: Path, kind: str, noexec: bool) -> None:
    tmp_path.chmod(0o777)
    with Volume() as volume:
        what = {
            "bind": Bind(tmp_path, noexec=noexec),
            "tmpfs": Tmpfs("1M", noexec=noexec),
            "volume": volume.mounted(noexec=noexec),
        }[kind]
        command = "cp /bin/true /m/true && { /m/true && echo ran || echo refused; } 2>/dev/null"
        assert _inside(command, mounts={"/m": what}) == ("refused" if noexec else "ran")


def test_nosymfollow(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "link").symlink_to("/etc/passwd")
    command = "cat /m/link >/dev/null 2>&1 && echo followed || echo refused"
    assert _inside(command, mounts={"/m": Bind(tmp_path, nosymfollow=True)}) == "refused"
    assert _inside(command, mounts={"/m": Bind(tmp_path)}) == "followed"


@pytest.fixture
def below(tmp_path: Path) -> Iterator[Path]:
    """Provide a tmpfs that is mounted at `sub` of a directory of the host."""
    if os.geteuid():
        pytest.skip("mounts on the host are root's")
    libc = ctypes.CDLL(None, use_errno=True)
    sub = tmp_path / "sub"
    sub.mkdir()
    tmp_path.chmod(0o755)
    if libc.mount(b"pyc", str(sub).encode(), b"tmpfs", 0, b"mode=777"):
        pytest.skip("this process may not mount")
    yield sub
    libc.umount2(str(sub).encode(), 2)


def test_mounts_below_a_bound_directory_show_inside(below: Path) -> None:
    (below / "inside").write_text("host\n")
    mounts = {"/w": Bind(below.parent)}
    assert _inside("cat /w/sub/inside; echo guest > /w/sub/written", mounts=mounts) == "host"
    assert (below / "written").read_text() == "guest\n"
    read_only = {"/w": Bind(below.parent, read_only=True, noexec=True)}
    command = "echo x 2>/dev/null > /w/sub/more && echo written || echo refused; grep ' /w/sub ' /proc/mounts"
    shown = _inside(command, mounts=read_only)
    assert shown.startswith("refused")
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(shown.split()[4].split(","))


def test_mounts_of_the_moment_show_inside(below: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    mounts = {"/w": Bind(below.parent)}
    for _ in range(4):  # the next ones are warm
        assert _inside("ls /w", mounts=mounts) == "sub"
    other = below.parent / "sub"
    (other / "x").mkdir()
    assert not libc.mount(b"pyc", str(other / "x").encode(), b"tmpfs", 0, b"mode=755")
    try:
        (other / "x" / "new").touch()
        assert _inside("ls /w/sub/x", mounts=mounts) == "new"
    finally:
        libc.umount2(str(other / "x").encode(), 2)


def test_processor_time_has_a_reason_of_its_own() -> None:
    spin = ["sh", "-c", "while :; do :; done"]
    for cpu in (1, (1, 3)):
        result = run(None, spin, rlimits={"cpu": cpu}, timeout=60)
        assert (result.reason, result.returncode) == ("cpu", -9 if cpu == 1 else -24)


def test_own_sigxcpu_is_not_reported_as_cpu() -> None:
    result = run(None, ["sh", "-c", "kill -XCPU $$"], rlimits={"cpu": 5})
    assert (result.reason, result.returncode) == ("signal", -24)
    result = run(None, ["sh", "-c", "kill -KILL $$"], rlimits={"cpu": (5, 6)})
    assert (result.reason, result.returncode) == ("signal", -9)


_LIMITS = {
    "as": "address space",
    "core": "core file size",
    "cpu": "cpu time",
    "data": "data size",
    "fsize": "file size",
    "memlock": "locked memory",
    "msgqueue": "msgqueue size",
    "nice": "nice priority",
    "nofile": "open files",
    "nproc": "processes",
    "rss": "resident set",
    "rtprio": "realtime priority",
    "rttime": "realtime timeout",
    "sigpending": "pending signals",
    "stack": "stack size",
}
"""Names of setrlimit(2), and those of proc_pid_limits(5) in lower case."""


@pytest.mark.parametrize("where", ["container", "security"])
def test_every_rlimit_is_in_force(where: str) -> None:
    values = {"as": 8 << 30, "data": 7 << 30, "stack": 4 << 20, "cpu": 50, "nice": 0, "rtprio": 0, "core": 1}
    wanted = {name: values.get(name, 64) for name in _LIMITS} | {"fsize": 1 << 20, "rss": 1 << 30}
    options = (
        {"rlimits": wanted} if where == "container" else {"security": Security.SANDBOX.evolve(rlimits=wanted)}
    )
    shown = _inside("cat /proc/self/limits", **options).lower()
    for name, title in _LIMITS.items():
        line = next(line for line in shown.splitlines() if title in line)
        soft, hard = line.split(title, 1)[1].split()[:2]
        assert (soft, hard) == (str(wanted[name]), str(wanted[name])), line


def test_every_field_of_security_is_in_force() -> None:
    status = "cat /proc/self/status"
    cap = Security.SANDBOX.evolve(capabilities={"CHOWN", "KILL"})
    lines = dict(line.split(":", 1) for line in _inside(status, security=cap).splitlines())
    assert {int(lines[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {0b100001}
    assert {int(lines[name], 16) for name in ("CapInh", "CapAmb")} == {0}
    for value, shown in ((True, "1"), (False, "0")):
        lines = dict(
            line.split(":", 1)
            for line in _inside(status, security=Security.SANDBOX.evolve(no_new_privs=value)).splitlines()
        )
        assert lines["NoNewPrivs"].strip() == shown or (not value and lines["NoNewPrivs"].strip() == "1")
    assert "Seccomp:\t2" in _inside(status)
    masked = Security.SANDBOX.evolve(masked_paths=["/proc/version"], readonly_paths=["/proc/uptime"])
    assert _inside("wc -c < /proc/version", security=masked) == "0"
    assert " ro," in _inside("grep ' /proc/uptime ' /proc/mounts", security=masked)
