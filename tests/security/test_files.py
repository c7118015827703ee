"""E29 to E31: files of a running container, read and written while the guest swaps links."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pycontain import DEVNULL, Container, ContainerPath, Image, PycontainError
from pycontain._kernel.file_server import Verb
from pycontain._objects import path as paths
from pycontain._runtime.running import Running
from pycontain._runtime.users import open_inside
from tests.security.conftest import Canary

SECONDS = 60.0 if os.environ.get("PYC_SECURITY_FULL") else 4.0
UP = "../" * 24
SERVER_CAPABILITIES = 0xDB  # CHOWN DAC_OVERRIDE FOWNER FSETID SETGID SETUID

PLANT = """
ln -s {to} /tmp/dir
ln -s {to}/secret /tmp/file
ln -s {up}{to} /tmp/up
ln -s up /tmp/chain
mkdir /tmp/in
ln -s {to}/inner /tmp/in/inner
ln -s /proc/1/root{to} /tmp/root
ln -s /proc/self/root{to} /tmp/self
ln -s /proc/1/cwd{to} /tmp/cwd
ln -s /proc/1/fd/3 /tmp/fd
ln -s /proc/self/fd/3 /tmp/own
"""
DIRECTORIES = "dir up chain in/inner root self cwd".split()
MAGIC = "/proc/1/root{to} /proc/self/root{to} /proc/thread-self/root{to} /proc/1/cwd{to} /proc/1/fd/3".split()


@pytest.fixture
def guest(root: Path) -> Iterator[Container]:
    """Provide a small container.

    Without cgroups a user's dead processes count until init has reaped them: a loop that forks needs room.
    """
    with Container(Image.from_rootfs(root), rlimits={"nproc": 4096}) as container:
        yield container


def _plant(container: Container, canary: Canary) -> list[ContainerPath]:
    """Create links to the canary in the guest and return their paths."""
    script = PLANT.format(to=canary.top, up=UP)
    assert container.exec(["/bin/busybox", "sh", "-c", script]).returncode == 0
    named = [f"/tmp/{name}" for name in DIRECTORIES]
    named += [path.format(to=canary.top) for path in MAGIC]
    return [container.path(name) for name in named]


def _look(directory: ContainerPath, out: Path, canary: Canary) -> list[str]:
    """Return the result of every reading verb on this path, which leads to the canary."""
    got: list[str] = []
    inode = canary.top.stat().st_ino

    def tree() -> str:
        place = out / os.urandom(8).hex()
        directory.container.copy_out(directory, place)
        return " ".join(path.read_text() for path in place.rglob("secret"))

    def single() -> str:
        place = out / os.urandom(8).hex()
        directory.container.copy_out(directory / "secret", place)
        return place.read_text()

    verbs: dict[str, Callable[[], object]] = {
        "read": lambda: (directory / "secret").read_text(),
        "list": lambda: Canary.SECRET if "inner" in {path.name for path in directory.iterdir()} else "",
        "glob": lambda: Canary.SECRET if list(directory.glob("sec*")) else "",
        "walk": lambda: Canary.SECRET if any("secret" in files for _, _, files in directory.walk()) else "",
        "stat": lambda: Canary.SECRET if directory.stat().st_ino == inode else "",
        "exists": lambda: Canary.SECRET if (directory / "secret").exists() else "",
        "copy of the tree": tree,
        "copy of the file": single,
    }
    for name, verb in verbs.items():
        with contextlib.suppress(PycontainError, OSError):
            if Canary.SECRET in str(verb()):
                got.append(f"{name} {directory}")
    return got


def _naive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolve the guest's paths on the host from its root, as in CVE-2018-15664."""

    def ask(running: Running, verb: Verb, path: str, second: str = "", **options: Any) -> int:
        root = open_inside(running, "/", os.O_RDONLY | os.O_DIRECTORY)
        try:
            relative = path.lstrip("/") or "."
            if verb is Verb.OPEN:
                return os.open(relative, options["flags"], options.get("mode", 0), dir_fd=root)
            if verb is Verb.MKDIR:
                os.mkdir(relative, options["mode"], dir_fd=root)
            elif verb is Verb.RENAME:
                os.rename(relative, second.lstrip("/"), src_dir_fd=root, dst_dir_fd=root)
            elif verb is Verb.UNLINK:
                os.unlink(relative, dir_fd=root)
            elif verb is Verb.SET and options.get("fd", -1) < 0:
                os.chmod(relative, options["mode"], dir_fd=root)
            return -1
        finally:
            os.close(root)

    monkeypatch.setattr(paths, "ask", ask)


