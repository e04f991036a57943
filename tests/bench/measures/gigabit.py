"""Bulk through interfaces of 1 Gbit/s, as most machines have: what it costs when the line is the limit."""

from __future__ import annotations

from tests.bench.measures import streams
from tests.bench.measures.samples import Samples
from tests.bench.row import Row

SUFFIX = "_gigabit"
# Four milliseconds of queue, as much as the smaller of such interfaces' own have.
INTERFACE = "rate 1gbit burst 128kb latency 4ms"


def measure(row: Row, samples: Samples, seconds: float) -> None:
    """One run; what `streams` measures, with `_gigabit` behind its names."""
    hosts = (row.client, row.server)
    for host in hosts:
        host.run(["tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", *INTERFACE.split()])
    try:
        streams.measure(row, samples, seconds, suffix=SUFFIX)
    finally:
        for host in hosts:
            host.run(["tc", "qdisc", "del", "dev", "eth0", "root"])
