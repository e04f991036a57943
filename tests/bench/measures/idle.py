"""Doing nothing: CPU, memory and traffic of all rows at once, while no load runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench.measures.samples import Results, add
from tests.bench.row import Row
from tests.bench.tools.pvpn import Pvpn
from tests.lab.hosts import Lab

SETTLE_S = 3.0
HOUR_S = 3600
DHT_NODES = 40
DHT_PORT = 6881


def measure(rows: Sequence[Row], results: Results, seconds: float) -> None:
    """As idle_cpu (% of a core, mean of both ends), rss_idle (MB, the larger end), idle_traffic (MB an hour a node)."""
    time.sleep(min(SETTLE_S, seconds))
    cpu = [row.cpu_s() for row in rows]
    sent = [row.sent_bytes() for row in rows]
    began = time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - began
    for row, cpu_before, sent_before in zip(rows, cpu, sent, strict=True):
        samples = results[row.title]
        add(samples, "idle_traffic", (row.sent_bytes() - sent_before) / 1e6 * HOUR_S / elapsed)
        if row.carried_by_processes:
            add(samples, "idle_cpu", 100 * (row.cpu_s() - cpu_before) / elapsed / len(row.ends))
            add(samples, "rss_idle", row.memory_mb("VmRSS"))


def dht_row(lab: Lab, directory: Path) -> Row:
    """pvpn among DHT nodes that run on a host of their own; AssertionError without libtorrent."""
    host = lab.host("strangers", addresses=DHT_NODES)
    nodes = [f"{address}:{DHT_PORT}" for address in host.addresses]
    host.python("-m", "tests.support.libtorrent_dht", *nodes).wait_for("^ready", timeout_s=60)
    tool = Pvpn("qh3", "--dht-bootstrap", nodes[0], title=f"pvpn qh3 and {DHT_NODES} DHT nodes")
    return Row(tool, lab, directory, among=True)
