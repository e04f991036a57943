from __future__ import annotations

import os
import random

import pytest

from proxy_vpn.addresses import Address
from proxy_vpn.dht.half import (
    BOOTSTRAP_MAX_S,
    MAX_CACHED,
    MAX_CANDIDATES,
    MAX_CLOSEST,
    ONLINE_S,
    QUIET_S,
    REFRESH_HUNGRY_S,
    REFRESH_S,
    SILENT_AFTER,
    Half,
)
from proxy_vpn.dht.lookup import Holder
from proxy_vpn.dht.table import GOOD_S, Contact, K
from proxy_vpn.wire.krpc import NodeInfo

HASH = b"h" * 20


def address(number: int) -> Address:
    return Address(f"10.{number >> 8}.{number & 255}.1", 6881)


def hear(half: Half, numbers: range, now: float) -> None:
    for number in numbers:
        half.heard(number.to_bytes(2, "big") + os.urandom(18), address(number), now, 0.1)


def test_an_outage_costs_no_memory() -> None:
    half = Half(4, os.urandom, 0.0)
    half.cache(NodeInfo(b"c" * 20, address(1)))
    half.remember_closest(HASH, [Holder(Contact(b"c" * 20, address(1)), None)], 0.0)
    half.failed(address(1), 5.0)
    half.remember_closest(HASH, [], 5.0)
    assert [contact.address for contact in half.cached()] == [address(1)]
    assert half.closest(HASH) is not None
    hear(half, range(2, 3), 6.0)
    half.failed(address(1), 7.0)
    half.remember_closest(HASH, [], 7.0)
    assert half.cached() == []
    assert half.closest(HASH) is None


def test_a_poll_may_miss_a_node_once() -> None:
    half = Half(4, os.urandom, 0.0)
    hear(half, range(1), 0.0)
    holders = [Holder(Contact(bytes([n]) * 20, address(n)), b"t") for n in range(1, 9)]
    half.remember_closest(HASH, holders, 0.0)

    def kept() -> list[int]:
        closest = half.closest(HASH)
        return [holder.contact.id[0] for holder in closest.holders] if closest else []

    half.remember_poll(HASH, holders[1:], 1.0)
    assert kept() == [1, 2, 3, 4, 5, 6, 7, 8]
    half.remember_poll(HASH, holders, 2.0)
    half.remember_poll(HASH, holders[1:], 3.0)
    half.remember_poll(HASH, holders[1:], 4.0)
    assert kept() == [2, 3, 4, 5, 6, 7, 8]
    half.remember_poll(HASH, holders[6:], 5.0)
    assert kept() == []
    half.remember_poll(HASH, holders, 6.0)
    assert kept() == []


def test_a_contact_that_fails_twice_while_others_answer_is_bad() -> None:
    half = Half(4, os.urandom, 0.0)
    hear(half, range(5), 0.0)
    assert half.good(1.0) == 5
    for _ in range(2):
        half.failed(address(0), 1.0)
    assert half.good(1.0) == 4
    for _ in range(2):
        half.failed(address(1), 100.0)
    assert half.good(100.0) == 4
    assert half.good(GOOD_S) == 0


def test_whom_a_lookup_starts_with() -> None:
    half = Half(4, os.urandom, 0.0)
    half.bootstrap[address(900)] = None
    half.cache(NodeInfo(b"c" * 20, address(901)))
    assert [contact.address for contact in half.start_nodes(HASH, 0.0)] == [address(901), address(900)]
    hear(half, range(1, 30), 0.0)
    assert address(900) not in [contact.address for contact in half.start_nodes(HASH, 0.0)]
    assert len(half.start_nodes(HASH, 0.0)) == K
    half.remember_closest(HASH, [Holder(Contact(b"z" * 20, address(902)), None)], 0.0)
    assert address(902) in [contact.address for contact in half.start_nodes(HASH, 0.0)]


def test_bootstrapping_backs_off_and_stops_when_there_are_enough() -> None:
    half = Half(4, os.urandom, 0.0)
    times, now = [], 0.0
    while now < 3600:
        if half.bootstrap_due(now):
            times.append(now)
        now = half.bootstrap_at
    assert 12 <= len(times) <= 25
    assert times[1] < 15
    assert times[-1] - times[-2] <= BOOTSTRAP_MAX_S * 1.2 + 1
    hear(half, range(10), now)
    assert not half.bootstrap_due(half.bootstrap_at)


def test_refreshing_asks_the_stalest_then_candidates() -> None:
    half = Half(4, os.urandom, 0.0, own_id=bytes(20))
    hear(half, range(20), 0.0)
    assert half.refresh_target(1.0) is None
    half.consider(NodeInfo(b"\x7f" * 20, address(500)), 1.0)
    target = half.refresh_target(half.refresh_at)
    assert target is not None
    assert target.address == address(500)
    later = GOOD_S + 1
    asked = set()
    for _ in range(20):
        later = max(later, half.refresh_at)
        contact = half.refresh_target(later)
        if contact is not None:
            contact.asked_at = later
            asked.add(contact.address)
    assert len(asked) == min(20, len(half.table))


def test_bounds() -> None:
    half = Half(4, os.urandom, 0.0)
    for number in range(500):
        half.cache(NodeInfo(os.urandom(20), address(number)))
        half.consider(NodeInfo(os.urandom(20), address(number)), 0.0)
        half.remember_closest(os.urandom(20), [Holder(Contact(b"c" * 20, address(1)), None)], 0.0)
    assert len(half.cached()) == MAX_CACHED == len(half.best_nodes(0.0))
    assert len(half.candidates) == MAX_CANDIDATES
    assert len(half.closest_sets()) == MAX_CLOSEST
    assert half.home_bits(0.0) == 160


@pytest.mark.parametrize("seed", range(8))
def test_one_that_hears_nothing_asks_good_contacts_and_knows_when_the_dht_is_gone(seed: int) -> None:
    half = Half(4, random.Random(seed).randbytes, 0.0)
    hear(half, range(4), 0.0)
    now, asked, silent_at = 0.0, list[tuple[float, Address]](), 0.0
    while now < 3600.0:
        now += 0.25
        contact = half.refresh_target(now)
        if contact is not None:
            contact.asked_at = now
            asked.append((now, contact.address))
        if asked and now - asked[-1][0] == 0.25:
            half.failed(asked[-1][1], now)
        if now == QUIET_S:
            assert not asked and not half.silent(now) and half.good(now) == 4
        silent_at = silent_at or (now if half.silent(now) else 0.0)
    assert {where for _, where in asked[:4]} == {address(number) for number in range(4)}
    # One pause may have begun just before the others were missed; the rest of the questions follow fast.
    assert silent_at <= ONLINE_S + 1.2 * (REFRESH_S + SILENT_AFTER * REFRESH_HUNGRY_S)
    assert len([at for at, _ in asked if at > 1800.0]) <= 8
    assert half.silent(now) and half.good(now) == 0 and len(half.table) == 4
    hear(half, range(1), now)
    assert not half.silent(now) and half.good(now) == 1
    assert any(half.refresh_target(now + later_s) is not None for later_s in (15.0, 30.0))
