"""Expected results of the prober in a container: the tables in tests/security/golden.

A section `[axis outcome]` is followed by keys; the key `*` means all that no other section of the axis names.
Axes of `EXACT` are what filters and privileges decide, the same on every kernel.  Of the others, which need
something from the kernel too, a table is the most that may be found.

`python -m tests.security.prober.golden sandbox` prints the table of a preset as it is here and now.
"""

from __future__ import annotations

import collections
import fnmatch
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

from attrs import frozen

from pycontain import Container, Image, Security
from tests.security.prober import Reach, make_root, parse

DIRECTORY = Path(__file__).parent.parent / "golden"
EXACT = "syscall filter.socket filter.clone filter.ioctl filter.personality capability prctl".split()
GRANTED = {
    "socket": ("opened",),
    "clone": ("made",),
    "ioctl": ("worked",),
    "personality": ("set",),
    "device": ("rw", "r", "w", "made", "opened"),
    "writable": ("opened", "created"),
}
"""Outcomes that count as granted, for each axis that depends on the kernel."""


@frozen
class Golden:
    """A table of keys by axis and outcome."""

    sections: Mapping[tuple[str, str], frozenset[str]]

    def expected(self, axis: str, key: str) -> str | None:
        """Return the outcome of a key."""
        rest = None
        for (name, outcome), keys in self.sections.items():
            if name == axis and key in keys:
                return outcome
            if name == axis and "*" in keys:
                rest = outcome
        return rest

    def grants(self, axis: str, key: str) -> bool:
        """Return whether the table grants a key.  Keys of the table may end in the wildcard `*`."""
        patterns = (one for (name, _), keys in self.sections.items() if name == axis for one in keys)
        return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def load(name: str) -> Golden:
    """Return the table of a preset."""
    sections: dict[tuple[str, str], frozenset[str]] = {}
    section = ("", "")
    for line in (DIRECTORY / f"{name}.txt").read_text().splitlines():
        if line.startswith("["):
            axis, outcome = line.strip("[]").split()
            section = (axis, outcome)
        elif line and not line.startswith("#"):
            sections[section] = sections.get(section, frozenset()) | frozenset(line.split())
    return Golden(sections)


def differences(golden: Golden, found: Reach, lacking: frozenset[str]) -> list[str]:
    """Return the differences between a finding and the table.  lacking: calls that this kernel lacks."""
    lines = []
    for axis in EXACT:
        for key, outcome in found.axis(axis).items():
            expected = golden.expected(axis, key)
            if axis == "syscall" and expected == "reached" and key in lacking:
                expected = "ENOSYS"
            if outcome != expected:
                lines.append(f"{axis} {key}: {outcome}, not {expected}")
    for axis, outcomes in GRANTED.items():
        granted = sorted(found.having(axis, *outcomes))
        lines += [f"{axis} {key}: {found.axis(axis)[key]}" for key in granted if not golden.grants(axis, key)]
    return lines


def text(found: Reach) -> str:
    """Return the finding as a table."""
    return "".join(_sections(found))


def _sections(found: Reach) -> Iterator[str]:
    for axis in (*EXACT, *GRANTED):
        counted = GRANTED.get(axis, ())
        outcomes = collections.Counter(
            one for one in found.axis(axis).values() if not counted or one in counted
        )
        common = [outcome for outcome, number in outcomes.most_common(1) if number > 20]
        # Calls that are reached stay named, or one that is new would count as wanted.
        if axis == "syscall":
            common = ["ENOSYS"]
        for outcome in sorted(outcomes):
            rest = outcome in common and axis in EXACT
            keys = "*" if rest else " ".join(sorted(found.having(axis, outcome)))
            filled = textwrap.fill(keys, 110, break_on_hyphens=False, break_long_words=False)
            yield f"\n[{axis} {outcome}]\n{filled}\n"


def main(name: str) -> None:
    """Print the table of a preset."""
    security = {"sandbox": Security.SANDBOX, "docker": Security.DOCKER}[name]
    with tempfile.TemporaryDirectory(prefix="pyc-golden-") as directory:
        Path(directory).chmod(0o755)
        image = Image.from_rootfs(make_root(Path(directory, "root")))
        with Container(image, security=security) as container:
            found = parse(container.exec(["/prober"], timeout=120).stdout)
    print(f"# What Security.{name.upper()} lets a process reach; prober/golden.py says how to read it.")
    print(text(found), end="")


if __name__ == "__main__":
    main(sys.argv[1])
