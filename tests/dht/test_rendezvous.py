from __future__ import annotations

import itertools
import random

import pytest

from proxy_vpn.addresses import Address
from proxy_vpn.dht.events import Announced, LookupDone, PeersFound
from proxy_vpn.dht.node import Settings
from proxy_vpn.dht.rendezvous import ANNOUNCE_S, FRUITLESS_MAX_S, MAX_TOPICS, Rendezvous, Urgency
from tests.dht.world import World

HASH, NEXT = b"h" * 20, b"n" * 20
READER = Settings(families=(4,))


class Member:
    """A member of a network in the fake world, driven as the loop would do it."""

    def __init__(self, world: World, number: int, start: list[Address]) -> None:
        self.world = world
        self.address = Address(f"10.250.{number}.1", 40000 + number)
        self.topics = [HASH]
        self.port: int | None = self.address.port
        self.urgency = Urgency.NONE_LIVE
        self.found: dict[Address, float] = {}
        self.lookups: list[tuple[float, int]] = []
        self.announces: list[tuple[float, int]] = []
        self.node = world.add(self.address, READER)
        self.node.add_bootstrap(start, world.now)
        self.schedule = Rendezvous(self.node, world.rng.randbytes)
        self._taken = 0
        world.hooks.append(self.turn)
        world.timers.append(lambda: self.schedule.next_timer(self.urgency, self.port))

    def turn(self) -> None:
        now = self.world.now
        for event in self.world.events[self.address][self._taken :]:
            if isinstance(event, PeersFound):
                for peer in event.addresses:
                    self.found.setdefault(peer, now)
            if isinstance(event, LookupDone):
                self.lookups.append((now, event.asked))
            if isinstance(event, Announced):
                self.announces.append((now, event.stored))
            self.schedule.handle(event, self.port, now)
            self.world.wake(self.address)
        self._taken = len(self.world.events[self.address])
        due = self.schedule.next_timer(self.urgency, self.port)
        if (due is not None and due <= now) or set(self.topics[:MAX_TOPICS]) != {
            key[0] for key in self.schedule.watches
        }:
            self.schedule.step(self.topics, self.port, self.urgency, now)
            self.world.wake(self.address)


def network(size: int = 60) -> tuple[World, list[Address]]:
    world = World(loss=0.02)
    return world, world.populate(size)[:3]


def test_members_that_start_together_meet_within_seconds() -> None:
    world, start = network()
    members = [Member(world, number, start) for number in range(4)]
    begun = world.now
    everyone = {member.address for member in members}
    assert world.run(20.0, lambda: all(everyone <= set(member.found) for member in members))
    assert world.now - begun < 8.0


def test_the_schedule_of_one_that_stays_alone() -> None:
    world, start = network()
    member = Member(world, 1, start)
    begun = world.now
    world.run(60 * 60.0)
    times = [time - begun for time, _ in member.lookups]
    assert times[0] < 2.0
    for at in (2, 5, 10):
        assert any(0.85 * at <= time <= 1.15 * at + 3.5 for time in times)
    gaps = [two - one for one, two in itertools.pairwise(times[8:])]
    assert max(gaps) < 15.0
    announced = [time - begun for time, _ in member.announces]
    assert all(0.85 * ANNOUNCE_S < two - one < 1.15 * ANNOUNCE_S for one, two in itertools.pairwise(announced[1:]))
    assert 4 <= len(announced) <= 6
    # Only a search before an announce comes in between.
    assert sum(gap < 4.0 for gap in gaps) <= len(announced)
    # All but the few that precede an announce are cheap.
    assert sum(asked > 8 for _, asked in member.lookups) <= len(announced) + 3
    mine = sum(source == member.address for _, source, _, _ in world.sent)
    assert mine < 60 * 60 / 8 * 12


@pytest.mark.parametrize(("urgency", "most"), [(Urgency.SOME_LIVE, 26), (Urgency.ALL_KNOWN, 12)])
def test_those_with_peers_ask_less(urgency: Urgency, most: int) -> None:
    world, start = network()
    member = Member(world, 1, start)
    member.urgency = urgency
    world.run(60 * 60.0)
    assert 4 <= len(member.lookups) <= most


def test_losing_the_last_peer_makes_it_look_soon() -> None:
    world, start = network()
    member = Member(world, 1, start)
    member.urgency = Urgency.ALL_KNOWN
    world.run(300.0)
    member.urgency = Urgency.NONE_LIVE
    before = len(member.lookups)
    world.wake(member.address)
    assert world.run(5.0, lambda: len(member.lookups) > before)


