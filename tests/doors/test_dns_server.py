"""The name server inside a TUN, asked as resolvers and as attackers ask."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR, DNSRROPT

from proxy_vpn.doors.dns_server import MAX_QUERY_BYTES, answer, reverse_address

V4, V6 = "100.64.7.9", "fd00::9"
NO_ERROR, FORMAT_ERROR, NO_SUCH_NAME, NOT_IMPLEMENTED, REFUSED = 0, 1, 3, 4, 5


class OnePeer:
    """A zone with one peer; what is asked elsewhere is noted."""

    def __init__(self, elsewhere: bytes | None = None) -> None:
        self.asked: list[bytes] = []
        self._elsewhere = elsewhere

    networks = ("home",)

    def addresses(self, name: str) -> tuple[str, ...] | None:
        return (V4, V6) if name in ("peer-b", "peer-b.pvpn", "peer-b.home.pvpn") else None

    def name_at(self, ip: str) -> str | None:
        return "peer-b.home.pvpn" if ip in (V4, V6) else None

    def covers(self, ip: str) -> bool:
        ranges = (ip_network("100.64.0.0/16"), ip_network("fd00::/64"))
        return any(ip_address(ip) in each for each in ranges if each.version == ip_address(ip).version)

    async def elsewhere(self, query: bytes, over_tcp: bool) -> bytes | None:
        self.asked.append(query)
        return self._elsewhere


def query(name: str, kind: str = "A", **more: Any) -> bytes:
    return bytes(DNS(id=7, rd=1, qd=[DNSQR(qname=name, qtype=kind)], **more))


def ask(data: bytes, zone: OnePeer | None = None) -> Any:
    said = asyncio.run(answer(data, zone or OnePeer()))
    return None if said is None else DNS(said)


@pytest.mark.parametrize("name", ["peer-b", "peer-b.pvpn.", "PEER-b.Home.pvpn"])
@pytest.mark.parametrize(("kind", "value"), [("A", V4), ("AAAA", V6)])
def test_peers(name: str, kind: str, value: str) -> None:
    said = ask(query(name, kind, ar=[DNSRROPT()]))
    assert (said.id, said.qr, said.aa, said.ra, said.rcode) == (7, 1, 1, 1, NO_ERROR)
    assert [record.rdata for record in said.an] == [value]
    assert said.qd[0].qname.decode().rstrip(".") == name.rstrip("."), "the name as it was written (0x20)"


@pytest.mark.parametrize("name", ["localhost", "web.LOCALHOST."])
@pytest.mark.parametrize(("kind", "values"), [("A", ["127.0.0.1"]), ("AAAA", ["::1"]), ("MX", [])])
def test_this_machine_itself(name: str, kind: str, values: list[str]) -> None:
    zone = OnePeer(b"leaked")
    said = ask(query(name, kind), zone)
    assert said.rcode == NO_ERROR and [record.rdata for record in said.an or []] == values and not zone.asked


@pytest.mark.parametrize("ip", [V4, V6])
def test_reverse(ip: str) -> None:
    pointer = ip_address(ip).reverse_pointer
    said = ask(query(pointer, "PTR"))
    assert [record.rdata for record in said.an] == [b"peer-b.home.pvpn."]
    assert reverse_address(pointer) == ip


NAMES = ("nobody", "nobody.pvpn", "a.b.c.pvpn", "nobody.home.pvpn", "work.pvpn", "Nobody.PVPN.lan", "peer-b.pvpn.a.b")


@pytest.mark.parametrize("name", [*NAMES, ip_address("100.64.1.1").reverse_pointer])
def test_what_is_ours_never_leaves(name: str) -> None:
    zone = OnePeer(b"leaked")
    assert ask(query(name), zone).rcode == NO_SUCH_NAME
    assert not zone.asked


@pytest.mark.parametrize("kind", ["A", "AAAA", "HTTPS", "SOA"])
@pytest.mark.parametrize("name", ["pvpn", "home.pvpn", "HOME.pvpn"])
def test_what_has_names_below_it_is_there(name: str, kind: str) -> None:
    zone = OnePeer(b"leaked")
    said = ask(query(name, kind), zone)
    assert said.rcode == NO_ERROR and not said.an and not zone.asked


@pytest.mark.parametrize(("name", "kind"), [("com", "NS"), ("com", "DS"), ("pvpn.example", "A"), (".", "NS")])
def test_the_world_s_own_are_asked_elsewhere(name: str, kind: str) -> None:
    zone = OnePeer()
    ask(query(name, kind), zone)
    assert len(zone.asked) == 1


def test_another_kind_of_a_name_that_is_there() -> None:
    said = ask(query("peer-b", "MX"))
    assert said.rcode == NO_ERROR and not said.an


def test_the_rest_of_the_world_is_asked_elsewhere() -> None:
    asked = query("example.com")
    zone = OnePeer(b"whatever it says")
    assert asyncio.run(answer(asked, zone)) == b"whatever it says" and zone.asked == [asked]
    assert ask(asked).rcode == REFUSED
    assert ask(query("8.8.8.8.in-addr.arpa", "PTR")).rcode == REFUSED


def test_queries_that_are_none() -> None:
    assert ask(b"") is None
    assert ask(query("peer-b", qr=1)) is None, "a response is not answered: two servers would talk for ever"
    assert ask(query("peer-b") + bytes(MAX_QUERY_BYTES)) is None
    assert ask(query("peer-b", opcode=5)).rcode == NOT_IMPLEMENTED
    two = bytes(DNS(qd=[DNSQR(qname="a"), DNSQR(qname="b")]))
    assert ask(two).rcode == FORMAT_ERROR


@given(st.binary(max_size=200), st.integers(0, 60))
def test_noise(noise: bytes, kept: int) -> None:
    asyncio.run(answer(query("peer-b.pvpn")[:kept] + noise, OnePeer()))


def test_names_that_point_at_themselves() -> None:
    loop = query("x")[:12] + b"\xc0\x0c\0\1\0\1"
    asyncio.run(answer(loop, OnePeer()))
    asyncio.run(answer(query("x")[:12] + b"\xc0\x0e\xc0\x0c\0\1\0\1", OnePeer()))
