"""F08: no guest runs with a control missing when any system call of a start or an exec fails."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.security.inject.aims import every_aim, some_aims
from tests.security.inject.bench import Bench
from tests.security.inject.model import Aim, Unable

pytestmark = [pytest.mark.security, pytest.mark.kernel]


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """Provide a lab with its own engine, and the record of a clean run."""
    if os.geteuid() != 0:
        pytest.skip("the same programs are injected into as root")
    try:
        one = Bench()
    except Unable as reason:
        pytest.skip(str(reason))
    with one:
        yield one


@pytest.mark.case("F08")
def test_a_failed_call_never_weakens_a_guest(bench: Bench) -> None:
    total = bench.run_all(some_aims(bench.clean), seconds=240)
    assert not total.left
    hit = {run.aim.name for run in total.runs if run.aim is not None}
    # A call that only a slow moment makes, such as a pause before trying again, need not come a second time.
    assert len(bench.clean.names) - len(hit) <= 2
    assert not total.findings, "\n".join(total.findings)


@pytest.mark.full
@pytest.mark.case("F08")
@pytest.mark.timeout(1800)
def test_no_failed_call_weakens_a_guest(bench: Bench) -> None:
    total = bench.run_all(every_aim(bench.clean), seconds=1500)
    assert not total.left
    assert not total.findings, "\n".join(total.findings)


def test_aim_hits_the_named_process(bench: Bench) -> None:
    """Launcher, child and agent each call recvmsg once; only the agent's first call fails."""
    run = bench.run(Aim("agent", "recvmsg", 1, "error", "EPERM"))
    assert run.verdict == "refused"
    assert "agent" in run.where
    run = bench.run(Aim("command 2", "seccomp", 1, "error", "ENOMEM"))
    assert (run.verdict, run.names_step) == ("refused", True)
    assert "seccomp" in run.where


@pytest.mark.control("F08")
@pytest.mark.parametrize(
    ("security", "seen"),
    [
        ({"no_new_privs": False}, "NoNewPrivs"),
        ({"seccomp": None}, "Seccomp"),
        ({"landlock": False}, "landlock"),
        ({"masked_paths": ()}, "/proc/kallsyms"),
        ({"readonly_paths": ()}, "/proc/sys"),
        ({"capabilities": ["CAP_CHOWN"]}, "CapEff"),
        ({"rlimits": {"nofile": 512}}, "Max open files"),
    ],
)
def test_guest_without_a_control_is_detected(bench: Bench, security: dict[str, object], seen: str) -> None:
    run = bench.run(None, security=security, trace=False)
    assert run.verdict == "weaker"
    assert any(seen in line for line in run.details), run.details
    assert run.findings


@pytest.mark.control("F08")
@pytest.mark.parametrize(
    ("litter", "seen"),
    [("directory", "directories"), ("cgroup", "cgroups"), ("fd", "fds"), ("process", "processes")],
)
def test_leak_of_a_run_is_detected(bench: Bench, litter: str, seen: str) -> None:
    try:
        run = bench.run(None, litter=litter, trace=False)
    except Unable as reason:
        pytest.skip(str(reason))
    assert any(line.startswith(f"{seen}:") for line in run.leaks), run.leaks
    assert run.findings
    assert not bench.run(None, trace=False).findings


@pytest.mark.control("F08")
def test_endless_run_is_detected(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.security.inject.bench.PATIENCE", 1.5)
    run = bench.run(Aim("child", "mount", 1, "delay", 30.0))
    assert run.verdict == "hang"
    assert run.findings
    assert bench.run(None).verdict == "same"  # another lab, which has collected what the first one left
