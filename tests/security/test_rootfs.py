"""E05 to E10b, E23, E24, E27: hostile root file systems and mounts."""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from pycontain import Bind, Container, Engine, Image, PycontainError, Security, StartError
from tests.security import attacks, weak
from tests.security.conftest import Canary
from tests.support.mounts import our_mounts
from tests.support.roots import make_root

FULL = bool(os.environ.get("PYC_SECURITY_FULL"))
_LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.mark.case("E05", "E06", "E08")
@pytest.mark.parametrize("name", list(attacks.LINKED))
def test_the_engines_places_as_links(name: str, canary: Canary) -> None:
    assert attacks.links_for_the_engines_places(name) == []


@pytest.mark.control("E05", "E06", "E08")
@pytest.mark.parametrize("name", ["proc", "tmp"])
def test_links_that_are_followed_would_be_seen(name: str) -> None:
    assert weak.run("links", "tests.security.attacks:links_for_the_engines_places", name)


@pytest.mark.case("E05", "E06", "E08")
@pytest.mark.parametrize(
    "place", ["proc", "sys", "dev", "dev/pts", "dev/shm", "dev/mqueue", "run", "tmp", "etc"]
)
@pytest.mark.parametrize("kind", ["absolute", "dotdot", "dangling", "loop", "file", "missing"])
def test_hostile_places_touch_nothing(place: str, kind: str, root: Path, canary: Canary) -> None:
    where = root / place
    where.parent.mkdir(parents=True, exist_ok=True)
    if where.is_dir():
        for path in where.iterdir():
            path.unlink()
        where.rmdir()
    outside = os.path.relpath(canary.top / "inner", where.parent)
    if kind == "file":
        where.write_text("")
    elif kind != "missing":
        where.symlink_to(
            {
                "absolute": str(canary.top / "inner"),
                "dotdot": f"{'../' * 20}{outside.lstrip('./')}",
                "dangling": "/none/none",
                "loop": where.name,
            }[kind]
        )
    try:
        with Container(Image.from_rootfs(root), tmpfs=["/data"]) as container:
            assert container.exec(["cat", "/etc/hostname"]).stdout.strip() == container.id[:12]
            assert container.exec(["cat", "/proc/sys/kernel/hostname"]).stdout.strip() == container.id[:12]
            assert Canary.SECRET not in container.exec(["sh", "-c", "cat /*/secret /dev/*/secret"]).stdout
            assert container.exec(["sh", "-c", "echo x > /proc/sysrq-trigger"]).returncode != 0
    except StartError as error:
        if not error.step:
            raise


def _masked() -> dict[str, bool]:
    """Return paths that a default container covers, and whether they exist on this host."""
    return {path: os.path.exists(path) for path in Security.SANDBOX.masked_paths}


LOOK = """
import os, sys
def content(path):
    if os.path.isdir(path):
        return sorted(os.listdir(path))
    try:
        with open(path, 'rb') as file: return file.read(64)
    except OSError as error: return b''
def writable(path):
    try:
        os.close(os.open(path, os.O_WRONLY)); return True
    except OSError: return False
for path in sys.argv[1].split(','):
    if content(path): print('readable', path)
for path in sys.argv[2].split(','):
    if os.path.isdir(path):
        for top, _, names in os.walk(path):
            for name in names:
                if writable(f'{top}/{name}'): print('writable', f'{top}/{name}')
    elif writable(path): print('writable', path)
"""


def _look(container: Container) -> list[str]:
    paths = [",".join(Security.SANDBOX.masked_paths), ",".join(Security.SANDBOX.readonly_paths)]
    return str(container.exec([sys.executable, "-c", LOOK, *paths]).stdout).splitlines()


@pytest.mark.case("E10")
def test_masks_and_read_only_paths_hold_in_every_situation() -> None:
    container = Container()
    for _ in range(2):
        container.start()
        assert _look(container) == []
        container.stop()
    container.remove()
    paths = [",".join(Security.SANDBOX.masked_paths), ",".join(Security.SANDBOX.readonly_paths)]
    with Container(command=[sys.executable, "-c", LOOK, *paths], init=False) as container:
        container.wait(20)
        assert b"".join(container.logs()) == b""
    doubled = Security.SANDBOX.evolve(
        masked_paths=(*Security.SANDBOX.masked_paths, "/proc/kcore", "/proc/none", "/none/none"),
        readonly_paths=(*Security.SANDBOX.readonly_paths, "/proc/sys", "/proc/none"),
    )
    with Container(security=doubled) as container:
        assert _look(container) == []


