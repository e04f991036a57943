from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_vpn.addresses import Address
from proxy_vpn.dht.ids import distance, make_id
from proxy_vpn.dht.table import GOOD_S, MAX_BUCKETS, REPLACEMENTS, Contact, K, State, Table

OWN = bytes(20)


def contact(node_id: bytes, ip: str, port: int = 6881, at: float | None = 0.0) -> Contact:
    made = Contact(node_id, Address(ip, port))
    if at is not None:
        made.replied(at, 0.1)
    return made


def some(count: int, seed: int = 1, prefix: bytes = b"") -> list[Contact]:
    rng = random.Random(seed)
    return [
        contact(prefix + rng.randbytes(20 - len(prefix)), f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}")
        for n in range(count)
    ]


def test_states() -> None:
    one = contact(b"\x80" * 20, "10.0.0.1")
    assert one.state(GOOD_S - 1) is State.GOOD
    assert one.state(GOOD_S) is State.QUESTIONABLE
    one.failed()
    assert one.state(1.0) is State.GOOD
    one.failed()
    assert one.state(1.0) is State.BAD
    one.replied(2.0)
    assert one.state(2.0) is State.GOOD
    assert contact(b"\x80" * 20, "10.0.0.1", at=None).state(0.0) is State.QUESTIONABLE


def test_thousands_of_contacts_stay_bounded_and_findable() -> None:
    table, contacts = Table(OWN), some(5000)
    for each in contacts:
        assert table.add_contact(each, 1.0) is None  # all are good, so nothing needs a ping
    assert 8 * 6 < len(table) < 8 * 20
    assert len(table._by_host) <= len(table) + REPLACEMENTS * len(table.buckets)
    held = list(table)
    for target in (random.Random(2).randbytes(20), OWN, b"\xff" * 20, b"\x7f" + b"\xff" * 19):
        best = sorted(held, key=lambda each: distance(each.id, target))[:K]
        assert table.closest(target, 1.0) == best


def test_only_the_home_bucket_splits() -> None:
    table = Table(OWN)
    for each in some(500, prefix=b"\xff"):
        table.add_contact(each, 1.0)
    assert len(table) == K
    assert len(table.buckets) == 2


def test_chosen_ids_cannot_grow_the_table_without_bound() -> None:
    table, rng, number = Table(OWN), random.Random(3), 0
    for bits in range(160):
        for _ in range(12):
            number += 1
            value = (1 << (159 - bits)) | rng.getrandbits(159 - bits) if bits < 159 else 1
            table.add_contact(contact(value.to_bytes(20, "big"), f"10.1.{number >> 8}.{number & 255}"), 1.0)
    assert len(table.buckets) <= MAX_BUCKETS
    assert len(table) <= MAX_BUCKETS * K


def test_one_node_per_ip_and_per_64() -> None:
    table, rng = Table(OWN), random.Random(4)
    for port in range(1, 50):
        table.add_contact(contact(rng.randbytes(20), "192.0.2.1", port), 1.0)
    assert len(table) == 1
    for number in range(1, 50):
        table.add_contact(contact(rng.randbytes(20), f"2001:db8::{number}"), 1.0)
    assert len(table) == 2


def test_a_restarted_node_replaces_itself_and_a_bad_one_gives_way() -> None:
    table = Table(OWN)
    first = contact(b"\x80" * 20, "10.0.0.1")
    table.add_contact(first, 1.0)
    table.add_contact(contact(b"\x90" * 20, "10.0.0.1"), 1.0)
    assert [each.id for each in table] == [b"\x90" * 20]
    # Another port on the same IP, or another IP with the same id, has to wait until the first is bad.
    table.add_contact(contact(b"\xa0" * 20, "10.0.0.1", 7000), 1.0)
    table.add_contact(contact(b"\x90" * 20, "10.0.0.2"), 1.0)
    assert [each.address for each in table] == [Address("10.0.0.1", 6881)]
    (held,) = table
    held.failed()
    held.failed()
    table.add_contact(contact(b"\x90" * 20, "10.0.0.2"), 1.0)
    assert [each.address for each in table] == [Address("10.0.0.2", 6881)]


def test_unverified_contacts_and_ourselves_stay_out() -> None:
    table = Table(OWN)
    table.add_contact(contact(b"\x80" * 20, "10.0.0.1", at=None), 1.0)
    table.add_contact(contact(OWN, "10.0.0.2"), 1.0)
    assert len(table) == 0


