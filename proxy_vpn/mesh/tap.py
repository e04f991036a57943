"""The tap: where flows tell what passes through them while somebody watches; nobody watching costs one test a chunk.

    Tap (one a process) --line()--> Line (one a session) <--`if line.watchers: line.tell(...)`-- flows

Positions are offsets of the QUIC stream, Open head and status byte included, and an end counts one as a FIN does in
TCP. So each report stands for itself: whoever begins to watch in the middle of a flow sees consistent numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple

from proxy_vpn.addresses import Target


class Kind(Enum):
    """What happened in a flow."""

    ASKED = auto()  # somebody wants a TCP flow
    ACCEPTED = auto()
    REFUSED = auto()
    DATA = auto()  # bytes of it, their end, or both
    RESET = auto()  # broken by one side, or lost with the connection
    DATAGRAM = auto()  # one payload of a UDP flow
    UNREACHABLE = auto()  # a UDP flow is refused, or what it carried found nobody who listens


class Seen(NamedTuple):
    """One report: who did it (`from_here`: this machine), in which flow, and where in the two directions.

    `position` is where this begins in its own direction, `acknowledged` where the other one stands; `at` is Unix
    seconds, `target` the service: a port of the answering side, or of a host beyond it. `data` never changes.
    """

    at: float
    line: Line
    kind: Kind
    stream_id: int
    target: Target
    from_here: bool
    position: int = 0
    acknowledged: int = 0
    data: bytes | memoryview = b""
    end: bool = False

    @property
    def opened_here(self) -> bool:
        """Whether this machine asked for the flow."""
        return bool(self.stream_id & 1) != self.line.initiator


Watcher = Callable[[Seen], None]


class Line:
    """One session at the tap: `identity` is its peer in `network`, `number` its own among all of the process."""

    __slots__ = ("_unix_time", "identity", "initiator", "network", "number", "watchers")

    def __init__(self, tap: Tap, number: int, network: str, identity: bytes, initiator: bool) -> None:
        self.watchers = tap.watchers
        self.number = number
        self.network = network
        self.identity = identity
        self.initiator = initiator
        self._unix_time = tap.unix_time

    def tell(
        self,
        kind: Kind,
        stream_id: int,
        target: Target,
        from_here: bool,
        position: int = 0,
        acknowledged: int = 0,
        data: bytes | memoryview = b"",
        end: bool = False,
    ) -> None:
        """Report to every watcher; only called when there are any."""
        at = self._unix_time()
        seen = Seen(at, self, kind, stream_id, target, from_here, position, acknowledged, data, end)
        for watcher in tuple(self.watchers):
            watcher(seen)


class Tap:
    """Who watches the flows of this process; a watcher neither raises nor blocks."""

    def __init__(self, unix_time: Callable[[], float] = time.time) -> None:
        self.watchers: list[Watcher] = []
        self.unix_time = unix_time
        self._lines = 0

    def line(self, network: str, identity: bytes, *, initiator: bool) -> Line:
        """A new session's place; `initiator` says whose stream ids are even."""
        self._lines += 1
        return Line(self, self._lines, network, identity, initiator)


def untapped() -> Line:
    """A line that nobody can watch: a session's before its peer is known."""
    return Tap().line("", b"", initiator=True)
