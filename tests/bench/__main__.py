"""The bench: rows in turn, several runs, medians, all in one laboratory of two hosts."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.bench import rows, usage
from tests.bench.table import percentile, render
from tests.lab.hosts import Host, Lab, available

PORT = 7100
SETTLE_S = 2.0
PATIENCE_S = 120.0

Results = dict[str, dict[str, list[float]]]


def main() -> int:
    """Measure what the command line asks for and print it; the exit code."""
    options = _options()
    if reason := available():
        print(f"no laboratory here: {reason}", file=sys.stderr)
        return 1
    with Lab() as lab, tempfile.TemporaryDirectory(prefix="pvpn-bench-") as directory:
        client, server = lab.host("client"), lab.host("server")
        if options.offloads == "off":
            lab.set_offloads(False)
        server.python("-m", "tests.bench.load", "serve", str(PORT)).wait_for("^serving")
        ready = list(_start(options, client, server, Path(directory)))
        results: Results = {row.name: {} for row in ready}
        _measure_idle(ready, results, options.idle_seconds)
        for run in range(options.runs):
            for row in ready:
                _say(f"run {run + 1} of {options.runs}: {row.name}")
                _measure(row, client, results[row.name], options)
    _report(results, options)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=main.__doc__)
    parser.add_argument("--rows", default="direct,ssh,pvpn", help="which of direct, ssh, pvpn (default: all)")
    parser.add_argument("--engines", default="qh3", help="pvpn's engines, a row each: qh3,aioquic")
    parser.add_argument("--runs", type=int, default=3, help="runs whose median is shown (default: 3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each transfer (default: 3)")
    parser.add_argument("--idle-seconds", type=float, default=10.0, help="how long to watch idle CPU (default: 10)")
    parser.add_argument("--connects", type=int, default=500, help="connections, and ping-pongs, a run (default: 500)")
    parser.add_argument("--offloads", choices=["on", "off"], default="on", help="tso, gso, gro and UDP segmentation")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run's numbers there as well")
    return parser.parse_args()


def _start(options: argparse.Namespace, client: Host, server: Host, directory: Path) -> Iterator[rows.Row]:
    makers: dict[str, list[Callable[[Host, Host, Path], rows.Row]]] = {
        "direct": [rows.direct],
        "ssh": [rows.ssh],
        "pvpn": [
            partial(rows.pvpn, engine=engine, number=number) for number, engine in enumerate(options.engines.split(","))
        ],
    }
    wanted = [maker for name in options.rows.split(",") for maker in makers[name]]
    for number, make in enumerate(wanted):
        try:
            yield make(client, server, directory / str(number))
        except rows.Unavailable as reason:
            _say(f"left out: {reason}")


def _measure_idle(ready: list[rows.Row], results: Results, seconds: float) -> None:
    """Everything is up and nothing is used: CPU of one peer (the mean of both ends) and memory of the larger."""
    time.sleep(SETTLE_S)
    before = {row.name: usage.cpu_s(row.roots) for row in ready}
    time.sleep(seconds)
    for row in [row for row in ready if row.roots]:
        used = usage.cpu_s(row.roots) - before[row.name]
        results[row.name]["idle_cpu"] = [100 * used / seconds / len(row.roots)]
        results[row.name]["rss_idle"] = [usage.memory_mb(row.roots, "VmRSS")]


def _measure(row: rows.Row, client: Host, found: dict[str, list[float]], options: argparse.Namespace) -> None:
    """One run of one row, added to what was found."""

    def load(role: str, *more: str) -> dict[str, float | list[float]]:
        way = ["--host", row.way.host, "--socks", str(row.way.socks), "--seconds", str(options.seconds), *more]
        return client.python("-m", "tests.bench.load", role, str(PORT), *way).result(PATIENCE_S)

    def add(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    cpu, carried = usage.cpu_s(row.roots), 0.0
    for streams in (1, 8):
        for role in ("up", "down"):
            answer = load(role, "--streams", str(streams))
            add(f"{role}{streams}", _number(answer["mbit_s"]))
            carried += _number(answer["bytes"])
        if streams == 1 and row.roots:
            add("cpu_per_gb", (usage.cpu_s(row.roots) - cpu) / (carried / 1e9))
    for role in ("connect", "pingpong"):
        took = load(role, "--count", str(options.connects))["ms"]
        assert isinstance(took, list)
        add(f"{role}_p50", percentile(took, 0.5))
        add(f"{role}_p99", percentile(took, 0.99))
    if row.roots:
        found["rss_peak"] = [usage.memory_mb(row.roots, "VmHWM")]


def _number(value: float | list[float]) -> float:
    assert isinstance(value, float | int)
    return value


def _report(results: Results, options: argparse.Namespace) -> None:
    cores = len(os.sched_getaffinity(0))
    print(
        f"{cores} cores, Linux {platform.release()}, Python {platform.python_version()}; two network namespaces, "
        f"veth MTU 1500, offloads {options.offloads}; medians of {options.runs} runs of {options.seconds:g} s\n"
    )
    print(render(results))
    if options.json:
        options.json.write_text(json.dumps({"cores": cores, "offloads": options.offloads, "rows": results}, indent=1))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
