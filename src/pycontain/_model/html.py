"""Tables of values for notebooks (IPython's `_repr_html_`)."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_LONGEST = 4000
"""Characters of one cell; output of a guest may be of any length."""


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Return an HTML table in which every character of the values is text.

    Args:
        rows: Names and values.  The end of a long value is left out.
    """
    cells = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th>'
        f'<td style="text-align:left"><pre>{escape(_shortened(value))}</pre></td></tr>'
        for name, value in rows
    )
    return f"<table>{cells}</table>"


def _shortened(value: str) -> str:
    return (
        value
        if len(value) <= _LONGEST
        else f"{value[:_LONGEST]}\n... {len(value) - _LONGEST} more characters"
    )
