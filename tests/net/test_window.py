"""The proven window: no more than a path has carried is sent on it, whatever the engine's own window has grown to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from proxy_vpn.addresses import Address
from proxy_vpn.net.engine import HANDSHAKE_DATAGRAM_BYTES
from proxy_vpn.net.udp import Path
from proxy_vpn.net.window import LEAST_PACKETS, RENO_GROWTH, ProvenWindow
from proxy_vpn.wire.train import PACKET_BYTES as LARGE
from tests.support.engine_pair import PAIRINGS
from tests.support.links import HERE, THERE, LinkRecorder, connected
from tests.support.mesh_world import Wire
from tests.support.virtual_loop import run_virtually

PACKET_BYTES, FIRST_BYTES, ENGINE_BYTES = 1000, 2000, 1_000_000
CREDIT_BYTES = 256 * 1024
NARROW_BYTES_S, QUEUE_BYTES = 30e6 / 8, 256 * 1024
SECOND_PATH = Path("", 1, THERE)
pairings = pytest.mark.parametrize("engines", PAIRINGS)


def exchange(window: ProvenWindow, *rounds: int, engine_bytes: int = ENGINE_BYTES) -> None:
    """So many bytes are sent and arrive in each round trip; meanwhile the engine's own window grows a little."""
    for in_flight in rounds:
        window.sent(engine_bytes, in_flight)
        engine_bytes += 1
        window.heard(engine_bytes, 0)


def window_after(*rounds: int, engine_bytes: int = ENGINE_BYTES) -> ProvenWindow:
    window = ProvenWindow(FIRST_BYTES, PACKET_BYTES)
    window.heard(engine_bytes, 0)
    exchange(window, *rounds, engine_bytes=engine_bytes)
    return window


def test_it_doubles_while_it_is_used_and_no_further_than_the_engines() -> None:
    assert window_after(2000, 4000, 8000).bytes == 16_000
    assert window_after(2000, 4000, 8000, engine_bytes=10_000).bytes == 10_003


def test_what_is_not_used_does_not_grow() -> None:
    window = window_after(2000, 4000, 8000, *[1000] * 50)
    assert window.bytes == window.limit == 17_000, "the first round after still counts what was in flight before"


def test_acknowledgements_that_come_one_by_one_let_it_grow_as_well() -> None:
    window = window_after(2000, 4000, 8000)
    window.sent(ENGINE_BYTES + 3, 16_000)
    for left in range(15_000, -1, -1000):
        window.heard(2 * ENGINE_BYTES - left, left)
    assert window.bytes == 32_000


def test_a_loss_shrinks_it_as_it_does_the_engines_and_growth_is_steady_then() -> None:
    window = window_after(2000, 4000, 8000, engine_bytes=999_997)
    window.heard(700_000, 0)
    assert window.bytes == pytest.approx(11_200) and not window.is_starting
    window.sent(700_000, 10_000)
    window.heard(700_001, 0)
    steady = 11_200 + RENO_GROWTH * PACKET_BYTES * 10_000 / 11_200
    assert window.bytes == pytest.approx(steady)
    window.sent(700_001, 10_000)
    window.heard(700_001, 0)
    assert window.bytes == pytest.approx(steady), "an engine that does not grow has just lost something"
    window.sent(700_001, 10_000)
    window.heard(1_400_002, 0)
    assert window.bytes == pytest.approx(2 * steady), "the engine knows how long ago the last loss was"


def test_after_persistent_congestion_it_starts_again_up_to_what_was() -> None:
    window = window_after(2000, 4000, 8000, engine_bytes=999_997)
    window.heard(700_000, 0)
    window.heard(LEAST_PACKETS * PACKET_BYTES, 0)
    assert window.bytes == LEAST_PACKETS * PACKET_BYTES and window.is_starting
    window.heard(700_000, 0)
    exchange(window, 2000, 4000, 8000, engine_bytes=700_000)
    assert window.bytes == 16_000 and not window.is_starting


def test_an_engine_that_begins_anew_after_a_pause_has_lost_nothing() -> None:
    window = window_after(2000, 4000, 8000)
    window.sent(10_000, 1000)
    assert window.bytes == window.limit == 10_000 and window.is_starting
    window.heard(20_000, 0)
    assert window.bytes == 10_000, "so little was not used"
    exchange(window, 10_000, engine_bytes=20_000)
    assert window.bytes == 20_000 and window.is_starting


def test_on_another_path_it_starts_anew_beside_what_is_underway() -> None:
    window = window_after(2000, 4000, 8000)
    window.sent(ENGINE_BYTES + 3, 12_000)
    window.move()
    assert (window.bytes, window.limit) == (FIRST_BYTES, FIRST_BYTES + 12_000)
    window.heard(700_000, 4000)
    assert window.is_starting and window.bytes == FIRST_BYTES, "what was lost, was lost on the former path"
    assert window.limit == FIRST_BYTES + 4000
    window.heard(700_000, 0)
    exchange(window, 2000, engine_bytes=700_000)
    assert window.bytes == window.limit == 2 * FIRST_BYTES


