"""IP packets as a TUN device with IFF_VNET_HDR carries them: what is read of one, and the few kinds that are written.

Every packet has a virtio header before it (linux/virtio_net.h). Its NEEDS_CHECKSUM says that the transport checksum
holds the sum of the pseudo-header alone and that whoever takes the packet out of the machine completes it; packets that
stay inside may keep it so, and those written here leave the whole sum to the kernel in the same way.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

VNET_BYTES: Final = 10
MAX_PACKET_BYTES: Final = 65535 + 40  # an IPv6 header does not count itself
NEEDS_CHECKSUM: Final = 1
ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
ICMPV6: Final = 58
FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
ACK: Final = 0x10
HOP_LIMIT: Final = 64
_FRAGMENT_HEADER: Final = 44
_HOP_BY_HOP: Final = 0
_DONT_FRAGMENT: Final = 0x4000
_MORE_FRAGMENTS: Final = 0x2000
_NO_VNET: Final = bytes(VNET_BYTES)
_IPV4: Final = struct.Struct("!BBHHHBBH4s4s")
_IPV6: Final = struct.Struct("!IHBB16s16s")
_PORTS: Final = struct.Struct("!HH")
_UDP: Final = struct.Struct("!HHHH")
_TCP: Final = struct.Struct("!HHIIBBHHH")


class Fragment(NamedTuple):
    """A part of a larger payload: whose it is, where it begins, and whether more come after it."""

    number: int
    offset: int
    more: bool


class Packet(NamedTuple):
    """An IP packet taken apart; `source` and `target` are 4 or 16 bytes, the payload has no extension headers."""

    protocol: int
    source: bytes
    target: bytes
    payload: bytes
    fragment: Fragment | None = None

    @property
    def ports(self) -> tuple[int, int] | None:
        """Of source and target; TCP and UDP only."""
        if len(self.payload) < _UDP.size:
            return None
        source, target = _PORTS.unpack_from(self.payload)
        return source, target


def parse(data: bytes) -> Packet | None:
    """A packet without its virtio header; None for what is no whole IP packet. RFC 791, RFC 8200."""
    if len(data) >= _IPV4.size and data[0] >> 4 == 4:
        return _parse4(data)
    if len(data) >= _IPV6.size and data[0] >> 4 == 6:
        return _parse6(data)
    return None


def _parse4(data: bytes) -> Packet | None:
    first, _, total, number, part, _, protocol, _, source, target = _IPV4.unpack_from(data)
    start = (first & 15) * 4
    if not _IPV4.size <= start <= total <= len(data):
        return None
    more, offset = bool(part & _MORE_FRAGMENTS), (part & 0x1FFF) * 8
    fragment = Fragment(number, offset, more) if more or offset else None
    return Packet(protocol, source, target, bytes(data[start:total]), fragment)


def _parse6(data: bytes) -> Packet | None:
    _, size, protocol, _, source, target = _IPV6.unpack_from(data)
    start, end = _IPV6.size, _IPV6.size + size
    if end > len(data):
        return None
    if protocol == _HOP_BY_HOP and start + 8 <= end:
        protocol, start = data[start], start + 8 * (data[start + 1] + 1)
    fragment = None
    if protocol == _FRAGMENT_HEADER and start + 8 <= end:
        protocol, _, part, number = struct.unpack_from("!BBHI", data, start)
        fragment, start = Fragment(number, part & 0xFFF8, bool(part & 1)), start + 8
    if start > end:
        return None
    return Packet(protocol, source, target, bytes(data[start:end]), fragment)


def udp(source: bytes, source_port: int, target: bytes, target_port: int, payload: bytes) -> bytes:
    """A UDP packet with its virtio header; the kernel completes the checksum. `payload`: 65,507 bytes at most."""
    size = _UDP.size + len(payload)
    partial = _pseudo_sum(UDP, source, target, size)
    header = _UDP.pack(source_port, target_port, size, partial)
    return _vnet(len(source), _UDP.size - 2) + _ip(UDP, source, target, size) + header + payload


def tcp_reset(packet: Packet) -> bytes | None:
    """The RST that answers a TCP packet nobody expects (RFC 9293, 3.10.7.1); None if that needs none."""
    if len(packet.payload) < _TCP.size:
        return None
    source_port, target_port, sequence, acknowledged, offset, flags, *_ = _TCP.unpack_from(packet.payload)
    if flags & RST:
        return None
    if flags & ACK:
        number, answer, kind = acknowledged, 0, RST
    else:
        length = max(0, len(packet.payload) - (offset >> 4) * 4) + bool(flags & SYN) + bool(flags & FIN)
        number, answer, kind = 0, (sequence + length) & 0xFFFFFFFF, RST | ACK
    partial = _pseudo_sum(TCP, packet.target, packet.source, _TCP.size)
    header = _TCP.pack(target_port, source_port, number, answer, _TCP.size << 2, kind, 0, partial, 0)
    return _vnet(len(packet.source), 16) + _ip(TCP, packet.target, packet.source, _TCP.size) + header


def whole(protocol: int, source: bytes, target: bytes, payload: bytes) -> bytes:
    """A packet whose payload carries its checksum already, with its virtio header."""
    return _NO_VNET + _ip(protocol, source, target, len(payload)) + payload


def word_sum(data: bytes | memoryview) -> int:
    """The sum of the 16-bit words, modulo 65,535: what checksums are made of (RFC 1071). An odd byte stands alone."""
    # 65536 = 1 (mod 65535): so the sum of the words is the whole as one number, modulo 65535.
    padded = bytes(data) + b"\0" if len(data) % 2 else data
    return int.from_bytes(padded, "big") % 0xFFFF


def adjusted(checksum: int, delta: int) -> int:
    """A checksum after the words it covers grew by `delta` (0 to 65,534; RFC 1624, equation 3)."""
    total = (0xFFFF - checksum) + delta
    return 0xFFFF - ((total & 0xFFFF) + (total >> 16))


def _ip(protocol: int, source: bytes, target: bytes, size: int) -> bytes:
    if len(source) == 16:
        return _IPV6.pack(6 << 28, size, protocol, HOP_LIMIT, source, target)
    total = _IPV4.size + size
    header = _IPV4.pack(0x45, 0, total, 0, _DONT_FRAGMENT, HOP_LIMIT, protocol, 0, source, target)
    return header[:10] + struct.pack("!H", 0xFFFF - word_sum(header)) + header[12:]


def _pseudo_sum(protocol: int, source: bytes, target: bytes, size: int) -> int:
    return word_sum(source + target + struct.pack("!II", size, protocol))


def _vnet(address_bytes: int, checksum_at: int) -> bytes:
    start = _IPV6.size if address_bytes == 16 else _IPV4.size
    return struct.pack("=BBHHHH", NEEDS_CHECKSUM, 0, 0, 0, start, checksum_at)