def test_a_full_bucket_names_one_contact_to_check_and_not_again_at_once() -> None:
    table = Table(OWN)
    old = some(K, prefix=b"\xff")
    for each in [*old, contact(b"\x01" * 20, "10.9.0.1")]:
        table.add_contact(each, 0.0)
    later = GOOD_S + 10
    newcomers = some(3, seed=9, prefix=b"\xfe")
    for number, each in enumerate(newcomers):
        each.ip, each.address = f"10.8.0.{number}", Address(f"10.8.0.{number}", 1)
        each.host = bytes([10, 8, 0, number])
        each.replied(later)
    doubtful = table.add_contact(newcomers[0], later)
    assert doubtful is old[0]
    doubtful.asked_at = later
    assert table.add_contact(newcomers[1], later) is None
    doubtful.failed()
    doubtful.failed()
    table.add_contact(newcomers[2], later)
    assert newcomers[2] in list(table)
    assert doubtful not in list(table)


def test_ids_bound_to_their_ip_are_preferred() -> None:
    table, rng = Table(OWN), random.Random(5)
    for number in range(K):
        table.add_contact(contact(b"\xff" + rng.randbytes(19), f"8.8.{number}.8"), 1.0)
    table.add_contact(contact(b"\x01" * 20, "8.9.9.9"), 1.0)
    ip = next(ip for ip in (f"9.9.{n}.9" for n in range(256)) if make_id(ip, rng.randbytes)[0] >= 0x80)
    node_id = next(made for made in iter(lambda: make_id(ip, rng.randbytes), None) if made[0] >= 0x80)
    bound = contact(node_id, ip)
    table.add_contact(bound, 1.0)
    assert bound in list(table)
    assert len(table) == K + 1


def test_neighbours_are_found_whichever_side_of_the_target_is_empty() -> None:
    table = Table(b"\xff" * 20)
    for each in some(3, prefix=b"\x00"):
        table.add_contact(each, 1.0)
    for number in range(8):
        table.add_contact(contact(b"\xff" + bytes([number]) * 19, f"10.9.{number}.1"), 1.0)
    for target in (b"\x68" * 20, b"\x00" * 20, b"\xff" * 20):
        assert len(table.closest(target, 1.0)) == K
        assert len(table.find_neighbors(Contact(target, Address("10.0.0.0", 1)), 20)) == len(table)
    assert table.closest(b"\xff" + b"\x03" * 19, 1.0)[0].address == Address("10.9.3.1", 6881)


def test_bad_contacts_are_a_last_resort() -> None:
    table = Table(OWN)
    bad, good = contact(b"\x80" * 20, "10.0.0.1"), contact(b"\x01" * 20, "10.0.0.2")
    for each in (bad, good):
        table.add_contact(each, 0.0)
    for each in (bad, bad, good):
        each.failed()
    assert table.closest(b"\x80" * 20, 1.0) == [good]
    good.failed()
    assert table.closest(b"\x80" * 20, 1.0) == [bad, good]
    assert table.stalest(1.0) in (bad, good)


def test_room() -> None:
    table = Table(OWN)
    for each in [*some(K, prefix=b"\xff"), contact(b"\x01" * 20, "10.9.0.1")]:
        table.add_contact(each, 0.0)
    assert not table.has_room_for(contact(b"\xee" * 20, "10.7.0.1"), 1.0)
    assert table.has_room_for(contact(b"\x02" * 20, "10.7.0.1"), 1.0)
    assert not table.has_room_for(contact(b"\x02" * 20, "10.9.0.1"), 1.0)
    assert not table.has_room_for(contact(OWN, "10.7.0.1"), 1.0)


@given(st.lists(st.tuples(st.integers(0, 2**160 - 1), st.integers(0, 300), st.booleans()), max_size=200))
@settings(max_examples=40)
def test_every_contact_is_in_its_bucket_and_in_the_index(entries: list[tuple[int, int, bool]]) -> None:
    table = Table(b"\x5a" * 20)
    for value, number, remove in entries:
        each = contact(value.to_bytes(20, "big"), f"10.0.{number >> 8}.{number & 255}")
        table.add_contact(each, 1.0)
        if remove and (held := table.find(each.address)) is not None:
            table.remove_contact(held)
    ranges = [bucket.range for bucket in table.buckets]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 2**160 - 1
    assert all(one[1] + 1 == two[0] for one, two in itertools.pairwise(ranges))
    for bucket in table.buckets:
        assert len(bucket) <= K
        for each in bucket.everyone():
            assert bucket.has_in_range(each)
            assert table.find(each.address) is each
