"""Where peers may be: what is believed, how much of it, and how often it is tried."""

from __future__ import annotations

from itertools import pairwise

import pytest

from proxy_vpn.addresses import Address, Scope
from proxy_vpn.mesh.candidates import PER_PEER_LIMIT, PER_PREFIX_LIMIT, UNKNOWN_LIMIT, CandidateBook, Source

PEER, OTHER = b"p" * 32, b"o" * 32
GLOBAL = Address("198.41.0.4", 41641)


def spread(number: int) -> Address:
    """A global address in a network of its own."""
    return Address(f"{60 + number // 250}.{number % 250}.1.1", 41641)


def tried(book: CandidateBook, since: float, until: float, step: float = 0.25) -> list[float]:
    """The times at which anything was due."""
    times, now = [], since
    while now < until:
        times += [now] * len(book.due(now))
        now += step
    return times


def test_a_new_address_is_due_at_once_and_then_ever_later() -> None:
    book = CandidateBook()
    assert book.add(GLOBAL, 100.0, source=Source.DHT)
    assert not book.add(GLOBAL, 100.0, source=Source.DHT)
    times = tried(book, 100.0, 160.0)
    assert times[0] == 100.0 and len(times) < 20
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses == sorted(pauses)


def test_a_hint_nobody_repeats_is_left_alone_and_what_the_user_names_never() -> None:
    book = CandidateBook()
    book.add(GLOBAL, 0.0, source=Source.DHT)
    tried(book, 0.0, 200.0)
    assert not tried(book, 200.0, 2000.0)
    for source in (Source.USER, Source.MEMORY):
        book = CandidateBook()
        book.add(GLOBAL, 0.0, source=source)
        times = tried(book, 0.0, 3600.0)
        assert times[-1] > 3500.0 and len(times) < 400


def test_where_a_peer_was_lately_is_tried_often() -> None:
    book = CandidateBook()
    book.add(GLOBAL, 0.0, source=Source.MEMORY, identity=PEER)
    pauses = [(at, later - at) for at, later in pairwise(tried(book, 0.0, 3600.0))]
    assert all(pause <= 1.5 for at, pause in pauses if at < 590.0)
    assert all(pause == 30.0 for at, pause in pauses if at > 600.0) and pauses[-1][0] > 3500.0


def test_a_hint_that_comes_again_after_a_while_is_tried_again() -> None:
    book = CandidateBook()
    book.add(GLOBAL, 0.0, source=Source.DHT)
    tried(book, 0.0, 200.0)
    assert book.add(GLOBAL, 1000.0, source=Source.DHT)
    assert tried(book, 1000.0, 1010.0)


def test_a_wanted_peer_is_tried_at_once_and_so_is_whoever_the_user_named() -> None:
    book = CandidateBook()
    book.add(GLOBAL, 0.0, identity=PEER, source=Source.EXCHANGE)
    book.add(spread(1), 0.0, source=Source.USER)
    book.add(spread(2), 0.0, identity=OTHER, source=Source.EXCHANGE)
    tried(book, 0.0, 500.0)
    book.retry(PEER, 500.1)
    assert {candidate.address for candidate in book.due(500.1)} >= {GLOBAL, spread(1)}


@pytest.mark.parametrize("ip", ["0.0.0.0", "::", "224.0.0.251", "ff02::1", "255.255.255.255"])
def test_what_is_no_unicast_address_is_refused(ip: str) -> None:
    assert not CandidateBook().add(Address(ip, 5000), 0.0, source=Source.USER)
    assert not CandidateBook().add(Address("192.0.2.1", 0), 0.0, source=Source.USER)


@pytest.mark.parametrize(
    ("ip", "scope", "believed"),
    [
        ("127.0.0.1", Scope.LOOPBACK, True),
        ("127.0.0.1", Scope.PRIVATE, False),
        ("127.0.0.1", Scope.GLOBAL, False),
        ("192.168.1.5", Scope.PRIVATE, True),
        ("192.168.1.5", Scope.GLOBAL, False),
        ("fe80::1", Scope.PRIVATE, False),
        ("198.41.0.4", Scope.LOOPBACK, True),
        ("198.41.0.4", Scope.GLOBAL, True),
    ],
)
def test_nothing_narrower_than_its_source_is_believed(ip: str, scope: Scope, believed: bool) -> None:
    assert CandidateBook().add(Address(ip, 5000), 0.0, source=Source.DHT, scope=scope) is believed


