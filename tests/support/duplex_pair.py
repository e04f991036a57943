"""In-memory twins of what doors touch: a pair of Duplexes, a pair of UDP flows, a Sink that records, and a Router."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Self

from proxy_vpn.addresses import Target
from proxy_vpn.errors import FlowError, FlowLost
from proxy_vpn.mesh.duplex import Duplex, Sink

WAIT_S = 10.0


class MemoryDuplex:
    """One end of a pair: what is written here is delivered at the `other` end, within its window."""

    def __init__(self, window_bytes: int = 1 << 20) -> None:
        self.other: MemoryDuplex
        self.was_reset = False
        self.resets_after_eof = 0
        self.queued_bytes = 0
        self.most_queued_bytes = 0
        self._window = window_bytes
        self._unconsumed = 0
        self._sink: Sink | None = None
        self._inbox: deque[bytes] = deque()
        self._eof_in = self._eof_delivered = self._eof_out = self._over = False
        self._loop = asyncio.get_running_loop()

    def start(self, sink: Sink) -> None:
        self._sink = sink
        self._deliver_soon()

    def write(self, data: bytes | memoryview) -> None:
        if self._over or self._eof_out:
            return
        self.other._inbox.append(bytes(data))
        self.queued_bytes += len(data)
        self.most_queued_bytes = max(self.most_queued_bytes, self.queued_bytes)
        self.other._deliver_soon()

    def write_eof(self) -> None:
        if not self._eof_out:
            self._eof_out = True
            self.other._eof_in = True
            self.other._deliver_soon()

    def consumed(self, size: int) -> None:
        self._unconsumed -= size
        assert self._unconsumed >= 0, "more was consumed than delivered"
        self._deliver_soon()

    def reset(self) -> None:
        if not self._over:
            self._over = self.was_reset = True
            self.other.lose()

    def lose(self, error: Exception | None = None) -> None:
        """This end breaks: its sink hears so after what it is owed of a complete direction."""
        if self._over:
            return
        if self._eof_in and self._sink is not None:
            self._deliver(unlimited=True)
        if not self._over:
            self._over = True
            if self._sink is not None:
                self._sink.lost(error or FlowLost("the peer was lost"))

    def _deliver_soon(self) -> None:
        self._loop.call_soon(self._deliver)

    def _deliver(self, unlimited: bool = False) -> None:
        if self._sink is None or self._over:
            return
        while self._inbox and (unlimited or self._unconsumed < self._window):
            data = self._inbox.popleft()
            self._unconsumed += len(data)
            self._sink.data_received(data)
            self.other._left(len(data))
            if self._over:
                return
        if self._eof_in and not self._inbox and not self._eof_delivered:
            self._eof_delivered = True
            self._sink.eof_received()
        if self._eof_delivered and self._eof_out and not self.other._inbox and not self._over:
            self._over = True
            self._sink.finished()
            self.other._deliver_soon()

    def _left(self, size: int) -> None:
        self.queued_bytes -= size
        if self._sink is not None and not self._over:
            self._sink.written(size)


def duplex_pair(window_bytes: int = 1 << 20) -> tuple[MemoryDuplex, MemoryDuplex]:
    """Two ends joined to each other."""
    one, two = MemoryDuplex(window_bytes), MemoryDuplex(window_bytes)
    one.other, two.other = two, one
    return one, two


class RecordingSink:
    """Keeps what a Duplex says; consumes at once unless `eager` is False."""

    def __init__(self, duplex: Duplex, eager: bool = True) -> None:
        self.data = bytearray()
        self.written_bytes = 0
        self.events: list[str] = []
        self.error: Exception | None = None
        self.eager = eager
        self._duplex = duplex
        self._changed = asyncio.Event()
        duplex.start(self)

    def data_received(self, data: bytes) -> None:
        assert not self.events, f"data after {self.events}"
        self.data += data
        if self.eager:
            self._duplex.consumed(len(data))
        self._changed.set()

    def eof_received(self) -> None:
        self._note("eof")

    def written(self, size: int) -> None:
        assert size > 0
        self.written_bytes += size
        self._changed.set()

    def finished(self) -> None:
        self._note("finished")

    def lost(self, error: Exception) -> None:
        self.error = error
        self._note("lost")

    async def until(self, condition: Callable[[Self], bool]) -> None:
        """Wait until `condition` of this sink holds."""
        async with asyncio.timeout(WAIT_S):
            while not condition(self):
                self._changed.clear()
                await self._changed.wait()

    def _note(self, event: str) -> None:
        assert event not in self.events
        assert "lost" not in self.events and "finished" not in self.events
        self.events.append(event)
        self._changed.set()


class MemoryUdp:
    """One end of a pair of UDP flows."""

    def __init__(self) -> None:
        self.other: MemoryUdp
        self.on_datagram: Callable[[bytes], None] | None = None
        self.on_closed: Callable[[], None] | None = None
        self.on_refused: Callable[[], None] | None = None
        self.closed = False

    def refuse(self) -> None:
        if self.other.on_refused is not None:
            self.other.on_refused()

    def send(self, payload: bytes) -> None:
        if not self.closed:
            asyncio.get_running_loop().call_soon(self.other._receive, payload)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.other.close()
            if self.on_closed is not None:
                self.on_closed()

    def _receive(self, payload: bytes) -> None:
        if self.on_datagram is not None and not self.closed:
            self.on_datagram(payload)


def udp_pair() -> tuple[MemoryUdp, MemoryUdp]:
    """Two ends joined to each other."""
    one, two = MemoryUdp(), MemoryUdp()
    one.other, two.other = two, one
    return one, two


class FakeRouter:
    """A Router whose peers are functions: each gets the far end of every flow that is opened to it.

    `peers` and `udp_peers` map a host to its function, `errors` a host to the FlowError it fails with.
    """

    def __init__(self) -> None:
        self.peers: dict[str, Callable[[MemoryDuplex, Target], None]] = {}
        self.udp_peers: dict[str, Callable[[MemoryUdp, Target], None]] = {}
        self.errors: dict[str, FlowError] = {}
        self.asked: list[Target] = []
        self.window_bytes = 1 << 20

    async def open_tcp(self, target: Target) -> MemoryDuplex | None:
        self._ask(target)
        if target.host not in self.peers:
            return None
        near, far = duplex_pair(self.window_bytes)
        self.peers[target.host](far, target)
        return near

    async def open_udp(self, target: Target) -> MemoryUdp | None:
        self._ask(target)
        if target.host not in self.udp_peers:
            return None
        near, far = udp_pair()
        self.udp_peers[target.host](far, target)
        return near

    def _ask(self, target: Target) -> None:
        self.asked.append(target)
        if target.host in self.errors:
            raise self.errors[target.host]
