"""Compare what a process can reach under pycontain, Docker, Podman and bubblewrap on one machine.

python -m tests.security.compare [--write docs/explanation/reach.md]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import frozen

from pycontain import Container, Image, Security
from pycontain._security.capabilities import NAMES
from tests.security.prober import Reach, make_root, parse

PATIENCE = 180
"""Seconds for one engine."""

ALONE = ("unshare", "--mount", "--propagation=private")
"""A peer's mounts stay its own: other tests, and other people, watch those of the host."""

SANDBOX, DOCKER_PRESET = "pycontain SANDBOX", "pycontain DOCKER"


@frozen
class Absent:
    """A peer that does not run on this host."""

    name: str
    reason: str


@frozen
class Axis:
    """A row of the comparison: its name, and a function for the reached objects."""

    name: str
    reached: Callable[[Reach], frozenset[str]]


def _having(axis: str, *outcomes: str) -> Callable[[Reach], frozenset[str]]:
    return lambda reach: reach.having(axis, *outcomes)


def _capabilities(reach: Reach) -> frozenset[str]:
    """Return every capability of any of the five sets."""
    mask = 0
    for text in reach.axis("capability").values():
        mask |= int(text, 16)
    return frozenset(
        NAMES[number] if number < len(NAMES) else str(number) for number in range(64) if mask >> number & 1
    )


def _of_kernel(paths: frozenset[str]) -> frozenset[str]:
    return frozenset(path for path in paths if path.startswith(("/proc/", "/sys/")))


def _readable(reach: Reach) -> frozenset[str]:
    """Return the readable files, without those that show only the reader's own namespaces."""
    return frozenset(
        path
        for path in reach.having("readable")
        if not path.startswith("/proc/PID/net/") and path not in ("/proc/key-users", "/proc/locks")
    )


AXES = (
    Axis("system calls that reach the kernel", _having("syscall", "reached")),
    Axis("foreign system calls (i386, x32)", _having("foreign", "reached")),
    Axis("sockets: family, type, protocol", _having("socket", "opened")),
    Axis("namespaces that can be made", _having("clone", "made")),
    Axis("terminal ioctls that pass", _having("filter.ioctl", "passed")),
    Axis("personalities", _having("personality", "set")),
    Axis("capabilities, all sets", _capabilities),
    Axis("devices that can be opened or made", _having("device", "rw", "r", "w", "made", "opened")),
    Axis("readable files below /proc and /sys", _readable),
    Axis("writable files below /proc and /sys", lambda reach: _of_kernel(reach.having("writable"))),
    Axis(
        "other places to write",
        lambda reach: reach.having("writable") - _of_kernel(reach.having("writable")),
    ),
)


_SIZES = ("/sys/devices/system/cpu/", "/sys/devices/system/node/", "/sys/fs/cgroup/")


def surplus(one: Reach, other: Reach) -> dict[str, frozenset[str]]:
    """Return, by axis, the keys that `one` reaches and `other` does not; axes without any are left out.

    The files by which runtimes size themselves are left out: bubblewrap has no /sys unless it is asked for,
    and Docker and Podman show all of it.
    """
    more = {
        axis.name: frozenset(
            key for key in axis.reached(one) - axis.reached(other) if not str(key).startswith(_SIZES)
        )
        for axis in AXES
    }
    return {name: keys for name, keys in more.items() if keys}


# ---- the engines ------------------------------------------------------------------------------------------


