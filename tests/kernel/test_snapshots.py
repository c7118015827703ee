"""Snapshot, fork and rollback: files are restored exactly and stay private to each container."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain import (
    Container,
    Engine,
    Image,
    NotFound,
    PathError,
    Security,
    Snapshot,
    StateError,
    Tmpfs,
)
from pycontain._images import snapshot_layers

WRITTEN = """
mkdir -p /made/deep && echo one > /made/deep/file && ln -s file /made/deep/link
chmod 2751 /made/deep && chmod 640 /made/deep/file && touch -d '2001-02-03 04:05:06.7' /made/deep/file
rm -rf /opt && mkdir /opt && echo new > /opt/new && rm -rf /srv && echo kept > /tmp/kept
"""
LISTED = "find /made /opt -printf '%p %y %m %U %G %s %T@ %l\\n' | sort"


@pytest.fixture(autouse=True)
def _snapshots(engine: Engine, needs_idmap: None) -> Iterator[None]:
    """Check that no files of snapshots are left after the test."""
    yield
    for one in Snapshot.list():
        one.remove()
    engine.settle()
    place = os.path.join(engine._session.roots.data, "sealed")
    assert not os.path.exists(place) or os.listdir(place) == []


def _sh(container: Container, script: str) -> str:
    return str(container.exec(script, shell=True, check=True).stdout)


def test_a_snapshot_is_sealed_where_nothing_lives(container: Container) -> None:
    _sh(container, WRITTEN)
    before = _sh(container, LISTED)
    pid, mounts = container.pid, _sh(container, "cut -d' ' -f5 /proc/self/mountinfo")
    snapshot = container.snapshot()
    assert snapshot.kind == "sealed"
    assert container.pid == pid
    assert _sh(container, LISTED) == before
    assert _sh(container, "cat /tmp/kept") == "kept\n"
    assert sorted(_sh(container, "cut -d' ' -f5 /proc/self/mountinfo").split()) == sorted(mounts.split())
    with Container(snapshot) as other:
        assert _sh(other, LISTED) == before


def test_later_writes_are_not_in_the_snapshot(container: Container) -> None:
    _sh(container, "echo one > /file")
    first = container.snapshot()
    _sh(container, "echo two > /file; rm -rf /opt")
    second = container.snapshot()
    _sh(container, "echo three > /file; mkdir -p /opt")
    for snapshot, text, there in ((first, "one", "yes"), (second, "two", "no")):
        with Container(snapshot) as other:
            assert _sh(other, "cat /file; test -e /opt && echo yes || echo no").split() == [text, there]


def test_a_snapshot_is_copied_where_something_lives(container: Container) -> None:
    _sh(container, WRITTEN)
    _sh(container, "echo one > /file")
    before = _sh(container, LISTED)
    with container.popen(["sleep", "1000"]) as process:
        snapshot = container.snapshot()
        assert snapshot.kind == "copied"
        assert process.poll() is None
        _sh(container, "echo two > /file; rm -rf /made")
        with Container(snapshot) as other:
            assert _sh(other, LISTED) == before
            assert _sh(other, "cat /file") == "one\n"
        process.kill()


def test_copied_snapshot_keeps_earlier_sealed_layers(container: Container) -> None:
    _sh(container, "mkdir /d && touch /d/one /d/two")
    container.snapshot()
    _sh(container, "rm /d/one && touch /d/three && rm -rf /opt && mkdir /opt")
    with container.popen(["sleep", "1000"]) as process:
        snapshot = container.snapshot()
        process.kill()
    assert snapshot.kind == "copied"
    with Container(snapshot) as other:
        assert _sh(other, "ls /d").split() == ["three", "two"]


def test_a_paused_container_and_one_that_may_mount_are_copied(needs_freezer: None) -> None:
    with Container() as one:
        _sh(one, "echo x > /x")
        one.pause()
        snapshot = one.snapshot()
        assert snapshot.kind == "copied"
        assert one.status == "paused"
        one.unpause()
    mighty = Security.SANDBOX.evolve(capabilities=["SYS_ADMIN"], no_new_privs=False)
    with Container(security=mighty) as one:
        assert one.snapshot().kind == "copied"


def test_forks_begin_alike_and_do_not_see_each_other(container: Container) -> None:
    _sh(container, "echo base > /file")
    forks = container.fork(3)
    try:
        assert len({one.id for one in forks} | {one.name for one in forks}) == 6
        for at, one in enumerate(forks):
            _sh(one, f"echo {at} >> /file")
        assert [_sh(one, "cat /file").split() for one in forks] == [["base", str(at)] for at in range(3)]
        assert _sh(container, "cat /file") == "base\n"
        assert Snapshot.list() == []
    finally:
        for one in forks:
            one.remove()


def test_a_fork_has_the_same_options() -> None:
    with Container(env={"A": "1"}, workdir="/usr", tmpfs={"/scratch": "1M"}, labels={"k": "v"}) as one:
        (fork,) = one.fork(1)
        with fork:
            assert _sh(fork, "echo $A; pwd; df -k /scratch | tail -1 | cut -c1-5").split() == [
                "1",
                "/usr",
                "none",
            ]
            assert fork.spec.limits == one.spec.limits
            assert fork.spec.labels == one.spec.labels


def test_forks_that_cannot_start_are_not_left(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Container] = []
    start = Container.start

    def fail_third(self: Container) -> Container:
        if len(started) == 2:
            raise StateError("third")
        started.append(self)
        return start(self)

    monkeypatch.setattr(Container, "start", fail_third)
    with pytest.raises(StateError, match="third"):
        container.fork(4)
    assert [one.status for one in started] == ["removed", "removed"]


@pytest.mark.parametrize("count", [-1, 1.5, True, "2"])
def test_fork_takes_a_number(container: Container, count: object) -> None:
    with pytest.raises(ValueError, match="n must be a non-negative int"):
        container.fork(count)  # type: ignore[arg-type]


def test_rollback_brings_back_the_root_and_nothing_else() -> None:
    with Container(mounts={"/scratch": Tmpfs("1M")}) as one:
        _sh(one, WRITTEN)
        _sh(one, "rm /tmp/kept")
        before = _sh(one, LISTED)
        snapshot = one.snapshot()
        ident = one.id
        for _ in range(3):
            _sh(one, "rm -rf /made; echo x > /opt/x; touch /tmp/x /scratch/x /dev/shm/x")
            process = one.popen(["sleep", "1000"])
            assert one.rollback(snapshot) is one
            assert process.wait(10) == -signal.SIGKILL
            assert _sh(one, LISTED) == before
            assert one.exec("ls /tmp/x /scratch/x /dev/shm/x 2>/dev/null", shell=True).stdout == ""
        assert one.id == ident


def test_rollback_of_an_older_and_of_a_copied_snapshot(container: Container) -> None:
    _sh(container, "echo one > /file")
    first = container.snapshot()
    _sh(container, "echo two > /file")
    with container.popen(["sleep", "1000"]):
        second = container.snapshot()
        container.rollback(first)
    assert _sh(container, "cat /file") == "one\n"
    container.rollback(second)
    assert _sh(container, "cat /file") == "two\n"
    assert container.snapshot().kind == "sealed"


def test_rollback_begins_the_command_anew() -> None:
    with Container(command=["sh", "-c", "echo $(cat /file 2>/dev/null || echo none); sleep 1000"]) as one:
        _sh(one, "echo here > /file")
        snapshot = one.snapshot()
        assert snapshot.kind == "copied"
        one.rollback(snapshot)
        assert next(one.logs(follow=True)) == b"here\n"
        assert one.status == "running"


def test_rollback_wants_a_snapshot_of_the_same_image(container: Container, root: Path) -> None:
    with Container(Image.from_rootfs(root)) as other:
        snapshot = other.snapshot()
        with pytest.raises(ValueError, match="snapshot must be of image"):
            container.rollback(snapshot)
    assert container.status == "running"


def test_an_ended_container_rolls_back_and_runs() -> None:
    one = Container().start()
    _sh(one, "echo x > /file")
    snapshot = one.snapshot()
    one.kill()
    with pytest.raises(StateError):
        one.snapshot()
    one.rollback(snapshot)
    assert _sh(one, "cat /file") == "x\n"
    one.remove()
    with pytest.raises(StateError, match="removed"):
        one.rollback(snapshot)


def test_layers_stay_while_a_container_uses_them(engine: Engine) -> None:
    sealed = os.path.join(engine._session.roots.data, "sealed")
    with Container() as one:
        _sh(one, "echo x > /file")
        snapshot = one.snapshot()
        other = Container(snapshot).start()
        snapshot.remove()
        snapshot.remove()
        with pytest.raises(NotFound):
            Snapshot.get(snapshot.id)
    assert len(os.listdir(sealed)) == 1
    assert _sh(other, "cat /file") == "x\n"
    other.remove()
    assert os.listdir(sealed) == []


def test_a_snapshot_outlives_its_process(engine: Engine) -> None:
    script = """