def test_a_poke_looks_now_but_a_hundred_do_not_look_a_hundred_times() -> None:
    world, start = network()
    member = Member(world, 1, start)
    world.run(200.0)
    before, announced = len(member.lookups), len(member.announces)
    for _ in range(100):
        member.schedule.poke(world.now)
        world.wake(member.address)
        world.run(0.01)
    world.run(1.0)
    assert 1 <= len(member.lookups) - before <= 3
    assert world.run(6.0, lambda: len(member.announces) == announced + 1)


def test_topics_change_with_the_epoch() -> None:
    world, start = network()
    one, two = Member(world, 1, start), Member(world, 2, start)
    world.run(30.0)
    one.topics, two.topics = [HASH, NEXT], [NEXT]
    world.run(30.0)
    assert {key[0] for key in one.schedule.watches} == {HASH, NEXT}
    assert {key[0] for key in two.schedule.watches} == {NEXT}
    one.topics = [bytes([n]) * 20 for n in range(10)]
    world.run(1.0)
    assert len(one.schedule.watches) <= MAX_TOPICS


def test_without_a_port_nothing_is_announced() -> None:
    world, start = network()
    member = Member(world, 1, start)
    member.port = None
    world.run(120.0)
    assert member.announces == []
    assert len(member.lookups) >= 6
    assert not any(b"announce_peer" in datagram for _, source, _, datagram in world.sent if source == member.address)


def test_an_announce_that_nobody_stored_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world, start = network()
    member = Member(world, 1, start)
    servers = [node.server for node in world.nodes.values() if node.server is not None]
    for server in servers:
        monkeypatch.setattr(server, "_announce", lambda *_: False)
    world.run(100.0)
    assert [stored for _, stored in member.announces] == [0] * len(member.announces)
    assert len(member.announces) >= 2
    monkeypatch.undo()
    assert world.run(60.0, lambda: member.announces[-1][1] > 0)


def test_a_new_address_is_announced_soon() -> None:
    world, start = network()
    member = Member(world, 1, start)
    world.run(100.0)
    before = len(member.announces)
    member.schedule.announce_anew(6, world.now)
    world.run(5.0)
    assert len(member.announces) == before
    member.schedule.announce_anew(4, world.now)
    world.wake(member.address)
    assert world.run(5.0, lambda: len(member.announces) > before)


def test_a_network_that_comes_late_is_used() -> None:
    rng = random.Random(1)
    world, start = network()
    world.loss = 1.0
    members = [Member(world, number, start) for number in range(2)]
    world.run(rng.uniform(300, 400))
    world.loss = 0.0
    assert world.run(400.0, lambda: all(len(member.found) == 2 for member in members))


def test_lookups_of_a_dead_dht_back_off_to_five_minutes_and_its_return_ends_that() -> None:
    world, start = network()
    member = Member(world, 1, start)
    world.run(60.0)
    world.loss = 1.0
    begun = world.now
    world.run(60 * 60.0)
    times = [time for time, _ in member.lookups if time > begun]
    gaps = [two - one for one, two in itertools.pairwise(times)]
    assert max(gaps[:3]) < 40.0
    assert all(two > 1.2 * one for one, two in itertools.pairwise(gaps) if one < 100.0 and two < 200.0)
    assert all(0.7 * FRUITLESS_MAX_S < gap < 1.3 * FRUITLESS_MAX_S + 10.0 for gap in gaps[8:])
    late = begun + 30 * 60.0
    mine = [target for at, source, target, _ in world.sent if source == member.address and at > late]
    assert 0 < len(mine) < 6 * 60
    world.loss = 0.0
    assert world.run(330.0, lambda: member.lookups[-1][1] > 0 and member.node.halves[4].good(world.now) > 4)
    before = len(member.lookups)
    assert world.run(30.0, lambda: len(member.lookups) >= before + 2)
    world.run(120.0)
    recent = [time for time, _ in member.lookups if time > world.now - 60.0]
    assert len(recent) >= 4


def test_one_that_never_had_an_answer_backs_off_too() -> None:
    world, start = network()
    world.loss = 1.0
    member = Member(world, 1, start)
    begun = world.now
    world.run(60 * 60.0)
    assert len([time for time, _ in member.lookups if time > begun + 15 * 60.0]) <= 14
    mine = [at for at, source, _, _ in world.sent if source == member.address and at > begun + 15 * 60.0]
    assert len(mine) < 45 * 4
    member.schedule.poke(world.now)
    before = len(member.lookups)
    world.wake(member.address)
    world.run(60.0)
    assert len(member.lookups) >= before + 5
