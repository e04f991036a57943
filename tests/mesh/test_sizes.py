"""The size of a connection's datagrams follows its path: down in place, up by another lane."""

from __future__ import annotations

import pytest

from proxy_vpn.mesh.sizes import LARGEST_BYTES, RAISE_INTERVAL_S
from tests.mesh.test_mesh import play
from tests.support.engine_pair import PAIRINGS
from tests.support.mesh_world import Member, StreamSink, Wire, ordered, pause, two_members

BULK_BYTES = 400_000
SMALL_BYTES = 1300
FOUND_S = 4.0
WHO = tuple(zip(ordered(1, 2), ("one", "two"), ("10.0.0.1", "10.0.0.2"), strict=True))


def narrow(wire: Wire) -> None:
    """What is larger than 1300 bytes disappears from now on."""
    wire.drops = lambda source, target, datagram: len(datagram) > SMALL_BYTES


def widen(wire: Wire) -> None:
    wire.drops = lambda source, target, datagram: False


async def send_bulk(one: Member, two: Member) -> tuple[StreamSink, StreamSink]:
    """A new flow with BULK_BYTES on their way; the sinks at both ends."""
    near = await one.open_tcp(two)
    far = await two.until_sink(len(two.offers))
    near.flow.write(bytes(BULK_BYTES))
    return near, far


@pytest.mark.parametrize("engines", PAIRINGS)
def test_a_black_hole_lowers_the_connection_and_nothing_is_lost(engines: tuple[str, str]) -> None:
    async def scene(_: Wire) -> None:
        async with two_members(engines) as (wire, one, two):
            near, far = await send_bulk(one, two)
            await far.until_received(BULK_BYTES // 8)
            narrow(wire)
            near.flow.write(bytes(BULK_BYTES))  # what was sent before may be enough for the first
            await far.until(lambda sink: len(sink.data) == 2 * BULK_BYTES, 10.0)
            assert not one.lost and not two.lost
            assert one.session(two).link.supply.datagram_bytes <= SMALL_BYTES

    play(scene)


@pytest.mark.parametrize("age_s", (0.0, 2.0, 4.5))
def test_a_black_hole_is_found_within_a_few_seconds_whenever_it_appears(age_s: float) -> None:
    async def scene(_: Wire) -> None:
        async with two_members() as (wire, one, two):
            await pause(age_s)
            near, far = await send_bulk(one, two)
            await far.until_received(1)
            narrow(wire)
            near.flow.write(bytes(BULK_BYTES))
            await far.until(lambda sink: len(sink.data) == 2 * BULK_BYTES, FOUND_S)

    play(scene)


def test_a_path_that_loses_everything_for_a_while_lowers_nothing() -> None:
    async def scene(_: Wire) -> None:
        async with two_members() as (wire, one, two):
            _, far = await send_bulk(one, two)
            wire.drops = lambda source, target, datagram: True
            await pause(10.0)
            widen(wire)
            await far.until_received(BULK_BYTES)
            assert one.session(two).link.supply.datagram_bytes == LARGEST_BYTES

    play(scene)


@pytest.mark.parametrize("engines", PAIRINGS)
def test_a_path_that_carries_more_gets_larger_datagrams_and_open_flows_go_on(engines: tuple[str, str]) -> None:
    async def scene(_: Wire) -> None:
        wire = Wire()
        narrow(wire)
        one, two = Member(wire, *WHO[0], engine=engines[0]), Member(wire, *WHO[1], engine=engines[1])
        try:
            one.knows(two)
            await one.until_live(two)
            await two.until_live(one)
            assert one.session(two).link.supply.datagram_bytes <= SMALL_BYTES
            near, far = await send_bulk(one, two)
            widen(wire)
            await pause(RAISE_INTERVAL_S + 20.0)
            for here, there in ((one, two), (two, one)):
                link = here.session(there).link
                assert link.supply.datagram_bytes == LARGEST_BYTES and link.engine.size >= LARGEST_BYTES
            near.flow.write(b"still here")
            await far.until_received(BULK_BYTES + 10)
            assert bytes(far.data).endswith(b"still here")
            _, later = await send_bulk(one, two)
            await later.until_received(BULK_BYTES)
            near.flow.write_eof()
            await far.until(lambda sink: "eof" in sink.events)
            far.flow.write_eof()
            await near.until(lambda sink: sink.over)
            await pause(10.0)
            assert len(one.peer(two).sessions) == len(two.peer(one).sessions) == 1
            assert (len(one.live), len(two.live)) == (1, 1) and not one.lost and not two.lost
        finally:
            await one.close()
            await two.close()

    play(scene)


def test_a_lane_that_ends_at_once_leaves_the_old_one_in_use() -> None:
    async def scene(_: Wire) -> None:
        async with two_members() as (_, one, two):
            old = one.session(two)
            assert old.paths is not None
            one.mesh.seeker.dial_lane(two.mesh.identity.id, old.paths.current, 0.02, 1)
            await pause(1.0)
            assert len(one.peer(two).sessions) == 2 == len(two.peer(one).sessions)
            one.session(two).close("broken")
            await pause(30.0)
            assert one.session(two) is old and two.sees(one) and not one.lost and not two.lost

    play(scene)


def test_a_member_that_opens_lane_after_lane_is_stopped() -> None:
    async def scene(_: Wire) -> None:
        async with two_members() as (_, one, two):
            flows = []
            for lane in range(1, 20):
                flows.append(await one.open_tcp(two))  # each keeps its lane open
                session = one.session(two)
                assert session.paths is not None
                one.mesh.seeker.dial_lane(two.mesh.identity.id, session.paths.current, 0.02, lane)
                await pause(2.0)
            assert len(two.peer(one).sessions) <= 8 and one.sees(two)

    play(scene)


def test_a_lane_that_was_being_dialled_when_the_line_was_cut_keeps_nobody_waiting() -> None:
    async def scene(_: Wire) -> None:
        async with two_members() as (wire, one, two):
            wire.drops = lambda source, target, datagram: True
            for here, there in ((one, two), (two, one)):
                session = here.session(there)
                assert session.paths is not None
                here.mesh.seeker.dial_lane(there.mesh.identity.id, session.paths.current, 0.02, 1)
                session.close("the line was cut")
            await pause(0.5)
            widen(wire)
            await pause(3.0)
            assert one.sees(two) and two.sees(one)

    play(scene)