def test_privileged_ports_never_come_from_the_dht() -> None:
    for port, believed in ((53, False), (1023, False), (1024, True)):
        assert CandidateBook().add(Address("198.41.0.4", port), 0.0, source=Source.DHT) is believed
        assert CandidateBook().add(Address("198.41.0.4", port), 0.0, source=Source.USER)


def test_a_peer_has_64_addresses_and_unknown_ones_256() -> None:
    for who, limit in ((PEER, PER_PEER_LIMIT), (b"", UNKNOWN_LIMIT)):
        book = CandidateBook()
        for number in range(limit + 50):
            book.add(spread(number), 0.0, identity=who, source=Source.EXCHANGE)
        assert sum(len(book.due(0.0)) for _ in range(10)) == limit


def test_tried_ones_make_room_for_new_ones_but_not_those_the_user_named() -> None:
    book = CandidateBook()
    for number in range(PER_PEER_LIMIT):
        source = Source.USER if number % 2 else Source.EXCHANGE
        book.add(spread(number), 0.0, identity=PEER, source=source)
    tried(book, 0.0, 100.0)
    for number in range(100, 100 + PER_PEER_LIMIT):
        book.add(spread(number), 100.0, identity=PEER, source=Source.EXCHANGE)
    book.retry(PEER, 101.0)
    left = {candidate.address for candidate in book.due(101.0)}
    assert len(left) <= PER_PEER_LIMIT
    assert {spread(number) for number in range(1, PER_PEER_LIMIT, 2)} <= left
    assert spread(100) in left


def test_four_addresses_of_one_network_are_enough() -> None:
    book = CandidateBook()
    for number in range(20):
        book.add(Address(f"198.41.0.{number + 1}", 41641), 0.0, source=Source.DHT)
        book.add(Address(f"2001:500:2f:{number}::1", 41641), 0.0, source=Source.DHT)
    assert len(book.due(0.0)) == 2 * PER_PREFIX_LIMIT
    assert book.add(Address("198.41.0.200", 41641), 0.0, source=Source.USER), "the user knows better"


def test_one_address_with_many_ports_is_one_network_too() -> None:
    book = CandidateBook()
    for port in range(2000, 2100):
        book.add(Address("198.41.0.4", port), 0.0, source=Source.DHT)
    assert len(book.due(0.0)) == PER_PREFIX_LIMIT


def test_addresses_of_ones_own_are_left_alone_for_a_while() -> None:
    book = CandidateBook()
    book.add(GLOBAL, 0.0, source=Source.DHT)
    book.own_address(GLOBAL, 0.0)
    assert not book.due(1.0) and not book.add(GLOBAL, 1.0, source=Source.USER)
    assert book.add(GLOBAL, 100_000.0, source=Source.USER)
    for number in range(5000):
        book.own_address(spread(number), 0.0)


def test_a_better_source_makes_an_address_persistent() -> None:
    book = CandidateBook()
    book.add(GLOBAL, 0.0, source=Source.DHT)
    book.add(GLOBAL, 0.0, source=Source.USER)
    tried(book, 0.0, 1000.0)
    assert tried(book, 1000.0, 1100.0)


def test_one_member_that_makes_up_identities_fills_no_memory() -> None:
    """A member can sign records for as many identities as it likes, each with addresses of its choice."""
    book = CandidateBook()
    kept = 0
    for number in range(3000):
        kept += book.add(spread(number), 0.0, identity=number.to_bytes(32, "big"), source=Source.EXCHANGE)
        kept += book.add(Address("198.41.0.4", 41641), 0.0, identity=number.to_bytes(32, "big"), source=Source.EXCHANGE)
    at_once = book.due(0.0)
    assert len(at_once) <= 4096
    targets = [candidate.address.ip for candidate in at_once]
    assert max(map(targets.count, set(targets))) <= 64, "nobody is shot at through us"