# ---- E30 --------------------------------------------------------------------------------------------------


@pytest.mark.case("E30")
def test_links_to_the_host_give_nothing_of_it(guest: Container, canary: Canary, tmp_path: Path) -> None:
    got = [one for path in _plant(guest, canary) for one in _look(path, tmp_path, canary)]
    assert got == []
    with pytest.raises(PycontainError):
        guest.path("/tmp/file").read_text()
    for name in ("fd", "own"):
        with pytest.raises(PycontainError):
            guest.copy_out(f"/tmp/{name}", tmp_path / "fd")


@pytest.mark.control("E30")
def test_paths_walked_on_the_host_would_be_seen(
    guest: Container, canary: Canary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = _plant(guest, canary)
    _naive(monkeypatch)
    got = {one.rpartition(" ")[0] for path in planted[:1] for one in _look(path, tmp_path, canary)}
    assert got == {"read", "list", "glob", "walk", "stat", "exists", "copy of the tree", "copy of the file"}


@pytest.mark.case("E30")
def test_copied_link_keeps_its_target(guest: Container, canary: Canary, tmp_path: Path) -> None:
    _plant(guest, canary)
    guest.copy_out("/tmp/in", tmp_path / "in")
    assert os.readlink(tmp_path / "in" / "inner") == f"{canary.top}/inner"


# ---- races ------------------------------------------------------------------------------------------------

SWAP = """
cd /tmp; mkdir d; echo guest > d/secret; ln -s {to} l
while :; do mv d r; mv r d; mv l r; mv r l; done
"""


@contextlib.contextmanager
def _forever(container: Container, script: str) -> Iterator[None]:
    """Run a script in the guest meanwhile."""
    with container.popen(["/bin/busybox", "sh", "-c", script], stderr=DEVNULL, stdout=DEVNULL) as process:
        try:
            yield
            assert process.poll() is None, "the guest stopped"
        finally:
            process.kill()


@contextlib.contextmanager
def _swapping(container: Container, to: Path) -> Iterator[None]:
    """Swap /tmp/r between a directory with a secret of the guest, a link to the host, and nothing."""
    script = SWAP.format(to=to)
    with _forever(container, script):
        deadline = time.monotonic() + 10
        while not container.path("/tmp/l").is_symlink() and time.monotonic() < deadline:
            time.sleep(0.01)
        yield


def _reads(container: Container, out: Path) -> Iterator[str]:
    """Read the path once by every verb and return the contents."""
    with contextlib.suppress(PycontainError):
        yield container.path("/tmp/r/secret").read_text()
    place = out / os.urandom(8).hex()
    with contextlib.suppress(PycontainError):
        container.copy_out("/tmp/r/secret", place)
        yield place.read_text()
    with contextlib.suppress(PycontainError):
        place = out / os.urandom(8).hex()
        container.copy_out("/tmp/r", place)
        yield "".join(path.read_text() for path in place.rglob("*") if path.is_file())


@pytest.mark.case("E30")
def test_directory_replaced_by_a_link_during_read(guest: Container, canary: Canary, tmp_path: Path) -> None:
    seen: set[str] = set()
    with _swapping(guest, canary.top):
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            seen.update(_reads(guest, tmp_path))
    assert "guest\n" in seen, "nothing was read at all"
    assert seen <= {"guest\n", ""}


@pytest.mark.control("E30")
def test_race_on_the_host_would_leak(
    guest: Container, canary: Canary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _swapping(guest, canary.top):
        _naive(monkeypatch)
        seen: set[str] = set()
        end = time.monotonic() + 20
        while Canary.SECRET not in "".join(seen) and time.monotonic() < end:
            with contextlib.suppress(OSError):
                seen.update(_reads(guest, tmp_path))
    assert Canary.SECRET in "".join(seen)


# ---- E31 --------------------------------------------------------------------------------------------------


def _source(top: Path) -> Path:
    tree = top / "source"
    (tree / "inner").mkdir(parents=True)
    for name in ("secret", "inner/secret", "new", "inner/new"):
        (tree / name).write_text("ours")
    tree.chmod(0o777)
    return tree


def _write(container: Container, below: ContainerPath, source: Path) -> list[str]:
    """Call every writing verb once below a path and return the names of those that succeeded."""
    verbs: dict[str, Callable[[], object]] = {
        "copy_in of a file": lambda: container.copy_in(source / "secret", below / "secret"),
        "copy_in of a new file": lambda: container.copy_in(source / "secret", below / "new"),
        "copy_in of content": lambda: container.copy_in(f"{source}/.", below),
        "copy_in of a tree": lambda: container.copy_in(source / "inner", below),
        "write": lambda: (below / "secret").write_text("ours"),
        "append": lambda: (below / "inner" / "secret").open("a").close(),
        "mkdir": lambda: (below / "made").mkdir(parents=True),
        "chmod": lambda: (below / "secret").chmod(0o777),
        "chmod of it": lambda: below.chmod(0o777),
        "touch": lambda: (below / "secret").touch(),
        "link": lambda: (below / "linked").symlink_to("secret"),
        "hard link": lambda: (below / "twin").hardlink_to(below / "secret"),
        "rename": lambda: (below / "secret").rename(below / "moved"),
        "rename away": lambda: (below / "link").rename("/tmp/stolen"),
        "unlink": lambda: (below / "inner" / "secret").unlink(),
        "rmdir": lambda: (below / "inner").rmdir(),
    }
    done = []
    for name, verb in verbs.items():
        with contextlib.suppress(PycontainError):
            verb()
            done.append(name)
    return done


@pytest.mark.case("E31")
def test_writes_below_links_do_not_reach_the_host(guest: Container, canary: Canary, tmp_path: Path) -> None:
    source = _source(tmp_path)
    for path in _plant(guest, canary):
        _write(guest, path, source)
        assert canary.check() == [], path


@pytest.mark.case("E31")
def test_entries_below_a_directory_are_accepted(guest: Container, canary: Canary, tmp_path: Path) -> None:
    source = _source(tmp_path)
    below = guest.path("/tmp/sound")
    (below / "inner").mkdir(parents=True)
    (below / "inner" / "secret").write_text("guest")
    assert len(_write(guest, below, source)) >= 13


@pytest.mark.control("E31")
def test_writes_on_the_host_would_be_detected(
    guest: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weak = Canary(tmp_path / "weak")
    source = _source(tmp_path)
    path = _plant(guest, weak)[0]
    _naive(monkeypatch)
    with contextlib.suppress(OSError):
        _write(guest, path, source)
    assert weak.check() != []


@pytest.mark.case("E31")
def test_directory_replaced_by_a_link_during_write(guest: Container, canary: Canary, tmp_path: Path) -> None:
    source, below, done = _source(tmp_path), guest.path("/tmp/r"), set()
    archives: list[bytes] = []

    def export() -> None:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            place = tmp_path / "archive"
            guest.export(place)
            archives.append(place.read_bytes())
            del archives[:-3]
            assert Canary.SECRET.encode() not in archives[-1]

    with _swapping(guest, canary.top):
        other = threading.Thread(target=export)
        other.start()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            done.update(_write(guest, below, source))
            assert canary.check() == []
        other.join()
    assert archives
    assert Canary.SECRET.encode() not in b"".join(archives)
    assert {"copy_in of content", "write"} & done, "nothing was written at all"


@pytest.mark.case("E31")
def test_names_swapped_below_a_tree_on_its_way_in(guest: Container, canary: Canary, tmp_path: Path) -> None:
    source = tmp_path / "wide"
    for name in range(40):
        (source / f"d{name}" / "deep").mkdir(parents=True)
        (source / f"d{name}" / "deep" / "new").write_text("ours")
    script = f"""
    cd /tmp; while :; do for place in /tmp/t/d* /tmp/t/d*/deep; do
    busybox rm -rf $place; ln -s {canary.top} $place; done; done
    """
    guest.path("/tmp/t").mkdir()
    with _forever(guest, script):
        end = time.monotonic() + SECONDS / 2
        while time.monotonic() < end:
            with contextlib.suppress(PycontainError):
                guest.copy_in(f"{source}/.", "/tmp/t")
            assert canary.check() == []


# ---- the server itself ------------------------------------------------------------------------------------


def _pid(fd: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("Pid:"):
            return int(line.split()[1])
    raise AssertionError("no pidfd")


@pytest.mark.case("E29", "E30", "E31")
def test_the_server_is_confined_and_loads_nothing_of_the_guest(guest: Container) -> None:
    guest.path("/etc/passwd").exists()
    file_server = guest._live().file_server
    assert file_server is not None
    pid = _pid(file_server.pid_fd)
    status = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert int(status["CapPrm"], 16) == int(status["CapBnd"], 16) == SERVER_CAPABILITIES
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    if not guest._engine._session.features.privileged:
        with pytest.raises(PermissionError):  # not dumpable
            os.listdir(f"/proc/{pid}/fd")
        return
    assert os.readlink(f"/proc/{pid}/ns/user") == os.readlink(f"/proc/{guest.pid}/ns/user")
    for name in ("pid", "mnt", "net"):
        assert os.readlink(f"/proc/{pid}/ns/{name}") == os.readlink(f"/proc/self/ns/{name}") or name == "mnt"
    mapped = {line.split()[5] for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "/" in line}
    assert mapped == {"/memfd:pycontain-launcher"}
    until = time.monotonic() + 5
    while len(os.listdir(f"/proc/{pid}/fd")) > 5:  # its copy of what it has handed out goes after the answer
        assert time.monotonic() < until


def _root_files(container: Container) -> dict[str, str]:
    """Create files that only root may write, and return their contents."""
    script = "echo original > /etc/own; chmod 644 /etc/own; echo secret > /root/s; chmod 600 /root/s; chmod 711 /root"
    container.exec(script, shell=True, check=True, user="0")
    return {name: container.path(name, user="root").read_text() for name in ("/etc/own", "/root/s")}


@pytest.mark.case("A24")
@pytest.mark.case("U14")
@pytest.mark.skipif(os.geteuid() != 0, reason="an unprivileged user without sub-ids has one id inside")
def test_paths_act_as_the_containers_user(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("evil")
    with Container(user="1000") as c:
        before = _root_files(c)
        links = "ln -s /etc/own /tmp/file; ln -s /etc /tmp/dir; ln -s /root/s /tmp/secret; echo x > /tmp/none; chmod 0 /tmp/none"
        c.exec(links, shell=True, check=True)
        refused: list[Callable[[], object]] = [
            lambda: c.path("/tmp/file").write_text("evil"),
            lambda: c.path("/tmp/file").chmod(0o777),
            lambda: c.path("/tmp/dir/new").write_text("evil"),
            lambda: c.path("/tmp/dir/new").mkdir(),
            lambda: c.path("/tmp/dir/new").symlink_to("own"),
            lambda: c.path("/tmp/dir/own").unlink(),
            lambda: c.path("/tmp/dir/own").rename("/tmp/dir/moved"),
            lambda: c.path("/tmp/secret").read_text(),
            lambda: c.path("/tmp/none").read_text(),
            lambda: c.copy_in(tmp_path / "tree" / "file", "/tmp/dir/job"),
            lambda: c.copy_in(tmp_path / "tree", "/tmp/dir/job"),
            lambda: c.copy_in(tmp_path / "tree" / "file", "/etc/"),
            lambda: c.copy_in(tmp_path / "tree" / "file", "/tmp/mine", owner="root"),
            lambda: c.copy_in(tmp_path / "tree", "/tmp/mine", owner="root"),
        ]
        for what in refused:
            with pytest.raises(PermissionError):
                what()
        assert before == {name: c.path(name, user=0).read_text() for name in before}
        assert c.path("/etc/own", user="0:0").stat().st_mode & 0o777 == 0o644
        c.path("/tmp/none").chmod(0o600)
        assert c.path("/tmp/none").read_text() == "x\n"
        c.copy_in(tmp_path / "tree", "/tmp/mine")
        c.copy_in(tmp_path / "tree", "/root/roots", user="root")
        c.copy_in(tmp_path / "tree", "/root/given", user="root", owner="1000")
        owners = c.exec(
            "stat -c %u /tmp/mine/file /root/roots/file /root/given/file", shell=True, user="0"
        ).stdout
        assert owners.split() == ["1000", "0", "1000"]
        c.copy_out("/tmp/secret", tmp_path / "read")
        assert (tmp_path / "read").read_text() == "secret\n"


@pytest.mark.control("A24")
@pytest.mark.control("U14")
@pytest.mark.skipif(os.geteuid() != 0, reason="an unprivileged user without sub-ids has one id inside")
def test_root_of_the_container_follows_the_link() -> None:
    with Container(user="1000") as c:
        _root_files(c)
        c.exec("ln -s /etc/own /tmp/file", shell=True, check=True)
        # A file of another user is written by way of a link outside of sticky directories.
        c.exec("mkdir /tmp/open; mv /tmp/file /tmp/open/file", shell=True, check=True)
        c.path("/tmp/open/file", user="root").write_text("evil")
        assert c.path("/etc/own").read_text() == "evil"