@pytest.mark.control("E10", "E07")
def test_unmasked_files_are_readable() -> None:
    with Container(security=Security.SANDBOX.evolve(masked_paths=(), readonly_paths=())) as container:
        assert any(line.startswith("readable") for line in _look(container))


@pytest.mark.case("E07")
@pytest.mark.parametrize("target", ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/kcore"])
def test_device_path_through_a_link_is_still_masked(root: Path, target: str) -> None:
    for name in ("null", "zero"):
        (root / "dev" / name).symlink_to(target)
    with Container(Image.from_rootfs(root)) as container:
        for path, there in _masked().items():
            if there:
                output = container.exec(["sh", "-c", f"cat {path} 2>/dev/null; ls -A {path}"]).stdout
                assert output.replace(path, "").strip() == "", path
        assert container.exec(["sh", "-c", f"echo x > {target}"]).returncode != 0
        assert (
            container.exec(["stat", "-c", "%F %t %T", "/dev/null"]).stdout == "character special file 1 3\n"
        )


def _flip(first: Path, second: Path, until: threading.Event, count: list[int]) -> None:
    while not until.is_set():
        _LIBC.renameat2(-100, os.fsencode(first), -100, os.fsencode(second), 2)  # RENAME_EXCHANGE
        count[0] += 1


@pytest.mark.case("E09")
def test_a_directory_that_turns_into_a_link_while_mounts_are_made(canary: Canary, tmp_path: Path) -> None:
    """CVE-2021-30465: a sibling swaps the mount points of another container's nested mounts."""
    shared = tmp_path / "shared"
    (shared / "place" / "deep").mkdir(parents=True)
    (shared / "other").symlink_to("/".join([".."] * 12) + str(canary.top))
    shared.chmod(0o777)
    until, count = threading.Event(), [0]
    flipper = threading.Thread(target=_flip, args=(shared / "place", shared / "other", until, count))
    flipper.start()
    started = refused = 0
    deadline = time.monotonic() + (60 if FULL else 6)
    try:
        while time.monotonic() < deadline and started + refused < 2000:
            try:
                mounts = {"/v": Bind(shared), "/v/place/deep": Bind(canary.top / "inner", read_only=True)}
                with Container(mounts=mounts) as container:
                    lines = container.exec(["cat", "/proc/self/mountinfo"]).stdout.splitlines()
                    places = [line.split()[4] for line in lines]
                    assert not [one for one in places if "canary" in one]
                    started += 1
            except PycontainError:
                refused += 1
    finally:
        until.set()
        flipper.join()
    assert count[0] >= 1000
    assert started + refused > 20


@pytest.mark.control("E09")
def test_race_is_hit() -> None:
    """Control: the attacker does swap the directory often enough to hit a start."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="pyc-race-") as directory:
        top = Path(directory)
        (top / "place").mkdir()
        (top / "other").symlink_to("/etc")
        until, count = threading.Event(), [0]
        flipper = threading.Thread(target=_flip, args=(top / "place", top / "other", until, count))
        flipper.start()
        seen: set[bool] = set()
        while len(seen) < 2 or count[0] < 1000:
            seen.add((top / "place").is_symlink())
        until.set()
        flipper.join()


@pytest.mark.case("E10b")
def test_links_that_a_run_planted_are_not_followed_by_the_next(
    root: Path, canary: Canary, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(0o777)
    (volume / "kept").write_text("kept")
    container = Container(Image.from_rootfs(root), mounts={"/v": Bind(volume)}, tmpfs=["/v/sub/dir"])
    script = (
        f"for f in /etc/hostname /etc/hosts /etc/resolv.conf; do rm -f $f; ln -s {canary.top}/secret $f; done; "
        f"ln -sfn {canary.top} /v/sub2; ln -sfn {canary.top} /run/x"
    )
    for _ in range(3):
        container.start()
        container.exec(["sh", "-c", script])
        assert container.exec(["cat", "/v/kept"]).stdout == "kept"
        container.stop()
    container.remove()
    (volume / "sub" / "dir").rmdir()
    (volume / "sub").rmdir()
    (volume / "sub").symlink_to(canary.top)
    try:
        with Container(Image.from_rootfs(root), mounts={"/v": Bind(volume)}, tmpfs=["/v/sub/dir"]) as again:
            assert again.exec(["cat", "/etc/hostname"]).stdout.strip() == again.id[:12]
    except StartError:
        pass
    assert (volume / "kept").read_text() == "kept"


@pytest.mark.control("E10b", "E23")
def test_changed_canary_is_detected(tmp_path: Path) -> None:
    one = Canary(tmp_path / "other")
    with Container(mounts={"/v": Bind(one.top)}) as container:
        container.exec(["touch", "/v/new"])
    assert one.check()


@pytest.mark.case("E23")
def test_no_mount_crosses_in_either_direction(canary: Canary, engine: Engine) -> None:
    before = our_mounts()
    opened = Security.SANDBOX.evolve(seccomp=None, capabilities={"SYS_ADMIN"}, landlock=False)
    with Container(mounts={"/v": Bind(canary.top, read_only=True)}, security=opened) as container:
        script = "mount -t tmpfs none /v/inner && echo mounted; mount --make-rshared / && echo shared; "
        script += "mount -t tmpfs none /v && echo over"
        output = container.exec(["sh", "-c", script]).stdout
        assert "mounted" in output, "the attack did not even mount"
        assert our_mounts() == before
        lines = container.exec(["cat", "/proc/self/mountinfo"]).stdout
        assert "master:" not in lines


CGROUPS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
os.makedirs('/tmp/cg', exist_ok=True)
for kind, options in ((b'cgroup2', None), (b'cgroup', b'memory'), (b'cgroup', b'devices'), (b'cgroup', b'rdma')):
    if libc.mount(b'none', b'/tmp/cg', kind, 0, options) == 0: print('mounted', kind)
for top, dirs, names in os.walk('/sys/fs/cgroup'):
    try:
        os.mkdir(top + '/pyc'); print('made', top)
    except OSError: pass
    for name in names:
        try:
            os.close(os.open(f'{top}/{name}', os.O_WRONLY)); print('opened', top, name)
        except OSError: pass
print('in', open('/proc/self/cgroup').read())
"""


@pytest.mark.case("E24")
def test_no_cgroup_is_in_reach(engine: Engine) -> None:
    with Container() as container:
        output = container.exec([sys.executable, "-c", CGROUPS]).stdout
        assert "mounted" not in output
        assert "made" not in output
        assert "opened" not in output
        assert (
            engine._session.owner.name not in output
            or engine._session.cgroups.keeps_out
            or not engine._session.features.privileged
        )


@pytest.mark.control("E24")
def test_with_sys_admin_a_cgroup_would_be_mounted() -> None:
    opened = Security.SANDBOX.evolve(seccomp=None, capabilities={"SYS_ADMIN"}, landlock=False)
    with Container(security=opened) as container:
        assert "mounted" in container.exec([sys.executable, "-c", CGROUPS]).stdout


@pytest.mark.case("E27")
def test_no_file_of_a_guest_is_the_hosts_roots(root: Path, engine: Engine, as_host_root: None) -> None:
    ranges = []
    containers = [Container(Image.from_rootfs(root)).start() for _ in range(5)]
    try:
        for container in containers:
            container.exec(["sh", "-c", "touch /made; mkdir -p /d/e"])
            if engine._session.features.privileged:
                container.exec(["sh", "-c", "touch /tmp/x"], user="65533")
            upper = Path(engine._session.owner.live) / container.id
            owners = {path.lstat().st_uid for path in upper.rglob("*")}
            owners |= {path.lstat().st_gid for path in upper.rglob("*")}
            assert owners
            assert min(owners) >= 0x58000000
            line = container.exec(["cat", "/proc/self/uid_map"]).stdout.split()
            assert line[0] == "0"
            ranges.append(range(int(line[1]), int(line[1]) + int(line[2])))
    finally:
        for container in containers:
            container.remove()
    ranges.sort(key=lambda one: one.start)
    assert all(one.stop <= other.start for one, other in itertools.pairwise(ranges))
    with Container() as container, pytest.raises(StartError):
        container.exec(["true"], user="70000")


@pytest.mark.control("E27")
def test_ranges_that_overlap_would_be_seen(
    root: Path, engine: Engine, as_host_root: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = engine._session.owner.blocks.acquire()
    monkeypatch.setattr(engine._session.owner.blocks, "acquire", lambda: first)
    monkeypatch.setattr(engine._session.owner.blocks, "release", lambda _: None)
    engine._session.warm.discard()
    maps: list[str] = []
    for _ in range(2):
        with Container(Image.from_rootfs(root), hostname=f"h{len(maps)}") as container:
            maps.append(container.exec(["cat", "/proc/self/uid_map"]).stdout)
    assert maps[0] == maps[1]
    monkeypatch.undo()
    engine._session.owner.blocks.release(first)


@pytest.fixture
def as_host_root(engine: Engine) -> None:
    """Skip where the engine is rootless."""
    if not engine._session.features.privileged:
        pytest.skip("a rootless container has no block of ids")


def test_roots_are_friendly(tmp_path: Path) -> None:
    with Container(Image.from_rootfs(make_root(tmp_path / "friendly"))) as container:
        assert container.exec(["echo", "hello"]).stdout == "hello\n"
