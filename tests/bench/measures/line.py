"""A long line: 100 Mbit/s, 40 ms there and back, a queue of 256 KiB, clean and with random loss in both directions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tests.bench.measures.samples import Samples, add, percentile
from tests.bench.row import PATIENCE_S, Row

RATE_MBIT = 100.0
LINE: dict[str, Any] = {"rate_mbit": RATE_MBIT, "delay_ms": 20.0, "queue_bytes": 262_144.0}
LOSSES = {"clean": 0.0, "loss01": 0.001, "loss1": 0.01}
# Until a new connection's start is over, and so that the last echo comes back before the bulk ends.
SLOW_START_S = 1.5
TAIL_S = 0.5
MANY = 1_000_000
IDLE_PINGS = 10
CONNECTS = 10


def measure(row: Row, samples: Samples, seconds: float, losses: Sequence[str]) -> None:
    """One run of a row on such a wire.

    Mbit/s up as line_clean, line_loss01 and line_loss1, milliseconds as line_connect, line_queue and line_beside.
    """
    assert row.wire is not None
    for name in losses:
        row.wire.set(loss=LOSSES[name])
        if LOSSES[name]:
            answer = row.load("up", "--seconds", str(seconds))
            add(samples, f"line_{name}", answer["mbit_s"])
        else:
            _measure_clean(row, samples, seconds)
    row.wire.set(loss=0.0)


def _measure_clean(row: Row, samples: Samples, seconds: float) -> None:
    """Also a new connection to its first echoed byte, and what bulk does to round trips.

    What it adds to others', which is that of a bare connection's echo, and what they are through the tool then.
    """
    add(samples, "line_connect", percentile(row.load("connect", "--count", str(CONNECTS))["ms"], 0.5))
    idle = _echo_ms(row, "--count", str(IDLE_PINGS))
    bulk = row.load_through("up", "--seconds", str(seconds))
    bulk.wait_for("^connected")
    pings_s = seconds - SLOW_START_S - TAIL_S
    if pings_s > 0:
        time.sleep(SLOW_START_S)
        pings = ("--count", str(MANY), "--seconds", str(pings_s))
        through = row.load_through("pingpong", *pings)
        add(samples, "line_queue", _echo_ms(row, *pings) - idle)
        add(samples, "line_beside", percentile(through.result(PATIENCE_S)["ms"], 0.5))
    add(samples, "line_clean", bulk.result(PATIENCE_S)["mbit_s"])


def _echo_ms(row: Row, *more: str) -> float:
    answer = row.load_beside("pingpong", *more).result(PATIENCE_S)
    return percentile(answer["ms"], 0.5)
