"""The bench as a picture: bars of the numbers that users ask for first, as SVG, drawn by hand."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from tests.bench.measures.samples import Results, median

LEFT, BAR, ROW, HEAD, GAP, WIDTH = 150, 480, 20, 34, 18, 720
OURS, OTHERS = "#2b6cb0", "#a0aec0"
NOT_DRAWN = ("direct",)  # its bar would make all others a line


class Panel(NamedTuple):
    """One number: the median of `measure`, in `unit`."""

    title: str
    measure: str
    form: str


PANELS = (
    Panel("one stream, Mbit/s (more is better)", "down1", ".0f"),
    Panel("CPU seconds a gigabyte, both ends (less is better)", "cpu_per_gb", ".1f"),
    Panel("a new connection's first echoed byte, ms (less is better)", "connect_p50", ".2f"),
    Panel("100 Mbit/s line with 1 % loss, Mbit/s (more is better)", "line_loss1", ".1f"),
)


def draw(results: Results) -> str:
    """The SVG document; rows without a number are left out of a panel."""
    parts: list[str] = []
    top = GAP
    for panel in PANELS:
        found = [(row, median(results, row, panel.measure)) for row in results if row not in NOT_DRAWN]
        bars = [(row, value) for row, value in found if value is not None]
        if bars:
            parts += _panel(panel, bars, top)
            top += HEAD + ROW * len(bars) + GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{top}" fill="white"/>', *parts, "</svg>", ""])


def _panel(panel: Panel, bars: Sequence[tuple[str, float]], top: int) -> list[str]:
    most = max(value for _, value in bars) or 1.0
    lines = [f'<text x="{LEFT}" y="{top + 16}" font-size="14">{escape(panel.title)}</text>']
    for number, (row, value) in enumerate(bars):
        y, length = top + HEAD + number * ROW, BAR * value / most
        colour = OURS if row.startswith("pvpn") else OTHERS
        lines += [
            f'<text x="{LEFT - 8}" y="{y + 12}" font-size="12" text-anchor="end">{escape(row)}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{ROW - 4}" fill="{colour}"/>',
            f'<text x="{LEFT + length + 6:.1f}" y="{y + 12}" font-size="12">{value:{panel.form}}</text>',
        ]
    return lines
