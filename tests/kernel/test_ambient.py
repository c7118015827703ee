"""The state that a process inherits from its parent does not reach a container or stop its start."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pytest

Seen: TypeAlias = dict[str, Any]

SEEN = r"""
import ctypes, json, os, resource, signal
libc = ctypes.CDLL(None)
mask = os.umask(0)
os.umask(mask)
status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
names = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))
shown = ("SigBlk", "SigPnd", "ShdPnd", "CapInh", "CapAmb", "Mems_allowed_list")
paths = ("/", "/etc", "/etc/passwd", "/tmp", "/dev", "/dev/null", "/dev/shm")
print(json.dumps({
    "umask": f"{mask:03o}",
    **{name: resource.getrlimit(getattr(resource, name)) for name in names},
    **{name: status.get(name) for name in shown},
    "SigIgn": int(status["SigIgn"], 16) & ~(1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1),
    "nice": os.getpriority(os.PRIO_PROCESS, 0),
    "policy": os.sched_getscheduler(0),
    "affinity": sorted(os.sched_getaffinity(0)),
    "ionice": libc.syscall({"x86_64": 252, "aarch64": 31}[os.uname().machine], 1, 0),
    "oom_score_adj": open("/proc/self/oom_score_adj").read(),
    "personality": open("/proc/self/personality").read(),
    "timer slack": libc.prctl(30, 0, 0, 0, 0),
    "no huge pages": libc.prctl(42, 0, 0, 0, 0),
    "mce kill": libc.prctl(34, 0, 0, 0, 0),
    "cwd": os.getcwd(),
    "descriptors": sorted(os.listdir("/proc/self/fd"))[:3],
    "session": os.getsid(0) == os.getpid(),
    "env": {name: value for name, value in os.environ.items() if name != "HOSTNAME"},
    "modes": [oct(os.stat(path).st_mode) for path in paths],
}))
"""

CALLER = r"""
import subprocess, sys
{first}
import pycontain
seen = open({seen!r}).read()
kept = pycontain.run(None, ["/usr/bin/python3", "-I", "-c", seen], user={user})
assert kept.returncode == 0, kept
open({out!r}, "w").write(kept.stdout)
"""

RAISE_ONLY_BY_PRIVILEGE = {"nice", "oom_score_adj", "policy"}
"""State that an unprivileged process cannot reset, so rootless containers may see it."""

NOT_HERE = 77


def call(
    tmp_path: Path, first: str, *options: str, env: Mapping[str, str] | None = None, **how: object
) -> Seen:
    """Return the state that a container sees when its caller runs with this state."""
    (tmp_path / "seen.py").write_text(SEEN)
    out = tmp_path / "out"
    user = 1000 if os.geteuid() == 0 else 0
    code = CALLER.format(first=first, seen=str(tmp_path / "seen.py"), user=user, out=str(out))
    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYCONTAIN_ROOT": str(tmp_path / "root"), **(env or {})},
    )
    if done.returncode == NOT_HERE:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr
    found: Seen = json.loads(out.read_text())
    return found


_usual: list[Seen] = []


@pytest.fixture
def usual(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Return the view of a container of an ordinary caller, taken once."""
    if not _usual:
        _usual.append(call(tmp_path_factory.mktemp("usual"), ""))
    return _usual[0]


def soft(name: str, value: int) -> str:
    """Lower a soft limit."""
    which = f"resource.RLIMIT_{name}"
    return f"import resource; resource.setrlimit({which}, ({value}, resource.getrlimit({which})[1]))"


def prctl(option: int, first: int, second: int = 0) -> str:
    """Set an attribute that the kernel knows by number (linux/prctl.h)."""
    return f"import ctypes; ctypes.CDLL(None).prctl({option}, {first}, {second}, 0, 0)"


def privileged(work: str) -> str:
    """Skip where the caller may not do it."""
    return f"""
import os, sys
try:
    {work}
except OSError as error:
    print("needs CAP_SYS_NICE:", error)
    sys.exit({NOT_HERE})
"""


IONICE_IDLE = """
import ctypes, os
ctypes.CDLL(None).syscall({"x86_64": 251, "aarch64": 30}[os.uname().machine], 1, 0, 3 << 13)
"""
IGNORED = """
import signal
for number in (1, 2, 3, 10, 12, 13, 14, 15, 17, 18, 20, 21, 22):
    signal.signal(number, signal.SIG_IGN)
"""
THREADS = """
import threading
stop = threading.Event()
for _ in range(200):
    threading.Thread(target=stop.wait, daemon=True).start()
"""
FROZEN = """
import time
for name in ("time", "monotonic", "perf_counter"):
    setattr(time, name, lambda: 1.0)
    setattr(time, name + "_ns", lambda: 1)
"""
ENVIRONMENT = """
import os
os.environ.update(PYTHONPATH="/nowhere", LD_LIBRARY_PATH="/nowhere", LANG="xx", TMPDIR="/nowhere")
"""

STATES = {
    "umask 027": "import os; os.umask(0o027)",
    "umask 077": "import os; os.umask(0o077)",
    "umask 0": "import os; os.umask(0)",
    "rlimit as": soft("AS", 2 << 30),
    "rlimit fsize": soft("FSIZE", 8 << 20),
    "rlimit data": soft("DATA", 1 << 30),
    "rlimit stack": soft("STACK", 1 << 20),
    "rlimit core": soft("CORE", 0),
    "rlimit cpu": soft("CPU", 600),
    "rlimit nofile": soft("NOFILE", 128),
    "rlimit memlock": soft("MEMLOCK", 0),
    "rlimit sigpending": soft("SIGPENDING", 10),
    "ignored signals": IGNORED,
    "blocked signals": "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
    "nice": "import os; os.nice(7)",
    "negative nice": privileged("os.setpriority(os.PRIO_PROCESS, 0, -5)"),
    "ionice idle": IONICE_IDLE,
    "affinity": "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})",
    "batch policy": "import os; os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))",
    "idle policy": "import os; os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))",
    "real time": privileged("os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))"),
    "oom_score_adj": "open('/proc/self/oom_score_adj', 'w').write('500')",
    "personality": "import ctypes; ctypes.CDLL(None).personality(0x0040000)",
    "timer slack": prctl(29, 500_000_000),
    "no huge pages": prctl(41, 1),
    "mce kill": prctl(33, 1, 1),
    "ambient capabilities": prctl(47, 2, 21),
    "no descriptors 0 to 2": "import os\nfor fd in (0, 1, 2): os.close(fd)",
    "removed directory": "import os, tempfile; d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)",
    "environment": ENVIRONMENT,
    "switch interval": "import sys; sys.setswitchinterval(1e-6)",
    "recursion limit": "import sys; sys.setrecursionlimit(150)",
    "many threads": THREADS,
    "frozen clock": FROZEN,
    "socket timeout": "import socket; socket.setdefaulttimeout(0.0001)",
    "warnings as errors": "import warnings; warnings.simplefilter('error')",
}


@pytest.mark.parametrize("state", STATES)
def test_inherited_state_does_not_reach_the_guest(state: str, usual: Seen, tmp_path: Path) -> None:
    seen = call(tmp_path, STATES[state])
    expected = dict(usual)
    if os.geteuid() != 0:
        for name in RAISE_ONLY_BY_PRIVILEGE:
            seen.pop(name), expected.pop(name)
    assert seen == expected


