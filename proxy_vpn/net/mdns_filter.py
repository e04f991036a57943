"""A kernel filter for mDNS sockets: of all the talk on a LAN, only what concerns one service type comes in.

Passed are datagrams sent to the mDNS group, from port 5353, not truncated, of one frame, whose first entry (a query's
question, a response's first answer) is the pointer of that type in class IN. So nothing sent to this host alone is ever
answered (zeroconf would answer anybody), and other services' traffic costs nothing. Classic BPF needs no privilege.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from collections.abc import Sequence

MDNS_PORT = 5353
GROUP4, GROUP6 = socket.inet_aton("224.0.0.251"), b"\xff\x02" + bytes(13) + b"\xfb"
MAX_DATAGRAM_BYTES = 1500

_SO_ATTACH_FILTER = 26
_NETWORK_HEADER = 0xFFF00000  # SKF_NET_OFF: offsets from here count from the IP header
_UDP_HEADER_BYTES, _DNS_HEADER_BYTES = 8, 12
_FLAGS_AT = _UDP_HEADER_BYTES + 2
_REFUSED_FLAGS = 0x7A  # any opcode but a standard query, and truncation
_GROUP4_AT, _GROUP6_AT = 16, 24
_PASS, _DROP = 0xFFFFFFFF, 0
_LOAD = {4: 0x20, 2: 0x28, 1: 0x30}
_LOAD_LENGTH, _AND, _RETURN = 0x80, 0x54, 0x06
_IF_EQUAL, _IF_GREATER, _IF_ANY_BIT, _JUMP = 0x15, 0x25, 0x45, 0x05
_POINTER_IN_CLASS = struct.pack("!HH", 12, 1)
_INSTRUCTION = struct.Struct("=HBBI")

_Check = tuple[tuple[int, int], tuple[int, int], bool]  # (load code, operand), (jump code, operand), wanted outcome


def listen_only_to(sock: socket.socket, service_type: str) -> bool:
    """Attach the filter for `_name._udp.local.`; False where the system has none."""
    return _attach(sock, _program(service_type))


def listen_to_nothing(sock: socket.socket) -> bool:
    """Attach a filter that drops everything, in place of the other."""
    return _attach(sock, [(_RETURN, 0, 0, _DROP)])


def _attach(sock: socket.socket, program: Sequence[tuple[int, int, int, int]]) -> bool:
    if sys.platform != "linux":
        return False
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*instruction) for instruction in program))
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(code)))
    except OSError:
        return False
    return True


def _program(service_type: str) -> list[tuple[int, int, int, int]]:
    labels = service_type.rstrip(".").encode("ascii").split(b".")
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    common: list[_Check] = [
        ((_LOAD_LENGTH, 0), (_IF_GREATER, _UDP_HEADER_BYTES + MAX_DATAGRAM_BYTES), False),
        ((_LOAD[2], 0), (_IF_EQUAL, MDNS_PORT), True),
        ((_LOAD[1], _FLAGS_AT), (_IF_ANY_BIT, _REFUSED_FLAGS), False),
        *_equal(_UDP_HEADER_BYTES + _DNS_HEADER_BYTES, name + _POINTER_IN_CLASS),
    ]
    tail = [*_instructions(common), (_RETURN, 0, 0, _PASS)]
    ipv4 = _instructions(_equal(_NETWORK_HEADER + _GROUP4_AT, GROUP4))
    ipv6 = _instructions(_equal(_NETWORK_HEADER + _GROUP6_AT, GROUP6))
    return [
        (_LOAD[1], 0, 0, _NETWORK_HEADER),
        (_AND, 0, 0, 0xF0),
        (_IF_EQUAL, 0, len(ipv4) + 1, 0x40),
        *ipv4,
        (_JUMP, 0, 0, len(ipv6)),
        *ipv6,
        *tail,
    ]


def _equal(at: int, expected: bytes) -> list[_Check]:
    """Checks that the bytes from `at` are `expected`, by words and then smaller pieces."""
    checks: list[_Check] = []
    while expected:
        size = next(size for size in _LOAD if size <= len(expected))
        checks.append(((_LOAD[size], at), (_IF_EQUAL, int.from_bytes(expected[:size], "big")), True))
        at, expected = at + size, expected[size:]
    return checks


def _instructions(checks: Sequence[_Check]) -> list[tuple[int, int, int, int]]:
    """Each check that fails ends the program with a drop; the last one that holds falls through."""
    instructions = []
    for (load, offset), (jump, operand), wanted in checks:
        instructions.append((load, 0, 0, offset))
        instructions.append((jump, int(wanted), int(not wanted), operand))
        instructions.append((_RETURN, 0, 0, _DROP))
    return instructions
