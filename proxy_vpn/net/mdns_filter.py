"""A kernel filter for mDNS sockets: of all the talk on a LAN, only what concerns one service type comes in.

Passed are datagrams sent to the mDNS group, from port 5353, not truncated, of one frame, whose first entry (a query's
question, a response's first answer) is the pointer of that type in class IN. So nothing sent to this host alone is ever
answered (zeroconf would answer anybody), and other services' traffic costs nothing.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

from proxy_vpn.net import bpf

MDNS_PORT = 5353
GROUP4, GROUP6 = socket.inet_aton("224.0.0.251"), b"\xff\x02" + bytes(13) + b"\xfb"
MAX_DATAGRAM_BYTES = 1500

_NETWORK_HEADER = 0xFFF00000  # SKF_NET_OFF: offsets from here count from the IP header
_DNS_HEADER_BYTES = 12
_FLAGS_AT = bpf.UDP_HEADER_BYTES + 2
_REFUSED_FLAGS = 0x7A  # any opcode but a standard query, and truncation
_GROUP4_AT, _GROUP6_AT = 16, 24
_LOAD = {4: bpf.LOAD_WORD, 2: bpf.LOAD_HALF, 1: bpf.LOAD_BYTE}
_POINTER_IN_CLASS = struct.pack("!HH", 12, 1)

_Check = tuple[tuple[int, int], tuple[int, int], bool]  # (load code, operand), (jump code, operand), wanted outcome


def listen_only_to(sock: socket.socket, service_type: str) -> bool:
    """Attach the filter for `_name._udp.local.`; False where the system has none."""
    return bpf.attach(sock, _program(service_type))


def listen_to_nothing(sock: socket.socket) -> bool:
    """Attach a filter that drops everything, in place of the other."""
    return bpf.attach(sock, [(bpf.RETURN, 0, 0, bpf.DROP)])


def _program(service_type: str) -> list[bpf.Instruction]:
    labels = service_type.rstrip(".").encode("ascii").split(b".")
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    common: list[_Check] = [
        ((bpf.LOAD_LENGTH, 0), (bpf.IF_GREATER, bpf.UDP_HEADER_BYTES + MAX_DATAGRAM_BYTES), False),
        ((_LOAD[2], 0), (bpf.IF_EQUAL, MDNS_PORT), True),
        ((_LOAD[1], _FLAGS_AT), (bpf.IF_ANY_BIT, _REFUSED_FLAGS), False),
        *_equal(bpf.UDP_HEADER_BYTES + _DNS_HEADER_BYTES, name + _POINTER_IN_CLASS),
    ]
    tail = [*_instructions(common), (bpf.RETURN, 0, 0, bpf.PASS)]
    ipv4 = _instructions(_equal(_NETWORK_HEADER + _GROUP4_AT, GROUP4))
    ipv6 = _instructions(_equal(_NETWORK_HEADER + _GROUP6_AT, GROUP6))
    return [
        (_LOAD[1], 0, 0, _NETWORK_HEADER),
        (bpf.AND, 0, 0, 0xF0),
        (bpf.IF_EQUAL, 0, len(ipv4) + 1, 0x40),
        *ipv4,
        (bpf.JUMP, 0, 0, len(ipv6)),
        *ipv6,
        *tail,
    ]


def _equal(at: int, expected: bytes) -> list[_Check]:
    """Checks that the bytes from `at` are `expected`, by words and then smaller pieces."""
    checks: list[_Check] = []
    while expected:
        size = next(size for size in _LOAD if size <= len(expected))
        checks.append(((_LOAD[size], at), (bpf.IF_EQUAL, int.from_bytes(expected[:size], "big")), True))
        at, expected = at + size, expected[size:]
    return checks


def _instructions(checks: Sequence[_Check]) -> list[bpf.Instruction]:
    """Each check that fails ends the program with a drop; the last one that holds falls through."""
    instructions = []
    for (load, offset), (jump, operand), wanted in checks:
        instructions.append((load, 0, 0, offset))
        instructions.append((jump, int(wanted), int(not wanted), operand))
        instructions.append((bpf.RETURN, 0, 0, bpf.DROP))
    return instructions
