"""The command line of fault injection, of which the lab and the tracer are two hidden options."""

from __future__ import annotations

import argparse
import sys

from tests.security import inject
from tests.security.inject.aims import every_aim, some_aims
from tests.security.inject.bench import Bench
from tests.security.inject.lab import lab_main
from tests.security.inject.model import Unable
from tests.security.inject.tracer import tracer_main


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.security.inject", description=inject.__doc__.splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="a sample of about 60 runs")
    parser.add_argument("--seconds", type=float, default=900.0, help="begin no run after that")
    parser.add_argument("--only", default="", help="aims whose text holds this")
    parser.add_argument("--lab", help=argparse.SUPPRESS)
    parser.add_argument("--tracer", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.tracer:
        tracer_main()
        return 0
    if given.lab:
        lab_main(given.lab)
        return 0
    try:
        with Bench() as bench:
            aims = some_aims(bench.clean) if given.quick else every_aim(bench.clean)
            chosen = [aim for aim in aims if given.only in str(aim)]
            total = bench.run_all(
                chosen, given.seconds, lambda line: print(line, file=sys.stderr, flush=True)
            )
    except Unable as reason:
        print(f"skipped: {reason}")
        return 0
    print(total)
    return 1 if total.findings else 0


if __name__ == "__main__":
    sys.exit(main())
