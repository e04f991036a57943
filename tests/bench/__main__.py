"""The bench: pvpn beside no tunnel, OpenSSH and other mesh tools, in one run in one laboratory; Markdown tables.

Every tool has two hosts of its own and knows its peer's address; tools that are not installed are left out with the
reason. Medians of the runs, and the load's own processes share the machine's cores with both ends.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.bench import plot, table
from tests.bench.measures import datagrams, gigabit, idle, latency, line, peers, stalled, starts, streams
from tests.bench.measures.samples import Results
from tests.bench.row import Row
from tests.bench.tools import TOOLS, UNASKED
from tests.bench.tools.pvpn import Pvpn
from tests.lab.hosts import Lab, available
from tests.lab.wire import unavailable as no_wire

MEASURES = ("streams", "datagrams", "gigabit", "latency", "starts", "idle", "peers", "line", "stalled")


def main() -> int:
    """Measure what the command line asks for and print it; the exit code."""
    options = _options()
    if reason := available():
        print(f"no laboratory here: {reason}", file=sys.stderr)
        return 1
    results: Results = {}
    with tempfile.TemporaryDirectory(prefix="pvpn-bench-") as directory:
        at = Path(directory)
        if set(options.measures) - {"line", "peers"}:
            _on_fast_links(options, at, results)
        if "peers" in options.measures:
            _among_many(options, at, results)
        if "line" in options.measures:
            _on_a_long_line(options, at, results)
    _report(results, options)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    default = [name for name in TOOLS if name not in UNASKED]
    parser.add_argument("--tools", type=_chosen(TOOLS), default=default, help=f"some of {','.join(TOOLS)}")
    parser.add_argument("--measures", type=_chosen(MEASURES), default=list(MEASURES), help=",".join(MEASURES))
    parser.add_argument("--runs", type=int, default=5, help="runs whose median is shown (%(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each transfer (%(default)s)")
    parser.add_argument("--line-seconds", type=float, default=8.0, help="the same on the long line (%(default)s)")
    parser.add_argument("--idle-seconds", type=float, default=60.0, help="how long to watch idle processes")
    parser.add_argument("--members", type=_members, default=peers.MANY, help="of a network of many (%(default)s)")
    parser.add_argument("--count", type=int, default=500, help="connections, and ping-pongs, a run (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run's numbers there as well")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the most asked-for numbers there (SVG)")
    return parser.parse_args()


def _chosen(known: Iterable[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
        return names

    return parse


def _members(text: str) -> int:
    if not text.isdecimal() or not peers.FEW < int(text) <= peers.MOST:
        raise argparse.ArgumentTypeError(f"from {peers.FEW + 1} to {peers.MOST}")
    return int(text)


def _on_fast_links(options: argparse.Namespace, directory: Path, results: Results) -> None:
    """Two hosts and a veth of MTU 1500 between them, all tools up at once and loaded in turn."""
    with Lab() as lab:
        rows = list(_rows(options, lab, directory / "fast", results))
        if "idle" in options.measures:
            others = list(_dht(lab, directory / "fast", results))
            idle.measure([*rows, *others], results, options.idle_seconds)
            for row in others:
                row.stop()
        bare = datagrams.hosts(lab) if "datagrams" in options.measures else None
        for run in range(options.runs):
            if bare is not None:
                _say(f"run {run + 1} of {options.runs}: {datagrams.TITLE}")
                datagrams.measure(lab, *bare, results.setdefault(datagrams.TITLE, {}), options.seconds)
            for row in tuple(rows):
                _say(f"run {run + 1} of {options.runs}: {row.title}")
                try:
                    _measure_row(options, lab, row, results)
                except AssertionError as error:
                    if isinstance(row.tool, Pvpn):
                        raise
                    _say(f"left out: {row.title}: {error}")
                    rows.remove(row)
                    row.stop()
                    del results[row.title]
        if "stalled" in options.measures:
            for row in rows:
                if isinstance(row.tool, Pvpn):
                    stalled.measure(row, results[row.title], options.seconds)
        for row in rows:
            row.stop()


def _measure_row(options: argparse.Namespace, lab: Lab, row: Row, results: Results) -> None:
    samples = results[row.title]
    if "streams" in options.measures:
        streams.measure(row, samples, options.seconds)
        lab.set_offloads(False)
        try:
            streams.measure(row, samples, options.seconds, single_only=True, suffix="_plain")
        finally:
            lab.set_offloads(True)
    if "gigabit" in options.measures:
        gigabit.measure(row, samples, options.seconds)
    if "latency" in options.measures:
        latency.measure(row, samples, options.count, options.seconds)
    if "starts" in options.measures:
        starts.measure(row, samples)


def _among_many(options: argparse.Namespace, directory: Path, results: Results) -> None:
    """Networks of more members than two, of ours alone: the others' nodes know but the one they were told of."""
    for name in options.tools:
        tool = TOOLS[name]
        if isinstance(tool, Pvpn) and not tool.missing():
            _say(f"a network of {options.members}: {tool.title}")
            with Lab() as lab:
                samples = results.setdefault(tool.title, {})
                peers.measure(tool, lab, directory / f"peers-{name}", samples, options.idle_seconds, options.members)


def _on_a_long_line(options: argparse.Namespace, directory: Path, results: Results) -> None:
    """A line that the laboratory makes; one tool after the other, because the line needs the processor too."""
    if reason := no_wire():
        _say(f"no long line here: {reason}")
        return
    for name in options.tools:
        with Lab() as lab:
            for row in _rows(options, lab, directory / f"line-{name}", results, (name,), line.LINE):
                for run in range(options.runs):
                    _say(f"long line, run {run + 1} of {options.runs}: {row.title}")
                    line.measure(row, results[row.title], options.line_seconds, list(line.LOSSES))
                row.stop()


def _rows(
    options: argparse.Namespace,
    lab: Lab,
    directory: Path,
    results: Results,
    names: tuple[str, ...] = (),
    wire: dict[str, Any] | None = None,
) -> Iterator[Row]:
    directory.mkdir()
    for name in names or options.tools:
        tool = TOOLS[name]
        if reason := tool.missing():
            _say(f"left out: {tool.title}: {reason}")
            continue
        row = Row(tool, lab, directory / name, wire)
        try:
            row.start()
        except AssertionError as error:
            _say(f"left out: {error}")
            row.stop()
            continue
        results.setdefault(row.title, {})
        yield row


def _dht(lab: Lab, directory: Path, results: Results) -> Iterator[Row]:
    """A row that is only watched while idle."""
    try:
        row = idle.dht_row(lab, directory / "dht")
        row.start()
    except AssertionError as error:
        _say(f"left out: a DHT: {error}")
        return
    results.setdefault(row.title, {})
    yield row


def _report(results: Results, options: argparse.Namespace) -> None:
    cores = len(os.sched_getaffinity(0))
    print(
        f"{cores} cores, Linux {platform.release()}, Python {platform.python_version()}; network namespaces, "
        f"veth MTU 1500; medians of {options.runs} runs of {options.seconds:g} s\n"
    )
    print(table.render(results))
    if options.json:
        options.json.write_text(json.dumps({"cores": cores, "rows": results}, indent=1))
    if options.plot:
        options.plot.write_text(plot.draw(results))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
