"""Ranges: what may be led to, in every disguise an address can take."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_vpn.errors import UsageError
from proxy_vpn.ranges import IP, is_near, is_public, may_be_led_to, parse_ip, parse_route, within

HOME = (ip_network("192.168.7.0/24"), ip_network("fd00:7::/64"))


@pytest.mark.parametrize(
    "text",
    [
        "1.1.1.1",
        "168.63.129.17",
        "2606:4700::1111",
        "2600::5efe:1.1.1.1",
        "64:ff9b::101:101",
        "::ffff:1.1.1.1",
    ],
)
def test_the_internet(text: str) -> None:
    ip = parse_ip(text)
    assert ip is not None and is_public(ip)


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0", "10.0.0.1", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1", "192.168.7.1", "192.0.2.1",
        "224.0.0.1", "255.255.255.255", "240.0.0.1", "::", "::1", "::10.0.0.1", "::ffff:127.0.0.1", "::ffff:0:10.0.0.1",
        "64:ff9b::a00:1", "64:ff9b::7f00:1", "64:ff9b:1::101:101", "2002:7f00:1::1", "2002:a9fe:a9fe::1",
        "168.63.129.16", "192.0.0.192", "64:ff9b::c000:c0", "2002:c000:c0::1", "2002:101:101::1", "192.88.99.1",
        "64:ff9b::a83f:8110", "2600::5efe:10.0.0.1", "2600::200:5efe:127.0.0.1",
        "2002:a00:1::", "2001:0:101:101::1", "fd00:7::1", "fe80::1", "fec0::1", "ff02::1", "2001:db8::1",
    ],
)  # fmt: skip
def test_not_the_internet(text: str) -> None:
    ip = parse_ip(text)
    assert ip is not None and not is_public(ip)


@given(st.ip_addresses())
def test_what_is_near_is_not_the_internet(ip: IP) -> None:
    assert not (is_near(ip) and is_public(ip))


@given(st.integers(0, 2**32 - 1))
def test_a_private_address_is_no_more_public_in_disguise(number: int) -> None:
    plain = ip_address(number)
    for prefix in (0xFFFF << 32, 0x64FF9B << 96, 0x2002 << 112 | number << 80):
        disguised = parse_ip(str(ip_address(prefix | (number if prefix >> 112 != 0x2002 else 1))))
        assert disguised is not None and is_public(disguised) <= is_public(plain)


@pytest.mark.parametrize("text", ["peer-b", "fe80::1%eth0", "1.2.3", "", "1.2.3.4.5", "[::1]"])
def test_what_is_no_address(text: str) -> None:
    assert parse_ip(text) is None


def test_a_network_holds_its_addresses_and_no_hidden_ones() -> None:
    assert within(ip_address("192.168.7.9"), HOME) and within(ip_address("fd00:7::9"), HOME)
    assert not within(ip_address("fd00:7::5efe:10.0.0.1"), HOME)
    assert not within(ip_address("192.168.8.9"), HOME) and not within(ip_address("fd00:8::9"), HOME)
    six = (ip_network("2002::/16"),)
    assert not within(ip_address("2002:7f00:1::1"), six) and within(ip_address("2002:101:101::1"), six)
    assert within(ip_address("2002:c0a8:701::1"), (*six, *HOME))


@pytest.mark.parametrize("text", ["192.168.7.0/24", "10.0.0.0/8", "203.0.113.0/24", "fd00:7::/64", "192.168.7.1/32"])
def test_routes_that_may_be_offered(text: str) -> None:
    assert str(parse_route(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "192.168.7.1/24", "0.0.0.0/0", "::/0", "127.0.0.0/8", "127.0.0.1/32", "169.254.0.0/16", "224.0.0.0/8",
        "168.63.129.16/32", "168.63.0.0/16", "::1/128", "fe80::/64", "ff02::/16", "128.0.0.0/1", "8000::/1", "lan", "",
        "240.0.0.0/8",
    ],
)  # fmt: skip
def test_routes_that_may_not(text: str) -> None:
    with pytest.raises(UsageError):
        parse_route(text)


@given(st.ip_addresses(), st.integers(0, 128))
def test_whatever_may_be_led_to_holds_no_address_of_ones_own(ip: object, bits: int) -> None:
    network = ip_network(f"{ip}/{min(bits, 32 if '.' in str(ip) else 128)}", strict=False)
    if may_be_led_to(network):
        for own in ("127.0.0.1", "169.254.169.254", "::1", "fe80::1", "224.0.0.1", "ff02::1"):
            assert ip_address(own) not in network
