from __future__ import annotations

from proxy_vpn.addresses import Address
from proxy_vpn.dht.lookup import (
    GRACE_S,
    IN_FLIGHT,
    IN_FLIGHT_AT_START,
    MAX_ASKED,
    SHORTLIST,
    SLOT_S,
    VALUES_PER_SOURCE,
    WIDE,
    Lookup,
    Shortlist,
    unknown_contact,
)
from proxy_vpn.dht.table import Contact, K
from proxy_vpn.wire.krpc import FindNode, GetPeers, NodeInfo, Reply

TARGET = bytes(20)
FAR = 200


def address(number: int) -> Address:
    return Address(f"10.{number >> 8}.{number & 255}.1", 6881)


def node(number: int) -> NodeInfo:
    """The larger the number, the farther from the target."""
    return NodeInfo((number << 140).to_bytes(20, "big"), address(number))


def contact(number: int) -> Contact:
    return Contact(*node(number))


def reply(number: int, *nodes: int, values: tuple[Address, ...] = (), token: bytes | None = b"t") -> Reply:
    return Reply(b"tttt", node(number).id, tuple(map(node, nodes)), values, token)


def search(*start: int, **options: bool) -> Lookup:
    return Lookup(TARGET, map(contact, start), family=4, for_peers=True, **options)


def asked(lookup: Lookup, now: float) -> list[int]:
    numbers = []
    while (query := lookup.next_query(now)) is not None:
        assert query[1] == GetPeers(TARGET)
        numbers.append(query[0].long_id >> 140)
    return numbers


def test_nearest_first_and_only_so_many_at_once() -> None:
    lookup = search(*range(1, 60))
    assert asked(lookup, 0.0) == list(range(1, IN_FLIGHT_AT_START + 1))
    lookup.receive(address(1), reply(1))
    assert asked(lookup, 0.1) == []
    # A slot is free again after half a second, and a failure frees one at once.
    assert lookup.next_timer() == SLOT_S
    assert asked(lookup, SLOT_S) == list(range(13, 13 + IN_FLIGHT))
    lookup.fail(address(13))
    assert asked(lookup, SLOT_S) == [18]


def test_done_when_the_nearest_have_answered() -> None:
    lookup = search(FAR)
    assert asked(lookup, 0.0) == [FAR]
    lookup.receive(address(FAR), reply(FAR, *range(1, 15)))
    assert not lookup.check_finished(0.1)
    for number in range(1, K + 1):
        asked(lookup, 0.1)
        assert not lookup.check_finished(0.1)
        lookup.receive(address(number), reply(number))
    assert lookup.check_finished(0.2)
    assert not lookup.check_finished(0.3)
    assert asked(lookup, 0.3) == []
    assert lookup.next_timer() is None
    assert [holder.contact.id for holder in lookup.holders(160)] == [node(n).id for n in range(1, K + 1)]


def test_slow_nodes_are_not_waited_for_but_welcome() -> None:
    lookup = search(*range(1, 20))
    asked(lookup, 0.0)
    for number in range(2, K + 2):
        lookup.receive(address(number), reply(number))
    assert not lookup.check_finished(0.1)
    assert lookup.check_finished(SLOT_S)
    peer = Address("10.9.9.9", 5000)
    assert lookup.receive(address(1), reply(1, values=(peer,))) == [peer]


def test_a_small_network_is_waited_for_to_the_end() -> None:
    lookup = search(1, 2, 3)
    asked(lookup, 0.0)
    lookup.receive(address(1), reply(1, token=None))
    assert not lookup.check_finished(SLOT_S)
    assert lookup.next_timer() == SLOT_S + GRACE_S
    lookup.fail(address(2))
    lookup.receive(address(3), reply(3))
    assert lookup.check_finished(SLOT_S + 0.1)
    assert [holder.token for holder in lookup.holders(160)] == [None, b"t"]


def test_the_late_are_given_up_once_somebody_answered() -> None:
    lookup = search(1, 2)
    asked(lookup, 0.0)
    assert not lookup.check_finished(SLOT_S + GRACE_S)
    assert lookup.next_timer() is None
    lookup.receive(address(1), reply(1))
    assert lookup.check_finished(SLOT_S + GRACE_S)


