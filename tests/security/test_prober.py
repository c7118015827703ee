"""Compare the reach of a process, measured from inside, with the tables in tests/security/golden."""

from __future__ import annotations

import fnmatch
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pycontain import Container, Image, Security, StartError, UnsupportedError
from pycontain._security.capabilities import NAMES
from tests.security import compare
from tests.security.compare import Absent
from tests.security.prober import CannotBuild, Reach, make_root, parse
from tests.security.prober.golden import DIRECTORY, EXACT, GRANTED, Golden, differences, load

pytestmark = [pytest.mark.security, pytest.mark.kernel]

PRESETS = {"sandbox": Security.SANDBOX, "docker": Security.DOCKER}
WEAKENED = {
    "no filter": Security.SANDBOX.evolve(seccomp=None),
    "every capability": Security.SANDBOX.evolve(capabilities=NAMES),
    "nothing covered": Security.SANDBOX.evolve(masked_paths=(), readonly_paths=()),
}
PATIENCE = 240.0

OWN = """
    attr/* autogroup clear_refs comm coredump_filter gid_map loginuid mem oom_adj oom_score_adj projid_map
    sched timens_offsets timerslack_ns uid_map
""".split()
"""Files of /proc/PID that a process may write: its own, and without `mem` those of other processes."""

Measure = Callable[..., Reach]


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """Provide a root file system with nothing but the prober."""
    with tempfile.TemporaryDirectory(prefix="pyc-prober-root-") as directory:
        Path(directory).chmod(0o755)
        try:
            root = make_root(Path(directory, "root"))
        except CannotBuild as error:
            pytest.skip(f"the prober cannot be built: {error}")
        yield Image.from_rootfs(root)


@pytest.fixture(scope="module")
def measure(image: Image) -> Measure:
    """Return the reach of a process in a container with this Security, measured once."""
    known: dict[tuple[Security, bool], Reach] = {}

    def of(security: Security, *, main: bool = False) -> Reach:
        key = (security, main)
        if key not in known:
            try:
                known[key] = (_of_main if main else _of_exec)(image, security)
            except (StartError, UnsupportedError) as error:
                pytest.skip(f"this host starts no such container: {error}")
        return known[key]

    return of


def _of_exec(image: Image, security: Security) -> Reach:
    with Container(image, security=security) as container:
        result = container.exec(["/prober"], timeout=PATIENCE)
        assert result.returncode == 0, result.stderr
        return parse(result.stdout)


def _of_main(image: Image, security: Security) -> Reach:
    with Container(image, ["/prober"], init=False, security=security) as container:
        container.wait(PATIENCE)
        return parse(b"".join(container.logs()).decode())


@pytest.fixture(scope="module")
def lacking(measure: Measure) -> frozenset[str]:
    """Return the calls that this kernel lacks: ENOSYS without a filter."""
    return measure(WEAKENED["no filter"]).having("syscall", "ENOSYS")


@pytest.fixture(scope="module")
def sandbox() -> Golden:
    """Return the table of Security.SANDBOX."""
    return load("sandbox")


def _seen_by_both(found: Reach) -> dict[str, dict[str, str]]:
    """Return the finding without other processes (exec also sees the agent) and files of varying owner.

    Some of /proc/PID/net belong to the root of the network's user namespace if its ids were mapped when the
    network was made, and to the overflow id if they were not.
    """
    left_out = ("/proc/OTHER/", "/proc/PID/net/")
    return {
        axis: {key: how for key, how in found.axis(axis).items() if not key.startswith(left_out)}
        for axis in (*EXACT, *GRANTED)
    }


# ---- E13: system calls that can be made ------------------------------------------------------------------


@pytest.mark.case("E13")
@pytest.mark.parametrize("main", [False, True], ids=["exec", "main"])
@pytest.mark.parametrize("preset", PRESETS)
def test_reach_is_as_the_table_says(
    preset: str, main: bool, measure: Measure, lacking: frozenset[str]
) -> None:
    found = measure(PRESETS[preset], main=main)
    assert len(found.axis("syscall")) == 601
    different = differences(load(preset), found, lacking)
    if os.geteuid() != 0:  # rootless: the agent has no id of its own, and K02 lists its writable files
        different = [one for one in different if "/proc/OTHER/" not in one]
    assert different == []


@pytest.mark.case("E13")
@pytest.mark.parametrize("preset", PRESETS)
def test_exec_and_main_command_have_the_same_reach(preset: str, measure: Measure) -> None:
    by_exec, by_main = measure(PRESETS[preset]), measure(PRESETS[preset], main=True)
    assert _seen_by_both(by_exec) == _seen_by_both(by_main)


@pytest.mark.case("E13")
def test_compatible_filter_allows_the_calls_of_sandbox(measure: Measure) -> None:
    narrow, wide = measure(PRESETS["sandbox"]), measure(PRESETS["docker"])
    assert narrow.having("syscall", "reached") <= wide.having("syscall", "reached")
    for axis in ("filter.socket", "filter.clone", "filter.ioctl", "filter.personality"):
        assert narrow.having(axis, "passed") <= wide.having(axis, "passed")