class Bounded(LinkRecorder):
    """Sends without end on one stream, but no more than CREDIT_BYTES that its peer does not have yet."""

    def __init__(self, far: LinkRecorder, near: LinkRecorder) -> None:
        super().__init__()
        self.link, self.completed = near.link, True
        self._far = far
        self._stream_id = near.link.engine.open_stream()
        self._given = 0
        near.link._handler = self

    @property
    def arrived(self) -> int:
        return len(self._far.data.get(self._stream_id, b""))

    @property
    def waits_for_room(self) -> bool:
        return self._given - self.arrived < CREDIT_BYTES

    def room_available(self) -> bool:
        size = min(self.link.supply.room, self.link.supply.chunk_bytes, CREDIT_BYTES)
        self._given += size
        self.link.engine.send(self._stream_id, bytes(size))
        return size > 0


class Narrow:
    """A line of NARROW_BYTES_S from HERE with a queue; counts what it gets and what it drops."""

    def __init__(self) -> None:
        self.taken = self.dropped = 0
        self._queued = 0.0
        self._at = asyncio.get_running_loop().time()

    def __call__(self, source: object, target: object, datagram: bytes) -> bool:
        if source != HERE:
            return False
        now = asyncio.get_running_loop().time()
        self._queued = max(0.0, self._queued - (now - self._at) * NARROW_BYTES_S)
        self._at = now
        self.taken += 1
        if self._queued + len(datagram) > QUEUE_BYTES:
            self.dropped += 1
            return True
        self._queued += len(datagram)
        return False


@asynccontextmanager
async def sending(engines: tuple[str, str], latency_s: float) -> AsyncIterator[tuple[Wire, LinkRecorder, Bounded]]:
    """Two links on a wire without a narrow place, and the client of the two sends."""
    async with connected(engines, LARGE) as (wire, _, _, client, server):
        wire.latency_s = latency_s
        sender = Bounded(server, client)
        client.link.wake()
        yield wire, client, sender


@pairings
def test_a_window_that_is_not_used_does_not_grow(engines: tuple[str, str]) -> None:
    async def main() -> None:
        async with sending(engines, 0.001) as (_, client, sender):
            await asyncio.sleep(0.5)
            assert sender.arrived > 20 * CREDIT_BYTES, "all that time it was sending"
            assert CREDIT_BYTES / 4 < client.link.engine.window < 10 * CREDIT_BYTES

    run_virtually(main())


@pairings
def test_a_connection_that_moves_to_a_narrow_path_does_not_overrun_it(engines: tuple[str, str]) -> None:
    async def main() -> None:
        async with sending(engines, 0.0005) as (wire, client, sender):
            await asyncio.sleep(0.3)
            wire.latency_s = 0.01
            wire.drops = narrow = Narrow()
            client.link.move(SECOND_PATH)
            before = sender.arrived
            await asyncio.sleep(1.0)
            assert narrow.dropped < narrow.taken / 3
            assert sender.arrived - before > NARROW_BYTES_S / 2

    run_virtually(main())


@pairings
def test_a_connection_that_moves_to_a_wide_path_is_soon_as_fast_as_that(engines: tuple[str, str]) -> None:
    async def main() -> None:
        async with sending(engines, 0.0005) as (wire, client, sender):
            await asyncio.sleep(0.3)
            wire.latency_s = 0.003  # a queue: slow start may end
            await asyncio.sleep(0.3)
            used = client.link.engine.window
            wire.latency_s = 0.02  # a longer path, and all that is underway on the first one is lost
            wire.drops = lambda source, target, datagram: True
            await asyncio.sleep(0.04)
            wire.drops = lambda source, target, datagram: False
            client.link.move(SECOND_PATH)
            assert client.link.engine.window < used / 4
            client.link.kick()
            await asyncio.sleep(1.0)
            before = sender.arrived
            await asyncio.sleep(0.4)
            assert sender.arrived - before > 7 * CREDIT_BYTES, "a round trip takes 0.04 s and carries all there is"

    run_virtually(main())


@pairings
def test_another_port_of_the_peers_is_no_other_path_for_the_window(engines: tuple[str, str]) -> None:
    async def main() -> None:
        async with sending(engines, 0.0005) as (_, client, sender):
            await asyncio.sleep(0.3)
            used = client.link.engine.window
            assert sender.arrived and client.link.path is not None
            client.link.move(client.link.path._replace(remote=Address(THERE.ip, 1)))
            assert client.link.engine.window == used

    run_virtually(main())


@pairings
@pytest.mark.parametrize("size", [HANDSHAKE_DATAGRAM_BYTES, LARGE])
def test_a_transfer_after_a_pause_starts_as_fast_as_a_first_one(engines: tuple[str, str], size: int) -> None:
    async def main() -> None:
        async with connected(engines, size) as (wire, _, _, client, server):
            wire.latency_s = 0.03
            stream_id = client.link.engine.open_stream()
            for _ in range(100):
                client.say(stream_id, bytes(900))
                await asyncio.sleep(0.1)
            await asyncio.sleep(3.0)
            sender = Bounded(server, client)
            client.link.wake()
            await asyncio.sleep(0.8)
            assert sender.arrived > 4 * CREDIT_BYTES

    run_virtually(main())