def test_nobody_to_ask() -> None:
    assert search().check_finished(0.0)


def test_polling_asks_only_the_start() -> None:
    lookup = search(*range(1, K + 1), widen=False)
    assert asked(lookup, 0.0) == list(range(1, K + 1))
    for number in range(1, K + 1):
        lookup.receive(address(number), reply(number, 100 + number))
    assert asked(lookup, 0.1) == []
    assert lookup.check_finished(0.1)


def test_values_are_new_and_few_per_source() -> None:
    lookup = search(1, 2)
    asked(lookup, 0.0)
    many = tuple(Address("10.1.1.1", port) for port in range(2000, 2100))
    assert lookup.receive(address(1), reply(1, values=many)) == list(many[:VALUES_PER_SOURCE])
    assert lookup.receive(address(1), reply(1, values=many)) == []
    assert lookup.receive(address(2), reply(2, values=many[:17])) == [many[16]]
    assert lookup.receive(address(77), reply(77, values=many)) == []


def test_values_without_nodes_are_followed_by_find_node() -> None:
    lookup = search(FAR)
    asked(lookup, 0.0)
    lookup.receive(address(FAR), Reply(b"tttt", node(FAR).id, None, (Address("10.1.1.1", 2000),), b"t"))
    assert not lookup.check_finished(0.1)
    query = lookup.next_query(0.1)
    assert query is not None
    assert query[0].address == address(FAR)
    assert query[1] == FindNode(TARGET)
    assert not lookup.check_finished(0.1)
    lookup.receive(address(FAR), reply(FAR, 1, 2, token=None))
    assert asked(lookup, 0.2) == [1, 2]
    assert lookup.answered == 1
    for number in (1, 2):
        lookup.fail(address(number))
    assert lookup.check_finished(0.3)
    assert [holder.token for holder in lookup.holders(160)] == [b"t"]


def test_an_unknown_id_is_learnt() -> None:
    lookup = Lookup(TARGET, [unknown_contact(address(1), TARGET), contact(5)], family=4, for_peers=True)
    query = lookup.next_query(0.0)
    assert query is not None
    assert query[0].address == address(5)
    lookup.next_query(0.0)
    lookup.receive(address(1), reply(1))
    lookup.receive(address(5), reply(5))
    assert [holder.contact.id for holder in lookup.holders(160)] == [node(1).id, node(5).id]


def test_an_endless_trail_ends() -> None:
    lookup = search(60_000)
    number, now = 60_000, 0.0
    while not lookup.check_finished(now):
        for each in asked(lookup, now):
            number -= 16
            lookup.receive(address(each), reply(each, *range(number, number + 16)))
        now += 0.01
    assert lookup.asked <= MAX_ASKED


def test_crowded_nearest_widen_the_announce() -> None:
    lookup = search(FAR)
    asked(lookup, 0.0)
    lookup.receive(address(FAR), reply(FAR, *range(1, 15)))
    lookup.receive(address(FAR), reply(FAR, *range(15, 31)))
    while numbers := asked(lookup, 0.0):
        for number in numbers:
            lookup.receive(address(number), reply(number))
    # The eighth shares 16 bits with the target: plenty in a network of 2**4 neighbourhoods, normal at 2**12.
    spread = lookup.holders(home_bits=12)
    assert len(spread) == K
    assert len(lookup.holders(home_bits=4)) == min(WIDE, lookup.answered) > K


def test_the_shortlist_is_capped_and_keeps_each_endpoint_once() -> None:
    shortlist = Shortlist(TARGET)
    shortlist.push(Contact(bytes([n]) * 20, address(1)) for n in range(50))
    assert len(shortlist) == 1
    shortlist.push(contact(n) for n in range(1000, 0, -1))
    assert len(shortlist) == SHORTLIST == len(shortlist.seats) == len(shortlist.heap)
    assert shortlist.in_order()[1].contact.address == address(2)
    # Two endpoints with one id are two nodes.
    shortlist.push([Contact(node(2).id, address(5000))])
    assert {address(2), address(5000)} <= set(shortlist.seats)