def _said(name: str, command: list[str]) -> Reach | Absent:
    """Run the prober by a command and return its report."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PATIENCE, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return Absent(name, f"no answer in {PATIENCE} s")
    if done.returncode:
        message = (done.stderr.strip() or done.stdout.strip()).splitlines()
        return Absent(name, message[-1][-200:] if message else f"exit status {done.returncode}")
    return parse(done.stdout)


def own(security: Security, top: Path) -> Reach:
    """Return the reach of a main command as PID 1, as the peers run theirs."""
    image = Image.from_rootfs(make_root(top))
    with Container(image, ["/prober"], init=False, security=security) as container:
        container.wait(PATIENCE)
        return parse(b"".join(container.logs()).decode())


def bubblewrap(top: Path) -> Reach | Absent:
    """Return the reach under `bwrap --unshare-all` with the usual options.

    It runs in its own session, as the manual advises: /proc/PID/autogroup depends only on the session,
    and a caller in the session of the host's init would pass on an empty one.
    """
    if shutil.which("bwrap") is None:
        return Absent("bwrap", "not installed")
    root = str(make_root(top))
    places = ["--bind", root, "/", "--proc", "/proc", "--dev", "/dev"]
    return _said("bwrap", ["bwrap", "--unshare-all", "--new-session", *places, "/prober"])


def podman(top: Path) -> Reach | Absent:
    """Return the reach under `podman run --rootfs` with its own store, by crun if possible, else runc."""
    if shutil.which("podman") is None:
        return Absent("podman", "not installed")
    root = str(make_root(top / "root"))
    parent = f"pyc-podman-{os.getpid()}"
    open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    place = ["--root", str(top / "store"), "--runroot", str(top / "run"), "--tmpdir", str(top / "tmp")]
    # Its own defaults are above what a root without CAP_SYS_RESOURCE may ask for.
    limits = [f"--ulimit=nofile={open_files}:{open_files}", "--ulimit=nproc=4096:4096"]
    found: Reach | Absent = Absent("podman", "neither crun nor runc is installed")
    try:
        # crun refuses the hybrid layout of cgroups, runc to go without cgroups.
        for runtime, groups in (("crun", "--cgroups=disabled"), ("runc", f"--cgroup-parent=/{parent}")):
            if shutil.which(runtime) is None or isinstance(found, Reach):
                continue
            alone = ALONE if os.geteuid() == 0 else ()
            command = [*alone, "podman", *place, "--storage-driver=vfs", f"--runtime={runtime}"]
            command += ["--cgroup-manager=cgroupfs", "run", "--rm", "--network=none", groups, *limits]
            found = _said("podman", [*command, "--rootfs", root, "/prober"])
    finally:
        _remove_groups(parent)
    return found


def _remove_groups(name: str) -> None:
    """Remove the cgroups that podman leaves."""
    for top in (*Path("/sys/fs/cgroup").glob(f"*/{name}"), Path("/sys/fs/cgroup", name)):
        for directory, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)


@contextlib.contextmanager
def _daemon(top: Path) -> Iterator[list[str] | Absent]:
    """Provide the docker command for a private daemon, which is stopped at the end."""
    if os.geteuid() != 0:
        yield Absent("docker", "its daemon needs root")
        return
    if shutil.which("dockerd") is None or shutil.which("docker") is None:
        yield Absent("docker", "not installed")
        return
    top.mkdir()
    host = f"unix://{top}/sock"
    command = [*ALONE, "dockerd", "--data-root", f"{top}/data", "--exec-root", f"{top}/exec", "--host", host]
    command += ["--pidfile", f"{top}/pid", "--bridge=none", "--iptables=false", "--ip6tables=false"]
    with open(top / "log", "wb") as log:
        daemon = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        client = ["docker", "--host", host]
        if _answers(client, daemon):
            yield client
        else:
            yield Absent("docker", "dockerd did not come up: " + (top / "log").read_text()[-200:])
    finally:
        daemon.terminate()
        daemon.wait()


def _answers(client: list[str], daemon: subprocess.Popen[bytes]) -> bool:
    patience = time.monotonic() + 60
    while time.monotonic() < patience and daemon.poll() is None:
        if subprocess.run([*client, "version"], capture_output=True, check=False).returncode == 0:
            return True
        time.sleep(0.2)
    return False


def docker(top: Path) -> Reach | Absent:
    """Return the reach under `docker run` of a private daemon."""
    top.mkdir()
    root = make_root(top / "root")
    with _daemon(top / "daemon") as client:
        if isinstance(client, Absent):
            return client
        tar = subprocess.run(["tar", "-C", str(root), "-c", "."], capture_output=True, check=True).stdout
        subprocess.run([*client, "import", "-", "pycprober"], input=tar, capture_output=True, check=True)
        return _said("docker", [*client, "run", "--rm", "--network=none", "pycprober", "/prober"])


ENGINES: dict[str, Callable[[Path], Reach | Absent]] = {
    SANDBOX: lambda top: own(Security.SANDBOX, top),
    DOCKER_PRESET: lambda top: own(Security.DOCKER, top),
    "Docker": docker,
    "Podman": podman,
    "bwrap": bubblewrap,
}


# ---- the page ---------------------------------------------------------------------------------------------


def _version(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return "not installed"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout.strip().splitlines() or ["unknown"])[0]


def _table(found: dict[str, Reach | Absent]) -> Iterator[str]:
    there = {name: reach for name, reach in found.items() if isinstance(reach, Reach)}
    yield "| | " + " | ".join(there) + " |"
    yield "|---" * (len(there) + 1) + "|"
    for axis in AXES:
        yield (
            f"| {axis.name} | " + " | ".join(str(len(axis.reached(reach))) for reach in there.values()) + " |"
        )
    yield ""
    for name, reach in found.items():
        if isinstance(reach, Absent):
            yield f"{name} did not run here: {reach.reason}"
            yield ""


def _surpluses(found: dict[str, Reach | Absent], name: str, others: tuple[str, ...]) -> Iterator[str]:
    one = found[name]
    assert isinstance(one, Reach)
    for other in others:
        reach = found[other]
        if isinstance(reach, Absent):
            continue
        more = surplus(one, reach)
        yield f"- {other}:" + ("" if more else " nothing")
        for axis, keys in more.items():
            yield f"  - {axis}: {_shown(keys)}"


def _shown(keys: frozenset[str]) -> str:
    names = [f"`{name}`" for name in sorted(keys)]
    return " ".join(names[:20]) + (f" and {len(names) - 20} more" if names[20:] else "")


def page(found: dict[str, Reach | Absent]) -> str:
    """Return the comparison in Markdown."""
    peers = tuple(name for name in found if name not in (SANDBOX, DOCKER_PRESET))
    user = "root" if os.geteuid() == 0 else "an unprivileged user"
    versions = "; ".join(
        (
            _version("dockerd", "--version"),
            _version("podman", "--version"),
            _version("bwrap", "--version"),
            _version("runc", "--version"),
            _version("crun", "--version"),
        )
    )
    return "\n".join(
        (
            "# Exposure compared with Docker, Podman and bwrap",
            "",
            "One static program, `tests/security/prober/prober.c`, runs as the command of a container of",
            "each engine, on the same empty root file system, and counts what it can reach. Fewer is better.",
            "",
            *_table(found),
            "Paths of /proc/PID are counted once, whatever the PID, and so are paths of /sys that differ in",
            "numbers only; files about the reader's own namespaces only (/proc/PID/net, /proc/key-users,",
            "/proc/locks) are left out. A socket counts when it can be opened; a namespace counts for each",
            "call that makes it, with or without a user namespace; a system call counts when no filter",
            "answers in its place and the kernel has it.",
            "",
            "bwrap sets no filter of its own, and as root it maps the host's root: it is run as its users",
            "run it. Podman runs with limits of files and processes lowered to what root has here.",
            "",
            "## Reachable with `Security.SANDBOX` and not with the other",
            "",
            *_surpluses(found, SANDBOX, peers),
            "",
            "## Reachable with `Security.DOCKER` and not with the other",
            "",
            *_surpluses(found, DOCKER_PRESET, peers),
            "",
            f"Made by `python -m tests.security.compare --write docs/explanation/reach.md` as {user}, on",
            f"Linux {platform.release()} {platform.machine()}. {versions}.",
            "",
        )
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="where the page goes; without it, shown")
    options = parser.parse_args()
    found: dict[str, Reach | Absent] = {}
    with tempfile.TemporaryDirectory(prefix="pyc-compare-") as directory:
        Path(directory).chmod(0o755)
        for name, engine in ENGINES.items():
            found[name] = engine(Path(directory, name.replace(" ", "-")))
    if options.write:
        options.write.write_text(page(found))
    else:
        print(page(found))


if __name__ == "__main__":
    main()
