"""Peer exchange among whole meshes: news travel, lies do not, and nobody can break others' sessions with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

from proxy_vpn.addresses import Address
from proxy_vpn.keys import Identity
from proxy_vpn.mesh.exchange import Exchange
from proxy_vpn.mesh.pex import RECORD_LIMIT_BYTES, REISSUE_S, make_record, read_record
from proxy_vpn.mesh.roster import Roster
from proxy_vpn.mesh.session import Session, State
from proxy_vpn.wire.messages import Peers, Record, SignedRecord, encode
from tests.support.mesh_world import KEY, UNIX_TIME_S, Member, Wire, identity, pause, two_members
from tests.support.virtual_loop import START_S, run_virtually

NOW = UNIX_TIME_S + START_S


def play(scene: Callable[[Wire, Member, Member], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with two_members() as (wire, one, two):
            await scene(wire, one, two)

    run_virtually(main())


def made_up(number: int) -> Identity:
    return Identity(number.to_bytes(32, "big"))


def large_record(who: Identity) -> bytes:
    """The largest record that is believed."""

    def record(name_chars: int) -> bytes:
        body = encode(Record(who.id, "x" * name_chars, [], NOW, NOW + 3600.0))
        return encode(SignedRecord(body, who.sign(b"pvpn1 record" + KEY.network_id + body)))

    return record(800 + RECORD_LIMIT_BYTES - len(record(800)))


def test_records_are_believed_and_passed_on() -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        three = Member(wire, identity(3), "three", "10.0.0.3")
        three.knows(two)
        await three.until_live(two)
        await one.until_live(three)
        record = make_record(KEY, made_up(1), "absent", [Address("10.0.0.77", 1)], NOW)
        one.session(two).send_control(Peers([record]))
        await pause(1.0)
        for member in (two, three):
            peer = member.mesh.roster.find("absent")
            assert peer is not None and peer.record == record and peer.session is None
        await three.close()

    play(scene)


def test_an_older_record_changes_nothing_and_is_not_passed_on() -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        newer, older = (make_record(KEY, made_up(1), "absent", [], NOW + issued) for issued in (5.0, 1.0))
        session = one.session(two)
        session.send_control(Peers([newer]))
        await pause(1.0)
        sent = two.demux.sent_bytes
        for _ in range(50):
            session.send_control(Peers([older, newer]))
            await pause(0.01)
        peer = two.mesh.roster.find("absent")
        assert peer is not None and peer.record == newer
        assert two.demux.sent_bytes - sent < 50 * 100

    play(scene)


def test_what_is_said_of_ourselves_is_not_believed() -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        record = make_record(KEY, identity(2), "impostor", [Address("10.0.0.66", 1)], NOW)
        sender, subject = (one, two) if two.mesh.identity.id == identity(2).id else (two, one)
        sender.session(subject).send_control(Peers([record]))
        await pause(1.0)
        assert [peer.identity for peer in subject.mesh.roster] == [sender.mesh.identity.id]

    play(scene)


def test_large_records_of_many_break_nobodys_session() -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        records = [large_record(made_up(number)) for number in range(1, 201)]
        assert len(records[0]) > RECORD_LIMIT_BYTES - 8
        for start in range(0, 200, 20):
            one.session(two).send_control(Peers(records[start : start + 20]))
        await pause(2.0)
        three = Member(wire, identity(3), "three", "10.0.0.3")
        three.knows(two)
        await three.until_live(two)
        await pause(10.0)
        assert not three.lost and not one.lost and not two.lost
        assert three.sees(two) and three.sees(one)
        await three.close()

    play(scene)


def test_made_up_devices_are_never_live_and_cost_few_probes() -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        victim = Address("198.41.0.4", 41641)
        records = [make_record(KEY, made_up(number), f"ghost-{number}", [victim], NOW) for number in range(1, 301)]
        wire.recording = True
        for start in range(0, 300, 30):
            one.session(two).send_control(Peers(records[start : start + 30]))
        await pause(30.0)
        shots = [datagram for source, target, datagram in wire.seen if target == victim and source == two.address]
        assert len(shots) < 300
        assert [peer.name for peer in two.mesh.live_peers()] == ["one"]

    play(scene)


def test_our_record_is_renewed_before_it_expires() -> None:
    async def scene(wire: Wire, one: Member, two: Member) -> None:
        await pause(1.0)
        first = two.peer(one).record
        await pause(3000.0)
        assert two.peer(one).record not in (b"", first)

    play(scene)


def test_a_live_peers_own_record_shows_a_clock_that_is_wrong() -> None:
    ahead: list[tuple[bytes, float]] = []
    there, third = made_up(1), made_up(2)
    exchange = Exchange(
        KEY,
        made_up(3),
        "here",
        Roster("home"),
        own_addresses=list,
        on_address=lambda device, address: None,
        sessions=list,
        unix_time=lambda: NOW,
        on_clock=lambda device, ahead_s: ahead.append((device, ahead_s)),
    )
    session = cast(Session, SimpleNamespace(member=SimpleNamespace(identity=there.id), peer_name="there"))

    def hear(who: Identity, off_s: float) -> list[tuple[bytes, float]]:
        ahead.clear()
        exchange.receive(session, [make_record(KEY, who, "name", [], NOW + off_s)])
        return list(ahead)

    for off_s in (3600.0, -3600.0, 6.3e7, -6.3e7, 121.0):
        assert hear(there, off_s) == [(there.id, off_s)]
    for off_s in (0.0, 119.0, -119.0, float("nan"), float("inf"), 1e300):
        assert hear(there, off_s) == []
    assert hear(third, 3600.0) == []  # a third peer's may be old


def test_a_move_that_one_peer_sees_opens_anothers_nat() -> None:
    """The third's NAT lets in only where the third has sent to: so it must hear of the new address, and sends there."""

    async def scene(wire: Wire, one: Member, two: Member) -> None:
        three = Member(wire, identity(3), "three", "10.0.0.3")
        three.knows(two)
        await three.until_live(two)
        await one.until_live(three)
        await pause(REISSUE_S)
        sent_to: set[Address] = set()

        def drops(source: Address, target: Address, datagram: bytes) -> bool:
            if source == three.address:
                sent_to.add(target)
            return target == three.address and source not in sent_to

        outside = Address("203.0.113.7", 40000)
        wire.drops = drops
        wire.translate(one.address, outside)
        await pause(60.0)
        session = three.session(one)
        assert session.paths is not None and session.paths.current.remote == outside and not one.lost
        assert outside in read_record(KEY, three.peer(one).record, NOW + 60.0)[1]
        await three.close()

    play(scene)


def test_addresses_that_never_rest_are_told_once_a_minute() -> None:
    told: list[Peers] = []
    session = cast(Session, SimpleNamespace(state=State.LIVE, send_control=told.append, link=_link(backlog=0)))
    ports = iter(range(1024, 60000))
    alone = [True]

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        exchange = Exchange(
            KEY,
            made_up(3),
            "here",
            Roster("home"),
            own_addresses=lambda: [Address("203.0.113.7", next(ports))],
            on_address=lambda device, address: None,
            sessions=lambda: [] if alone[0] else [session],
            unix_time=loop.time,
        )
        for _ in range(600):
            exchange.tick(loop.time())
            await pause(1.0)
        assert not told
        alone[0] = False
        for _ in range(600):
            exchange.tick(loop.time())
            await pause(1.0)
        assert 10 <= len(told) <= 14

    run_virtually(scene())


def _link(backlog: int) -> SimpleNamespace:
    return SimpleNamespace(engine=SimpleNamespace(backlog=backlog))
