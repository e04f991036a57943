"""What this process may do beyond its user (Linux capabilities(7)), and giving that up for good."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from pathlib import Path
from typing import Final

DAC_OVERRIDE: Final = 1 << 1
NET_BIND_SERVICE: Final = 1 << 10
NET_ADMIN: Final = 1 << 12
SYS_ADMIN: Final = 1 << 21
_ALL: Final = 64
_PR_CAPBSET_DROP: Final = 24
_VERSION_3: Final = 0x20080522


def held() -> tuple[int, int]:
    """The effective ones of this thread, and those that programs it starts may get (its bounding set)."""
    lines = Path("/proc/self/status").read_text(errors="replace").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields.get("CapEff", "0"), 16), int(fields.get("CapBnd", "0"), 16)


def keep_only(wanted: int, for_programs: int = 0) -> None:
    """Give up all others, for this thread, what it starts later, and every program it executes; Linux, else nothing.

    `for_programs`: those that a program may still get from its file. Threads that run already keep theirs: so before
    there are any. Raises OSError.
    """
    if sys.platform != "linux":
        return
    effective, bounding = held()
    keep = effective & wanted
    libc = ctypes.CDLL(None, use_errno=True)
    for number in range(_ALL):
        if (bounding & ~(keep | for_programs)) >> number & 1 and libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) < 0:
            break  # not allowed to: then a program that it executes gets none that it hasn't anyway
    header = struct.pack("=Ii", _VERSION_3, 0)
    halves = (keep & 0xFFFFFFFF, keep >> 32)
    data = b"".join(struct.pack("=III", half, half, 0) for half in halves)
    if libc.capset(ctypes.create_string_buffer(header), ctypes.create_string_buffer(data)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
