"""Warm containers: the next one with equal options takes one, unless it is stale."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain import Bind, Container, Engine


@pytest.fixture(autouse=True)
def _any_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let starts count as a succession however slow the machine is."""
    monkeypatch.setattr("pycontain._runtime.warm._SUCCESSION", 300.0)


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Engine]:
    """Provide an engine of its own, in which containers of the default options have followed each other."""
    with Engine() as engine:
        follow(engine)
        yield engine


def follow(engine: Engine, **options: object) -> None:
    """Start and end containers until a warm one exists."""
    for _ in range(3):
        with Container(engine=engine, **options) as container:  # type: ignore[arg-type]
            container.exec(["true"])
    assert waiting(engine)


def waiting(engine: Engine) -> dict[str, int]:
    """Return id and PID 1 of all warm containers, the oldest first."""
    found = {}
    for one in engine._session.warm._stock:
        one.launch.receive_answers()
        found[one.launch.spec.id] = one.launch._exchange.reply.record.value
    return found


def test_next_start_uses_the_warm_container(busy: Engine) -> None:
    ready = waiting(busy)
    with Container(engine=busy) as container:
        assert (container.id, container.pid) == next(iter(ready.items()))
        assert container.name == f"pyc-{container.id[:12]}"
        assert container.exec(["hostname"]).stdout.strip() == container.id[:12]
        assert container.exec(["cat", "/etc/hostname"]).stdout.strip() == container.id[:12]
        assert busy.containers == [container]
    assert container.id not in waiting(busy)


def test_warm_container_is_not_listed(busy: Engine) -> None:
    assert waiting(busy)
    assert busy.containers == []
    assert busy.info()["containers"] == 0


@pytest.mark.parametrize(
    "options",
    [
        {"rlimits": {"nofile": 64}},
        {"read_only": True},
        {"tmpfs": ["/scratch"]},
        {"hostname": "other"},
    ],
)
def test_other_options_want_another(busy: Engine, options: dict[str, object]) -> None:
    ready = waiting(busy)
    with Container(engine=busy, **options) as container:  # type: ignore[arg-type]
        assert container.id not in ready
        assert container.pid not in ready.values()
        if "rlimits" in options:
            assert container.exec(["sh", "-c", "ulimit -n"]).stdout == "64\n"


def test_options_unrelated_to_the_root_do_not_prevent_reuse(busy: Engine) -> None:
    ready = waiting(busy)
    with Container(engine=busy, env={"A": "b"}, workdir="/tmp", name="pyc-named", labels={"k": "v"}) as one:
        assert one.id in ready
        assert one.name == "pyc-named"
        assert one.exec("echo $A; pwd", shell=True).stdout == "b\n/tmp\n"


def test_explicit_host_name_is_used_for_warm_containers(busy: Engine) -> None:
    follow(busy, hostname="own")
    ready = waiting(busy)
    with Container(engine=busy, hostname="own") as container:
        assert container.id in ready
        assert container.exec(["hostname"]).stdout == "own\n"


def test_two_never_share_an_id(busy: Engine) -> None:
    made = [Container(engine=busy) for _ in range(5)]
    assert len({one.id for one in made}) == 5
    for one in reversed(made):
        one.start()
        assert one.exec(["hostname"]).stdout.strip() == one.id[:12]
    assert len({one.pid for one in made}) == 5
    for one in made:
        one.remove()


def test_unused_id_is_reused(busy: Engine) -> None:
    first = Container(engine=busy)
    name = first.id
    assert name in waiting(busy)
    del first
    gc.collect()
    with Container(engine=busy) as container:
        assert container.id == name


def test_a_directory_that_was_replaced_is_seen(tmp_path: Path) -> None:
    source = tmp_path / "work"
    with Engine() as engine:
        for turn in range(5):
            if source.exists():
                shutil.rmtree(source)
            source.mkdir(mode=0o755)
            (source / "turn").write_text(str(turn))
            with Container(mounts={"/work": Bind(source, read_only=True)}, engine=engine) as container:
                assert container.exec(["cat", "/work/turn"]).stdout == str(turn)
        assert waiting(engine)


def test_dead_warm_container_is_replaced(busy: Engine) -> None:
    ready = waiting(busy)
    for pid in ready.values():
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}/ns").exists() for pid in ready.values()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with Container(engine=busy) as container:
        assert container.pid not in ready.values()
        assert container.exec(["echo", "well"]).stdout == "well\n"


def test_none_is_made_where_none_is_wanted() -> None:
    with Engine(ahead=0) as engine:
        for _ in range(4):
            with Container(engine=engine) as container:
                container.exec(["true"])
        assert not waiting(engine)


def test_closing_the_engine_ends_them() -> None:
    engine = Engine()
    follow(engine)
    ready = waiting(engine)
    engine.close()
    for pid in ready.values():
        assert not Path(f"/proc/{pid}/ns").exists()
    assert not os.path.exists(engine._session.owner.live)


def test_warm_container_has_no_state_of_earlier_ones(busy: Engine) -> None:
    """State of a container is not visible in the next one, whether it was warm or not."""
    for turn in range(4):
        with Container(engine=busy) as container:
            script = f"ls -A /tmp /dev/shm /root 2>/dev/null; echo {turn} > /tmp/mark; echo {turn} > /mark"
            assert "mark" not in container.exec(script, shell=True).stdout
            assert container.exec("ls -A / /tmp | grep mark", shell=True).stdout == "mark\nmark\n"


def test_forked_child_holds_no_descriptors(busy: Engine) -> None:
    """A copy of a control socket would keep a container alive after its owner."""
    waiting(busy)
    sockets = [one.launch._control for one in busy._session.warm._stock]
    child = os.fork()
    if child == 0:
        held = [fd for fd in sockets if os.path.exists(f"/proc/self/fd/{fd}")]
        os._exit(len(held))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with Container(engine=busy) as container:
        assert container.exec(["echo", "on"]).stdout == "on\n"
