from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_vpn.addresses import Address
from proxy_vpn.dht.events import Announced, ExternalAddress, LookupDone, PeersFound
from proxy_vpn.dht.ids import id_fits
from proxy_vpn.dht.limits import BURST, QUESTIONS_PER_IP, RATE_PER_S, WINDOW_S
from proxy_vpn.dht.node import DhtNode, Settings
from proxy_vpn.dht.table import K
from proxy_vpn.wire.krpc import (
    FindNode,
    GetPeers,
    NodeInfo,
    Ping,
    Query,
    Reply,
    decode,
    encode,
)
from tests.dht.world import World

HASH = b"\x77" * 20
A, B = Address("10.200.0.1", 41000), Address("10.201.0.1", 42000)
READER = Settings(families=(4,))


def peers(world: World, who: Address) -> set[Address]:
    found = [event for event in world.events[who] if isinstance(event, PeersFound)]
    return {address for event in found for address in event.addresses}


def events(world: World, who: Address, kind: type) -> list[object]:
    return [event for event in world.events[who] if isinstance(event, kind)]


def meet(world: World, bootstrap: list[Address]) -> None:
    """A announces, then B looks: both read-only, through the others only."""
    for who in (A, B):
        world.add(who, READER).add_bootstrap(bootstrap, world.now)
    world.run(2.0)
    assert world.nodes[A].search(HASH, 4, world.now)
    world.wake(A)
    assert world.run(10.0, lambda: bool(events(world, A, LookupDone)))
    assert world.nodes[A].announce(HASH, 4, A.port, world.now)
    world.wake(A)
    assert world.run(10.0, lambda: bool(events(world, A, Announced)))
    assert world.nodes[B].search(HASH, 4, world.now)
    world.wake(B)


def test_two_readers_meet_in_a_large_lossy_network() -> None:
    world = World(loss=0.05)
    nodes = world.populate(250, dead=0.3)
    meet(world, [address for address in nodes if address in world.nodes][:3])
    start = world.now
    assert world.run(10.0, lambda: A in peers(world, B))
    assert world.now - start < 3.0
    (announced,) = events(world, A, Announced)
    assert isinstance(announced, Announced)
    assert announced.stored >= 5
    world.run(10.0)
    (done,) = events(world, B, LookupDone)
    assert isinstance(done, LookupDone)
    assert done.answered >= K
    assert world.nodes[B].halves[4].home_bits(world.now) > 0


def test_the_announce_reaches_the_nearest_nodes() -> None:
    world = World(seed=2)
    world.populate(200)
    meet(world, [Address("10.0.0.1", 6881)])
    target = int.from_bytes(HASH, "big")
    serving = [node for node in world.nodes.values() if node.server is not None]
    nearest = sorted(serving, key=lambda node: int.from_bytes(node.halves[4].id, "big") ^ target)[:K]
    holding = sum(A in node.server.peers.get(HASH, 4, world.now) for node in nearest if node.server)
    assert holding >= K - 1


def test_one_single_node_is_enough() -> None:
    world = World()
    world.populate(1)
    meet(world, [Address("10.0.0.1", 6881)])
    assert world.run(5.0, lambda: A in peers(world, B))


def test_a_reader_answers_nothing_and_says_so() -> None:
    world = World()
    world.populate(30)
    meet(world, [Address("10.0.0.1", 6881)])
    world.run(3.0)
    node = world.nodes[B]
    for call in (Ping(), FindNode(HASH), GetPeers(HASH)):
        node.receive(encode(Query(b"abcd", bytes(20), call)), A, world.now)
    assert list(node.datagrams()) == []
    queries = [decode(datagram) for _, source, _, datagram in world.sent if source == B]
    assert queries
    for query in queries:
        assert isinstance(query, Query)
        assert query.read_only
        assert len(query.tid) == 4
    # Nobody takes a read-only node into its table.
    assert all(A not in [c.address for c in n.halves[4].table] for n in world.nodes.values())


