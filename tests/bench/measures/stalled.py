"""Readers that don't: memory of the larger end once 200 senders are stuck, whose services never read."""

from __future__ import annotations

from tests.bench.measures.samples import Samples, add, percentile
from tests.bench.row import PATIENCE_S, Row

FLOWS = 200
MARGIN_S = 1.0


def measure(row: Row, samples: Samples, seconds: float) -> None:
    """Peak memory in MB as rss_stalled; milliseconds of ping-pong on another flow meanwhile as stalled_p50."""
    if not row.carried_by_processes:
        return
    deaf = row.load_process("deaf", row.server)
    deaf.wait_for("^deaf")
    stall = row.load_through("stall", "--streams", str(FLOWS), "--seconds", str(seconds + MARGIN_S))
    stall.wait_for("^stuck", PATIENCE_S)
    took = row.load("pingpong", "--count", "1000000", "--seconds", str(seconds))["ms"]
    stall.result(PATIENCE_S)
    deaf.stop()
    add(samples, "stalled_p50", percentile(took, 0.5))
    add(samples, "rss_stalled", row.memory_mb("VmHWM"))
