"""What the bench prints: medians of runs in a table a README can hold, and ratios between its rows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

Samples = Mapping[str, Sequence[float]]
SPEEDS = {"up1": "1 up", "down1": "1 down", "up8": "8 up", "down8": "8 down"}
BASELINES = ("ssh -D", "direct")


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value at `share` of an ascending sequence."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def medians(samples: Samples) -> dict[str, float]:
    """Each measure's median over the runs."""
    return {name: statistics.median(values) for name, values in samples.items() if values}


def render(results: Mapping[str, Samples]) -> str:
    """The table of medians, then each row's speed as a share of the baselines'."""
    found = {row: medians(samples) for row, samples in results.items()}
    head = [
        "",
        *(f"{title} Mbit/s" for title in SPEEDS.values()),
        "connect p50/p99 ms",
        "ping-pong p50/p99 ms",
        "idle CPU %",
        "RSS idle, peak MB",
        "CPU s/GB",
    ]
    lines = _aligned([head, *([row, *_cells(values)] for row, values in found.items())])
    for baseline in BASELINES:
        if baseline in found and len(found) > 1:
            rows = [[row, *_ratios(values, found[baseline])] for row, values in found.items() if row != baseline]
            lines += ["", *_aligned([[f"times {baseline}", *SPEEDS.values(), "connect", "ping-pong"], *rows])]
    return "\n".join(lines)


def _cells(values: Mapping[str, float]) -> list[str]:
    def pair(first: str, second: str, form: str, between: str) -> str:
        return f"{values[first]:{form}}{between}{values[second]:{form}}" if first in values else ""

    return [
        *(f"{values[name]:.0f}" for name in SPEEDS),
        pair("connect_p50", "connect_p99", ".2f", " / "),
        pair("pingpong_p50", "pingpong_p99", ".2f", " / "),
        f"{values['idle_cpu']:.2f}" if "idle_cpu" in values else "",
        pair("rss_idle", "rss_peak", ".0f", ", "),
        f"{values['cpu_per_gb']:.1f}" if "cpu_per_gb" in values else "",
    ]


def _ratios(values: Mapping[str, float], baseline: Mapping[str, float]) -> list[str]:
    return [f"{values[name] / baseline[name]:.2f}" for name in (*SPEEDS, "connect_p50", "pingpong_p50")]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines
