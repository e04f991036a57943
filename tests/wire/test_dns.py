"""DNS messages read in passing, beside scapy, which reads them in full."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR, DNSRROPT

from proxy_vpn.wire.dns import answers, asked_name, is_truncated, no_such_name

QUERY = bytes(DNS(id=7, rd=1, qd=[DNSQR(qname="Peer-B.Home.PVPN", qtype="A")], ar=[DNSRROPT()]))


def test_the_name_asked_for() -> None:
    assert asked_name(QUERY) == "peer-b.home.pvpn"
    assert asked_name(bytes(DNS(qd=[DNSQR(qname=".")]))) == ""


@pytest.mark.parametrize(
    "query",
    [
        b"",
        QUERY[:11],
        QUERY[:20],
        bytes(DNS(qr=1, qd=[DNSQR(qname="a")])),
        bytes(DNS(qd=[])),
        bytes(DNS(qd=[DNSQR(qname="a"), DNSQR(qname="b")])),
        QUERY[:12] + b"\xc0\x0c\0\1\0\1",
        QUERY[:12] + b"\x01a\0\0\1\0",
    ],
)
def test_what_asks_for_no_name(query: bytes) -> None:
    assert asked_name(query) is None


def test_a_denial() -> None:
    said = DNS(no_such_name(QUERY))
    assert (said.id, said.qr, said.rd, said.ra, said.tc, said.rcode) == (7, 1, 1, 1, 0, 3)
    assert said.qd[0].qname == b"Peer-B.Home.PVPN." and said.qd[0].qtype == 1
    assert (said.qdcount, said.ancount, said.nscount, said.arcount) == (1, 0, 0, 0)


def test_responses() -> None:
    cut = bytes(DNS(id=7, qr=1, tc=1))
    assert answers(cut, QUERY) and is_truncated(cut) and not is_truncated(no_such_name(QUERY))
    assert not answers(QUERY, QUERY) and not answers(bytes(DNS(id=8, qr=1)), QUERY) and not answers(b"\0\7", QUERY)


@given(st.binary(max_size=300))
def test_noise(noise: bytes) -> None:
    for query in (noise, QUERY[:12] + noise):
        if asked_name(query) is not None:
            assert answers(no_such_name(query), query)
