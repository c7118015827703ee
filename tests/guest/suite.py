"""The kernel tests on cgroup v2, in the guest: as root, and as a user with a delegated subtree."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.guest.run import ABSENT, boot

ROOT = Path(__file__).resolve().parent.parent.parent
PYTEST = [
    "env",
    "PYTHONDONTWRITEBYTECODE=1",
    # Every page that a guest's process touches is a mapping of the host's, and those are counted.
    "PYC_MEGABYTES=8",
    sys.executable,
    "-m",
    "pytest",
    "-p",
    "no:cacheprovider",
    "-q",
]


def main() -> int:
    """Boot and run the suite; print a skip if user-mode-linux is not installed."""
    arguments = sys.argv[1:] or ["tests/kernel", "-m", "not soak"]
    status = boot([*PYTEST, *arguments], memory="3G", timeout=1200, cwd=str(ROOT))
    if status == ABSENT:
        print("guest: skipped: user-mode-linux is not installed")
        return 0
    return status


if __name__ == "__main__":
    sys.exit(main())
