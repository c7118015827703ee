"""The mounts of this namespace that a run of the tests could have made."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path


def our_mounts() -> list[str]:
    """Return the lines of mountinfo that name a place of this run.

    Every mount that pycontain could leave has its source or target in the store of the run, in the
    directory of a test, or below a name of ours. A container engine beside the run mounts elsewhere, and so
    does the other worker of a run, whose directories have its name.
    """
    ours = (os.environ["PYCONTAIN_ROOT"], "pyc", f"{tempfile.gettempdir()}/pytest-of-")
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [
        line for line in lines if any(place in line for place in ours) and not _is_of_another_worker(line)
    ]


def _is_of_another_worker(line: str) -> bool:
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    roots = re.findall(r"/[^ ]*/pyc-test-[^/ ]+", line)
    workers = re.findall(r"/popen-(gw\d+)/", line)
    return bool(roots and os.environ["PYCONTAIN_ROOT"] not in roots) or bool(
        workers and worker not in workers
    )
