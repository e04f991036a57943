"""Cookies cost no state and prove a source; handshakes are limited by source, by IP and in all."""

from __future__ import annotations

import pytest

from proxy_vpn.addresses import Address
from proxy_vpn.mesh.admission import (
    COOKIE_LIFE_S,
    HALF_OPEN_LIMIT,
    TRACKED_LIMIT,
    Admission,
    CookieJar,
    RateLimit,
)
from proxy_vpn.wire.probe import COOKIE_BYTES, PROBE_SIZES_BYTES

HERE, THERE = Address("192.0.2.1", 1000), Address("192.0.2.1", 1001)
JAR = CookieJar(b"s" * 32)


@pytest.mark.parametrize("size", PROBE_SIZES_BYTES)
def test_a_cookie_is_found_again_for_its_source_with_its_size(size: int) -> None:
    cookie = JAR.cookie(HERE, size, 500.0)
    assert len(cookie) == COOKIE_BYTES
    for later_s in (0.0, COOKIE_LIFE_S - 0.1):
        assert [found for found, same in JAR.candidates(HERE, 500.0 + later_s) if same == cookie] == [size]


def test_a_cookie_is_bound_to_its_source_its_size_its_time_and_its_maker() -> None:
    cookie = JAR.cookie(HERE, 1232, 500.0)
    for source, now, jar in (
        (THERE, 500.0, JAR),
        (Address("192.0.2.2", 1000), 500.0, JAR),
        (Address("2001:db8::1", 1000), 500.0, JAR),
        (HERE, 500.0 + 2 * COOKIE_LIFE_S, JAR),
        (HERE, 500.0, CookieJar(b"t" * 32)),
    ):
        assert cookie not in [same for _, same in jar.candidates(source, now)]
    assert len({JAR.cookie(HERE, size, 500.0) for size in PROBE_SIZES_BYTES}) == 3


def test_cookies_work_in_the_first_minutes_of_a_machine_too() -> None:
    for now in (0.0, 5.0, COOKIE_LIFE_S - 1, COOKIE_LIFE_S + 1):
        assert JAR.cookie(HERE, 1232, now) in [same for _, same in JAR.candidates(HERE, now)]


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    limit = RateLimit(2.0, 4.0)
    assert [limit.allow("a", 10.0) for _ in range(6)] == [True] * 4 + [False] * 2
    assert limit.allow("b", 10.0)
    assert [limit.allow("a", 11.0) for _ in range(3)] == [True, True, False]
    assert [limit.allow("a", 1000.0) for _ in range(6)] == [True] * 4 + [False] * 2


def test_buckets_are_bounded_and_the_idle_one_goes_first() -> None:
    limit = RateLimit(0.001, 1.0)
    assert limit.allow("busy", 1.0)
    for number in range(TRACKED_LIMIT + 100):
        limit.allow(number, 1.0)
        assert not limit.allow("busy", 1.0)
    assert len(limit._buckets) <= TRACKED_LIMIT


def test_the_burst_of_a_source_is_four_and_one_more_a_second() -> None:
    admission = Admission()
    assert [admission.admits(HERE, 0, 1.0) for _ in range(6)] == [True] * 4 + [False] * 2
    assert [admission.admits(HERE, 0, 2.1) for _ in range(2)] == [True, False]
    assert admission.admits(THERE, 0, 2.1)


def test_an_ip_gets_twenty_a_second_whatever_its_ports() -> None:
    admission = Admission()
    allowed = sum(admission.admits(Address("192.0.2.1", port), 0, 1.0) for port in range(1000, 1100))
    assert allowed == 20
    assert admission.admits(Address("192.0.2.2", 1000), 0, 1.0)


def test_64_half_open_ones_are_enough() -> None:
    admission = Admission()
    assert admission.admits(HERE, HALF_OPEN_LIMIT - 1, 1.0)
    assert not admission.admits(THERE, HALF_OPEN_LIMIT, 1.0)


def test_a_refusal_for_all_costs_a_source_nothing() -> None:
    admission = Admission()
    for _ in range(100):
        assert not admission.admits(HERE, HALF_OPEN_LIMIT, 1.0)
    assert admission.admits(HERE, 0, 1.0)


def test_an_identity_gets_ten_a_second() -> None:
    admission = Admission()
    assert sum(admission.identities.allow(b"x" * 32, 1.0) for _ in range(50)) == 10
