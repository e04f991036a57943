"""Two engines joined by an in-memory line with latency and loss, on a clock that only moves when nothing is due."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from proxy_vpn.net.engine import LONG_HEADER_BIT, Engine, initial_destination
from proxy_vpn.net.engines import engine_factory

ENGINES = ("qh3", "aioquic")
PAIRINGS = [(client, server) for client in ENGINES for server in ENGINES]
LIMIT_S = 60.0
TIMER_PAUSE_S = 0.0005
START_S = 100.0


class RecordingHandler:
    """Keeps everything an engine reports."""

    def __init__(self) -> None:
        self.completed = False
        self.data: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.resets: list[tuple[int, int]] = []
        self.stops: list[tuple[int, int]] = []
        self.datagrams: list[bytes] = []
        self.pings: list[int] = []
        self.ids: set[bytes] = set()
        self.end: tuple[int, str] | None = None

    def has_ended(self) -> bool:
        return self.end is not None

    def handshake_completed(self) -> None:
        assert not self.completed
        self.completed = True

    def stream_data_received(self, stream_id: int, data: bytes, end: bool) -> None:
        assert stream_id not in self.ended or not data
        self.data.setdefault(stream_id, bytearray()).extend(data)
        if end:
            self.ended.add(stream_id)

    def stream_reset_received(self, stream_id: int, code: int) -> None:
        self.resets.append((stream_id, code))

    def stop_sending_received(self, stream_id: int, code: int) -> None:
        self.stops.append((stream_id, code))

    def datagram_received(self, data: bytes) -> None:
        self.datagrams.append(data)

    def ping_acknowledged(self, number: int) -> None:
        self.pings.append(number)

    def connection_id_issued(self, connection_id: bytes) -> None:
        self.ids.add(connection_id)

    def connection_id_retired(self, connection_id: bytes) -> None:
        self.ids.discard(connection_id)

    def terminated(self, code: int, reason: str) -> None:
        self.end = (code, reason)


class End:
    """One engine of a pair, its handler and what it put on the line."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.handler = RecordingHandler()
        self.largest_bytes = 0
        self.largest_short_bytes = 0
        self.sent_datagrams = 0


class EnginePair:
    """A client and a server; `drop` (datagram, from the client) decides what the line loses besides `loss`; `feed` may
    send more whenever something happened."""

    def __init__(
        self,
        client: str,
        server: str,
        *,
        size: int = 1200,
        loss: float = 0.0,
        latency_s: float = 0.01,
        seed: int = 1,
    ) -> None:
        self.now = START_S
        self.loss = loss
        self.drop: Callable[[bytes, bool], bool] = lambda datagram, from_client: False
        self.feed: Callable[[], None] = lambda: None
        self.client = End(engine_factory(client)(True, size))
        self.server: End
        self._server_name = server
        self._size = size
        self._latency_s = latency_s
        self._random = random.Random(seed)
        self._line: list[tuple[float, int, bool, bytes]] = []
        self._count = 0
        self.client.engine.connect(self.now)
        first = self._transmit(self.client, True)
        self.server = End(engine_factory(server)(False, size, initial_destination(first[0])))

    @property
    def ends(self) -> tuple[End, End]:
        return self.client, self.server

    def handshake(self) -> EnginePair:
        """Run until both ends have completed it."""
        self.run_until(lambda: self.client.handler.completed and self.server.handler.completed)
        self.run_for(0.2)
        return self

    def run_for(self, duration_s: float) -> None:
        """Let the line and the timers work for so long."""
        until = self.now + duration_s
        self._flush()
        while (at := self._next_at()) <= until:
            self._advance(at)
        self.now = until

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Run until `condition` holds; fails after a minute of the line's own time."""
        until = self.now + LIMIT_S
        self._flush()
        while not condition():
            at = self._next_at()
            assert at <= until, f"not within {LIMIT_S} s"
            self._advance(at)

    def until_ended(self, end: End, *stream_ids: int) -> None:
        """Run until these streams have ended at `end`."""
        self.run_until(lambda: end.handler.ended.issuperset(stream_ids))

    def until_received(self, end: End, stream_id: int, size: int) -> None:
        """Run until `end` has so many bytes of a stream."""
        self.run_until(lambda: len(end.handler.data.get(stream_id, b"")) >= size)

    def _next_at(self) -> float:
        # As in a Link: an engine may ask for a time that is past, again and again while it waits for something else.
        times = [max(timer, self.now + TIMER_PAUSE_S) for end in self.ends if (timer := end.engine.timer()) is not None]
        if self._line:
            times.append(self._line[0][0])
        return max(self.now, min(times, default=float("inf")))

    def _advance(self, at: float) -> None:
        self.now = at
        while self._line and self._line[0][0] <= at:
            _, _, to_server, datagram = heapq.heappop(self._line)
            end = self.server if to_server else self.client
            end.engine.receive(datagram, len(datagram), at)
        for end in self.ends:
            timer = end.engine.timer()
            if timer is not None and timer <= at:
                end.engine.handle_timer(at)
        self._flush()

    def _flush(self) -> None:
        for end in self.ends:
            end.engine.deliver(end.handler, self.now)
            self._transmit(end, end is self.client)
        self.feed()
        for end in self.ends:
            self._transmit(end, end is self.client)

    def _transmit(self, end: End, from_client: bool) -> list[bytes]:
        datagrams = end.engine.transmit(self.now)
        for datagram in datagrams:
            end.sent_datagrams += 1
            end.largest_bytes = max(end.largest_bytes, len(datagram))
            if not datagram[0] & LONG_HEADER_BIT:
                end.largest_short_bytes = max(end.largest_short_bytes, len(datagram))
            if not self.drop(datagram, from_client) and self._random.random() >= self.loss:
                self._count += 1
                heapq.heappush(self._line, (self.now + self._latency_s, self._count, from_client, datagram))
        return datagrams


def hostile(seed: int, first: bytes) -> list[bytes]:
    """Noise, truncations and mutations of a real datagram."""
    rest = random.Random(seed)
    spoiled = []
    for _ in range(30):
        mutated = bytearray(first)
        for _ in range(rest.choice((1, 3, 30))):
            mutated[rest.randrange(len(mutated))] ^= rest.randrange(1, 256)
        spoiled.append(bytes(mutated))
        spoiled.append(first[: rest.randrange(len(first))])
        spoiled.append(bytes([first[0]]) + rest.randbytes(rest.choice((0, 1, 20, 1199))))
        spoiled.append(rest.randbytes(rest.choice((1, 5, 1200))))
    return spoiled
