"""What the bench prints: medians of runs in tables that a document can hold, and what they are times others."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench.measures.samples import Results, median, ratio

_Column = tuple[str, tuple[str, ...], str]
TABLES: dict[str, tuple[_Column, ...]] = {
    "Bulk": (
        ("1 stream up, down Mbit/s", ("up1", "down1"), ".0f"),
        ("8 streams", ("up8", "down8"), ".0f"),
        ("1 stream without offloads", ("up1_plain", "down1_plain"), ".0f"),
        ("CPU s/GB", ("cpu_per_gb",), ".1f"),
    ),
    "Bulk through an interface of 1 Gbit/s": (
        ("1 stream up, down Mbit/s", ("up1_gigabit", "down1_gigabit"), ".0f"),
        ("8 streams", ("up8_gigabit", "down8_gigabit"), ".0f"),
        ("CPU s/GB", ("cpu_per_gb_gigabit",), ".1f"),
    ),
    "Waiting": (
        ("connect p50, p99 ms", ("connect_p50", "connect_p99"), ".2f"),
        ("ping-pong p50, p99 ms", ("pingpong_p50", "pingpong_p99"), ".2f"),
        ("beside 8 bulk streams p50", ("loaded_p50",), ".2f"),
        ("start to first byte s", ("restart",), ".2f"),
    ),
    "Doing nothing": (
        ("CPU % of a core", ("idle_cpu",), ".2f"),
        ("memory MB", ("rss_idle",), ".0f"),
        ("traffic MB an hour", ("idle_traffic",), ".2f"),
    ),
    "Each further peer, doing nothing": (
        ("CPU % of a core", ("peer_cpu",), ".4f"),
        ("memory KB", ("peer_memory",), ".0f"),
        ("traffic MB an hour", ("peer_traffic",), ".2f"),
    ),
    "100 Mbit/s, 40 ms, 256 KiB queue": (
        ("connect p50 ms", ("line_connect",), ".1f"),
        ("clean Mbit/s", ("line_clean",), ".1f"),
        ("queue ms", ("line_queue",), ".0f"),
        ("ping-pong beside ms", ("line_beside",), ".0f"),
        ("0.1 % loss Mbit/s", ("line_loss01",), ".1f"),
        ("1 % loss Mbit/s", ("line_loss1",), ".1f"),
    ),
    "200 readers that don't read": (
        ("peak memory MB", ("rss_stalled",), ".0f"),
        ("ping-pong beside them ms", ("stalled_p50",), ".2f"),
    ),
}
RATIOS = (
    ("1 up", "up1"),
    ("1 down", "down1"),
    ("up without offloads", "up1_plain"),
    ("down", "down1_plain"),
    ("connect", "connect_p50"),
    ("1 % loss", "line_loss1"),
)
OURS = "pvpn qh3"


def render(results: Results) -> str:
    """Every table that has numbers, then what pvpn's are times the others'."""
    parts = []
    for title, columns in TABLES.items():
        rows = [[row, *(_cell(results, row, column) for column in columns)] for row in results]
        rows = [row for row in rows if any(row[1:])]
        if rows:
            parts.append("\n".join([f"{title}:", "", *_aligned([["", *(column[0] for column in columns)], *rows])]))
    rows = [[row, *(_times(results, row, measure) for _, measure in RATIOS)] for row in results if row != OURS]
    rows = [row for row in rows if any(row[1:])]
    if rows:
        head = [f"{OURS} is, times", *(title for title, _ in RATIOS)]
        parts.append("\n".join(_aligned([head, *rows])))
    return "\n\n".join(parts)


def _cell(results: Results, row: str, column: _Column) -> str:
    _, measures, form = column
    values = [median(results, row, measure) for measure in measures]
    return ", ".join(f"{value:{form}}" for value in values if value is not None)


def _times(results: Results, row: str, measure: str) -> str:
    value = ratio(results, OURS, row, measure)
    return "" if value is None else f"{value:.2f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines
