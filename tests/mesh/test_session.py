"""Sessions between two meshes: AUTH, flows, credit, ends and misbehaviour, on a wire with a virtual clock."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from proxy_vpn.addresses import Address, Target
from proxy_vpn.errors import FlowError, FlowLost, Status
from proxy_vpn.mesh.credit import IMPLIED_CREDIT_BYTES
from proxy_vpn.mesh.flow import Flow
from proxy_vpn.mesh.openings import Incoming, IncomingTcp, IncomingUdp
from proxy_vpn.mesh.session import AUTH_TIMEOUT_S, State
from proxy_vpn.mesh.streams import OPEN_TIMEOUT_S, OVERRUNS_LIMIT, SMALL_BACKLOG_BYTES, SMALL_WRITE_BYTES
from proxy_vpn.mesh.udp_flow import UdpFlow
from proxy_vpn.net.supply import HURRY_FLIGHT_BYTES
from proxy_vpn.net.turns import Turns
from proxy_vpn.wire.messages import Credit, Open, Peers, encode_control, encode_open
from tests.support.engine_pair import PAIRINGS
from tests.support.mesh_world import Member, StreamSink, Wire, ordered, pause, two_members
from tests.support.virtual_loop import run_virtually

pairings = pytest.mark.parametrize("engines", PAIRINGS)
same_engines = pytest.mark.parametrize("engines", [("qh3", "qh3"), ("aioquic", "aioquic")])
Engines = tuple[str, str]
BULK_BYTES, STEPS = 20_000_000, 40
Scene = Callable[[Wire, Member, Member], Coroutine[Any, Any, None]]


def play(engines: Engines, scene: Scene, **wire: Any) -> None:
    async def main() -> None:
        async with two_members(engines, **wire) as (line, one, two):
            await scene(line, one, two)

    run_virtually(main())


def raw_stream(member: Member, other: Member, data: bytes, end: bool = False) -> int:
    """A stream opened past all of the session's own rules."""
    link = member.session(other).link
    stream_id = link.engine.open_stream()
    link.engine.send(stream_id, data, end)
    link.wake()
    return stream_id


def raw_send(member: Member, other: Member, stream_id: int, data: bytes, end: bool = False) -> None:
    link = member.session(other).link
    link.engine.send(stream_id, data, end)
    link.wake()


def head(port: int = 80, kind: str = "tcp") -> bytes:
    return encode_open(Open(kind, 0, port))


# --- AUTH and welcome -----------------------------------------------------------------------------------------


@pairings
def test_two_members_know_each_other(engines: Engines) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        for near, far in ((one, two), (two, one)):
            session = near.session(far)
            assert session.state is State.LIVE and session.peer_name == far.mesh.name
            assert session.member is not None and session.member.boot == far.mesh.boot
            assert session.theirs is not None and session.theirs.name == far.mesh.name
            assert len(near.live) == 1 and not near.lost and not near.warnings

    play(engines, scene)


def test_a_connection_that_never_authenticates_is_given_up_after_five_seconds() -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        loop = asyncio.get_running_loop()
        two.session(one).close("again")
        await one.until_lost()
        blocked = 0

        def drop_after_the_handshake(source: object, target: object, datagram: bytes) -> bool:
            nonlocal blocked
            blocked += datagram[0] & 0xC0 == 0x40
            return datagram[0] & 0xC0 == 0x40

        wire.drops = drop_after_the_handshake
        sessions: set[Any] = set()
        began = loop.time()
        while not blocked:
            await pause(0.05)
        while loop.time() - began < 3 * AUTH_TIMEOUT_S:
            sessions |= one.mesh._sessions | two.mesh._sessions
            assert all(loop.time() - session.started_at < AUTH_TIMEOUT_S + 1 for session in one.mesh._sessions)
            await pause(0.5)
        assert blocked and sessions and not one.sees(two) and not two.sees(one)
        wire.drops = lambda source, target, datagram: False
        await one.until_live(two, 60.0)

    play(("qh3", "qh3"), scene)


@same_engines
def test_a_flow_opened_at_once_survives_the_loss_of_the_welcome(engines: Engines) -> None:
    """Streams overtake each other: the first flow may arrive before the message that makes the session live."""

    async def main() -> None:
        wire = Wire()
        low, high = ordered(1, 2)
        one = Member(wire, low, "one", "10.0.0.1", engine=engines[0])
        two = Member(wire, high, "two", "10.0.0.2", engine=engines[1])
        losing = False
        lost = 0

        def drop(source: Address, target: Address, datagram: bytes) -> bool:
            nonlocal lost
            lost += losing and source == one.address and datagram[0] >= 0x40
            return losing and source == one.address

        def live(*_: object) -> None:
            nonlocal losing
            losing = True
            one.changes.note()

        wire.drops = drop
        one.peer_live = live  # type: ignore[assignment, method-assign]
        one.knows(two)
        await one.until_live(two)
        losing = False
        assert lost and not two.sees(one)
        sink = await one.open_tcp(two)
        sink.flow.write(b"hello")
        sink.flow.write_eof()
        far = await two.until_sink()
        await far.until(lambda far: "eof" in far.events)
        assert far.data == b"hello" and not one.lost and not two.lost
        await one.close()
        await two.close()

    run_virtually(main())


# --- flows ----------------------------------------------------------------------------------------------------


@pairings
@pytest.mark.parametrize("opener", ["one", "two"])
def test_bytes_cross_both_ways_and_end_cleanly(engines: Engines, opener: str) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        near, far = (one, two) if opener == "one" else (two, one)
        rest = random.Random(1)
        there, back = rest.randbytes(300_000), rest.randbytes(200_000)
        sink = await near.open_tcp(far, 8000)
        other = await far.until_sink()
        assert far.offers[0].port == 8000 and far.offers[0].peer_name == near.mesh.name
        flow = sink.flow
        assert isinstance(flow, Flow) and flow.target == Target(far.mesh.name, 8000)
        flow.write(there)
        flow.write_eof()
        await other.until(lambda other: "eof" in other.events)
        assert other.data == there and sink.events == []
        other.flow.write(back)
        other.flow.write_eof()
        await sink.until(lambda sink: sink.over)
        await other.until(lambda other: other.over)
        assert sink.data == back and sink.events == other.events == ["eof", "finished"]
        assert near.flows(far) == far.flows(near) == 0

    play(engines, scene)


@same_engines
def test_a_tenth_of_all_packets_lost_and_every_flow_is_whole(engines: Engines) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        rest, sinks = random.Random(2), []
        data = [rest.randbytes(100_000) for _ in range(8)]
        for number, each in enumerate(data):
            sink = await one.open_tcp(two)
            far = await two.until_sink(number + 1)
            far.echo = True
            sink.flow.write(each)
            sink.flow.write_eof()
            sinks.append(sink)
        for sink, each in zip(sinks, data, strict=True):
            await sink.until(lambda sink: sink.over, 120.0)
            assert sink.events == ["eof", "finished"] and sink.data == each
        assert not one.lost and not two.lost

    play(engines, scene, loss=0.1, seed=3)


@same_engines
@pytest.mark.parametrize("status", [Status.POLICY, Status.REFUSED, Status.TIMEOUT, Status.LIMIT, Status.INTERNAL])
def test_a_refusal_says_why_and_leaves_nothing(engines: Engines, status: Status) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        two.accepting = False
        opening = asyncio.ensure_future(one.open_flow(two, 23))
        (await two.until_offered()).refuse(status)
        with pytest.raises(FlowError) as caught:
            await opening
        assert caught.value.status is status and "\n" not in str(caught.value)
        await pause(1.0)
        assert one.flows(two) == two.flows(one) == 0

    play(engines, scene)


def test_no_answer_is_a_timeout_and_the_offer_is_over() -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        two.accepting = False
        began = asyncio.get_running_loop().time()
        with pytest.raises(FlowError) as caught:
            await one.open_flow(two)
        assert caught.value.status is Status.TIMEOUT
        assert asyncio.get_running_loop().time() - began == pytest.approx(OPEN_TIMEOUT_S, abs=0.5)
        await pause(0.5)
        with pytest.raises(FlowLost):
            two.offers[0].accept()  # type: ignore[attr-defined]
        two.offers[0].refuse(Status.INTERNAL)
        assert two.flows(one) == 0

    play(("qh3", "qh3"), scene)


def test_a_caller_that_gives_up_takes_its_offer_back() -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        two.accepting = False
        opening = asyncio.ensure_future(one.open_flow(two))
        offer = await two.until_offered()
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await pause(0.5)
        assert offer.reset and one.flows(two) == two.flows(one) == 0

    play(("qh3", "qh3"), scene)


@pairings
def test_a_reset_is_a_loss_at_the_other_end_at_once(engines: Engines) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        for number, closer in enumerate(("opener", "other")):
            sink = await one.open_tcp(two)
            far = await two.until_sink(number + 1)
            sink.flow.write(b"x" * 1000)
            await far.until(lambda far: len(far.data) == 1000)
            first, second = (sink, far) if closer == "opener" else (far, sink)
            first.flow.reset()
            began = asyncio.get_running_loop().time()
            await second.until(lambda second: second.over)
            assert second.events == ["lost"] and first.events == []
            assert asyncio.get_running_loop().time() - began < 0.1
        await pause(1.0)
        assert one.flows(two) == two.flows(one) == 0

    play(engines, scene)


@pairings
def test_data_on_its_way_when_its_flow_is_reset_opens_nothing(engines: Engines) -> None:
    """A program's bytes may look like the head of a flow: they must never be taken for one."""

    async def scene(wire: Wire, one: Member, two: Member) -> None:
        sink = await one.open_tcp(two)
        far = await two.until_sink()
        far.eager = False
        for _ in range(50):
            sink.flow.write(head(22) * 20)
            await pause(0.001)
        far.flow.reset()
        for _ in range(50):
            sink.flow.write(head(22) * 20)
            await pause(0.001)
        await pause(1.0)
        assert [offer.port for offer in two.offers] == [80]
        assert one.flows(two) == two.flows(one) == 0

    play(engines, scene)


@same_engines
def test_data_after_a_refusal_opens_nothing(engines: Engines) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        two.accepting = False
        stream_id = raw_stream(one, two, head(80))
        (await two.until_offered()).refuse(Status.POLICY)
        for _ in range(5):
            raw_send(one, two, stream_id, head(22))
            await pause(0.01)
        await pause(1.0)
        assert [offer.port for offer in two.offers] == [80]
        assert one.sees(two)

    play(engines, scene)


@pairings
def test_a_complete_direction_is_delivered_though_the_connection_closes_behind_it(engines: Engines) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        sink = await one.open_tcp(two)
        far = await two.until_sink()
        sink.flow.write(b"everything")
        sink.flow.write_eof()
        await far.until(lambda far: "eof" in far.events)
        one.session(two).close("now")
        await far.until(lambda far: far.over)
        assert far.data == b"everything" and far.events == ["eof", "lost"]
        assert sink.events == ["lost"]

    play(engines, scene)


@pairings
def test_a_lost_connection_is_never_an_end(engines: Engines) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        sink = await one.open_tcp(two)
        far = await two.until_sink()
        sink.flow.write(b"some of it")
        await far.until(lambda far: far.data)
        one.session(two).close("now")
        assert sink.events == ["lost"]
        await far.until(lambda far: far.over)
        assert far.events == ["lost"]

    play(engines, scene)


@same_engines
@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_stopping_waits_for_what_was_written_to_arrive(engines: Engines, loss: float) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        wire.loss = loss
        sink = await one.open_tcp(two)
        far = await two.until_sink()
        far.flow.write_eof()
        await sink.until(lambda sink: "eof" in sink.events)
        data = random.Random(4).randbytes(150_000)
        sink.flow.write(data)
        sink.flow.write_eof()
        await sink.until(lambda sink: sink.over)
        await one.mesh.close()
        await two.until_lost()
        assert far.data == data and far.events == ["eof", "finished"]
        wire.loss = 0.0

    play(engines, scene)


@same_engines
def test_flows_leave_little_in_flight_on_a_short_way_while_small_messages_are_sent(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hurried(Turns):
        def are_short(self, now: float) -> bool:
            return True

    monkeypatch.setattr("proxy_vpn.net.supply.TURNS", Hurried())

    async def scene(wire: Wire, one: Member, two: Member) -> None:
        bulk, steps, small = [await one.open_tcp(two) for _ in range(3)]
        engine, flights = one.session(two).link.engine, [0]

        def see(source: Address, target: Address, datagram: bytes) -> bool:
            flights.append(engine.unacknowledged)
            return False

        wire.drops = see
        bulk.flow.write(bytes(BULK_BYTES))
        for _ in range(STEPS):
            steps.flow.write(bytes(60_000))
            for _ in range(15):
                small.flow.write(bytes(SMALL_WRITE_BYTES))
            await pause(0.001)
        for sink in (bulk, steps, small):
            sink.flow.write_eof()
        for number in range(1, 4):
            await (await two.until_sink(number)).until(lambda sink: "eof" in sink.events)
        most = HURRY_FLIGHT_BYTES + SMALL_BACKLOG_BYTES + 2 * SMALL_WRITE_BYTES
        assert HURRY_FLIGHT_BYTES / 2 < max(flights) < most

    play(engines, scene, latency_s=0.0004)


def test_stopping_takes_no_new_flows_and_waits_two_seconds_for_open_ones() -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        sink = await one.open_tcp(two)
        began = asyncio.get_running_loop().time()
        finishing = asyncio.ensure_future(one.mesh.close())
        await pause(0.5)
        for member, other in ((one, two), (two, one)):
            with pytest.raises(FlowError) as caught:
                peer = member.peer(other)
                assert peer.session is not None
                await peer.session.streams.open_tcp(Target("x", 1))
            assert caught.value.status is Status.UNREACHABLE
        sink.flow.write(b"still served")
        far = await two.until_sink()
        await far.until(lambda far: far.data == b"still served")
        await finishing
        assert 1.5 < asyncio.get_running_loop().time() - began < 2.5
        assert sink.events == ["lost"]
        await two.until_lost()

    play(("qh3", "qh3"), scene)


def test_stopping_without_flows_is_quick_and_both_sides_hear_it() -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        began = asyncio.get_running_loop().time()
        await one.mesh.close()
        assert asyncio.get_running_loop().time() - began < 0.2
        await two.until_lost()
        assert asyncio.get_running_loop().time() - began < 0.5

    play(("qh3", "qh3"), scene)


@same_engines
def test_stopping_is_quiet_when_the_other_side_stops_too(engines: Engines) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        await one.open_tcp(two)
        await asyncio.gather(one.mesh.close(), two.mesh.close())

    play(engines, scene)


@same_engines
def test_stopping_is_quiet_when_the_connection_breaks_meanwhile(engines: Engines) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        await one.open_tcp(two)
        closing = asyncio.ensure_future(one.mesh.close())
        await pause(0.2)
        session = two.peer(one).session
        assert session is not None
        session.close("now")
        await closing

    play(engines, scene)


# --- credit ---------------------------------------------------------------------------------------------------


@pairings
def test_a_stalled_reader_gets_64_kib_and_the_rest_when_it_reads(engines: Engines) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        sink = await one.open_tcp(two)
        far = await two.until_sink()
        far.eager = False
        sink.flow.write(bytes(1 << 20))
        sink.flow.write_eof()
        await pause(10.0)
        assert IMPLIED_CREDIT_BYTES - 100 < len(far.data) <= IMPLIED_CREDIT_BYTES
        assert sink.written_bytes <= IMPLIED_CREDIT_BYTES
        far.eager = True
        far.flow.consumed(len(far.data))
        await far.until(lambda far: "eof" in far.events)
        assert len(far.data) == 1 << 20 == sink.written_bytes

    play(engines, scene)


@same_engines
def test_hundreds_of_stalled_flows_hold_bounded_memory_and_a_new_one_is_quick(engines: Engines) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        count = 200
        for number in range(count):
            sink = await one.open_tcp(two)
            (await two.until_sink(number + 1)).eager = False
            sink.flow.write(bytes(1 << 18))
        await pause(10.0)
        held = sum(len(far.data) for far in two.sinks)
        assert held <= count * IMPLIED_CREDIT_BYTES
        assert one.session(two).link.engine.backlog == 0
        began = asyncio.get_running_loop().time()
        sink = await one.open_tcp(two)
        far = await two.until_sink(count + 1)
        far.echo = True
        sink.flow.write(b"hello")
        await sink.until(lambda sink: sink.data == b"hello")
        assert asyncio.get_running_loop().time() - began < 0.2

    play(engines, scene)


@same_engines
def test_two_hundred_flows_all_get_their_turn(engines: Engines) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        sinks = []
        for number in range(200):
            sinks.append(await one.open_tcp(two))
            await two.until_sink(number + 1)
        for sink in sinks:
            sink.flow.write(bytes(60_000))
        for far in two.sinks:
            await far.until(lambda far: len(far.data) == 60_000)

    play(engines, scene)


@same_engines
def test_flows_share_the_line_fairly(engines: Engines) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        count, size = 30, 256 * 1024
        sinks = [await one.open_tcp(two) for _ in range(count)]
        await two.until_sink(count)
        for sink in sinks:
            sink.flow.write(bytes(size))
        while sum(len(far.data) for far in two.sinks) < count * size * 0.6:
            await pause(0.005)
        assert min(len(far.data) for far in two.sinks) > size * 0.2

    play(engines, scene)


def test_a_small_write_is_quick_beside_bulk() -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        for number in range(20):
            bulk = await one.open_tcp(two)
            await two.until_sink(number + 1)
            bulk.flow.write(bytes(1 << 20))
        small = await one.open_tcp(two)
        (await two.until_sink(21)).echo = True
        began = asyncio.get_running_loop().time()
        small.flow.write(b"key press")
        await small.until(lambda small: small.data == b"key press")
        assert asyncio.get_running_loop().time() - began < 0.5

    play(("qh3", "qh3"), scene)


@same_engines
def test_an_overrun_resets_that_flow_and_the_third_closes_the_connection(engines: Engines) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        bystander = await one.open_tcp(two)
        far_bystander = await two.until_sink()
        for number in range(1, OVERRUNS_LIMIT + 1):
            sink = await one.open_tcp(two)
            far = await two.until_sink(number + 1)
            far.eager = False
            assert isinstance(sink.flow, Flow)
            raw_send(one, two, sink.flow.stream_id, bytes(2 * IMPLIED_CREDIT_BYTES))
            await far.until(lambda far: far.over)
            assert far.events == ["lost"] and len(far.data) <= IMPLIED_CREDIT_BYTES
            if number < OVERRUNS_LIMIT:
                await pause(0.5)
                assert not two.lost
        await two.until_lost()
        await bystander.until(lambda sink: sink.over)
        assert far_bystander.events == ["lost"] == bystander.events

    play(engines, scene)


@same_engines
def test_too_much_before_the_answer_takes_the_offer_back(engines: Engines) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        two.accepting = False
        raw_stream(one, two, head() + bytes(2 * IMPLIED_CREDIT_BYTES))
        offer = await two.until_offered()
        await pause(1.0)
        with pytest.raises(FlowLost):
            offer.accept()  # type: ignore[attr-defined]
        offer.refuse(Status.REFUSED)
        assert two.flows(one) == 0 and two.sees(one)

    play(engines, scene)


@same_engines
def test_what_came_before_the_answer_is_delivered_after_it(engines: Engines) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        two.accepting = False
        raw_stream(one, two, head() + b"early", end=True)
        offer = await two.until_offered()
        await pause(0.2)
        assert isinstance(offer, IncomingTcp)
        sink = StreamSink(offer.accept())
        assert sink.data == b"early" and sink.events == ["eof"]

    play(engines, scene)


def test_credit_for_unknown_and_ended_streams_is_ignored() -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        limits = [(0, 10), (4, 2**62), (4000, 1), (2**62, 2**62), (-1, -1)]
        one.session(two).send_control(Credit(limits))
        await one.open_tcp(two)
        assert not two.lost and not one.lost

    play(("qh3", "qh3"), scene)


# --- misbehaviour ---------------------------------------------------------------------------------------------

MALFORMED = [
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    encode_control(Credit([]))[:4] + b"\xc1" * 30,
    (10).to_bytes(4, "big") + msgspec.msgpack.encode({"t": "ping"}).ljust(10, b"\xc0"),
]


@pytest.mark.parametrize("noise", MALFORMED)
def test_a_malformed_control_message_closes_that_connection(noise: bytes) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        raw_send(one, two, 0, noise)
        await two.until_lost()
        await one.until_lost()

    play(("qh3", "qh3"), scene)


@pytest.mark.parametrize("how", ["end", "reset"])
def test_an_ended_control_stream_closes_the_connection(how: str) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        if how == "end":
            raw_send(one, two, 0, b"", end=True)
        else:
            one.session(two).link.engine.abort(0, 1)
            one.session(two).link.wake()
        await two.until_lost()

    play(("qh3", "qh3"), scene)


@same_engines
@pytest.mark.parametrize("noise", [b"\xff" * 100, b"\0\1\xc1", encode_open(Open("sctp", 0, 1)), b"\0", b""])
def test_a_malformed_head_costs_its_stream_only(engines: Engines, noise: bytes) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        raw_stream(one, two, noise, end=True)
        await pause(0.5)
        assert not two.offers and two.flows(one) == 0
        await one.open_tcp(two)

    play(engines, scene)


@same_engines
def test_a_unidirectional_stream_is_nothing_a_peer_may_open(engines: Engines) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        quic = one.session(two).link.engine._quic
        with suppress(ValueError):  # one engine already knows that the other end allows none
            stream_id = quic.get_next_available_stream_id(is_unidirectional=True)
            quic.send_stream_data(stream_id, head())
            one.session(two).link.wake()
            await pause(1.0)
        assert not two.offers
        two.session(one).stream_data_received(2, head(), False)
        assert not two.offers

    play(engines, scene)


@same_engines
def test_more_flows_than_the_limit_are_refused_and_what_follows_them_too(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy_vpn.mesh.streams.FLOWS_LIMIT", 5)

    async def scene(wire: Wire, one: Member, two: Member) -> None:
        for _ in range(5):
            await one.open_tcp(two)
        with pytest.raises(FlowError) as caught:
            await one.open_flow(two)
        assert caught.value.status is Status.LIMIT
        stream_id = raw_stream(one, two, head())
        for _ in range(3):
            await pause(0.1)
            raw_send(one, two, stream_id, head())
        await pause(0.5)
        assert len(two.offers) == 5 and one.sees(two)
        one.session(two)
        two.sinks[0].flow.reset()
        await pause(0.5)
        await one.open_tcp(two)

    play(engines, scene)


@same_engines
def test_an_echo_and_a_stop_in_one_packet_raise_nothing(engines: Engines) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        sink = await one.open_tcp(two)
        far = await two.until_sink()
        far.echo = True
        link = one.session(two).link
        assert isinstance(sink.flow, Flow)
        link.engine.send(sink.flow.stream_id, b"echo this")
        link.engine.refuse(sink.flow.stream_id, 1)
        link.wake()
        await pause(0.5)
        assert two.sees(one)

    play(engines, scene)


def test_unknown_messages_are_skipped() -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        body = msgspec.msgpack.encode({"t": "future", "x": 1})
        raw_send(one, two, 0, len(body).to_bytes(4, "big") + body + encode_control(Credit([(4, 1)])))
        await pause(0.2)
        await one.open_tcp(two)
        assert not one.lost and not two.lost

    play(("qh3", "qh3"), scene)


def test_what_comes_after_a_failure_is_ignored() -> None:
    """A stream before the welcome closes the connection; a welcome right behind it must not revive it."""

    async def scene(wire: Wire, one: Member, two: Member) -> None:
        session, welcome = two.session(one), encode_control(one.session(two)._welcome())
        session.close("over")
        before = len(two.live)
        session.theirs = None
        session.stream_data_received(0, welcome, False)
        session.stream_data_received(4, head(), False)
        session.datagram_received(b"\x01" * 30)
        assert session.state is State.CLOSED and len(two.live) == before and not two.offers

    play(("qh3", "qh3"), scene)


def test_an_unreadable_peer_record_is_skipped() -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        one.session(two).send_control(Peers([b"", b"noise", b"\x92\xc4\x00\xc4\x00", bytes(5000)]))
        await one.open_tcp(two)
        assert len(list(two.mesh.roster)) == 1 and not two.lost

    play(("qh3", "qh3"), scene)


# --- UDP ------------------------------------------------------------------------------------------------------


async def udp_flow(one: Member, two: Member, port: int = 53) -> tuple[UdpFlow, UdpFlow, list[bytes], list[bytes]]:
    near = await one.session(two).streams.open_udp(Target(two.mesh.name, port))
    far = await two.until_udp()
    here: list[bytes] = []
    there: list[bytes] = []
    near.on_datagram, far.on_datagram = here.append, there.append
    return near, far, here, there


@pairings
def test_datagrams_of_every_size_cross_both_ways(engines: Engines) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        near, far, here, there = await udp_flow(one, two)
        assert isinstance(two.offers[0], IncomingUdp) and far.peer_name == "one"
        sizes = [0, 1, 100, 1100, 1200, 1400, 1500, 3000, 9000, 50_000]
        for size in sizes:
            near.send(bytes(size))
            far.send(b"\x01" * size)
            await pause(0.1)
        assert [len(data) for data in there] == sizes == [len(data) for data in here]
        near.send(bytes(65_507 + 60_000))
        near.send(b"after")
        await pause(0.1)
        assert there[-1] == b"after"

    play(engines, scene)


@pairings
@pytest.mark.parametrize("closer", ["near", "far"])
def test_closing_a_udp_flow_closes_it_at_both_ends(engines: Engines, closer: str) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        near, far, _, _ = await udp_flow(one, two)
        closed: list[str] = []
        near.on_closed = lambda: closed.append("near")
        far.on_closed = lambda: closed.append("far")
        (near if closer == "near" else far).close()
        await pause(0.5)
        assert sorted(closed) == ["far", "near"]
        assert one.flows(two) == two.flows(one) == 0

    play(engines, scene)


def test_udp_flows_close_when_the_connection_is_lost() -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        near, far, _, _ = await udp_flow(one, two)
        closed: list[str] = []
        near.on_closed = lambda: closed.append("near")
        far.on_closed = lambda: closed.append("far")
        one.session(two).close("x")
        await two.until_lost()
        assert sorted(closed) == ["far", "near"]

    play(("qh3", "qh3"), scene)


@same_engines
def test_a_datagram_that_overtakes_its_flows_opening_waits_for_it(engines: Engines) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        two.accepting = False
        opening = asyncio.ensure_future(one.session(two).streams.open_udp(Target("two", 53)))
        offer: Incoming = await two.until_offered()
        stream_id = next(iter(one.session(two).streams._streams))
        one.session(two).streams.send_flow_datagram(stream_id, b"impatient")
        await pause(0.05)
        assert isinstance(offer, IncomingUdp)
        flow = offer.accept()
        heard: list[bytes] = []
        flow.on_datagram = heard.append
        await opening
        await pause(0.1)
        assert heard == [b"impatient"]

    play(engines, scene)


@same_engines
def test_a_flood_of_datagrams_is_dropped_to_the_rate_and_wedges_nothing(engines: Engines) -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        near, _, _, there = await udp_flow(one, two)
        for _ in range(5000):
            near.send(bytes(1000))
        await pause(2.0)
        assert 100 < len(there) < 1000
        near.send(b"still alive")
        await pause(0.5)
        assert there[-1] == b"still alive"
        await one.open_tcp(two)

    play(engines, scene)
