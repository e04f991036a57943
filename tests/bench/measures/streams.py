"""Bulk: one stream and eight, each way, and the CPU time a gigabyte of one stream costs."""

from __future__ import annotations

from tests.bench.measures.samples import Samples, add
from tests.bench.row import Row

STREAMS = (1, 8)
SPEEDS = tuple(f"{way}{streams}" for streams in STREAMS for way in ("up", "down"))


def measure(row: Row, samples: Samples, seconds: float, *, single_only: bool = False, suffix: str = "") -> None:
    """One run; Mbit/s as up1, down1, up8, down8, and CPU seconds a GB of one stream, both ends, as cpu_per_gb."""
    for streams in STREAMS[:1] if single_only else STREAMS:
        cpu, carried = row.cpu_s(), 0.0
        for way in ("up", "down"):
            answer = row.load(way, "--streams", str(streams), "--seconds", str(seconds))
            add(samples, f"{way}{streams}{suffix}", answer["mbit_s"])
            carried += answer["bytes"]
        if streams == 1 and row.carried_by_processes:
            add(samples, f"cpu_per_gb{suffix}", (row.cpu_s() - cpu) / (carried / 1e9))