OPTIONS = {
    "-S": ("-S",),
    "-I": ("-I",),
    "-E": ("-E",),
    "-O": ("-O",),
    "-OO": ("-OO",),
    "-X utf8=0": ("-X", "utf8=0"),
    "-X dev": ("-X", "dev"),
    "-W error": ("-W", "error"),
    "-bb": ("-bb",),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_interpreter_options_of_the_caller_do_not_matter(
    options: tuple[str, ...], usual: Seen, tmp_path: Path
) -> None:
    path = f"import sys; sys.path[1:1] = {sys.path[1:]!r}"
    assert call(tmp_path, path, *options) == {**usual, "env": _path_of(usual, tmp_path, path, options)}


def _path_of(usual: Seen, tmp_path: Path, path: str, options: tuple[str, ...]) -> object:
    """Return the expected environment: `Image.host()` puts the bin of a venv into PATH, except with -S."""
    return call(tmp_path, path, *options)["env"] if "-S" in options else usual["env"]


LOCALES = [
    {"LC_ALL": "C"},
    {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"LC_ALL": "tr_TR.UTF-8"},
    {"LC_ALL": "no_SUCH.locale"},
    {"PYTHONUTF8": "1"},
    {"LD_PRELOAD": "/nowhere.so"},
    {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONOPTIMIZE": "2"},
    {"HOME": "/nowhere"},
]


@pytest.mark.parametrize(
    "env", LOCALES, ids=[next(iter(one.items()))[0] + str(at) for at, one in enumerate(LOCALES)]
)
def test_locale_and_environment_of_the_caller_do_not_matter(
    env: dict[str, str], usual: Seen, tmp_path: Path
) -> None:
    assert call(tmp_path, "", env=env) == usual


def test_non_ascii_text_survives_an_ascii_locale(tmp_path: Path) -> None:
    code = """
import pycontain
with pycontain.Container(env={"NAME": "zażółć"}) as c:
    shown = c.exec(["sh", "-c", 'printf "%s %s" "$NAME" "$1"', "sh", "gęślą"]).stdout
    assert shown == "zażółć gęślą", ascii(shown)
    c.path("/tmp/ścieżka").mkdir()  # a checkout below /tmp is shown there too
    c.path("/tmp/ścieżka/jaźń").write_text("x")
    assert [str(p) for p in c.path("/tmp/ścieżka").iterdir()] == ["/tmp/ścieżka/jaźń"]
"""
    env = {**os.environ, "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    env["PYTHONIOENCODING"] = "utf-8"
    script = tmp_path / "script.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def unreadable(tmp_path: Path) -> Iterator[Path]:
    """Provide a directory that its owner may not read."""
    place = tmp_path / "unreadable"
    place.mkdir()
    place.chmod(0)
    yield place
    place.chmod(0o700)


def test_unreadable_working_directory(unreadable: Path, usual: Seen, tmp_path: Path) -> None:
    first = (
        f"import os; os.chmod({str(unreadable)!r}, 0o700); os.chdir({str(unreadable)!r}); os.chmod('.', 0)"
    )
    assert call(tmp_path, first) == usual


def test_hard_limit_of_the_caller_is_reported(tmp_path: Path) -> None:
    """Only CAP_SYS_RESOURCE can raise a hard limit, so without it the report names the limit."""
    code = """
import resource, pycontain
resource.setrlimit(resource.RLIMIT_CPU, (600, 600))
with pycontain.Container() as c:
    print(c.exec(["sh", "-c", "ulimit -Ht"]).stdout.strip(), "cpu rlimit of its own" in c.isolation.missing)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() in ("600 True", "unlimited False"), done.stderr


FILE_SIZE = """
import resource, pycontain
engine = pycontain.Engine()
engine._host_image()
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, {hard}))
try:
    with pycontain.Container(engine=engine) as c:
        print(c.exec(["sh", "-c", "ulimit -f; head -c 100000 /dev/zero > /big; wc -c < /big"]).stdout.split())
except pycontain.PycontainError as error:
    print(error)
"""


def start_with_file_size(hard: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", FILE_SIZE.format(hard=hard)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_soft_file_size_limit_is_the_callers_only() -> None:
    assert start_with_file_size("resource.RLIM_INFINITY") == "['unlimited', '100000']"


def test_hard_file_size_limit_below_the_launcher_is_named() -> None:
    assert "RLIMIT_FSIZE" in start_with_file_size("4096")


def test_guest_defaults_are_the_defined_ones(usual: Seen) -> None:
    """The table of docs/explanation/ambient.md."""
    unlimited = [resource.RLIM_INFINITY] * 2
    assert usual["umask"] == "022"
    assert (usual["nice"], usual["policy"], usual["ionice"], usual["SigIgn"]) == (0, 0, 0, 0)
    assert usual["SigBlk"] == "0" * 16
    assert usual["CapInh"] == usual["CapAmb"] == "0" * 16
    assert usual["timer slack"] == 50000
    assert usual["RLIMIT_STACK"][0] == 8 << 20
    for name in ("CPU", "FSIZE", "DATA", "AS", "RSS"):
        if resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[1] == resource.RLIM_INFINITY:
            assert usual[f"RLIMIT_{name}"] == unlimited


@pytest.mark.parametrize("state", ["", FROZEN], ids=["usual", "frozen"])
def test_timeouts_follow_the_kernels_clock(state: str) -> None:
    code = """
import subprocess, pycontain
with pycontain.Container() as c:
    c.exec(["true"])
    real = __import__("time").monotonic
    {state}
    begun = pycontain._kernel.waiting.now()
    for work in (
        lambda: c.exec(["sleep", "20"], timeout=0.5),
        lambda: c.popen(["sleep", "20"]).wait(0.5),
        lambda: c.popen(["sleep", "20"]).communicate(timeout=0.5),
    ):
        try:
            work()
        except subprocess.TimeoutExpired:
            print("timeout", end=" ")
    print(1.4 < pycontain._kernel.waiting.now() - begun < 15)
""".replace("{state}", state.replace("\n", "\n    "))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "timeout timeout timeout True", done.stderr


GREENLETS = """
import sys, time
try:
    import {library}
    {patch}
except (ImportError, AttributeError) as error:
    print("{library} does not work here:", error)
    sys.exit({not_here})
from pycontain import Container, CommandTimeout
ticks = []

def tick():
    for _ in range(30):
        ticks.append(time.monotonic())
        {library}.sleep(0.05)

def work():
    done = [c.exec(["sleep", "0.4"]).returncode]
    process = c.popen(["sh", "-c", "sleep 0.4; cat"], stdin=-1)
    done.append(process.communicate("in")[0])
    done.append(c.popen(["sleep", "0.2"]).wait())
    try:
        c.exec(["sleep", "9"], timeout=0.2)
    except CommandTimeout:
        done.append("timeout")
    done.append(c.exec(["cat"], input="x" * 300000).stdout.count("x"))
    return done

with Container() as c:
    other = {library}.spawn(tick)
    mine = {library}.spawn(work)
    other.{wait}()
    print({result})
print(max(b - a for a, b in zip(ticks, ticks[1:])) < 0.35)
"""


@pytest.mark.parametrize(
    ("library", "patch", "wait", "result"),
    [
        ("gevent", "import gevent.monkey; gevent.monkey.patch_all()", "join", "mine.get()"),
        ("eventlet", "eventlet.monkey_patch()", "wait", "mine.wait()"),
    ],
)
def test_commands_let_other_greenlets_run(library: str, patch: str, wait: str, result: str) -> None:
    """Like `subprocess.run` under gevent. The bound is far from the 0.4 s that each command takes."""
    # Importing eventlet would make every later fork of this process warn.
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: pip install {library}")
    code = GREENLETS.format(library=library, patch=patch, wait=wait, result=result, not_here=NOT_HERE)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60
    )
    if done.returncode == NOT_HERE:
        pytest.skip(done.stdout.strip())
    assert done.stdout.splitlines() == ["[0, 'in', 0, 'timeout', 300000]", "True"], done.stderr
