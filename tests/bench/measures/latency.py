"""Waiting: a new connection to its first echoed byte, ping-pong on an open one, and the same beside bulk streams."""

from __future__ import annotations

from tests.bench.measures.samples import Samples, add, percentile
from tests.bench.row import PATIENCE_S, Row

BULK_STREAMS = 8
# The bulk runs from before the first ping until after the last.
BULK_MARGIN_S = 1.0
MANY = 1_000_000


def measure(row: Row, samples: Samples, count: int, seconds: float) -> None:
    """One run; milliseconds as connect_p50, connect_p99, pingpong_p50, pingpong_p99 and loaded_p50."""
    for role in ("connect", "pingpong"):
        took = row.load(role, "--count", str(count))["ms"]
        add(samples, f"{role}_p50", percentile(took, 0.5))
        add(samples, f"{role}_p99", percentile(took, 0.99))
    bulk_s = str(seconds + BULK_MARGIN_S)
    bulk = row.load_through("up", "--streams", str(BULK_STREAMS), "--seconds", bulk_s)
    bulk.wait_for("^connected")
    took = row.load("pingpong", "--count", str(MANY), "--seconds", str(seconds))["ms"]
    bulk.result(PATIENCE_S)
    add(samples, "loaded_p50", percentile(took, 0.5))
