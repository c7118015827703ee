"""Words and sentence forms that make code, docs and tests hard to read.

Every file is checked for a few markers of unclear sentences and for the first words of its docstrings.
`EXCEPTIONS` has the number of marked lines that a file may have. It only shrinks: the test fails as well if
a file has fewer than its entry says. `python -m tests.test_language` lowers the entries.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PATTERNS = ("*.py", "*.[ch]", "*.cdef", "*.md", "Makefile")

MARKERS = re.compile(
    r"\b(nobody|somebody|anybody|everybody|whoever)\b"
    r"|(^|[.;:#*\"]\s+)(What|Who) [a-z]+ "
    r"|\b(told|tells|heard|hears)\b"
    r"|\bplain user",
    re.IGNORECASE,
)
"""Pronouns without a referent, clauses as nouns, and figurative verbs for report and receive."""

OPENING = re.compile(
    r"^(What|Who|Whose|Whom|Whoever|Whatever|How|Why|Where|When|Which|It|Its|They|Their|Nobody|Somebody"
    r"|Is|Are|Does|Has|Can) "
    r"|^[^.:]*\?"
)
"""A docstring opens with a verb or a noun phrase, not with a question, a pronoun or a clause."""

QUOTED = re.compile(r"([\"'`])nobody\1|=nobody\b|\bnobody:")
"""The user `nobody` of the host is a name."""

EXCEPTIONS: dict[str, int] = {}


def _files() -> list[str]:
    command = ["git", "ls-files", "--", *PATTERNS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    own = Path(__file__).relative_to(ROOT).as_posix()
    return [name for name in done.stdout.splitlines() if name != own]


def _docstrings(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of docstrings, and of strings below assignments, which document attributes."""
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for before, one in zip([None, *body], body, strict=False):
            if before is not None and not isinstance(before, ast.Assign | ast.AnnAssign):
                continue
            value = one.value if isinstance(one, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield one.lineno, value.value.strip()


@functools.cache
def _marked(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    found = {at for at, line in enumerate(text.splitlines(), 1) if MARKERS.search(QUOTED.sub("", line))}
    if name.endswith(".py"):
        found |= {at for at, doc in _docstrings(text) if OPENING.search(doc)}
    lines = text.splitlines()
    return [f"{name}:{at}: {lines[at - 1].strip()}" for at in sorted(found)]


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("Close what nobody reads.", True),
        ("# What comes next is dropped", True),
        ("The caller is told of it", True),
        ("as a plain user", True),
        ("Return the exit status.", False),
        ('user="nobody"', False),
    ],
)
def test_markers(text: str, marked: bool) -> None:
    assert bool(MARKERS.search(QUOTED.sub("", text))) is marked


@pytest.mark.parametrize(
    ("doc", "marked"),
    [
        ("What is left of it.", True),
        ("Is it still there?", True),
        ("It ends with its owner.", True),
        ("Return whether it has ended.", False),
        ("A watch on the disk. Who asks?", False),
    ],
)
def test_openings(doc: str, marked: bool) -> None:
    assert [bool(OPENING.search(text)) for _, text in _docstrings(f'"""{doc}"""')] == [marked]


def test_sentences_are_plain() -> None:
    found = {name: _marked(name) for name in _files()}
    more = [line for name, lines in found.items() if len(lines) > EXCEPTIONS.get(name, 0) for line in lines]

    assert not more, "rewrite these sentences (CONTRIBUTING.md, Language):\n" + "\n".join(more)


def test_exceptions_are_current() -> None:
    fewer = {
        name: f"{most} in EXCEPTIONS, {count} found"
        for name, most in EXCEPTIONS.items()
        if (count := len(_marked(name)) if (ROOT / name).is_file() else 0) < most
    }

    assert not fewer, "lower these entries: python -m tests.test_language"


def lower(text: str) -> str:
    """Return the text of this module with every entry of EXCEPTIONS lowered to the current number."""
    counts = {
        name: min(most, len(_marked(name))) for name, most in EXCEPTIONS.items() if (ROOT / name).is_file()
    }
    entries = "".join(f'    "{name}": {count},\n' for name, count in sorted(counts.items()) if count)
    start = text.index("EXCEPTIONS: dict")
    end = text.index("\n\n", start)
    shown = f"{{\n{entries}}}" if entries else "{}"
    return f"{text[:start]}EXCEPTIONS: dict[str, int] = {shown}{text[end:]}"


if __name__ == "__main__":
    Path(__file__).write_text(lower(Path(__file__).read_text()))
