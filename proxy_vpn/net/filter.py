"""A kernel filter for UDP sockets: DHT queries nobody will answer are dropped before they cost us anything.

A read-only DHT node (BEP 43) answers no query, so while we are one, a datagram that begins with `d` and ends with
`1:y1:qe` is of no use. Classic BPF needs no privilege; a datagram of QUIC fits with a chance of 2^-62.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys

_SO_ATTACH_FILTER = 26
_UDP_HEADER_BYTES = 8
_PASS, _DROP = 0xFFFFFFFF, 0
_LOAD_BYTE, _LOAD_BYTE_X, _LOAD_HALF_X, _LOAD_WORD_X, _LOAD_LENGTH = 0x30, 0x50, 0x48, 0x40, 0x80
_SUBTRACT, _TO_INDEX, _IF_EQUAL, _RETURN = 0x14, 0x07, 0x15, 0x06
_INSTRUCTION = struct.Struct("=HBBI")
_ENDING = b"1:y1:qe"

# (code, jumps if true, jumps if false, operand); jumps count from the next instruction to the last two.
_PROGRAM = (
    (_LOAD_BYTE, 0, 0, _UDP_HEADER_BYTES),
    (_IF_EQUAL, 0, 9, ord("d")),
    (_LOAD_LENGTH, 0, 0, 0),
    (_SUBTRACT, 0, 0, len(_ENDING)),
    (_TO_INDEX, 0, 0, 0),
    (_LOAD_WORD_X, 0, 0, 0),
    (_IF_EQUAL, 0, 4, int.from_bytes(_ENDING[:4], "big")),
    (_LOAD_HALF_X, 0, 0, 4),
    (_IF_EQUAL, 0, 2, int.from_bytes(_ENDING[4:6], "big")),
    (_LOAD_BYTE_X, 0, 0, 6),
    (_IF_EQUAL, 1, 0, _ENDING[6]),
    (_RETURN, 0, 0, _PASS),
    (_RETURN, 0, 0, _DROP),
)


def drop_dht_queries(sock: socket.socket) -> bool:
    """Attach the filter; False where the system has none (then queries are dropped later)."""
    if sys.platform != "linux":
        return False
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*instruction) for instruction in _PROGRAM))
    program = struct.pack("HP", len(_PROGRAM), ctypes.addressof(code))
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    except OSError:
        return False
    return True
