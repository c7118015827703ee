"""Run every case as root and rootless, and write the table (`make security`; --quick: the short set)."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from tests.security.cases import CASES, ELSEWHERE

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "explanation" / "cases.md"
_SUITES = ["tests/security", "tests/kernel", "tests/e2e/test_package.py"]


def _run(command: list[str], directory: Path, full: bool) -> int:
    environment = {**os.environ, "PYC_CASES": str(directory)}
    if full:
        environment["PYC_SECURITY_FULL"] = "1"
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def run_all(directory: Path, full: bool) -> int:
    """Run pytest as this user, then as two unprivileged users, and return the worst exit status."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup"]
    worst = _run([*pytest, *_SUITES], directory, full)
    if os.geteuid() == 0:
        arguments = ["tests/security", "tests/kernel", "-q", "-n", "2", "--timeout", "900"]
        worst = max(worst, _run([sys.executable, "tests/rootless/run.py", *arguments], directory, full))
    return worst


def collect(directory: Path) -> dict[str, dict[str, dict[str, str]]]:
    """Return outcomes by user, id and kind; the worst of several tests counts."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for path in sorted(directory.glob("*.json")):
        account = json.loads(path.read_text())
        user = "root" if account["user"] == 0 else "rootless"
        for name, kinds in account["seen"].items():
            kinds_seen = found.setdefault(user, {}).setdefault(name, {})
            for kind, outcome in kinds.items():
                kinds_seen[kind] = _worse(kinds_seen.get(kind), outcome)
    return found


def _worse(one: str | None, other: str) -> str:
    if one is None or "FAILED" in (one, other):
        return other if one is None else "FAILED"
    return "ok" if "ok" in (one, other) else one


def table(found: dict[str, dict[str, dict[str, str]]]) -> Iterable[str]:
    """Return the lines of the table."""
    yield "| id | attack or fault | root | rootless | control seen failing |"
    yield "|---|---|---|---|---|"
    for name, what in CASES.items():
        cells = [_cell(found.get(user, {}).get(name, {}).get("case")) for user in ("root", "rootless")]
        controls = {found.get(user, {}).get(name, {}).get("control") for user in ("root", "rootless")}
        control = "FAILED" if "FAILED" in controls else "yes" if "ok" in controls else "no"
        yield f"| {name} | {what} | {cells[0]} | {cells[1]} | {control} |"


def _cell(outcome: str | None) -> str:
    return {None: "not run", "ok": "holds"}.get(outcome, outcome or "")


def page(lines: Iterable[str], command: str, seconds: float) -> str:
    """Return the page with the table."""
    waiting = "\n".join(f"- {name}: {why}" for name, why in ELSEWHERE.items())
    return f"""# Cases

Each row is an attack or a fault by the id that tests, issues and advisories use for it. "Holds" says that
the attack was made and did not succeed. "Control seen failing" says that the same attack did succeed where
the control was switched off, so that the test is known to see it. A skip names what was missing.

Made by `{command}` on Linux {platform.release()} {platform.machine()} in {seconds / 60:.0f} minutes.
The rootless runs use two users: one with ranges in /etc/subuid and one without.

{chr(10).join(lines)}

These wait for what they attack:

{waiting}
"""


def main() -> int:
    """Run, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the short set, as in make test")
    parser.add_argument("--write", type=Path, default=PAGE)
    arguments = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pyc-cases-", dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o1777)
        worst = run_all(directory, full=not arguments.quick)
        command = "python -m tests.security.report --quick" if arguments.quick else "make security"
        arguments.write.write_text(page(table(collect(directory)), command, time.monotonic() - begun))
    return worst


if __name__ == "__main__":
    sys.exit(main())
