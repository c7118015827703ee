"""Run a command in a user-mode-linux guest with cgroup v2; exits with the command's status.

python tests/guest/run.py [--mem 2G] [--timeout SECONDS] -- command args...

77 where user-mode-linux is not installed, 124 at the timeout, 125 when the guest died.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ABSENT, TIMEOUT, DIED = 77, 124, 125


def boot(command: list[str], *, memory: str, timeout: float, cwd: str) -> int:
    """Boot, run the command, power off, and return the command's exit status."""
    kernel = shutil.which("linux.uml") or "/usr/bin/linux.uml"
    if not os.path.exists(kernel):
        print("guest: user-mode-linux is not installed")
        return ABSENT
    with tempfile.TemporaryDirectory(prefix="pyc-guest-") as job:
        Path(job, "command").write_text(f"cd {shlex.quote(cwd)}\nexec {shlex.join(command)}\n")
        Path(job, "checkout").write_text(cwd)
        arguments = [
            kernel,
            f"mem={memory}",
            "rootfstype=hostfs",
            "rootflags=/",
            "ro",
            f"init={Path(__file__).with_name('init.sh').resolve()}",
            "con=null",
            "con0=fd:0,fd:1",
            "quiet",
            f"uml_dir={job}/uml",
            "umid=pyc",
            f"PYC_JOB={job}",
        ]
        environment = {**os.environ, **_preloaded(job)}
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, start_new_session=True, env=environment
        )
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            return TIMEOUT
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        status = Path(job, "status")
        return int(status.read_text()) if status.exists() else DIED


def _preloaded(job: str) -> dict[str, str]:
    """Return the library that lets this kernel run on newer processors (see xstate.c)."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or os.uname().machine != "x86_64":
        return {}
    library = f"{job}/xstate.so"
    source = str(Path(__file__).with_name("xstate.c"))
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    return {"LD_PRELOAD": library}


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mem", default="2G")
    parser.add_argument("--timeout", type=float, default=900)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    return boot(options.command, memory=options.mem, timeout=options.timeout, cwd=os.getcwd())


if __name__ == "__main__":
    sys.exit(main())
