"""Bulk through interfaces of 1 Gbit/s, as most machines have: what it costs when the line is the limit."""

from __future__ import annotations

from tests.bench.measures import streams
from tests.bench.measures.samples import Samples
from tests.bench.row import Row
from tests.lab.hosts import GIGABIT

SUFFIX = "_gigabit"


def measure(row: Row, samples: Samples, seconds: float) -> None:
    """One run; what `streams` measures, with `_gigabit` behind its names."""
    hosts = (row.client, row.server)
    for host in hosts:
        host.slow_down(GIGABIT)
    try:
        streams.measure(row, samples, seconds, suffix=SUFFIX)
    finally:
        for host in hosts:
            host.run(["tc", "qdisc", "del", "dev", "eth0", "root"])
