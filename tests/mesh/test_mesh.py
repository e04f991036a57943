"""Whole meshes on a wire: they meet, agree, lose and find each other again, whatever the order of things."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from proxy_vpn.addresses import Address, Scope
from proxy_vpn.errors import FlowError, Status, UsageError
from proxy_vpn.keys import NetworkKey
from proxy_vpn.mesh.candidates import Source
from proxy_vpn.mesh.session import State
from proxy_vpn.net.udp import Path
from proxy_vpn.wire.probe import SMALL_PROBE_BYTES
from tests.support.engine_pair import PAIRINGS
from tests.support.mesh_world import KEY, Member, Wire, identity, ordered, pause, two_members
from tests.support.virtual_loop import run_virtually

pairings = pytest.mark.parametrize("engines", PAIRINGS)
Scene = Callable[[Wire], Coroutine[Any, Any, None]]


@asynccontextmanager
async def closing(*members: Member) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for member in members:
            await member.close()


def play(scene: Scene) -> None:
    async def main() -> None:
        await scene(Wire())

    run_virtually(main())


def now() -> float:
    return asyncio.get_running_loop().time()


def one_session_each(one: Member, two: Member) -> bool:
    """Both have exactly one session, and it is the same connection."""
    sessions = [member.mesh._sessions for member in (one, two)]
    if any(len(each) != 1 for each in sessions):
        return False
    (first,), (second,) = sessions
    return first.state is State.LIVE is second.state and first.initiator is not second.initiator


# --- meeting --------------------------------------------------------------------------------------------------


@pairings
@pytest.mark.parametrize("knows", ["lower", "higher", "both"])
def test_two_meet_by_address_and_have_one_session(engines: tuple[str, str], knows: str) -> None:
    async def scene(wire: Wire) -> None:
        low, high = ordered(1, 2)
        one = Member(wire, low, "one", "10.0.0.1", engine=engines[0])
        two = Member(wire, high, "two", "10.0.0.2", engine=engines[1])
        async with closing(one, two):
            began = now()
            if knows != "higher":
                one.knows(two)
            if knows != "lower":
                two.knows(one)
            await one.until_live(two)
            await two.until_live(one)
            assert now() - began < 2.0
            await pause(30.0)
            assert one_session_each(one, two)
            assert [len(one.live), len(two.live), one.lost, two.lost] == [1, 1, [], []]
            assert one.peer(two).addresses == [two.address] and two.peer(one).addresses[0].ip == "10.0.0.1"

    play(scene)


@pytest.mark.parametrize("latency_s", [0.001, 0.05, 0.3])
@pytest.mark.parametrize("wait_s", [0.0, 1.0])
def test_two_that_dial_at_once_agree_on_one_session(
    latency_s: float, wait_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy_vpn.mesh.seeker.HIGHER_ID_WAITS_S", wait_s)

    async def scene(wire: Wire) -> None:
        wire.latency_s = latency_s
        low, high = ordered(1, 2)
        one, two = Member(wire, low, "one", "10.0.0.1"), Member(wire, high, "two", "10.0.0.2")
        async with closing(one, two):
            one.knows(two)
            two.knows(one)
            await one.until_live(two)
            await two.until_live(one)
            sink = await one.open_tcp(two)
            (await two.until_sink()).echo = True
            for _ in range(30):
                sink.flow.write(b"x")
                await pause(1.0)
            assert one_session_each(one, two)
            assert one.session(two).initiator, "the lower id's connection stays"
            assert len(sink.data) >= 28 and not sink.events, "a flow opened meanwhile is not lost"
            assert not one.lost and not two.lost

    play(scene)


@pytest.mark.parametrize("seed", range(4))
def test_two_meet_though_a_fifth_of_all_packets_is_lost(seed: int) -> None:
    async def main() -> None:
        wire = Wire(loss=0.2, seed=seed)
        low, high = ordered(1, 2)
        one, two = Member(wire, low, "one", "10.0.0.1"), Member(wire, high, "two", "10.0.0.2")
        async with closing(one, two):
            one.knows(two)
            two.knows(one)
            await one.until_live(two, 60.0)
            await two.until_live(one, 60.0)
            wire.loss = 0.0
            await pause(30.0)
            assert one_session_each(one, two)

    run_virtually(main())


def test_a_third_is_found_by_peer_exchange() -> None:
    async def scene(wire: Wire) -> None:
        one, two, three = (Member(wire, identity(n), f"peer-{n}", f"10.0.0.{n}") for n in (1, 2, 3))
        async with closing(one, two, three):
            two.knows(one)
            three.knows(one)
            await two.until_live(three)
            await three.until_live(two)
            await pause(10.0)
            for near, far in ((one, two), (two, three), (three, one)):
                assert near.sees(far) and far.sees(near)
            assert two.peer(three).name == "peer-3"
            await two.open_tcp(three)

    play(scene)


def test_ten_members_make_a_full_mesh_from_one_address() -> None:
    async def scene(wire: Wire) -> None:
        members = [Member(wire, identity(n), f"peer-{n}", f"10.0.0.{n}") for n in range(1, 11)]
        async with closing(*members):
            for member in members[1:]:
                member.knows(members[0])
            for near in members:
                for far in members:
                    if near is not far:
                        await near.until_live(far, 60.0)
            await pause(20.0)
            assert all(len(member.mesh._sessions) == 9 for member in members)

    play(scene)


def test_members_of_another_network_are_silent_to_each_other() -> None:
    async def scene(wire: Wire) -> None:
        other = NetworkKey("home", KEY.network_id, b"z" * 32)
        one, two = Member(wire, identity(1), "one", "10.0.0.1"), Member(wire, identity(2), "two", "10.0.0.2", key=other)
        wire.recording = True
        async with closing(one, two):
            one.knows(two)
            await pause(60.0)
            assert wire.seen and not [source for source, _, _ in wire.seen if source == two.address]
            assert not one.live and not two.live

    play(scene)


def test_two_networks_share_one_socket() -> None:
    async def scene(wire: Wire) -> None:
        work = NetworkKey("work", b"w" * 16, b"w" * 32)
        one, two = Member(wire, identity(1), "one", "10.0.0.1"), Member(wire, identity(2), "two", "10.0.0.2")
        one_work = Member(wire, identity(3), "one", "10.0.0.1", key=work, demux=one.demux, keyring=one.keyring)
        two_work = Member(wire, identity(4), "two", "10.0.0.2", key=work, demux=two.demux, keyring=two.keyring)
        async with closing(one, two, one_work, two_work):
            one.knows(two)
            one_work.knows(two_work)
            await one.until_live(two)
            await one_work.until_live(two_work)
            for near, far in ((one, two), (one_work, two_work)):
                sink = await near.open_tcp(far)
                (await far.until_sink()).echo = True
                sink.flow.write(b"hello")
                await sink.until(lambda sink: sink.data == b"hello")

    play(scene)


def test_ones_own_address_is_recognized_and_left_alone() -> None:
    async def scene(wire: Wire) -> None:
        one = Member(wire, identity(1), "one", "10.0.0.1")
        wire.recording = True
        async with closing(one):
            one.knows(one)
            await pause(120.0)
            assert len(wire.seen) <= 2 and not one.live and not one.warnings

    play(scene)


# --- losing and finding again ---------------------------------------------------------------------------------


def test_a_goodbye_is_heard_and_the_peer_is_found_again_when_it_returns() -> None:
    async def scene(wire: Wire) -> None:
        one = Member(wire, identity(1), "one", "10.0.0.1")
        two = Member(wire, identity(2), "two", "10.0.0.2")
        async with closing(one):
            two.knows(one)
            await one.until_live(two)
            await two.until_live(one)
            began = now()
            await two.close()
            await one.until_lost()
            assert now() - began < 3.0
            await pause(20.0)
            again = Member(wire, identity(2), "two", "10.0.0.2")
            async with closing(again):
                again.knows(one)
                began = now()
                await one.until_live(again)
                assert now() - began < 2.0 and len(one.live) == 2

    play(scene)


@pytest.mark.parametrize("which", [0, 1])
def test_who_comes_back_is_met_at_once_whoever_is_to_dial(which: int) -> None:
    async def scene(wire: Wire) -> None:
        names = ordered(1, 2)
        one = Member(wire, names[1 - which], "one", "10.0.0.1")
        two = Member(wire, names[which], "two", "10.0.0.2")
        async with closing(one):
            two.knows(one)
            await one.until_live(two)
            await pause(30.0)
            await two.close()
            await one.changes.until(lambda: len(one.lost) == 1)
            await pause(0.3)
            again = Member(wire, names[which], "two", "10.0.0.2")
            async with closing(again):
                again.knows(one)
                began = now()
                await one.until_live(again)
                assert now() - began < 20 * wire.latency_s

    play(scene)


@pytest.mark.parametrize("dialer", ["survivor", "newcomer"])
def test_a_restart_replaces_the_old_session_soon_and_its_flows_are_lost(dialer: str) -> None:
    async def scene(wire: Wire) -> None:
        low, high = ordered(1, 2)
        whos = (low, high) if dialer == "survivor" else (high, low)
        one, old = Member(wire, whos[0], "one", "10.0.0.1"), Member(wire, whos[1], "two", "10.0.0.2")
        async with closing(one):
            one.knows(old)
            old.knows(one)
            await one.until_live(old)
            await old.until_live(one)
            sink = await one.open_tcp(old)
            sink.flow.write(b"hello")
            await (await old.until_sink()).until(lambda far: far.data)
            old.vanish()
            await pause(1.0)
            again = Member(wire, whos[1], "two", "10.0.0.2")
            async with closing(again):
                began = now()
                again.knows(one)
                await sink.until(lambda sink: sink.over)
                assert sink.events == ["lost"]
                await one.changes.until(lambda: one.knows_boot_of(again))
                assert now() - began < 3.0
                await again.until_live(one)
                await (await one.open_tcp(again)).until(lambda sink: True)
                await pause(20.0)
                assert one_session_each(one, again) and not one.warnings and not again.warnings
            old.mesh.seeker.stopped = True
            for session in tuple(old.mesh._sessions):
                session.close("gone")
            await old.close()

    play(scene)


def test_two_machines_with_one_identity_the_second_is_refused_and_both_are_warned() -> None:
    async def scene(wire: Wire) -> None:
        one = Member(wire, identity(1), "one", "10.0.0.1")
        first = Member(wire, identity(2), "two", "10.0.0.2")
        async with closing(one, first):
            first.knows(one)
            await one.until_live(first)
            await first.until_live(one)
            sink = await one.open_tcp(first)
            second = Member(wire, identity(2), "two", "10.0.0.3")
            async with closing(second):
                second.knows(one)
                await pause(20.0)
                assert one.knows_boot_of(first)
                assert sink.events == [], "who was there first keeps its flows"
                assert [text for text in one.warnings if "identity" in text]
                assert [text for text in second.warnings if "identity" in text]
                assert len(one.live) == 1 and not one.lost
                assert len(second.live) <= 2, "it does not come and go every second"

    play(scene)


def test_a_silent_peer_is_lost_in_the_end_and_found_when_it_is_back() -> None:
    async def scene(wire: Wire) -> None:
        async with two_members() as (wire, one, two):
            sink = await one.open_tcp(two)
            wire.drops = lambda source, target, datagram: True
            began = now()
            await one.until_lost()
            await two.until_lost()
            assert 15.0 < now() - began < 60.0
            assert sink.events == ["lost"]
            await pause(60.0)
            wire.drops = lambda source, target, datagram: False
            began = now()
            await one.until_live(two, 60.0)
            await two.until_live(one, 60.0)
            assert now() - began < 35.0
            await pause(15.0)
            assert one_session_each(one, two)

    play(scene)


def test_flows_survive_a_silence_of_ten_seconds_and_go_on_at_once() -> None:
    async def scene(wire: Wire) -> None:
        async with two_members() as (wire, one, two):
            sink = await one.open_tcp(two)
            (await two.until_sink()).echo = True
            wire.drops = lambda source, target, datagram: True
            sink.flow.write(b"into the dark")
            await pause(10.0)
            wire.drops = lambda source, target, datagram: False
            began = now()
            await sink.until(lambda sink: sink.data == b"into the dark")
            assert now() - began < 3.0
            assert not one.lost and not two.lost

    play(scene)


def test_idle_for_an_hour_and_flows_are_still_there() -> None:
    async def scene(wire: Wire) -> None:
        async with two_members() as (_, one, two):
            sink = await one.open_tcp(two)
            (await two.until_sink()).echo = True
            await pause(3600.0)
            sink.flow.write(b"still there?")
            await sink.until(lambda sink: sink.data == b"still there?")
            assert not one.lost and not two.lost and len(one.live) == 1

    play(scene)


def test_one_side_that_gave_up_gets_through_again_though_the_other_noticed_nothing() -> None:
    """The path was dead for one side only long enough to give up; the other must not hold on to the dead session."""

    async def scene(wire: Wire) -> None:
        async with two_members() as (wire, one, two):
            await pause(15.0)
            wire.drops = lambda source, target, datagram: True
            one.session(two).close("gave up")
            wire.drops = lambda source, target, datagram: False
            began = now()
            await one.until_live(two)
            sink = await one.open_tcp(two)
            (await two.until_sink()).echo = True
            for _ in range(20):
                sink.flow.write(b"x")
                await pause(1.0)
            assert now() - began < 30.0
            assert not sink.events and len(sink.data) >= 18, "the new session stays"
            assert one_session_each(one, two)

    play(scene)


# --- paths ----------------------------------------------------------------------------------------------------


@pairings
def test_a_peer_behind_a_nat_that_forgets_keeps_its_flows(engines: tuple[str, str]) -> None:
    async def scene(wire: Wire) -> None:
        low, high = ordered(1, 2)
        one = Member(wire, low, "one", "10.0.0.1", engine=engines[0])
        two = Member(wire, high, "two", "10.0.0.2", engine=engines[1])
        async with closing(one, two):
            wire.translate(one.address, Address("198.41.0.4", 6000))
            one.knows(two)
            await one.until_live(two)
            await two.until_live(one)
            sink = await one.open_tcp(two)
            far = await two.until_sink()
            far.echo = True
            for port in (6001, 6002, 6003):
                wire.translate(one.address, Address("198.41.0.4", port))
                before, began = len(sink.data), now()
                sink.flow.write(bytes(50_000))
                await sink.until_received(before + 50_000)
                assert now() - began < 8.0
            assert not sink.events and not one.lost and not two.lost

    play(scene)


def test_udp_comes_back_to_a_peer_that_moved_and_never_stops_sending() -> None:
    async def scene(wire: Wire) -> None:
        async with two_members() as (wire, one, two):
            wire.translate(one.address, Address("198.41.0.4", 6000))
            await pause(5.0)
            near = await one.mesh.open_udp(one.peer(two), 53)
            far = await two.until_udp()
            heard: list[bytes] = []
            near.on_datagram = heard.append
            far.on_datagram = far.send
            for _ in range(20):
                near.send(b"call")
                await pause(0.02)
            assert len(heard) >= 15
            wire.translate(one.address, Address("198.41.0.4", 6001))
            heard.clear()
            for _ in range(500):
                near.send(b"call")
                await pause(0.02)
            assert len(heard) >= 250, "half of ten seconds at least"

    play(scene)


def test_another_address_takes_over_when_the_first_dies() -> None:
    async def scene(wire: Wire) -> None:
        low, high = ordered(1, 2)
        one = Member(wire, low, "one", "10.0.0.1")
        two = Member(wire, high, "two", ["10.0.0.2", "10.1.0.2"])
        async with closing(one, two):
            one.knows(two)
            await one.until_live(two)
            await two.until_live(one)
            sink = await one.open_tcp(two)
            (await two.until_sink()).echo = True
            await pause(10.0)
            dead = two.address
            wire.drops = lambda source, target, datagram: dead in (source, target)
            began = now()
            sink.flow.write(b"which way?")
            await sink.until(lambda sink: sink.data == b"which way?")
            assert now() - began < 15.0 and not one.lost
            assert one.session(two).link.path == Path("10.0.0.1", 0, Address("10.1.0.2", dead.port))

    play(scene)


def test_pings_measure_the_path() -> None:
    async def scene(wire: Wire) -> None:
        async with two_members(latency_s=0.03) as (wire, one, two):
            rtt_s, path = await one.mesh.ping(one.peer(two))
            assert rtt_s == pytest.approx(0.06, abs=0.005) and path.remote == two.address
            wire.drops = lambda source, target, datagram: True
            with pytest.raises(FlowError) as caught:
                await one.mesh.ping(one.peer(two))
            assert caught.value.status is Status.TIMEOUT
            wire.drops = lambda source, target, datagram: False

    play(scene)


# --- offline, names, forgetting -------------------------------------------------------------------------------


def test_a_peer_that_is_offline_is_unreachable_after_five_seconds() -> None:
    async def scene(wire: Wire) -> None:
        one = Member(wire, identity(1), "one", "10.0.0.1")
        async with closing(one):
            peer = one.mesh.roster.load(b"g" * 32, "gone", [Address("10.0.0.9", 1)], 1.0)
            for opening in (one.mesh.open_tcp(peer, 22), one.mesh.open_udp(peer, 53), one.mesh.ping(peer)):
                began = now()
                with pytest.raises(FlowError) as caught:
                    await opening
                assert caught.value.status is Status.UNREACHABLE and "gone" in str(caught.value)
                assert now() - began == pytest.approx(5.0, abs=0.5)

    play(scene)


def test_a_flow_to_a_peer_that_comes_in_time_waits_for_it() -> None:
    async def scene(wire: Wire) -> None:
        one = Member(wire, identity(1), "one", "10.0.0.1")
        async with closing(one):
            one.mesh.roster.load(identity(2).id, "two", [], 1.0)
            peer = one.mesh.roster.find("two")
            assert peer is not None
            opening = asyncio.ensure_future(one.mesh.open_tcp(peer, 22))
            await pause(2.0)
            two = Member(wire, identity(2), "two", "10.0.0.2")
            async with closing(two):
                two.knows(one)
                assert (await opening).target.port == 22
                assert one.mesh._waiters.get(peer.identity, []) == []

    play(scene)


def test_two_that_bear_one_name_are_told_apart_and_the_user_is_told() -> None:
    async def scene(wire: Wire) -> None:
        one = Member(wire, identity(1), "one", "10.0.0.1")
        first, second = Member(wire, identity(2), "box", "10.0.0.2"), Member(wire, identity(3), "box", "10.0.0.3")
        async with closing(one, first, second):
            first.knows(one)
            await one.until_live(first)
            second.knows(one)
            await one.until_live(second)
            assert one.peer(first).name == "box"
            assert one.peer(second).name == f"box-{second.mesh.identity.id[:2].hex()}"
            assert any("box" in text for text in one.warnings)
            flow = await one.mesh.open_tcp(one.peer(second), 80)
            assert flow.peer_name == one.peer(second).name and second.offers and not first.offers

    play(scene)


def test_a_forgotten_peer_makes_room_for_a_reinstalled_machine() -> None:
    async def scene(wire: Wire) -> None:
        one = Member(wire, identity(1), "one", "10.0.0.1")
        old = Member(wire, identity(2), "box", "10.0.0.2")
        async with closing(one):
            old.knows(one)
            await one.until_live(old)
            await old.close()
            await one.until_lost()
            new = Member(wire, identity(3), "box", "10.0.0.2")
            async with closing(new):
                new.knows(one)
                await one.until_live(new)
                assert one.peer(new).name.startswith("box-")
                one.mesh.forget("box")
                await one.changes.until(lambda: one.mesh.roster.find("box") is not None, 60.0)
                assert one.peer(new).name == "box"
                with pytest.raises(UsageError):
                    one.mesh.forget("nobody")

    play(scene)


def test_what_a_peer_was_called_and_where_it_was_is_remembered() -> None:
    async def scene(wire: Wire) -> None:
        async with two_members() as (_, one, two):
            peer = one.peer(two)
            assert (
                peer.last_seen > 0 and peer.addresses == [two.address] and one.mesh.roster.pins["two"] == peer.identity
            )
            await pause(5.0)
            one.session(two).close("x")
            assert peer.sent_bytes > 0 and peer.received_bytes > 0

    play(scene)


# --- the search -----------------------------------------------------------------------------------------------


def test_a_wrong_address_is_tried_ever_more_slowly_and_the_right_one_still_found() -> None:
    async def scene(wire: Wire) -> None:
        one = Member(wire, identity(1), "one", "10.0.0.1")
        wire.recording = True
        async with closing(one):
            one.mesh.seeker.found(Address("10.0.0.2", 41641), Source.USER)
            await pause(600.0)
            probes = [datagram for _, target, datagram in wire.seen if target.ip == "10.0.0.2"]
            assert 10 < len(probes) < 100 and all(len(datagram) == SMALL_PROBE_BYTES for datagram in probes)
            two = Member(wire, identity(2), "two", "10.0.0.2")
            async with closing(two):
                await one.until_live(two, 60.0)

    play(scene)


def test_loopback_from_the_dht_is_not_believed() -> None:
    async def scene(wire: Wire) -> None:
        one = Member(wire, identity(1), "one", "10.0.0.1")
        wire.recording = True
        async with closing(one):
            one.mesh.seeker.found(Address("127.0.0.1", 41641), Source.DHT, Scope.GLOBAL)
            one.mesh.seeker.found(Address("10.0.0.7", 41641), Source.DHT, Scope.GLOBAL)
            one.mesh.seeker.found(Address("198.41.0.4", 53), Source.DHT, Scope.GLOBAL)
            await pause(10.0)
            assert not wire.seen

    play(scene)


def test_a_peer_that_never_finishes_its_handshake_is_tried_ever_more_slowly() -> None:
    async def scene(wire: Wire) -> None:
        one, two = Member(wire, identity(1), "one", "10.0.0.1"), Member(wire, identity(2), "two", "10.0.0.2")
        wire.drops = lambda source, target, datagram: datagram[0] >= 0x40
        async with closing(one, two):
            one.knows(two)
            sessions: set[object] = set()
            for _ in range(300):
                await pause(1.0)
                sessions |= one.mesh._sessions
                assert len(one.mesh._sessions) <= 2 and len(two.mesh._sessions) <= 2
            assert not one.live and not two.live
            assert 4 < len(sessions) < 60
            wire.drops = lambda source, target, datagram: False
            await one.until_live(two, 90.0)

    play(scene)


def test_a_wrong_clock_is_warned_of_once_and_does_not_keep_two_apart() -> None:
    async def scene(wire: Wire) -> None:
        low, high = ordered(1, 2)
        one = Member(wire, low, "one", "10.0.0.1")
        two = Member(wire, high, "two", "10.0.0.2", clock_offset_s=-7200.0)
        for near, far in ((one, two), (two, one)):
            near.mesh.roster.load(far.mesh.identity.id, far.mesh.name, [far.address], 1.0)
        async with closing(one, two):
            await pause(130.0)  # in the first two minutes nothing older than our start is answered
            for near, far in ((one, two), (two, one)):
                near.mesh.seeker.found(far.address, Source.MEMORY, identity=far.mesh.identity.id)
            await one.until_live(two, 60.0)
            await two.until_live(one, 60.0)
            for member in (one, two):
                assert len([text for text in member.warnings if "clock" in text]) <= 1
            assert one.warnings or two.warnings

    play(scene)


def test_stopping_leaves_nothing_behind() -> None:
    async def scene(wire: Wire) -> None:
        one, two = Member(wire, identity(1), "one", "10.0.0.1"), Member(wire, identity(2), "two", "10.0.0.2")
        one.knows(two)
        await one.until_live(two)
        await one.open_tcp(two)
        await two.close()
        await one.close()
        wire.recording = True
        assert not one.demux.links and not two.demux.links
        await pause(300.0)
        assert not wire.seen and not one.mesh._sessions and not two.mesh._sessions

    play(scene)


def test_what_knocks_while_we_stop_is_not_let_in() -> None:
    async def scene(wire: Wire) -> None:
        one, two, three = (Member(wire, identity(n), f"peer-{n}", f"10.0.0.{n}") for n in (1, 2, 3))
        async with closing(two, three):
            two.knows(one)
            await one.until_live(two)
            await one.open_tcp(two)
            stopping = asyncio.ensure_future(one.mesh.close())
            three.mesh.seeker.found(one.address, Source.USER)
            await stopping
            assert not one.mesh._sessions and not one.demux.links
            one.demux.close()
            await pause(10.0)
            assert not three.sees(one)

    play(scene)
