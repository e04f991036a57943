"""What is taken from LAN announcements: bounded in instances, in addresses, and in how often one is told."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_vpn.addresses import Address
from proxy_vpn.net.lan_services import (
    HINTS_PER_REPEAT,
    MAX_ADDRESSES,
    MAX_INSTANCES,
    REPEAT_S,
    Instances,
    chosen,
    shareable,
)

HERE = Address("192.0.2.1", 4000)


def test_told_when_new_then_twice_a_minute() -> None:
    heard = Instances()
    assert heard.hear("a", [HERE], 0.0) == [HERE]
    assert heard.hear("a", [HERE], 1.0) == []
    assert heard.hear("a", [HERE], REPEAT_S) == [HERE]
    assert heard.hear("b", [HERE], REPEAT_S) == [HERE]


def test_told_when_changed_and_when_back() -> None:
    heard, there = Instances(), Address("192.0.2.2", 4000)
    heard.hear("a", [HERE], 0.0)
    assert heard.hear("a", [HERE, there], 1.0) == [there]
    assert heard.hear("a", [there], 2.0) == []
    assert heard.hear("a", [HERE, there], 3.0) == [HERE]
    heard.forget("a")
    heard.forget("a")
    assert heard.hear("a", [HERE, there], 4.0) == [HERE, there]


def test_the_longest_silent_is_forgotten() -> None:
    heard = Instances()
    for number in range(MAX_INSTANCES):
        heard.hear(f"{number}", [HERE], 0.0)
    heard.hear("0", [HERE], 1.0)
    heard.hear("another", [HERE], 2.0)
    assert len(heard) == MAX_INSTANCES
    assert heard.hear("0", [HERE], 3.0) == []
    assert heard.hear("1", [HERE], 3.0) == [HERE]


addresses = st.builds(Address.from_packed, st.binary(min_size=6, max_size=6) | st.binary(min_size=18, max_size=18))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 200), st.lists(addresses, max_size=20)), max_size=120))
def test_all_is_bounded(said: list[tuple[int, list[Address]]]) -> None:
    heard, told = Instances(), 0
    for token, places in said:
        due = heard.hear(f"{token}", places, 0.0)
        assert len(due) <= MAX_ADDRESSES and len(heard) <= MAX_INSTANCES
        assert all(address.port >= 1024 and shareable(address) for address in due)
        told += len(due)
    assert told <= HINTS_PER_REPEAT


def test_what_means_something_to_others() -> None:
    assert all(shareable(Address(ip, 4000)) for ip in ("10.0.0.1", "169.254.1.1", "fd00::1", "2001:db8::1"))
    assert not any(shareable(Address(ip, 4000)) for ip in ("127.0.0.1", "::1", "fe80::1", "0.0.0.0", "ff02::fb"))


def test_both_families_are_chosen() -> None:
    many = [Address(f"192.0.2.{n}", 1) for n in range(1, 20)] + [Address("2001:db8::1", 1)]
    assert chosen(many)[:3] == (many[0], many[-1], many[1])
    assert len(chosen(many)) == MAX_ADDRESSES
