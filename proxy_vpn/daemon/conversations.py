"""Conversations: what flows tell the tap, as the IP packets a sniffer between the two peers would have seen.

scapy writes each kind of header once; per packet only the fields that differ are filled in, because a scapy object a
packet takes half a millisecond. TCP's numbers are the flow's own positions, so they fit wherever a capture begins.
What no flow has is made up: acknowledgements (one follows each chunk at once), windows and initial numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from struct import pack, pack_into
from typing import Final, NamedTuple, Protocol

from proxy_vpn.doors.tun_icmp import udp_unreachable
from proxy_vpn.errors import Status
from proxy_vpn.mesh.tap import Kind, Line, Seen
from proxy_vpn.wire.packet import VNET_BYTES

SEGMENT_BYTES: Final = 32 * 1024
DATAGRAM_BYTES: Final = 65_507
WINDOW_SHIFT: Final = 14
EPHEMERAL_PORTS: Final = range(32768, 61000)
_ADDRESSES_KEPT: Final = 4096
_FIN, _SYN, _RST, _PSH, _ACK = 0x01, 0x02, 0x04, 0x08, 0x10
_TCP, _UDP = 6, 17
_V4_BYTES, _V6_BYTES = 20, 40


class Addresses(Protocol):
    """A machine's virtual addresses; `v4` may be missing."""

    @property
    def v4(self) -> IPv4Address | None: ...

    @property
    def v6(self) -> IPv6Address: ...


AddressBook = Callable[[str, bytes], tuple[Addresses, Addresses]]
"""(network's name, peer's identity) -> this machine's addresses in it, and the peer's."""


class Headers(NamedTuple):
    """IP and transport headers as scapy writes them, with nothing filled in; `ip_bytes` of them are IP's."""

    ip_bytes: int
    syn: bytes
    segment: bytes
    datagram: bytes

    @classmethod
    def both(cls) -> dict[int, Headers]:
        """By the length of an address; imports scapy, which takes a third of a second. Raises ImportError."""
        from scapy.layers.inet import IP, TCP, UDP
        from scapy.layers.inet6 import IPv6

        options = [("MSS", SEGMENT_BYTES), ("NOP", None), ("WScale", WINDOW_SHIFT)]
        syn, segment = TCP(flags="S", window=0xFFFF, options=options), TCP(window=0xFFFF)
        v4, v6 = IP(src="0.0.0.0", dst="0.0.0.0", id=0, flags="DF"), IPv6(src="::", dst="::")
        return {
            4: cls(_V4_BYTES, *(bytes(v4 / transport) for transport in (syn, segment, UDP()))),
            16: cls(_V6_BYTES, *(bytes(v6 / transport) for transport in (syn, segment, UDP()))),
        }


class Packet(NamedTuple):
    """A packet's bytes, cut at the snap length, and how long it was on the wire."""

    data: bytes
    wire_bytes: int


class _Side(NamedTuple):
    """One end of a conversation; `base` is the TCP sequence number of position 0."""

    address: bytes
    port: int
    base: int


