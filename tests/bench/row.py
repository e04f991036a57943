"""One tool at work between its own two hosts, and the load that goes through it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tests.bench import usage
from tests.bench.load import CUBIC
from tests.bench.tools.tool import Pair, Tool
from tests.lab.hosts import Host, Lab
from tests.lab.wire import Wire
from tests.support.processes import Process

PORT = 7100
PATIENCE_S = 90.0


class Row:
    """Two hosts with a veth between them, and the load's server on the far one; `start` brings the tool up.

    With `line`, such a wire is between them instead; with `among` they stay on the lab's bridge, with others.
    """

    def __init__(
        self, tool: Tool, lab: Lab, directory: Path, line: dict[str, Any] | None = None, *, among: bool = False
    ) -> None:
        directory.mkdir()
        number = len(lab.hosts)
        self.tool = tool
        self.title = tool.title
        self.pair = Pair(lab.host(f"client{number}"), lab.host(f"server{number}"), directory)
        if line is None and not among:
            lab.cable(self.client, self.server)
        self.wire = Wire(self.client, self.server, **line) if line is not None else None
        for host in (self.client, self.server):
            _use_cubic(host)
        self._far: list[Process] = []
        self._near: list[Process] = []
        self._server = self.load_process("serve", self.server)
        self._server.wait_for("^serving")

    @property
    def client(self) -> Host:
        return self.pair.client

    @property
    def server(self) -> Host:
        return self.pair.server

    @property
    def ends(self) -> list[list[int]]:
        """The processes of the near end and of the far end."""
        return [[process.pid for process in end] for end in (self._near, self._far)]

    @property
    def carried_by_processes(self) -> bool:
        return bool(self._near and self._far)

    def start(self) -> float:
        """Seconds from the near end's start to the first echoed byte; the far end is there by then."""
        self.tool.prepare(self.pair)
        self._far = self.tool.start_far(self.pair)
        return self._start_near()

    def restart(self) -> float:
        """The near end anew; seconds from its start to the first echoed byte."""
        for process in reversed(self._near):
            process.stop()
        return self._start_near()

    def stop(self) -> None:
        """End all of it, also the hosts."""
        for process in [*reversed(self._near), *self._far, self._server]:
            process.stop()

    def cpu_s(self) -> float:
        """CPU time of both ends so far."""
        return usage.cpu_s([pid for end in self.ends for pid in end])

    def memory_mb(self, field: str) -> float:
        """Of the larger end: VmRSS or VmHWM."""
        return max(sum(usage.memory_mb([pid], field) for pid in end) for end in self.ends)

    def sent_bytes(self) -> int:
        """By both hosts so far, counted on their links: what one node sends and receives."""
        return sum(sent_bytes(host) for host in (self.client, self.server))

    def load(self, role: str, *more: str, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """The answer of a load on the client's host that goes through the tool."""
        return self.load_through(role, *more).result(patience_s)

    def load_through(self, role: str, *more: str) -> Process:
        """The same, just started."""
        way = self.tool.way(self.pair)
        return self.load_process(role, self.client, "--host", way.host, "--socks", str(way.socks), *more)

    def load_beside(self, role: str, *more: str) -> Process:
        """Load from host to host on the same line, not through the tool."""
        return self.load_process(role, self.client, "--host", self.server.address, *more)

    def load_process(self, role: str, host: Host, *more: str) -> Process:
        return host.python("-m", "tests.bench.load", role, str(PORT), *more)

    def _start_near(self) -> float:
        first = self.load_through("first", "--seconds", str(PATIENCE_S))
        first.wait_for("^trying")
        began = time.monotonic()
        self._near = self.tool.start_near(self.pair)
        try:
            return float(first.result(PATIENCE_S + 5)["at"]) - began
        except AssertionError as error:
            said = "\n".join(process.output for process in [*self._far, *self._near])
            raise AssertionError(f"{self.title} carries nothing: {error}\nits processes said:\n{said}") from None


def _use_cubic(host: Host) -> None:
    """For what tools send over TCP themselves; the load asks for it on its own sockets."""
    near = f"{host.lab.network}.0.0/{host.segment.prefix_bits}"
    host.run(["ip", "route", "replace", near, *f"dev eth0 proto kernel src {host.address} congctl {CUBIC}".split()])


def sent_bytes(host: Host) -> int:
    """Through its link so far."""
    links = json.loads(host.run(["ip", "-json", "-stats", "link", "show", "dev", "eth0"]).stdout)
    return int(links[0]["stats64"]["tx"]["bytes"])
