"""A Link: the four beats around an engine, on an in-memory wire; whatever happens to one costs that one alone."""

from __future__ import annotations

import asyncio
import random

import pytest

from proxy_vpn.net.engine import DATAGRAM_BURST_BYTES, LONG_HEADER_BIT
from proxy_vpn.net.quic import INTERNAL_ERROR, KEEPALIVE_S, OUR_MISTAKE
from proxy_vpn.net.supply import HURRY_FLIGHT_BYTES
from proxy_vpn.net.turns import Turns
from proxy_vpn.net.udp import Path
from proxy_vpn.wire.seal import OVERHEAD_BYTES
from proxy_vpn.wire.segments import HEAD_BYTES, alone
from proxy_vpn.wire.train import PACKET_BYTES as LARGE
from proxy_vpn.wire.train import TRAILER_BYTES
from tests.support.engine_pair import PAIRINGS, hostile
from tests.support.links import DATAGRAM_BYTES, ELSEWHERE, HERE, SEAL, THERE, Host, LinkRecorder, connected
from tests.support.mesh_world import Wire
from tests.support.virtual_loop import run_virtually

CHUNK_BYTES = 8 * 1024
PARTS = -(-(LARGE + TRAILER_BYTES) // (DATAGRAM_BYTES - HEAD_BYTES))
pairings = pytest.mark.parametrize("engines", PAIRINGS)


@pairings
def test_whatever_bears_a_long_header_is_sealed_and_nothing_else(engines: tuple[str, str]) -> None:
    async def main() -> None:
        wire = Wire()
        wire.recording = True
        one, two = Host(wire, HERE, engines[0]), Host(wire, THERE, engines[1])
        client = one.dial(two)
        await client.until(lambda handler: handler.completed)
        await two.accepted[0].until(lambda handler: handler.completed)
        await asyncio.sleep(1.0)
        kinds = {datagram[0] >> 6 for _, _, datagram in wire.seen}
        assert kinds == {0, 1}
        for _, _, datagram in wire.seen:
            if datagram[0] < 0x40:
                assert SEAL.open(datagram)[0] & LONG_HEADER_BIT
                assert len(datagram) <= 1200 + OVERHEAD_BYTES
        client.link.close(0x100, "")
        two.accepted[0].link.close(0x100, "")

    run_virtually(main())


@pairings
def test_bytes_flow_both_ways_as_room_permits(engines: tuple[str, str]) -> None:
    async def main() -> None:
        async with connected(engines) as (_, _, _, client, server):
            for near, far in ((client, server), (server, client)):
                stream_id = near.link.engine.open_stream()
                near.feed = [(stream_id, bytes([number]) * 50_000, number == 19) for number in range(20)]
                near.link.wake()
                await far.until_ended(stream_id)
                assert far.data[stream_id] == b"".join(bytes([number]) * 50_000 for number in range(20))
                assert near.link.sent_bytes > 1_000_000 and far.link.received_bytes > 1_000_000

    run_virtually(main())


@pairings
def test_an_answer_takes_the_acknowledgement_along_and_none_is_late(engines: tuple[str, str]) -> None:
    async def main() -> None:
        async with connected(engines, LARGE) as (wire, _, _, client, server):
            wire.latency_s = 0.0002
            stream_id = client.link.engine.open_stream()
            wire.recording = True
            wire.seen.clear()
            for number in range(1, 41):
                for near, far in ((client, server), (server, client)):
                    near.say(stream_id, b"!")
                    await far.until(lambda handler: len(handler.data.get(stream_id, b"")) == number)  # noqa: B023
            assert len(wire.seen) <= 110
            await asyncio.sleep(2 * wire.latency_s + 0.006)  # alone it waits for 5 ms
            assert not (client.link.engine.unacknowledged or server.link.engine.unacknowledged)

    run_virtually(main())


@pairings
def test_where_datagrams_are_lost_no_acknowledgement_waits_for_company(engines: tuple[str, str]) -> None:
    async def main() -> None:
        async with connected(engines, LARGE) as (wire, _, _, client, server):
            wire.latency_s = 0.0002
            stream_id = client.link.engine.open_stream()
            client.say(stream_id, b"!")
            await server.until(lambda handler: stream_id in handler.data)
            wire.drops = lambda source, target, datagram: True
            server.say(stream_id, b"lost")
            await asyncio.sleep(0.01)
            wire.drops = lambda source, target, datagram: False
            await client.until(lambda handler: len(handler.data.get(stream_id, b"")) == 4)
            await asyncio.sleep(0.1)
            client.say(stream_id, b"!")
            await asyncio.sleep(2 * wire.latency_s + 0.002)
            assert not client.link.engine.unacknowledged

    run_virtually(main())


@pairings
def test_the_pieces_of_a_payload_go_together_or_not_at_all(engines: tuple[str, str]) -> None:
    async def main() -> None:
        async with connected(engines) as (_, _, _, client, server):
            frame = bytes(client.link.supply.frame_limit)
            pieces = [frame] * (DATAGRAM_BURST_BYTES // len(frame) + 200)
            client.link.send_datagrams(pieces)
            await asyncio.sleep(1.0)
            assert not server.datagrams
            client.link.send_datagrams(pieces[:60])
            await asyncio.sleep(5.0)
            assert len(server.datagrams) == 60

    run_virtually(main())


@pairings
def test_packets_larger_than_datagrams_go_as_trains_and_frames_alone(engines: tuple[str, str]) -> None:
    async def main() -> None:
        async with connected(engines, LARGE) as (wire, _, _, client, server):
            stream_id = client.link.engine.open_stream()
            for near, far in ((client, server), (server, client)):
                wire.recording = True
                wire.seen.clear()
                near.feed = [(stream_id, bytes([number]) * 50_000, number == 19) for number in range(20)]
                near.link.wake()
                await far.until_ended(stream_id)
                assert far.data[stream_id] == b"".join(bytes([number]) * 50_000 for number in range(20))
                trains = [datagram for _, _, datagram in wire.seen if datagram[12] & 15 == PARTS]
                assert len(trains) > 400 and max(len(datagram) for _, _, datagram in wire.seen) <= DATAGRAM_BYTES
                frame = bytes(near.link.supply.frame_limit)
                wire.seen.clear()
                near.link.send_datagrams([frame] * 5)
                await asyncio.sleep(1.0)
                assert len(far.datagrams) == 5
                assert sum(len(datagram) > len(frame) for _, _, datagram in wire.seen) == 5

    run_virtually(main())


@pairings
@pytest.mark.parametrize(
    ("latency_s", "hurried", "bounded"), [(0.0004, True, True), (0.0004, False, False), (0.01, True, False)]
)
def test_little_is_in_flight_on_a_short_way_while_somebody_sends_small_messages(
    engines: tuple[str, str], latency_s: float, hurried: bool, bounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, flights = Turns(), [0]
    monkeypatch.setattr("proxy_vpn.net.supply.TURNS", turns)

    class Hurried(LinkRecorder):
        def room_available(self) -> bool:
            loop = asyncio.get_running_loop()
            if hurried:
                turns.hurry(loop.time())
            more = super().room_available()
            flights.append(self.link.engine.unacknowledged)
            return more

    async def main() -> None:
        async with connected(engines, LARGE) as (wire, _, _, client, server):
            wire.latency_s = latency_s
            client.__class__ = Hurried
            stream_id = client.link.engine.open_stream()
            client.feed = [(stream_id, bytes(CHUNK_BYTES), number == 999) for number in range(1000)]
            client.link.wake()
            await server.until_ended(stream_id)
            assert len(server.data[stream_id]) == 1000 * CHUNK_BYTES
            assert (max(flights) <= HURRY_FLIGHT_BYTES + CHUNK_BYTES) is bounded

    run_virtually(main())


@pairings
def test_lost_datagrams_of_trains_are_replaced_by_their_parity(engines: tuple[str, str]) -> None:
    async def main() -> None:
        async with connected(engines, LARGE) as (wire, _, _, client, server):
            rest = random.Random(4)
            wire.drops = lambda source, target, datagram: len(datagram) > 1000 and rest.random() < 0.02
            stream_id = client.link.engine.open_stream()
            client.feed = [(stream_id, bytes(50_000), number == 99) for number in range(100)]
            client.link.wake()
            await server.until_ended(stream_id)
            assert server.data[stream_id] == bytes(5_000_000)
            assert server.link.trains.repaired > 20 and not client.link.trains.repaired

    run_virtually(main())


@pairings
def test_a_first_flight_that_is_lost_is_sent_again_soon(engines: tuple[str, str]) -> None:
    async def main() -> None:
        for silent in (HERE, THERE):
            wire = Wire()
            loop = asyncio.get_running_loop()
            until = loop.time() + 0.15
            wire.drops = lambda source, target, datagram: source == silent and loop.time() < until  # noqa: B023
            one, two = Host(wire, HERE, engines[0]), Host(wire, THERE, engines[1])
            client = one.dial(two, LARGE)
            await client.until(lambda handler: handler.completed)
            assert loop.time() < until + 0.3
            await asyncio.sleep(0.2)
            server = two.accepted[0]
            stream_id = client.link.engine.open_stream()
            client.feed = [(stream_id, bytes(50_000), number == 19) for number in range(20)]
            wire.recording = True
            client.link.wake()
            await server.until_ended(stream_id)
            assert sum(datagram[12] & 15 == PARTS for _, _, datagram in wire.seen) > 400, "packets are small for good"
            for handler in (client, server):
                handler.link.close(0x100, "")

    run_virtually(main())


@pairings
def test_a_mistake_of_ours_costs_that_connection_alone_and_is_named(
    engines: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with connected(engines) as (wire, _, two, client, server):
            other = Host(wire, ELSEWHERE, engines[0]).dial(two)
            await other.until(lambda handler: handler.completed)
            monkeypatch.setattr(server, "stream_data_received", lambda *_: 1 // 0)
            client.say(client.link.engine.open_stream(), b"!")
            await client.until(lambda handler: handler.closed)
            assert server.closed == [OUR_MISTAKE] and client.end is not None and client.end[0] == INTERNAL_ERROR
            assert not other.closed
            other.link.close(0x100, "")

    run_virtually(main())


def test_what_a_peers_bytes_make_an_engine_raise_is_no_mistake_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with connected(("qh3", "qh3")) as (_, _, _, client, server):
            quic = server.link.engine._quic
            quic._core.send_crypto(3, 0, b"\x04\0\0\1x")  # a NEW_SESSION_TICKET that is cut short
            quic.frames.is_due = True
            server.link.wake()
            await client.until(lambda handler: handler.closed)
            assert client.closed == ["engine error BufferReadError"]
            assert not [record for record in caplog.records if record.name.startswith("proxy_vpn") and record.exc_info]

    run_virtually(main())


@pairings
def test_a_goodbye_ends_both_ends_once_and_forgets_their_ids(engines: tuple[str, str]) -> None:
    async def main() -> None:
        async with connected(engines) as (_, one, two, client, server):
            client.link.close(0x101, "enough")
            client.link.close(0x101, "enough")
            assert client.closed == ["enough"] and client.link.closed
            await server.until(lambda handler: handler.closed)
            assert len(server.closed) == 1 and server.end is not None and server.end[0] == 0x101
            assert not one.demux.links
            assert not two.demux.links

    run_virtually(main())


@pairings
def test_after_the_end_everything_is_quiet(engines: tuple[str, str]) -> None:
    async def main() -> None:
        async with connected(engines) as (wire, _, _, client, server):
            client.link.close(0x100, "")
            await server.until(lambda handler: handler.closed)
            wire.recording = True
            for handler in (client, server):
                link = handler.link
                link.receive(alone(b"\x40" * 100), Path("", 0, HERE))
                link.settle()
                link.wake()
                link.kick()
                link.add_connection_id(b"12345678")
            await asyncio.sleep(200.0)
            assert not wire.seen
            assert [len(handler.closed) for handler in (client, server)] == [1, 1]

    run_virtually(main())


@pairings
def test_a_kick_after_a_silence_brings_waiting_data_at_once_and_harms_no_idle_end(engines: tuple[str, str]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with connected(engines) as (wire, _, _, client, server):
            for near, far in ((client, server), (server, client)):
                stream_id = near.link.engine.open_stream()
                wire.drops = lambda source, target, datagram: True
                near.link.engine.send(stream_id, b"through the tunnel", True)
                near.link.wake()
                await asyncio.sleep(20.0)
                wire.drops = lambda source, target, datagram: False
                began = loop.time()
                near.link.kick()
                far.link.kick()
                await far.until_ended(stream_id)
                assert loop.time() - began < 0.5
                await asyncio.sleep(1.0)
                assert not near.closed and not far.closed

    run_virtually(main())


@pairings
def test_a_kick_of_an_idle_connection_changes_nothing(engines: tuple[str, str]) -> None:
    async def main() -> None:
        async with connected(engines) as (_, _, _, client, server):
            await asyncio.sleep(5.0)
            client.link.kick()
            server.link.kick()
            await asyncio.sleep(5.0)
            assert not client.closed and not server.closed

    run_virtually(main())


@pairings
def test_without_a_path_it_waits_and_loses_nothing(engines: tuple[str, str]) -> None:
    async def main() -> None:
        async with connected(engines) as (wire, _, _, client, server):
            path = client.link.path
            client.link.move(None)
            wire.recording = True
            stream_id = client.link.engine.open_stream()
            client.link.engine.send(stream_id, b"later", True)
            client.link.wake()
            await asyncio.sleep(5.0)
            assert not [source for source, _, _ in wire.seen if source == HERE]
            client.link.move(path)
            client.link.kick()
            await server.until_ended(stream_id)

    run_virtually(main())


@pairings
def test_a_held_back_kernel_stops_the_feeding_until_it_is_released(engines: tuple[str, str]) -> None:
    async def main() -> None:
        async with connected(engines) as (wire, one, _, client, server):
            one.demux.holding = True
            wire.recording = True
            stream_id = client.link.engine.open_stream()
            client.feed = [(stream_id, bytes(50_000), False) for _ in range(100)]
            client.link.wake()
            await asyncio.sleep(1.0)
            assert not [source for source, _, _ in wire.seen if source == HERE]
            assert len(client.feed) >= 99
            one.demux.release()
            await server.until(lambda handler: len(handler.data.get(stream_id, b"")) == 5_000_000)

    run_virtually(main())


@pairings
def test_another_source_is_reported_and_moves_nothing(engines: tuple[str, str]) -> None:
    async def main() -> None:
        async with connected(engines) as (wire, _, _, client, server):
            wire.translate(HERE, ELSEWHERE)
            client.link.engine.ping(1)
            client.link.wake()
            await asyncio.sleep(0.1)
            assert Path(THERE.ip, 0, ELSEWHERE) in server.heard
            assert server.link.path is not None and server.link.path.remote == HERE

    run_virtually(main())


@pairings
def test_the_least_round_trip_is_that_of_the_current_path(engines: tuple[str, str]) -> None:
    async def exchange(near: LinkRecorder, far: LinkRecorder, stream_id: int) -> None:
        before = len(far.data.get(stream_id, b""))
        near.say(stream_id, b"!")
        await far.until(lambda handler: len(handler.data.get(stream_id, b"")) > before)
        await asyncio.sleep(0.2)

    async def main() -> None:
        async with connected(engines) as (wire, _, _, client, server):
            for link in (client.link, server.link):
                assert link.supply.least_rtt_s == pytest.approx(2 * wire.latency_s, rel=0.2)
                assert link.supply.is_paced is (link.engine.name == "qh3"), "the other does it itself"
            client.link.supply.measured(0.0001)
            assert client.link.supply.least_rtt_s == 0.0001
            # From here on the path is another, and longer.
            client.link.move(Path("", 1, THERE))
            stream_id = client.link.engine.open_stream()
            wire.latency_s = 0.03
            await exchange(client, server, stream_id)
            assert client.link.supply.least_rtt_s is None, "the engine still measures what left on the old path"
            await asyncio.sleep(1.0)
            await exchange(client, server, stream_id)
            least_s = client.link.supply.least_rtt_s
            assert least_s is not None and 0.059 < least_s < 0.1

    run_virtually(main())


@pairings
def test_hostile_bytes_end_at_most_the_connection_they_went_to(engines: tuple[str, str]) -> None:
    async def main() -> None:
        wire = Wire()
        one, two = Host(wire, HERE, engines[0]), Host(wire, THERE, engines[1])
        good = one.dial(two)
        await good.until(lambda handler: handler.completed)
        wire.recording = True
        for seed in range(12):
            wire.seen.clear()
            client = one.dial(two)
            await asyncio.sleep(random.Random(seed).choice((0.0, 0.011, 0.021)))
            server = two.accepted[-1]
            sent = [SEAL.open(datagram) for _, _, datagram in wire.seen if datagram[0] < 0x40]
            for spoiled in hostile(seed, sent[-1]):
                for handler, host in ((client, one), (server, two)):
                    path = Path(host.address.ip, 0, THERE if host is one else HERE)
                    if spoiled:
                        handler.link.receive(alone(spoiled), path)
                        handler.link.settle()
            await asyncio.sleep(1.0)
            client.link.close(0x100, "")
            server.link.close(0x100, "")
            assert len(client.closed) == len(server.closed) == 1
        assert not good.closed and not two.accepted[0].closed
        stream_id = good.link.engine.open_stream()
        good.link.engine.send(stream_id, b"still here", True)
        good.link.wake()
        await two.accepted[0].until_ended(stream_id)
        good.link.close(0x100, "")
        two.accepted[0].link.close(0x100, "")

    run_virtually(main())


@pytest.mark.parametrize("name", ["qh3", "aioquic"])
def test_a_server_link_that_only_ever_got_noise_is_quiet(name: str) -> None:
    async def main() -> None:
        wire = Wire()
        host = Host(wire, HERE, name)
        for body in (b"\xc0" + bytes(1199), b"\xc0\0\0\0\1\x08" + b"d" * 8 + b"\x08" + b"s" * 1200, b"\x80" * 20):
            handler = host._link(False, 1200, b"d" * 8, Path("", 0, THERE))
            handler.link.receive(alone(body), Path(HERE.ip, 0, THERE))
            handler.link.settle()
            handler.link.wake()
            handler.link.kick()
            await asyncio.sleep(1.0)
            handler.link.close(0x100, "")
            assert len(handler.closed) == 1

    run_virtually(main())


@pairings
def test_an_idle_connection_is_kept_for_minutes(engines: tuple[str, str]) -> None:
    async def main() -> None:
        async with connected(engines) as (wire, _, _, client, server):
            wire.recording = True
            wire.seen.clear()
            for _ in range(1200):
                await asyncio.sleep(0.125)
                client.link.keep()
                await asyncio.sleep(0.125)
                server.link.keep()
            assert not client.closed and not server.closed
            assert len(wire.seen) <= 3 * 300 / KEEPALIVE_S, "what one end asks keeps both"

    run_virtually(main())


@pairings
def test_keys_are_updated_when_due(engines: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr("proxy_vpn.net.quic.KEY_UPDATE_PACKETS", 20)
        async with connected(engines) as (_, _, _, client, server):
            updates = 0
            update = client.link.engine.update_keys

            def count() -> None:
                nonlocal updates
                updates += 1
                update()

            monkeypatch.setattr(client.link.engine, "update_keys", count)
            for _ in range(5):
                stream_id = client.link.engine.open_stream()
                client.link.engine.send(stream_id, bytes(50_000), True)
                client.link.wake()
                await server.until_ended(stream_id)
                client.link.keep()
                await asyncio.sleep(1.0)
            assert updates == 5 and not client.closed and not server.closed

    run_virtually(main())