import os, signal
from pycontain import Container
with Container() as one:
    one.exec("echo survived > /file", shell=True, check=True)
    print(one.snapshot().id, flush=True)
    one.exec("echo later > /file; echo more > /more", shell=True, check=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    engine.prune()
    snapshot = Snapshot.get(done.stdout.strip())
    assert snapshot in Snapshot.list()
    with Container(snapshot) as other:
        assert _sh(other, "cat /file; ls /more 2>/dev/null || echo none").split() == ["survived", "none"]


def test_damaged_snapshot_is_reported(container: Container, engine: Engine) -> None:
    snapshot = container.snapshot()
    layer = os.path.join(engine._session.roots.data, "sealed", snapshot.image.sealed[0])
    os.rename(layer, layer + "-away")
    try:
        assert Snapshot.list() == []
        with pytest.raises(Exception, match="is damaged"):
            Snapshot.get(snapshot.id)
        assert engine.fsck() == [f"snapshot {snapshot.id}: its layer {os.path.basename(layer)} is gone"]
    finally:
        os.rename(layer + "-away", layer)
    assert Snapshot.list() == [snapshot]
    os.rename(layer, layer + "-away")
    (changes,) = engine.fsck(repair=True)
    os.rename(layer + "-away", layer)
    assert changes.endswith("removed")
    assert engine.fsck() == []
    assert Snapshot.list() == []


def test_diff_and_commit_tell_of_all_steps(root: Path, engine: Engine) -> None:
    base = Image.from_rootfs(root, copy=True, tag="pyc/base:1")
    try:
        with Container(base) as one:
            _sh(one, "echo one > /one; mkdir /d; touch /d/x; rm -rf /home")
            first = one.snapshot()
            _sh(one, "echo two > /two; rm /one /d/x; touch /d/y")
            changes = {change.path: change.kind for change in one.diff()}
            assert changes["/two"] == changes["/d/y"] == "added"
            assert "/one" not in changes
            assert "/d/x" not in changes
            image = one.commit("pyc/whole:1")
            with pytest.raises(Exception, match="is in use by"):
                base.remove()
        with Container(image) as other:
            assert _sh(other, "ls -d /one /two /d/* 2>/dev/null || true").split() == ["/d/y", "/two"]
        early = first.commit("pyc/early:1")
        with Container(early) as other:
            assert _sh(other, "cat /one; ls /d").split() == ["one", "x"]
        for one_image in Image.list():
            one_image.remove(force=True)
        engine.sweep()
        with Container(first) as other:  # the layers below it are not collected with its image
            assert _sh(other, "cat /one") == "one\n"
        first.remove()
    finally:
        for one_image in Image.list():
            one_image.remove(force=True)
        engine.sweep()


def test_snapshot_of_a_container_with_a_disk_limit() -> None:
    with Container(disk="16M") as one:
        one.exec("echo x > /file", shell=True)
        made = one.snapshot()
        assert [str(change.path) for change in one.diff()].count("/file") == 1
    with Container(made, disk="16M") as other:
        assert other.exec(["cat", "/file"]).stdout == "x\n"
    made.remove()


def test_failed_snapshot_leaves_the_container_unchanged(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pycontain._objects import snapshots

    def fail(*_: object) -> None:
        raise PathError("no", path="/", errno=5)

    _sh(container, "echo x > /file")
    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "replace_root", fail)
        with pytest.raises(PathError):
            container.snapshot()
    assert Snapshot.list() == []
    _sh(container, "echo y >> /file")
    assert container.snapshot().kind == "sealed"
    assert _sh(container, "cat /file").split() == ["x", "y"]


def test_commands_of_other_threads_lose_nothing(container: Container) -> None:
    over = threading.Event()
    written: list[int] = []

    def write() -> None:
        while not over.is_set():
            _sh(container, f"echo {len(written)} >> /file")
            written.append(len(written))

    thread = threading.Thread(target=write)
    thread.start()
    kinds = {container.snapshot().kind for _ in range(20)}
    over.set()
    thread.join()
    assert [int(line) for line in _sh(container, "cat /file").split()] == written
    assert kinds <= {"sealed", "copied"}


def test_requested_command_has_started(container: Container) -> None:
    running, kinds, results = container._live(), [], []
    signal.pidfd_send_signal(running.pidfd, signal.SIGSTOP)
    command = threading.Thread(target=lambda: results.append(_sh(container, "sleep 0.2; echo x > /file")))
    command.start()
    while not _is_asked(running.control):
        time.sleep(0.001)
    taking = threading.Thread(target=lambda: kinds.append(container.snapshot().kind))
    taking.start()
    time.sleep(0.1)
    signal.pidfd_send_signal(running.pidfd, signal.SIGCONT)
    taking.join()
    command.join()
    assert (kinds, results) == (["copied"], [""])
    assert _sh(container, "cat /file") == "x\n"


def _is_asked(control: int) -> bool:
    """Return whether a request is on its way to the agent."""
    waiting = bytearray(4)
    fcntl.ioctl(control, termios.TIOCOUTQ, waiting)
    return int.from_bytes(waiting, sys.byteorder) > 0


def test_a_chain_of_a_hundred_is_usable(container: Container) -> None:
    last = container.snapshot()
    for at in range(100):
        _sh(container, f"echo {at} > /file; touch /n{at}; rm -f /n{at - 2}")
        last = container.snapshot()
    assert _sh(container, "cat /file; ls -d /n*").split() == ["99", "/n98", "/n99"]
    with Container(last) as other:
        assert _sh(other, "cat /file; ls -d /n*").split() == ["99", "/n98", "/n99"]


_STEPS = (
    "mkdir -p /d/sub /e; echo 1 > /d/one; echo 1 > /d/sub/x; echo 1 > /e/file; ln /d/one /d/hard; rmdir /opt",
    "rm /d/one; mkdir /d/one; echo 2 > /d/one/in; rm -rf /d/sub; mkdir /opt; echo 2 > /opt/two",
    "rm -rf /e; echo 3 > /e; mkdir /d/sub; echo 3 > /d/sub/y; chmod 2750 /d; rm -rf /srv",
    "rm /e; mkdir /e; touch -d 2001-02-03 /e/late; rm -rf /opt; mkdir /opt; ln -s /etc/passwd /d/link",
    "echo 5 > /d/hard; rm /d/link; mv /d/sub /d/moved; rm -rf /mnt; echo 5 > /mnt",
    "rm /mnt; mkdir -p /mnt/a/b; echo 6 > /mnt/a/b/c; rm -rf /home",
)
_ALL = """
find / -xdev -type d -printf '%p %m %U %G\\n' -o -printf '%p %y %m %U %G %s %l\\n' | sort
find /d /e /mnt -type f | sort | xargs cat
"""


def test_merged_layers_have_unchanged_contents(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    from pycontain._objects import snapshots

    monkeypatch.setattr(snapshots, "MOST_LAYERS", 4)
    depths, seen = [], []
    for script in (*_STEPS, *_STEPS):
        container.exec(script, shell=True)
        before = _sh(container, _ALL)
        snapshot = container.snapshot()
        assert snapshot.kind == "sealed"
        depths.append(len(snapshot.image.sealed))
        seen.append((snapshot, before))
        assert _sh(container, _ALL) == before
    assert max(depths) < 5 < len(depths)
    for snapshot, before in seen:
        with Container(snapshot) as other:
            assert _sh(other, _ALL) == before
    changes = [(change.path, change.kind) for change in container.diff()]
    container.rollback(seen[-1][0])
    assert [(change.path, change.kind) for change in container.diff()] == changes


def test_orphans_count_as_running_processes(container: Container) -> None:
    _sh(container, "setsid sh -c 'sleep 1000 &' < /dev/null > /dev/null 2>&1")
    assert container.snapshot().kind == "copied"


def test_a_file_that_is_open_to_write_is_copied(container: Container) -> None:
    with container.path("/file").open("w") as file:
        file.write("one")
        file.flush()
        snapshot = container.snapshot()
        assert snapshot.kind == "copied"
        file.write(" two")
    with Container(snapshot) as other:
        assert other.path("/file").read_text() == "one"
    assert container.snapshot().kind == "sealed"
    assert container.path("/file").read_text() == "one two"
    container.path("/file").write_text("three")
    with Container(snapshot) as other:
        assert other.path("/file").read_text() == "one"


_KILLED = """
import sys
from pycontain import Container
with Container() as one:
    one.exec("echo base > /file", shell=True, check=True)
    print("ready", flush=True)
    for at in range(1000):
        snapshot = one.snapshot()
        one.exec(f"echo {at} >> /file", shell=True, check=True)
        fork, = one.fork(1)
        fork.remove()
        one.rollback(snapshot)
        if at % 3:
            snapshot.remove()
"""


def test_kills_leave_snapshots_complete(engine: Engine) -> None:
    chosen = random.Random(5)
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", _KILLED], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(chosen.uniform(0.01, 0.4))
        process.kill()
        process.wait()
        process.stdout.close()
        engine.prune()
    for snapshot in Snapshot.list():
        with Container(snapshot) as one:
            lines = _sh(one, "cat /file").split()
            assert lines[0] == "base"
    for record in snapshot_layers.records(engine._session.store):
        snapshot_layers.forget(
            engine._session.store, record.id
        )  # a kill between record and layer leaves one that is damaged
    engine._session.leases.sweep_snapshot_layers()
    engine.settle()
    assert os.listdir(os.path.join(engine._session.roots.data, "sealed")) == []
    assert len(os.listdir(os.path.join(engine._session.roots.data, "live"))) == 1
