"""results/start.svg: medians as bars on a logarithmic scale."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from benchmarks.measure import RESULTS

_WIDTH, _ROW, _LEFT = 760, 26, 150


def bars(rows: list[dict[str, object]]) -> None:
    """Draw what the start benchmark found."""
    lines: list[tuple[str, float, str]] = []
    for label in ("start, burst", "start, paced"):
        ours = [row for row in rows if row["job"] == label]
        if not ours:
            continue
        lines.append((f"pycontain ({label[7:]})", float(str(ours[0]["ours_p50"])), "#2563eb"))
        lines += [
            (f"{row['against']} ({label[7:]})", float(str(row["other_p50"])), "#9ca3af") for row in ours
        ]
    low, high = math.log10(0.0005), math.log10(1.0)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_ROW * len(lines) + 40}"']
    parts.append(' font-family="sans-serif" font-size="13">')
    for at, (name, seconds, colour) in enumerate(lines):
        y = 20 + at * _ROW
        length = (math.log10(seconds) - low) / (high - low) * (_WIDTH - _LEFT - 90)
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{_LEFT}" y="{y}" width="{length:.1f}" height="{_ROW - 8}" fill="{colour}"/>')
        parts.append(f'<text x="{_LEFT + length + 6:.1f}" y="{y + 14}">{seconds * 1e3:.2f} ms</text>')
    parts.append("</svg>\n")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "start.svg").write_text("".join(parts))
