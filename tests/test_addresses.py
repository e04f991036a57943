"""Addresses, targets and forwards: as bytes and as people write them."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_vpn.addresses import (
    Address,
    ForwardSpec,
    Scope,
    Target,
    parse_port,
    shown,
    split_host_port,
    valid_name,
)
from proxy_vpn.errors import UsageError, WireError

ports = st.integers(1, 65535)
ips = st.one_of(
    st.ip_addresses(v=4), st.ip_addresses(v=6).filter(lambda ip: isinstance(ip, IPv6Address) and not ip.ipv4_mapped)
)
addresses = st.builds(lambda ip, port: Address(str(ip), port), ips, ports)
names = st.from_regex(r"[a-z0-9-]{1,32}", fullmatch=True).filter(valid_name)


@given(addresses)
def test_an_address_comes_back_from_bytes_and_text(address: Address) -> None:
    assert Address.from_packed(address.packed()) == address
    assert Address.parse(str(address)) == address
    assert len(address.packed()) == (18 if address.family == socket.AF_INET6 else 6)


@given(st.binary(max_size=40))
def test_noise_is_an_address_or_a_wire_error(data: bytes) -> None:
    try:
        address = Address.from_packed(data)
    except WireError:
        assert len(data) not in (6, 18)
    else:
        assert address.packed()[-2:] == data[-2:]


def test_packed_is_the_compact_form() -> None:
    assert Address("192.0.2.1", 6881).packed() == bytes([192, 0, 2, 1, 0x1A, 0xE1])
    assert Address("::1", 258).packed() == bytes(15) + b"\x01\x01\x02"


def test_a_mapped_address_is_the_ipv4_address_it_means() -> None:
    mapped = IPv6Address("::ffff:192.0.2.1").packed + b"\0\x05"
    assert Address.from_packed(mapped) == Address("192.0.2.1", 5)


@pytest.mark.parametrize(
    ("ip", "scope"),
    [
        ("127.0.0.1", Scope.LOOPBACK),
        ("127.255.1.1", Scope.LOOPBACK),
        ("::1", Scope.LOOPBACK),
        ("169.254.3.4", Scope.LINK),
        ("fe80::1", Scope.LINK),
        ("10.1.2.3", Scope.PRIVATE),
        ("192.168.1.1", Scope.PRIVATE),
        ("100.64.0.1", Scope.PRIVATE),
        ("fd00::1", Scope.PRIVATE),
        ("8.8.8.8", Scope.GLOBAL),
        ("2606:4700::1", Scope.GLOBAL),
    ],
)
def test_scopes(ip: str, scope: Scope) -> None:
    assert Address(ip, 5).scope == scope


def test_scopes_are_ordered_by_reach() -> None:
    assert Scope.LOOPBACK < Scope.LINK < Scope.PRIVATE < Scope.GLOBAL


@pytest.mark.parametrize("ip", ["224.0.0.1", "ff02::1", "0.0.0.0", "::", "255.255.255.255"])
def test_what_no_datagram_is_sent_to(ip: str) -> None:
    assert not Address(ip, 5).is_unicast


def test_a_unicast_address_has_a_port() -> None:
    assert Address("192.0.2.1", 5).is_unicast
    assert Address("::1", 5).is_unicast
    assert not Address("192.0.2.1", 0).is_unicast


@pytest.mark.parametrize(
    "text", ["", "192.0.2.1", "192.0.2.1:", "192.0.2.1:0", "192.0.2.1:65536", "::1:5", "name:5", "01.2.3.4:5", "[::1]"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError):
        Address.parse(text)


@given(st.one_of(names, st.ip_addresses().map(str)), ports)
def test_a_target_comes_back_from_text(host: str, port: int) -> None:
    target = Target(host, port)
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize(
    "text", ["", "peer-b", ":22", "peer-b:", "peer-b:0", "peer-b:ssh", "a:b:22", "::1:22", "p:-1", "p:٣"]
)
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(UsageError):
        Target.parse(text)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("2222:peer-b:22", ForwardSpec("127.0.0.1", 2222, Target("peer-b", 22))),
        ("2222:Peer-B:22/tcp", ForwardSpec("127.0.0.1", 2222, Target("peer-b", 22))),
        ("localhost:2222:peer-b:22", ForwardSpec("127.0.0.1", 2222, Target("peer-b", 22))),
        ("2222:peer-b.pvpn.:22", ForwardSpec("127.0.0.1", 2222, Target("peer-b.pvpn", 22))),
        ("127.0.0.1:0:peer-b:22", ForwardSpec("127.0.0.1", 0, Target("peer-b", 22))),
        ("0.0.0.0:80:peer-b.home.pvpn:80", ForwardSpec("0.0.0.0", 80, Target("peer-b.home.pvpn", 80))),
        ("[::1]:2222:peer-b:22", ForwardSpec("::1", 2222, Target("peer-b", 22))),
        ("5353:peer-b:53/udp", ForwardSpec("127.0.0.1", 5353, Target("peer-b", 53), udp=True)),
        ("unix:/run/x.sock:peer-b:22", ForwardSpec("", 0, Target("peer-b", 22), path="/run/x.sock")),
        ("unix:/a:b:peer-b:22", ForwardSpec("", 0, Target("peer-b", 22), path="/a:b")),
    ],
)
def test_forwards(text: str, spec: ForwardSpec) -> None:
    assert ForwardSpec.parse(text) == spec
    assert ForwardSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2222",
        "peer-b:22",
        "2222:peer-b",
        "2222:peer-b:0",
        "65536:peer-b:22",
        "2222::22",
        "2222:peer-b:22/sctp",
        "unix::peer-b:22",
        "unix:/x:peer-b",
        "unix:/x:peer-b:53/udp",
        "::1:2222:peer-b:22",
        "a:b:2222:peer-b:22",
        "٣:peer-b:22",
        "1" * 5000 + ":peer-b:22",
    ],
)
def test_what_is_no_forward(text: str) -> None:
    with pytest.raises(UsageError, match="is not a forward - write 2222:peer-b:22"):
        ForwardSpec.parse(text)


@pytest.mark.parametrize(
    "host",
    [
        "peer_b",
        "localhost",
        "192.0.2",
        "peer-b.home",
        "a.peer-b.home.pvpn",
        "pvpn",
        ".pvpn",
        "x" * 33,
        "peer-b..pvpn",
    ],
)
def test_forwards_lead_to_nobody_but_peers(host: str) -> None:
    with pytest.raises(UsageError, match="can't be a peer's name - a forward leads to a peer"):
        ForwardSpec.parse(f"2222:{host}:22")


@pytest.mark.parametrize("host", ["foo", "*", "example.org", "[fe80::1%eth0]", "1.2.3", "[127.1]"])
def test_forwards_listen_at_numeric_addresses(host: str) -> None:
    with pytest.raises(UsageError, match=r"is not an address to listen at - write 127\.0\.0\.1"):
        ForwardSpec.parse(f"{host}:2222:peer-b:22")


def test_hints_show_what_was_meant() -> None:
    with pytest.raises(UsageError, match=r"write peer-b:22 or \[::1\]:22"):
        Target.parse("foo")
    with pytest.raises(UsageError, match=r"write router.example:6881 or \[::1\]:6881"):
        Target.parse("foo", "router.example:6881")
    with pytest.raises(UsageError, match=r"write 192.0.2.1:41641 or \[::1\]:41641"):
        Address.parse("foo")


@given(st.text(max_size=40))
def test_a_path_is_shown_in_one_printable_line(text: str) -> None:
    assert shown(text).isprintable()
    assert not text.isprintable() or shown(text) == text


@given(st.one_of(st.text(max_size=40), st.text(alphabet="0123456789abp:/[]unixdt-.", max_size=40)))
def test_text_is_understood_or_refused_in_one_line(text: str) -> None:
    for parse in (Address.parse, Target.parse, ForwardSpec.parse, parse_port, split_host_port):
        try:
            parse(text)
        except UsageError as error:
            assert "\n" not in str(error)


@given(
    st.builds(
        ForwardSpec,
        st.ip_addresses(v=4).map(str),
        st.integers(0, 65535),
        st.builds(Target, names, ports),
        st.just(""),
        st.booleans(),
    )
)
def test_a_forward_comes_back_from_text(spec: ForwardSpec) -> None:
    assert ForwardSpec.parse(str(spec)) == spec


@pytest.mark.parametrize("name", ["peer-b", "a", "x" * 32, "9", "a-"])
def test_names(name: str) -> None:
    assert valid_name(name)


@pytest.mark.parametrize(
    "name", ["", "x" * 33, "Peer", "a.b", "a_b", "ä", "localhost", "wpad", "isatap", "pvpn", "a\n"]
)
def test_names_that_nobody_may_bear(name: str) -> None:
    assert not valid_name(name)


def test_ports() -> None:
    assert parse_port("65535") == 65535
    assert parse_port("0", lowest=0) == 0
    for text in ("0", "65536", "-1", "1.5", "", " 1", "٣", "0x1"):
        with pytest.raises(UsageError, match="ports go from 1 to 65535"):
            parse_port(text)


def test_an_ip_is_numeric_text() -> None:
    assert str(Address("192.0.2.1", 5)) == "192.0.2.1:5"
    assert str(Address("2001:db8::1", 5)) == "[2001:db8::1]:5"
    assert Address("192.0.2.1", 5).family == socket.AF_INET
    assert IPv4Address("192.0.2.1").packed == Address("192.0.2.1", 5).packed()[:4]


@pytest.mark.parametrize(("host", "shown"), [("100.64.7.9", "100.64.7.9"), ("[FD00::7]", "fd00::7")])
def test_a_forward_may_name_a_peers_virtual_address(host: str, shown: str) -> None:
    spec = ForwardSpec.parse(f"2222:{host}:22")
    assert spec.target == Target(shown, 22) and ForwardSpec.parse(str(spec)) == spec
