"""Command line of pycontain: check what this host supports."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from attrs import asdict

from pycontain import Engine, PycontainError, __version__
from pycontain._objects.doctor import Check, examine


def _doctor(as_json: bool) -> int:
    try:
        with Engine(ahead=0) as engine:
            checks = examine(engine)
    except (PycontainError, OSError) as error:
        checks = [Check("engine", False, f"does not start: {error}")]
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{'ok     ' if check.ok else 'MISSING'}  {check.name:{width}}  {check.detail}")
            if check.command:
                print(f"{'':9}{'':{width}}  change it with: {check.command}")
    return 0 if checks and all(check.ok for check in checks if check.name in ("engine", "a container")) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `pycontain doctor [--json]`.

    Args:
        arguments: Command line arguments; those of the process by default.

    Returns:
        The exit status: 0 if containers start on this host, 1 if they do not.
    """
    parser = argparse.ArgumentParser(prog="pycontain", description=__doc__)
    parser.add_argument("--version", action="version", version=f"pycontain {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser("doctor", help="check what this host supports, and how to get the rest")
    doctor.add_argument("--json", action="store_true", help="print the report as JSON")
    return _doctor(parser.parse_args(arguments).json)


if __name__ == "__main__":
    sys.exit(main())
