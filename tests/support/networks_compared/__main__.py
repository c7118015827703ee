"""Write the page: `python -m tests.support.networks_compared`."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.support.networks_compared.compare import compare, perform
from tests.support.networks_compared.page import PAGE, page


def main() -> None:
    """Run both sides, or one of them in this process's own namespaces."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=("docker", "pycontain"), help="for the command itself")
    parser.add_argument("--directory", type=Path)
    chosen = parser.parse_args()
    if chosen.side:
        perform(chosen.side, chosen.directory)
    else:
        PAGE.write_text(page(*compare()))


main()
