"""Calls and includes between the C sources: no circle of calls, no include across subjects.

Files that call each other in a circle cannot be read, tested or replaced one at a time. The check needs no
compiler: it relies on the GNU style, in which the name of a function that is defined opens a line.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

NATIVE = Path(__file__).parent.parent.parent / "src" / "_native"
PROGRAMS = {"helper": ("helper", "shared"), "agent": ("agent", "shared"), "extension": ("ext", "shared")}
"""The directories whose files are linked together."""

_COMMENT_OR_STRING = re.compile(r'/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)
_DEFINITION = re.compile(r"^(\w[^\n;{}()]*)\n(\w+) \([^;{}]*\)\n\{", re.MULTILINE)
_CALL = re.compile(r"\b([a-zA-Z_]\w*) \(")
_INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)

Graph = Mapping[str, set[str]]


def call_graph(native: Path, directories: tuple[str, ...]) -> Graph:
    """Return, for each source file, the other files that define a function which it calls."""
    texts = {
        str(path.relative_to(native)): _COMMENT_OR_STRING.sub("", path.read_text())
        for directory in directories
        for path in sorted((native / directory).rglob("*.c"))
    }
    owners: dict[str, str] = {}
    local: dict[str, set[str]] = {}
    for file, text in texts.items():
        defined = _DEFINITION.findall(text)
        local[file] = {name for _, name in defined}
        # The entry point is called by shared/start.c, and every program has one.
        owners.update(
            (name, file) for kind, name in defined if "static" not in kind.split() and name != "pc_main"
        )
    return {
        file: {owners[name] for name in _CALL.findall(text) if name in owners and name not in local[file]}
        for file, text in texts.items()
    }


def cycles(graph: Graph) -> Iterator[list[str]]:
    """Yield each set of two or more files that reach each other by calls, sorted."""
    reached = {file: _reachable(graph, file) for file in graph}
    seen: set[str] = set()
    for file in graph:
        if file not in reached[file] or file in seen:
            continue
        circle = [other for other in reached[file] if file in reached[other]]
        seen.update(circle)
        yield sorted(circle)


def _reachable(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    left = list(graph[start])
    while left:
        file = left.pop()
        if file not in found:
            found.add(file)
            left.extend(graph[file])
    return found


def foreign_includes(native: Path) -> Iterator[str]:
    """Yield each quoted include that is neither in the file's own directory nor in `include`."""
    for path in sorted(native.rglob("*.[ch]")):
        for name in _INCLUDE.findall(path.read_text()):
            own = ".." not in name and (path.parent / name).exists()
            if not own and (".." in name or not (native / "include" / name).exists()):
                yield f"{path.relative_to(native)} includes {name}"


def problems(native: Path) -> list[str]:
    """Return every circle and every foreign include of a source tree, in words."""
    found = []
    for program, directories in PROGRAMS.items():
        for circle in cycles(call_graph(native, directories)):
            found.append(f"{program}: files call each other in a circle: {', '.join(circle)}")
    return found + list(foreign_includes(native))


def main() -> int:
    """Print every problem; return 0 when there is none."""
    found = problems(NATIVE)
    for problem in found:
        print(f"c-check: {problem}")
    print(f"c-check: calls and includes: {'FAILED' if found else 'clean'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