class Conversations:
    """Turns reports into packets; `headers` from Headers.both()."""

    def __init__(self, book: AddressBook, headers: dict[int, Headers]) -> None:
        self._book = book
        self._headers = headers
        self._addresses = lru_cache(_ADDRESSES_KEPT)(self._find_addresses)

    def packets(self, seen: Seen, snap_bytes: int) -> Iterator[Packet]:
        """The packets that one report stands for."""
        here, there = self._sides(seen)
        source, target = (here, there) if seen.from_here else (there, here)
        headers = self._headers[len(source.address)]
        if seen.kind is Kind.UNREACHABLE:
            # So rare that scapy may build it whole: ICMP about a datagram of the opener's.
            whole = udp_unreachable(target.address, target.port, source.address, source.port, Status.REFUSED)
            yield Packet(whole[VNET_BYTES:][:snap_bytes], len(whole) - VNET_BYTES)
            return
        if seen.kind is Kind.DATAGRAM:
            yield _packet(headers, headers.datagram, source, target, seen.data[:DATAGRAM_BYTES], snap_bytes)
            return
        for source_acts, seq, ack, flags, data in _segments(seen):
            ends = (source, target) if source_acts else (target, source)
            header = bytearray(headers.syn if flags & _SYN else headers.segment)
            at, numbers = headers.ip_bytes, (ends[0].base + seq, ends[1].base + ack if flags & _ACK else 0)
            pack_into(">II", header, at + 4, *(number & 0xFFFFFFFF for number in numbers))
            header[at + 13] = flags
            yield _packet(headers, header, *ends, data, snap_bytes)

    def _sides(self, seen: Seen) -> tuple[_Side, _Side]:
        """This machine's end and the peer's: the opener's port is made up, from its session and stream."""
        line, opened_here = seen.line, seen.opened_here
        here, there = self._addresses(line, opened_here, seen.target.host)
        index = line.number * 977 + (seen.stream_id >> 2)
        opener, service = EPHEMERAL_PORTS[index % len(EPHEMERAL_PORTS)], seen.target.port
        ports = (opener, service) if opened_here else (service, opener)
        base = (line.number << 16 ^ seen.stream_id) * 0x9E3779B1
        return _Side(here, ports[0], base), _Side(there, ports[1], base * 0x85EBCA77)

    def _find_addresses(self, line: Line, opened_here: bool, service_host: str) -> tuple[bytes, bytes]:
        """This machine's address and the peer's of one family; a service beyond either has its own."""
        own, peer = self._book(line.network, line.identity)
        try:
            beyond: IPv4Address | IPv6Address | None = ip_address(service_host.partition("%")[0])
        except ValueError:  # a name: the peer's own, or one that it looked up itself
            beyond = None
        if own.v4 and peer.v4 and (beyond is None or beyond.version == 4):
            here: IPv4Address | IPv6Address = own.v4
            there: IPv4Address | IPv6Address = peer.v4
        else:
            here, there = own.v6, peer.v6
        if beyond is not None and beyond.version == here.version:
            return (here.packed, beyond.packed) if opened_here else (beyond.packed, there.packed)
        return here.packed, there.packed


def count(seen: Seen) -> int:
    """How many packets a report stands for."""
    if seen.kind is Kind.DATA:
        return max(1, -(-len(seen.data) // SEGMENT_BYTES)) + 1
    return 2 if seen.kind is Kind.ACCEPTED else 1


def _segments(seen: Seen) -> Iterator[tuple[bool, int, int, int, bytes | memoryview]]:
    """(does who acted send it, its position, the other's, flags, data) of each TCP packet of a report."""
    place, other = seen.position, seen.acknowledged
    match seen.kind:
        case Kind.ASKED:
            yield True, place, 0, _SYN, b""
        case Kind.ACCEPTED:
            yield True, place, other, _SYN | _ACK, b""
            yield False, other, place + 1, _ACK, b""
        case Kind.REFUSED | Kind.RESET:
            yield True, place, other, _RST | _ACK, b""
        case Kind.DATA:
            size = len(seen.data)
            for start in range(0, size or 1, SEGMENT_BYTES):
                last = start + SEGMENT_BYTES >= size
                flags = _ACK | (_PSH if last and size else 0) | (_FIN if last and seen.end else 0)
                yield True, place + start, other, flags, seen.data[start : start + SEGMENT_BYTES]
            yield False, other, place + size + seen.end, _ACK, b""


def _packet(
    headers: Headers, header: bytes | bytearray, source: _Side, target: _Side, data: bytes | memoryview, snap_bytes: int
) -> Packet:
    """Fill in what is left: addresses, ports, lengths and checksums (no transport checksum if it is cut)."""
    made, at = bytearray(header), headers.ip_bytes
    total = len(made) + len(data)
    udp = header is headers.datagram
    addresses = source.address + target.address
    pack_into(">HH", made, at, source.port, target.port)
    if udp:
        pack_into(">H", made, at + 4, total - at)
    place = at + (6 if udp else 16)
    made[place : place + 2] = bytes(2)
    if at == _V4_BYTES:
        made[12:20] = addresses
        pack_into(">H", made, 2, total)
        made[10:12] = bytes(2)
        pack_into(">H", made, 10, _checksum(made[:20]))
    else:
        made[8:40] = addresses
        pack_into(">H", made, 4, total - at)
    if total > snap_bytes:
        return Packet((bytes(made) + data[:snap_bytes])[:snap_bytes], total)
    whole = b"".join((addresses, pack(">HH", _UDP if udp else _TCP, total - at), made[at:], data))
    pack_into(">H", made, place, _checksum(whole))
    return Packet(b"".join((made, data)), total)


def _checksum(data: bytes | bytearray) -> int:
    """RFC 1071's, by one division: four times as fast as adding words."""
    padded = data + b"\0" if len(data) & 1 else data
    return 0xFFFF - int.from_bytes(padded, "big") % 0xFFFF
