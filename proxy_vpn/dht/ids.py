"""Node ids bound to an IP address (BEP 42), and how ids relate: distance, shared prefix, subnets."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, ip_address

from proxy_vpn.addresses import Address, Scope
from proxy_vpn.wire.krpc import ID_BYTES

Entropy = Callable[[int], bytes]

_MASK4 = bytes.fromhex("030f3fff")
_MASK6 = bytes.fromhex("0103070f1f3f7fff")
_POLYNOMIAL = 0x82F63B78


def make_id(ip: str, entropy: Entropy) -> bytes:
    """A new random 20-byte id that a node at `ip` may bear."""
    random = entropy(ID_BYTES)
    checksum = _prefix(ip, random[-1])
    head = bytes([checksum >> 24, checksum >> 16 & 0xFF, (checksum >> 8 & 0xF8) | (random[2] & 0x07)])
    return head + random[3:]


def id_fits(node_id: bytes, ip: str) -> bool:
    """Whether a node at `ip` may bear this id; addresses that are not global are exempt."""
    if Address(ip, 1).scope is not Scope.GLOBAL:
        return True
    checksum = _prefix(ip, node_id[-1])
    return int.from_bytes(node_id[:3], "big") >> 3 == checksum >> 11


def crc32c(data: bytes) -> int:
    """The CRC-32C (Castagnoli) of a few bytes."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def distance(one: bytes, other: bytes) -> int:
    """The XOR metric."""
    return int.from_bytes(one, "big") ^ int.from_bytes(other, "big")


def shared_bits(one: bytes, other: bytes) -> int:
    """How many leading bits two ids share."""
    return ID_BYTES * 8 - distance(one, other).bit_length()


def subnet(ip: str) -> bytes:
    """What one operator is taken to own at least: the /24 of an IPv4 address, the /48 of an IPv6 address."""
    packed = ip_address(ip).packed
    return packed[:3] if len(packed) == 4 else packed[:6]


def host(ip: str) -> bytes:
    """What one machine is taken to own: an IPv4 address, the /64 of an IPv6 address."""
    packed = ip_address(ip).packed
    return packed if len(packed) == 4 else packed[:8]


def family_of(address: Address) -> int:
    """4 or 6."""
    return 6 if ":" in address.ip else 4


def _prefix(ip: str, random: int) -> int:
    address = ip_address(ip)
    mask = _MASK4 if isinstance(address, IPv4Address) else _MASK6
    masked = bytearray(byte & keep for byte, keep in zip(address.packed, mask, strict=False))
    masked[0] |= (random & 0x07) << 5
    return crc32c(bytes(masked))


def _checksum_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ _POLYNOMIAL if value & 1 else value >> 1
        table.append(value)
    return table


_TABLE = _checksum_table()
