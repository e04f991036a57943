"""Classic BPF on sockets: small programs by which the kernel drops datagrams before they cost us anything.

Needs no privilege (SO_ATTACH_FILTER, linux/filter.h). An instruction is (code, jumps if true, jumps if false, operand);
jumps count from the next instruction. Offsets count from the UDP header.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from collections.abc import Sequence

Instruction = tuple[int, int, int, int]

UDP_HEADER_BYTES = 8
PASS, DROP = 0xFFFFFFFF, 0
LOAD_LENGTH, LOAD_WORD, LOAD_HALF, LOAD_BYTE = 0x80, 0x20, 0x28, 0x30
LOAD_WORD_X, LOAD_HALF_X, LOAD_BYTE_X = 0x40, 0x48, 0x50
SUBTRACT, AND, TO_INDEX, RETURN = 0x14, 0x54, 0x07, 0x06
JUMP, IF_EQUAL, IF_GREATER, IF_ANY_BIT = 0x05, 0x15, 0x25, 0x45

_SO_ATTACH_FILTER = 26
_INSTRUCTION = struct.Struct("=HBBI")


def attach(sock: socket.socket, program: Sequence[Instruction]) -> bool:
    """Let `program` decide what `sock` receives, in place of an earlier one; False where the system has none."""
    if sys.platform != "linux":
        return False
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*instruction) for instruction in program))
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(code)))
    except OSError:
        return False
    return True
