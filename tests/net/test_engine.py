"""All four pairings of the two engines behave alike behind the adapter: on an in-memory line and a virtual clock."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest

from proxy_vpn.errors import UsageError, WireError
from proxy_vpn.net.engine import (
    IDLE_TIMEOUT_S,
    STREAMS_LIMIT,
    Engine,
    StreamsExhausted,
    initial_destination,
    long_destination,
)
from proxy_vpn.net.engines import engine_factory
from proxy_vpn.wire.membership import channel_binding
from proxy_vpn.wire.train import PACKET_BYTES
from tests.support.engine_pair import ENGINES, PAIRINGS, START_S, EnginePair, hostile

LARGE = 1452
pairings = pytest.mark.parametrize(("client", "server"), PAIRINGS)
engines = pytest.mark.parametrize("name", ENGINES)


@pairings
def test_a_handshake_takes_two_round_trips_and_no_trouble(client: str, server: str) -> None:
    pair = EnginePair(client, server, size=LARGE)
    pair.run_until(lambda: pair.client.handler.completed and pair.server.handler.completed)
    assert pair.now - START_S < 0.1
    assert pair.client.handler.end is None and pair.server.handler.end is None


@pairings
def test_both_ends_share_one_channel_binding_and_give_it_once(client: str, server: str) -> None:
    one, two = EnginePair(client, server).handshake(), EnginePair(client, server).handshake()
    assert one.client.engine.secrets() == (secrets := one.server.engine.secrets())
    assert channel_binding(*secrets) != channel_binding(*two.client.engine.secrets())
    for end in one.ends:
        with pytest.raises(WireError):
            end.engine.secrets()


@engines
def test_no_secrets_before_the_handshake(name: str) -> None:
    with pytest.raises(WireError):
        EnginePair(name, name).client.engine.secrets()


@pairings
def test_a_thousand_streams_are_open_at_once(client: str, server: str) -> None:
    pair = EnginePair(client, server).handshake()
    for end, other in ((pair.client, pair.server), (pair.server, pair.client)):
        opened = []
        for number in range(1000):
            stream_id = end.engine.open_stream()
            end.engine.send(stream_id, number.to_bytes(2, "big"))
            opened.append(stream_id)
        assert len(set(opened)) == 1000
        for stream_id in opened:
            pair.until_received(other, stream_id, 2)
        for number, stream_id in enumerate(opened):
            assert other.handler.data[stream_id] == number.to_bytes(2, "big")


@pairings
def test_streams_run_out_at_the_limit_and_come_back_as_they_end(client: str, server: str) -> None:
    pair = EnginePair(client, server).handshake()
    for end, other in ((pair.client, pair.server), (pair.server, pair.client)):
        opened = []
        for _ in range(STREAMS_LIMIT):
            opened.append(end.engine.open_stream())
            end.engine.send(opened[-1], b"x", True)
        with pytest.raises(StreamsExhausted):
            end.engine.open_stream()
        pair.until_ended(other, *opened)
        for stream_id in opened:
            other.engine.send(stream_id, b"y", True)
        pair.until_ended(end, *opened)
        pair.run_for(1.0)
        end.engine.send(end.engine.open_stream(), b"again")


@pairings
def test_datagrams_at_the_limit_arrive_in_both_directions(client: str, server: str) -> None:
    for size in (1200, LARGE):
        pair = EnginePair(client, server, size=size).handshake()
        for end, other in ((pair.client, pair.server), (pair.server, pair.client)):
            limit = size - end.engine.frame_overhead_bytes
            sent = [bytes([number]) * limit for number in range(20)]
            for data in sent:
                assert end.engine.datagram_room >= limit
                end.engine.send_datagram(data)
            stream_id = end.engine.open_stream()
            end.engine.send(stream_id, b"not blocked behind them", True)
            pair.until_ended(other, stream_id)
            pair.run_until(partial(reached, other.handler.datagrams, 20))
            assert other.handler.datagrams == sent
            assert end.largest_bytes <= max(size, 1280)


@pairings
def test_after_the_handshake_packets_use_the_size(client: str, server: str) -> None:
    pair = EnginePair(client, server, size=LARGE).handshake()
    for end, other in ((pair.client, pair.server), (pair.server, pair.client)):
        stream_id = end.engine.open_stream()
        end.engine.send(stream_id, bytes(100_000), True)
        pair.until_ended(other, stream_id)
        assert LARGE - 32 <= end.largest_short_bytes <= LARGE


@pairings
def test_no_handshake_datagram_is_larger_than_its_seal_allows(client: str, server: str) -> None:
    """1312 proven on the wire leaves 1280 sealed; aioquic stays at 1200 until the handshake is done."""
    pair = EnginePair(client, server, size=LARGE)
    largest = 0

    def note(datagram: bytes, from_client: bool) -> bool:
        nonlocal largest
        if datagram[0] & 0x80:
            largest = max(largest, len(datagram))
        return False

    pair.drop = note
    pair.handshake()
    assert 0 < largest <= 1280
    small = EnginePair(client, server, size=1200)
    small.handshake()
    assert small.client.largest_bytes <= 1200 and small.server.largest_bytes <= 1200


@pairings
def test_a_tenth_of_all_packets_lost_and_everything_arrives(client: str, server: str) -> None:
    pair = EnginePair(client, server, loss=0.1, seed=7)
    pair.run_until(lambda: pair.client.handler.completed and pair.server.handler.completed)
    rest = random.Random(3)
    sent = {}
    for end, other in ((pair.client, pair.server), (pair.server, pair.client)):
        for _ in range(5):
            stream_id = end.engine.open_stream()
            sent[stream_id] = (other, rest.randbytes(60_000))
            end.engine.send(stream_id, sent[stream_id][1], True)
    pair.run_until(lambda: all(stream_id in other.handler.ended for stream_id, (other, _) in sent.items()))
    for stream_id, (other, data) in sent.items():
        assert other.handler.data[stream_id] == data


@pairings
def test_an_abort_is_heard_as_a_reset_and_a_stop(client: str, server: str) -> None:
    pair = EnginePair(client, server).handshake()
    for end, other in ((pair.client, pair.server), (pair.server, pair.client)):
        stream_id = end.engine.open_stream()
        end.engine.send(stream_id, b"x")
        pair.run_for(0.2)
        other.engine.send(stream_id, b"y")
        pair.run_for(0.2)
        end.engine.abort(stream_id, 1)
        pair.run_until(partial(other.handler.resets.__contains__, (stream_id, 1)))
        other.engine.abort(stream_id, 1)
        pair.run_for(0.2)
        assert end.handler.end is None and other.handler.end is None


@pairings
def test_an_abort_after_our_own_end_is_heard_as_a_stop(client: str, server: str) -> None:
    """Our direction is complete; only the wish to hear no more is left to say."""
    pair = EnginePair(client, server).handshake()
    stream_id = pair.client.engine.open_stream()
    pair.client.engine.send(stream_id, b"x", True)
    pair.until_ended(pair.server, stream_id)
    pair.run_for(0.5)
    pair.client.engine.abort(stream_id, 1)
    pair.run_until(lambda: (stream_id, 1) in pair.server.handler.stops)
    assert bytes(pair.server.handler.data[stream_id]) == b"x"


@pairings
def test_aborting_an_ended_stream_is_quiet(client: str, server: str) -> None:
    pair = EnginePair(client, server).handshake()
    stream_id = pair.client.engine.open_stream()
    pair.client.engine.send(stream_id, b"x", True)
    pair.until_ended(pair.server, stream_id)
    pair.server.engine.send(stream_id, b"y", True)
    pair.until_ended(pair.client, stream_id)
    pair.run_for(1.0)
    for end in pair.ends:
        end.engine.abort(stream_id, 1)
        end.engine.abort(stream_id, 1)
    pair.run_for(1.0)
    assert pair.client.handler.end is None and pair.server.handler.end is None


@pairings
def test_pings_are_acknowledged_and_round_trips_measured(client: str, server: str) -> None:
    pair = EnginePair(client, server, latency_s=0.02).handshake()
    for end in pair.ends:
        end.engine.ping(77)
        pair.run_until(partial(end.handler.pings.__contains__, 77))
        assert end.engine.rtt_s == pytest.approx(0.04, abs=0.03)


@pairings
def test_the_backlog_counts_what_was_never_sent(client: str, server: str) -> None:
    pair = EnginePair(client, server).handshake()
    for end, other in ((pair.client, pair.server), (pair.server, pair.client)):
        assert end.engine.backlog == 0
        streams = [end.engine.open_stream()]
        end.engine.send(streams[0], bytes(1 << 20))
        assert end.engine.backlog == 1 << 20
        pair.run_for(0.05)
        assert 0 < end.engine.backlog < 1 << 20
        pair.until_received(other, streams[0], 1 << 20)
        assert end.engine.backlog == 0
        end.engine.send(streams[0], bytes(4 << 20))
        end.engine.abort(streams[0], 1)
        pair.run_for(1.0)
        assert end.engine.backlog == 0, "what was aborted is no backlog"


@pairings
def test_keys_are_updated_under_traffic(client: str, server: str) -> None:
    pair = EnginePair(client, server).handshake()
    for _ in range(3):
        pair.client.engine.update_keys()
        stream_id = pair.client.engine.open_stream()
        pair.client.engine.send(stream_id, bytes(50_000), True)
        pair.until_ended(pair.server, stream_id)
        pair.server.engine.send(stream_id, bytes(50_000), True)
        pair.until_ended(pair.client, stream_id)
        pair.run_for(1.0)
    assert pair.client.handler.end is None and pair.server.handler.end is None


@pairings
def test_a_close_is_heard_with_its_code(client: str, server: str) -> None:
    for closer in (0, 1):
        pair = EnginePair(client, server).handshake()
        end, other = pair.ends[closer], pair.ends[1 - closer]
        end.engine.close(0x101, "")
        pair.run_until(other.handler.has_ended)
        assert other.handler.end is not None and other.handler.end[0] == 0x101


@pairings
def test_a_silent_peer_is_given_up_at_the_idle_timeout_only(client: str, server: str) -> None:
    pair = EnginePair(client, server).handshake()
    pair.drop = lambda datagram, from_client: True
    pair.run_for(IDLE_TIMEOUT_S - 5)
    assert pair.client.handler.end is None and pair.server.handler.end is None
    pair.run_for(10.0)
    assert pair.client.handler.end is not None and pair.server.handler.end is not None


@pairings
def test_segments_laid_end_to_end_are_taken_apart(client: str, server: str) -> None:
    """What UDP GRO hands over: full segments and a shorter last one."""
    pair = EnginePair(client, server).handshake()
    held: list[bytes] = []

    def hold(datagram: bytes, from_client: bool) -> bool:
        if from_client:
            held.append(datagram)
        return from_client

    pair.drop = hold
    stream_id = pair.client.engine.open_stream()
    data = random.Random(1).randbytes(9000)
    pair.client.engine.send(stream_id, data)
    pair.run_for(0.005)
    size = len(held[0])
    full = [datagram for datagram in held if len(datagram) == size]
    last = [datagram for datagram in held if len(datagram) != size][-1:]
    pair.server.engine.receive(b"".join(full + last), size, pair.now)
    pair.drop = lambda datagram, from_client: False
    pair.run_until(lambda: len(pair.server.handler.data.get(stream_id, b"")) == len(data))
    assert pair.server.handler.data[stream_id] == data


def reached(items: list[bytes], count: int) -> bool:
    return len(items) == count


# --- hostile bytes --------------------------------------------------------------------------------------------


@pairings
@pytest.mark.parametrize("victim", ["client", "server"])
def test_hostile_bytes_to_a_handshaking_engine_raise_at_most(client: str, server: str, victim: str) -> None:
    pair = EnginePair(client, server)
    seen: list[bytes] = []

    def note(datagram: bytes, from_client: bool) -> bool:
        seen.append(datagram)
        return False

    pair.drop = note
    pair.run_for(0.015)
    end = pair.client if victim == "client" else pair.server
    for datagram in hostile(5, seen[-1]):
        with suppress(Exception):
            end.engine.receive(datagram, len(datagram), pair.now)
        with suppress(Exception):
            end.engine.deliver(end.handler, pair.now)
    with suppress(Exception):
        end.engine.transmit(pair.now)
    end.engine.timer()
    _ = end.engine.backlog, end.engine.rtt_s


@engines
def test_a_server_that_was_fed_noise_only_can_still_be_asked_everything(name: str) -> None:
    for size in (1, 5, 20, 1199, 1200):
        engine = engine_factory(name)(False, 1200, b"d" * 8)
        with suppress(Exception):
            engine.receive(b"\xc0" + bytes(size), 1 + size, START_S)
        assert_askable(engine)


@engines
def test_a_new_engine_can_be_asked_everything(name: str) -> None:
    assert_askable(engine_factory(name)(False, 1200, b"d" * 8))


def assert_askable(engine: Engine) -> None:
    """What the driver asks outside its guard never raises."""
    assert engine.transmit(START_S) == []
    assert engine.backlog == 0
    engine.timer()
    assert engine.rtt_s is None or engine.rtt_s >= 0
    assert len(engine.connection_id) == 8


# --- the choice of engine, and long headers -------------------------------------------------------------------


def test_engines_are_chosen_by_name() -> None:
    assert engine_factory("auto").name == engine_factory("qh3").name == "qh3"
    assert engine_factory("aioquic").name == "aioquic"
    with pytest.raises(UsageError):
        engine_factory("quiche")


def initial(change: Callable[[bytearray], None] = lambda datagram: None) -> bytes:
    datagram = bytearray(b"\xc3\0\0\0\1\x08" + b"destined" + b"\x08" + b"sourceid").ljust(1200, b"\0")
    change(datagram)
    return bytes(datagram)


def test_an_initial_names_its_destination() -> None:
    assert initial_destination(initial()) == long_destination(initial()) == b"destined"


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.__delitem__(slice(1199, None)),
        lambda d: d.__setitem__(0, 0x43),
        lambda d: d.__setitem__(0, 0xE3),
        lambda d: d.__setitem__(0, 0x83),
        lambda d: d.__setitem__(slice(1, 5), b"\0\0\0\2"),
        lambda d: d.__setitem__(slice(1, 5), b"\0\0\0\0"),
        lambda d: d.__setitem__(5, 7),
        lambda d: d.__setitem__(5, 21),
        lambda d: d.__setitem__(5, 255),
    ],
)
def test_what_is_no_version_1_initial_is_refused(change: Callable[[bytearray], None]) -> None:
    with pytest.raises(WireError):
        initial_destination(initial(change))


def test_prefixes_of_a_long_header_are_refused() -> None:
    for size in range(14):
        with pytest.raises(WireError):
            long_destination(initial()[:size])
        with pytest.raises(WireError):
            initial_destination(initial()[:size])


@engines
def test_small_packets_are_not_spread_over_round_trips(name: str) -> None:
    pair = EnginePair(name, name, size=PACKET_BYTES, latency_s=0.02).handshake()
    engine = pair.client.engine
    for _ in range(20):
        assert not engine.transmit(pair.now)
    engine.send(engine.open_stream(), b"!")
    assert len(engine.transmit(pair.now)) == 1
