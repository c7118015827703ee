"""Run the kernel and security tests as unprivileged users: one with sub-ids, one without.

As root this makes both users, gives them a copy of the package and the test tools, and
removes everything again.  The suite has already run as the caller if the caller is rootless.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.security import weak
from tests.support.world import World

ROOT = Path(__file__).resolve().parent.parent.parent
USERS = {"pycsub": True, "pycnone": False}
_PASSED_ON = ("PYC_CASES", "PYC_SECURITY_FULL", "PYC_WORLD")
_HEAVY = ("mypy*", "ruff*", "pip*", "setuptools*", "sphinx*", "docutils*", "babel*", "__pycache__")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def make_user(name: str, sub_ids: bool) -> None:
    """Make a user with or without ranges in /etc/subuid and /etc/subgid."""
    count = "65536" if sub_ids else "0"
    _run("useradd", "--create-home", "-K", f"SUB_UID_COUNT={count}", "-K", f"SUB_GID_COUNT={count}", name)
    os.chmod(pwd.getpwnam(name).pw_dir, 0o700)


def remove_user(name: str) -> None:
    """Remove a user, its home and its ranges."""
    subprocess.run(["pkill", "-KILL", "-u", name], check=False)
    subprocess.run(["userdel", "--remove", name], check=False, stderr=subprocess.DEVNULL)


def portable_copy(top: Path) -> None:
    """Copy the package, the tests and their tools to a directory that every user can read."""
    shutil.copytree(ROOT / "src", top / "src", ignore=shutil.ignore_patterns("__pycache__", "_native"))
    shutil.copytree(ROOT / "tests", top / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(
        ROOT / "benchmarks", top / "benchmarks", ignore=shutil.ignore_patterns("results", "native")
    )
    shutil.copy(ROOT / "pyproject.toml", top)
    site = sysconfig.get_paths()["purelib"]
    shutil.copytree(site, top / "site", ignore=shutil.ignore_patterns(*_HEAVY))
    for path in (top, *top.rglob("*")):
        path.chmod(path.stat().st_mode | 0o444 | (0o111 if path.is_dir() else 0))


def _as(user: str, command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
    entry = pwd.getpwnam(user)
    return subprocess.run(
        command, user=entry.pw_uid, group=entry.pw_gid, extra_groups=[], check=False, **options
    )


def interpreter(user: str) -> str | None:
    """Return an interpreter of the running version that this user may execute, or None."""
    wanted = f"{sys.version_info.major}.{sys.version_info.minor}"
    check = f"import sys; sys.exit('%d.%d' % sys.version_info[:2] != '{wanted}')"
    for candidate in (os.path.realpath(sys.executable), f"/usr/bin/python{wanted}", "/usr/bin/python3"):
        try:
            done = _as(user, [candidate, "-c", check], cwd="/", env={}, capture_output=True)
        except PermissionError:
            continue
        if done.returncode == 0:
            return candidate
    return None


def run_as(user: str, top: Path, arguments: list[str]) -> int:
    """Run pytest as `user` and return its exit status."""
    python = interpreter(user)
    if python is None:
        print(f"rootless: no Python of this version that the user {user} may execute: skipped")
        return 0
    home = pwd.getpwnam(user)
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": home.pw_dir,
        "LANG": "C.UTF-8",
        "PYTHONPATH": f"{top}/src:{top}/site",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": f"{home.pw_dir}",
        "PYC_WEAK": f"{top}/weak",
        **{name: value for name, value in os.environ.items() if name in _PASSED_ON},
    }
    command = [python, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return _as(user, command, env=environment, cwd=top).returncode


@contextlib.contextmanager
def _tun_for_all_users() -> Iterator[None]:
    """Make /dev/net/tun accessible as udev does: pasta and slirp4netns need it."""
    try:
        mode = os.stat("/dev/net/tun").st_mode
    except FileNotFoundError:
        yield
        return
    os.chmod("/dev/net/tun", 0o666)
    try:
        yield
    finally:
        os.chmod("/dev/net/tun", mode)


@contextlib.contextmanager
def _outside() -> Iterator[None]:
    """Provide a host outside this machine, if network namespaces allow one."""
    try:
        world = World()
    except (OSError, subprocess.CalledProcessError):
        yield
        return
    try:
        with world.serve():
            os.environ["PYC_WORLD"] = world.address
            yield
    finally:
        world.close()


def main() -> int:
    """Run the suite as each of the two users, one after the other."""
    if os.geteuid() != 0:
        print("rootless: the suite has already run as this user")
        return 0
    arguments = sys.argv[1:] or ["tests/kernel", "tests/security", "-q", "-n", "2", "-m", "not soak"]
    worst = 0
    # Both runs use the same user names, so a second run would remove the users of the first.
    with (
        open("/tmp/pyc-rootless.lock", "a") as lock,
        tempfile.TemporaryDirectory(prefix="pyc-rootless-", dir="/tmp") as directory,
        contextlib.ExitStack() as stack,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        top = Path(directory)
        portable_copy(top)
        weak.build_all(top / "weak")
        stack.enter_context(_tun_for_all_users())
        stack.enter_context(_outside())
        for user, sub_ids in USERS.items():
            remove_user(user)
            make_user(user, sub_ids)
            try:
                print(f"rootless: as {user}, {'with' if sub_ids else 'without'} sub-ids", flush=True)
                worst = max(worst, run_as(user, top, arguments))
            finally:
                remove_user(user)
    return worst


if __name__ == "__main__":
    sys.exit(main())