def test_cheap_searches_ask_only_the_nearest_again() -> None:
    world = World()
    world.populate(100)
    meet(world, [Address("10.0.0.1", 6881)])
    assert world.run(10.0, lambda: bool(events(world, B, LookupDone)))
    world.run(3.0)
    world.events[B].clear()
    world.sent.clear()
    assert world.nodes[B].search(HASH, 4, world.now, cheap=True)
    world.wake(B)
    assert world.run(5.0, lambda: bool(events(world, B, LookupDone)))
    (done,) = events(world, B, LookupDone)
    assert isinstance(done, LookupDone)
    assert done.asked == K
    assert A in peers(world, B)
    asked = [datagram for _, source, _, datagram in world.sent if source == B]
    assert sum(b"get_peers" in datagram for datagram in asked) == K
    assert max(map(len, asked)) <= 110


def test_restart_from_memory_without_bootstrap_and_offline_at_first() -> None:
    world = World()
    world.populate(120)
    meet(world, [Address("10.0.0.1", 6881)])
    world.run(5.0)
    saved = world.nodes[B].export(world.now)
    assert len(saved.nodes) >= K
    assert [info_hash for info_hash, _ in saved.closest] == [HASH]
    assert saved.ids == []
    world.loss = 1.0
    node = world.add(B, READER, saved)
    world.wake(B)
    node.search(HASH, 4, world.now)
    world.run(30.0)
    assert len(node.export(world.now).nodes) == len(saved.nodes)
    assert node.halves[4].closest(HASH) is not None
    world.loss = 0.0
    assert node.search(HASH, 4, world.now)
    world.wake(B)
    assert world.run(5.0, lambda: A in peers(world, B))


def test_a_dead_network_is_asked_sparingly() -> None:
    world = World()
    world.add(A, READER).add_bootstrap([Address(f"10.99.{n}.1", 6881) for n in range(6)], world.now)
    world.run(3600.0)
    assert len(world.sent) < 6 * 40


def test_pace() -> None:
    world = World()
    nodes = world.populate(200)
    node = world.add(A, READER)
    node.add_bootstrap(nodes[:5], world.now)
    start = world.now
    for number in range(30):
        node.search(bytes([number]) * 20, 4, world.now)
    world.run(20.0)
    mine = [(at, target) for at, source, target, _ in world.sent if source == A]
    for second in range(20):
        sent = sum(at <= start + second for at, _ in mine)
        assert sent <= BURST + RATE_PER_S * second + 1
    per_ip = Counter((target.ip, int((at - start) // WINDOW_S)) for at, target in mine)
    assert max(per_ip.values()) <= 2 * QUESTIONS_PER_IP


def test_only_the_exact_answer_counts() -> None:
    node = DhtNode(READER, World().rng.randbytes, 0.0)
    asked, other = Address("192.0.2.1", 6881), Address("192.0.2.1", 6882)
    node.add_bootstrap([asked], 0.0)
    node.poll(0.0)
    ((datagram, target),) = node.datagrams()
    assert target == asked
    query = decode(datagram)
    reply = Reply(query.tid, b"\x01" * 20, nodes=(), ip=Address("198.51.100.1", 5))
    node.receive(encode(reply), other, 0.1)
    node.receive(encode(Reply(b"none", b"\x01" * 20)), asked, 0.1)
    assert len(node.halves[4].table) == 0
    node.receive(encode(reply), asked, 0.2)
    assert [contact.address for contact in node.halves[4].table] == [asked]
    assert node.halves[4].bootstrap_reached
    (contact,) = node.halves[4].table
    assert contact.round_trip_s == 0.2
    # A second copy is not awaited any more.
    node.receive(encode(Reply(query.tid, b"\x02" * 20)), asked, 0.3)
    assert [contact.id for contact in node.halves[4].table] == [b"\x01" * 20]


def test_peers_and_nodes_nearer_to_us_than_their_source_are_ignored() -> None:
    node = DhtNode(READER, World().rng.randbytes, 0.0)
    source = Address("8.8.4.4", 6881)
    node.add_bootstrap([source], 0.0)
    node.poll(0.0)
    list(node.datagrams())
    node.search(HASH, 4, 0.0)
    node.poll(0.0)
    (query,) = (decode(datagram) for datagram, _ in node.datagrams() if b"get_peers" in datagram)
    good = Address("9.9.9.9", 5000)
    bad = [
        Address("127.0.0.1", 5000),
        Address("192.168.1.1", 5000),
        Address("224.0.0.1", 5000),
        Address("9.9.9.9", 53),
        Address("9.9.9.9", 0),
        Address("::1", 5000),
    ]
    infos = [NodeInfo(bytes([n]) * 20, address) for n, address in enumerate([good, *bad[:3]], 1)]
    node.receive(encode(Reply(query.tid, b"\x09" * 20, tuple(infos), (*bad, good), b"t")), source, 0.1)
    (found,) = (event for event in node.events() if isinstance(event, PeersFound))
    assert found == PeersFound(HASH, (good,), source)
    assert {target for _, target in node.datagrams()} == {good}


def test_three_votes_make_an_external_address_and_an_id_to_match() -> None:
    node = DhtNode(READER, World().rng.randbytes, 0.0)
    sources = [Address(f"8.8.{n}.4", 6881) for n in range(3)]
    seen = Address("9.9.9.9", 4242)
    node.add_bootstrap(sources, 0.0)
    node.poll(0.0)
    queries = {target: decode(datagram) for datagram, target in node.datagrams()}
    for number, source in enumerate(sources, 1):
        assert not list(node.events())
        node.receive(encode(Reply(queries[source].tid, bytes([number]) * 20, (), ip=seen)), source, 0.1)
    assert list(node.events()) == [ExternalAddress(seen)]
    assert id_fits(node.halves[4].id, seen.ip)
    assert len(node.halves[4].table) == 3


def test_nothing_is_sent_to_what_is_no_unicast_address() -> None:
    node = DhtNode(READER, World().rng.randbytes, 0.0)
    bad = [Address("224.0.0.1", 6881), Address("255.255.255.255", 6881), Address("0.0.0.0", 1), Address("10.0.0.1", 0)]
    node.add_bootstrap(bad, 0.0)
    node.add_nodes(bad)
    node.poll(0.0)
    assert list(node.datagrams()) == []


def test_the_other_family_is_learnt_from_the_first() -> None:
    world = World()
    both = Settings(families=(4, 6), serve=True)
    server, six = world.add(Address("10.0.0.1", 6881), both), Address("fd00::7", 6881)
    world.nodes[six] = server
    world.events[six] = []
    third = Address("fd00:0:0:9::1", 6881)
    world.add(third, Settings(families=(6,), serve=True))
    server.adopt([NodeInfo(world.nodes[third].halves[6].id, third)], world.now)
    client = world.add(A, Settings(families=(4, 6)))
    client.add_bootstrap([Address("10.0.0.1", 6881)], world.now)
    # The world routes both families to one place; the client's datagrams to the third come from its IPv4 address.
    world.run(5.0)
    assert any(target == third for _, source, target, _ in world.sent if source == A)


def test_many_failures_and_floods_leave_nothing_behind() -> None:
    world = World(loss=0.6)
    world.populate(60, dead=0.3)
    node = world.add(A, READER)
    node.add_bootstrap([Address(f"10.0.{n}.1", 6881) for n in range(8)], world.now)
    for number in range(20):
        node.search(bytes([number]) * 20, 4, world.now)
    world.wake(A)
    world.run(60.0)
    # So few answer that it may begin to look for neighbours again at any time.
    assert world.run(20.0, lambda: len(node._pending) <= 5 and not node._lookups)
    assert not node._errands
    assert len(events(world, A, LookupDone)) == 20


@given(st.binary(max_size=120), st.booleans())
@settings(max_examples=100)
def test_noise_changes_nothing(noise: bytes, serve: bool) -> None:
    node = DhtNode(Settings(families=(4,), serve=serve), World().rng.randbytes, 0.0)
    node.add_bootstrap([B], 0.0)
    node.poll(0.0)
    list(node.datagrams())
    for datagram in (noise, b"d1:" + noise + b"1:y1:qe", b"d1:" + noise + b"1:y1:re"):
        node.receive(datagram, B, 0.1)
    assert len(node.halves[4].table) == 0
    assert list(node.datagrams()) == []
