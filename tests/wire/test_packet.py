"""IP packets: what scapy builds is understood, what is built scapy understands, and noise is nothing."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop

from proxy_vpn.wire import packet
from proxy_vpn.wire.packet import VNET_BYTES, adjusted, parse, tcp_reset, udp, whole, word_sum

A4, B4 = bytes([100, 64, 1, 2]), bytes([100, 64, 1, 3])
A6, B6 = socket.inet_pton(socket.AF_INET6, "fd00::2"), socket.inet_pton(socket.AF_INET6, "fd00::3")
BOTH = pytest.mark.parametrize(("a", "b"), [(A4, B4), (A6, B6)], ids=["IPv4", "IPv6"])


def ip(a: bytes, b: bytes) -> Any:
    family, kind = (socket.AF_INET, IP) if len(a) == 4 else (socket.AF_INET6, IPv6)
    return kind(src=socket.inet_ntop(family, a), dst=socket.inet_ntop(family, b))


def read(data: bytes) -> Any:
    return (IP if data[0] >> 4 == 4 else IPv6)(data)


def completed(data: bytes) -> bytes:
    """As the kernel does it for NEEDS_CHECKSUM."""
    start, offset = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    assert data[0] == packet.NEEDS_CHECKSUM
    body = bytearray(data[VNET_BYTES:])
    checksum = 0xFFFF - word_sum(bytes(body[start:]))
    body[start + offset : start + offset + 2] = (checksum or 0xFFFF).to_bytes(2, "big")
    return bytes(body)


def checksummed(data: bytes) -> Any:
    """Read by scapy, whose own checksums must be the same."""
    there = read(data)
    again = there.copy()
    for layer in (again, again.payload):
        if hasattr(layer, "chksum"):
            del layer.chksum
    assert bytes(again) == data
    return there


@BOTH
@pytest.mark.parametrize("size", [0, 1, 1200, 9000])
def test_udp(a: bytes, b: bytes, size: int) -> None:
    there = checksummed(completed(udp(a, 7, b, 53, b"x" * size)))
    assert (there[UDP].sport, there[UDP].dport, bytes(there[UDP].payload)) == (7, 53, b"x" * size)
    again = parse(bytes(there))
    assert again is not None and again.ports == (7, 53) and (again.source, again.target) == (a, b)


@BOTH
def test_resets_answer_what_they_must(a: bytes, b: bytes) -> None:
    def answer(**fields: Any) -> Any:
        asked = parse(bytes(ip(a, b) / TCP(sport=5, dport=22, **fields)))
        assert asked is not None
        data = tcp_reset(asked)
        return None if data is None else checksummed(completed(data))

    syn = answer(flags="S", seq=1000)
    assert (syn[TCP].flags, syn[TCP].ack, syn[TCP].sport, syn[TCP].dport) == ("RA", 1001, 22, 5)
    assert (syn.src, syn.dst) == (ip(b, a).src, ip(b, a).dst)
    late = answer(flags="A", seq=1000, ack=77)
    assert (late[TCP].flags, late[TCP].seq) == ("R", 77)
    assert answer(flags="R") is None


@BOTH
def test_fragments_are_told(a: bytes, b: bytes) -> None:
    if len(a) == 4:
        first, last = fragment(ip(a, b) / UDP(sport=1, dport=2) / (b"x" * 1600), fragsize=1480)
    else:
        first = ip(a, b) / IPv6ExtHdrFragment(nh=17, offset=0, m=1, id=9) / (b"x" * 1480)
        last = ip(a, b) / IPv6ExtHdrFragment(nh=17, offset=1480 // 8, m=0, id=9) / (b"x" * 128)
    parts = [parse(bytes(each)) for each in (first, last)]
    told = [part.fragment for part in parts if part is not None and part.fragment is not None]
    assert [(each.offset, each.more) for each in told] == [(0, True), (1480, False)]
    assert [part.protocol for part in parts if part] == [17, 17]


def test_options_and_extensions_are_skipped() -> None:
    found = parse(bytes(IPv6(src="fd00::2", dst="fd00::3") / IPv6ExtHdrHopByHop() / UDP(sport=1, dport=2) / b"hi"))
    assert found is not None and found.ports == (1, 2)
    echo = parse(bytes(IP(src="10.0.0.1", dst="10.0.0.2", options=[b"\x94\x04\0\0"]) / ICMP() / b"hi"))
    assert echo is not None and echo.protocol == packet.ICMP and echo.payload[0] == 8


@given(st.binary(max_size=120), st.sampled_from([b"", b"\x45", b"\x60", b"\x4f", b"\x46"]))
def test_noise_is_nothing_or_a_packet(noise: bytes, start: bytes) -> None:
    found = parse(start + noise)
    if found is not None:
        assert len(found.source) == len(found.target) in (4, 16) and len(found.payload) <= len(noise)
        tcp_reset(found)
        assert found.ports is None or all(0 <= port < 65536 for port in found.ports)


@given(st.binary(min_size=20, max_size=60), st.binary(min_size=12, max_size=12))
def test_a_checksum_keeps_up_with_what_it_covers(data: bytes, new: bytes) -> None:
    before = 0xFFFF - word_sum(data)
    after = adjusted(before, (word_sum(new) - word_sum(data[:12])) % 0xFFFF)
    assert after % 0xFFFF == (0xFFFF - word_sum(new + data[12:])) % 0xFFFF


@BOTH
def test_whole_packets(a: bytes, b: bytes) -> None:
    datagram = completed(udp(a, 1, b, 2, b"hi"))[20 if len(a) == 4 else 40 :]
    there = checksummed(whole(17, a, b, datagram)[VNET_BYTES:])
    assert bytes(there[UDP].payload) == b"hi"
