"""The page in Markdown."""

from __future__ import annotations

import itertools
from pathlib import Path

from tests.support.networks_compared.compare import CASES, Outcomes

PAGE = Path(__file__).parent.parent.parent.parent / "docs" / "explanation" / "networks-compared.md"
_HEAD = """\
# Networks compared with Docker's

Each row is a case that was run with pycontain and with dockerd {version} on the same machine, each in a
network namespace of its own, with the same image, the same probes, and a second namespace as the outside.
The columns show the observed result: *seen as X* means that the target was reached and saw the address of X.
Where the two differ, the last column gives the reason. Made by `python -m tests.support.networks_compared`;
`tests/e2e/test_networks_docker.py` repeats all cases.
"""


def page(docker: Outcomes, ours: Outcomes) -> str:
    """Return the page in Markdown."""
    lines = [_HEAD.format(version=docker.version)]
    differing = sum(one.docker is not None for one in CASES)
    lines.append(f"{len(CASES)} cases; {differing} of them differ.\n")
    for section, cases in itertools.groupby(CASES, key=lambda one: one.section):
        lines += [f"## {section}\n", "| case | pycontain | dockerd | why |", "|---|---|---|---|"]
        for one in cases:
            theirs = "the same" if one.docker is None else docker.cases[one.title]
            lines.append(f"| {one.title} | {ours.cases[one.title]} | {theirs} | {one.why} |")
        lines.append("")
    return "\n".join(lines)
