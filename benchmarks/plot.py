"""Plots of results: medians of starts as bars on a logarithmic scale, branching over size."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from benchmarks.measure import RESULTS

_WIDTH, _ROW, _LEFT = 760, 26, 170


_OURS, _OTHERS = "#2563eb", "#9ca3af"


def bars(rows: list[dict[str, object]]) -> None:
    """Draw what the start benchmark found."""
    lines: list[tuple[str, float, str]] = []
    for label in ("start, burst", "start, paced"):
        ours = [row for row in rows if row["job"] == label]
        if not ours:
            continue
        lines.append((f"pycontain ({label[7:]})", float(str(ours[0]["ours_p50"])), _OURS))
        lines += [(f"{row['against']} ({label[7:]})", float(str(row["other_p50"])), _OTHERS) for row in ours]
    _draw("start", lines)


def starts(rows: list[dict[str, object]]) -> None:
    """Draw networks.svg: starts without and with a network, and the peer's."""
    found: dict[str, tuple[float, str]] = {}
    for row in rows:
        job = str(row["job"])
        if not job.startswith("start on ") or job.count(",") != 1:
            continue
        network, way = job.removeprefix("start on ").split(", ")
        other = str(row["against"])
        found[f"{network} ({way})"] = (float(str(row["ours_p50"])), _OURS)
        colour = _OTHERS if other.startswith("docker") else _OURS
        found[f"{other} ({way})"] = (float(str(row["other_p50"])), colour)
    ordered = sorted(found.items(), key=lambda one: (one[0].endswith("(paced)"), one[1][0]))
    _draw("networks", [(name, seconds, colour) for name, (seconds, colour) in ordered])


def _draw(name: str, lines: list[tuple[str, float, str]]) -> None:
    low, high = math.log10(0.0005), math.log10(1.0)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_ROW * len(lines) + 40}"']
    parts.append(' font-family="sans-serif" font-size="13">')
    for at, (label, seconds, colour) in enumerate(lines):
        y = 20 + at * _ROW
        length = (math.log10(seconds) - low) / (high - low) * (_WIDTH - _LEFT - 90)
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<rect x="{_LEFT}" y="{y}" width="{length:.1f}" height="{_ROW - 8}" fill="{colour}"/>')
        parts.append(f'<text x="{_LEFT + length + 6:.1f}" y="{y + 14}">{seconds * 1e3:.2f} ms</text>')
    parts.append("</svg>\n")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.svg").write_text("".join(parts))


_COLOURS = {"snapshot": "#2563eb", "fork": "#059669", "rollback": "#d97706"}


def lines(rows: list[dict[str, object]]) -> None:
    """Draw branching.svg: milliseconds over what was written, from a megabyte to a gigabyte."""
    width, height, left, top = 560, 260, 50, 20
    most = max(float(str(row[name])) for row in rows for name in _COLOURS) * 1e3 * 1.15
    sizes = [float(str(row["bytes"])) for row in rows]
    low, high = math.log10(min(sizes)), math.log10(max(sizes))
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + 110}" height="{height + 60}"']
    parts.append(' font-family="sans-serif" font-size="13">')
    for tick in range(0, int(most) + 1, max(1, int(most) // 5)):
        y = top + height - tick / most * height
        parts.append(f'<line x1="{left}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>')
    places = [left + (math.log10(size) - low) / (high - low) * (width - left) for size in sizes]
    for place, row in zip(places, rows, strict=True):
        label = f"{int(str(row['bytes'])) >> 20} MB"
        parts.append(f'<text x="{place:.1f}" y="{top + height + 20}" text-anchor="middle">{label}</text>')
    for name, colour in _COLOURS.items():
        heights = [top + height - float(str(row[name])) * 1e3 / most * height for row in rows]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(places, heights, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{width + 8}" y="{heights[-1] + 4:.1f}" fill="{colour}">{name}, ms</text>')
    parts.append("</svg>\n")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "branching.svg").write_text("".join(parts))
