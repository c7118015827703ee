"""A record of security cases: whether each held, and whether its control was seen failing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

_SEEN: dict[str, dict[str, str]] = {}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Record for every id whether it held, and whether its control was seen failing."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.when != "call" and not report.skipped and not report.failed:
        return
    for kind in ("case", "control"):
        for marker in item.iter_markers(kind):
            for name in marker.args:
                _note(name, kind, report)


def _note(name: str, kind: str, report: pytest.TestReport) -> None:
    outcomes = _SEEN.setdefault(name, {})
    if report.failed:
        outcomes[kind] = "FAILED"
    elif report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        outcomes.setdefault(kind, "skipped: " + reason.removeprefix("Skipped: "))
    elif outcomes.get(kind) != "FAILED":
        outcomes[kind] = "ok"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the record to a file per process, if PYC_CASES names a directory."""
    directory = os.environ.get("PYC_CASES")
    if directory and _SEEN:
        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        path = Path(directory) / f"{os.getuid()}-{os.getpid()}-{worker}.json"
        path.write_text(json.dumps({"user": os.getuid(), "seen": _SEEN}))