@pytest.mark.control("E13")
@pytest.mark.parametrize(
    ("weakness", "axes"),
    [
        ("no filter", "syscall filter.socket filter.clone filter.ioctl filter.personality personality prctl"),
        ("every capability", "capability prctl"),
        ("nothing covered", "writable"),
    ],
)
def test_the_table_does_not_fit_a_weaker_container(
    weakness: str, axes: str, measure: Measure, sandbox: Golden, lacking: frozenset[str]
) -> None:
    if weakness == "nothing covered" and not _settings_are_ours(measure):
        pytest.skip("no file below /proc/sys is the container's own on this kernel")
    found = measure(WEAKENED[weakness])
    differing = {line.split()[0] for line in differences(sandbox, found, lacking)}
    assert set(axes.split()) <= differing


def _settings_are_ours(measure: Measure) -> bool:
    """Return whether an unmasked /proc/sys or /proc/pressure has a file that opens for writing."""
    return any(
        not path.startswith(("/proc/PID/", "/proc/OTHER/")) for path in _written(measure, "nothing covered")
    )


# ---- E14: other machines' calls --------------------------------------------------------------------------


@pytest.fixture
def needs_foreign() -> None:
    """Skip where the kernel mistakes a call of i386 for one of its own."""
    if os.uname().machine != "x86_64":
        pytest.skip("only x86_64 has calls of another machine")
    if "User Mode Linux" in Path("/proc/cpuinfo").read_text():
        pytest.skip("user-mode-linux has no i386 system calls")


@pytest.mark.case("E14")
@pytest.mark.parametrize("preset", PRESETS)
def test_calls_of_other_machines_kill(preset: str, measure: Measure, needs_foreign: None) -> None:
    assert set(measure(PRESETS[preset]).axis("foreign").values()) == {"killed"}


@pytest.mark.control("E14")
def test_calls_of_other_machines_work_without_a_filter(measure: Measure, needs_foreign: None) -> None:
    outcomes = measure(WEAKENED["no filter"]).axis("foreign")
    if "absent" in outcomes.values():
        pytest.skip("this kernel runs no i386 programs")
    assert "killed" not in outcomes.values()
    assert outcomes["i386/getpid"] == "reached"


# ---- K02, K03: files of the kernel -----------------------------------------------------------------------


def _written(measure: Measure, weakness: str | None = None) -> set[str]:
    found = measure(WEAKENED[weakness] if weakness else Security.SANDBOX)
    return {path for path in found.having("writable") if path.startswith(("/proc/", "/sys/"))}


def _own(path: str) -> bool:
    if path.startswith("/proc/OTHER/") and not path.endswith("/mem"):
        path = path.replace("OTHER", "PID", 1)
    return any(fnmatch.fnmatchcase(path, f"/proc/PID/{name}") for name in OWN)


@pytest.mark.case("K02")
def test_process_writes_only_to_its_own_kernel_files(measure: Measure) -> None:
    assert {path for path in _written(measure) if not _own(path)} == set()


@pytest.mark.control("K02")
def test_more_kernel_files_can_be_written_to_when_nothing_is_covered(measure: Measure) -> None:
    if not _settings_are_ours(measure):
        pytest.skip("no file below /proc/sys is the container's own on this kernel")
    assert any(
        path.startswith(("/proc/sys/", "/proc/pressure/")) for path in _written(measure, "nothing covered")
    )


def _unlisted(found: Reach) -> set[str]:
    lines = (DIRECTORY / "readable.txt").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    return {
        path
        for path in found.having("readable")
        if not any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
    }


@pytest.mark.case("K03")
@pytest.mark.parametrize("main", [False, True], ids=["exec", "main"])
def test_only_listed_kernel_files_are_readable(main: bool, measure: Measure) -> None:
    found = measure(Security.SANDBOX, main=main)
    assert found.having("readable")
    assert "truncated" not in found.axis("host")
    assert _unlisted(found) == set()


@pytest.mark.control("K03")
def test_more_kernel_files_are_readable_when_nothing_is_covered(measure: Measure) -> None:
    assert "/proc/interrupts" in _unlisted(measure(WEAKENED["nothing covered"]))


# ---- X02: beside others ----------------------------------------------------------------------------------


def _peer(found: Reach | Absent) -> Reach:
    if isinstance(found, Absent):
        pytest.skip(f"{found.name}: {found.reason}")
    return found


@pytest.mark.case("X02")
def test_the_sandbox_reaches_no_further_than_bubblewrap(measure: Measure, tmp_path: Path) -> None:
    peer = _peer(compare.bubblewrap(tmp_path / "root"))
    own = measure(Security.SANDBOX, main=True)
    assert compare.surplus(own, peer) == {}


@pytest.mark.control("X02")
def test_bubblewrap_reaches_further_than_the_sandbox(measure: Measure, tmp_path: Path) -> None:
    peer = _peer(compare.bubblewrap(tmp_path / "root"))
    own = measure(Security.SANDBOX, main=True)
    assert compare.surplus(peer, own)


@pytest.mark.case("X02")
@pytest.mark.full
@pytest.mark.parametrize("name", ["docker", "podman"])
def test_the_sandbox_reaches_no_further_than(name: str, measure: Measure) -> None:
    if not os.environ.get("PYC_SECURITY_FULL"):
        pytest.skip("slow: PYC_SECURITY_FULL=1 runs it")
    # A path of pytest's own is too long for the daemon's socket.
    with tempfile.TemporaryDirectory(prefix="pyc-peer-") as directory:
        Path(directory).chmod(0o755)
        peer = _peer({"docker": compare.docker, "podman": compare.podman}[name](Path(directory, "top")))
    more = frozenset().union(*compare.surplus(measure(Security.SANDBOX, main=True), peer).values())
    assert not more
