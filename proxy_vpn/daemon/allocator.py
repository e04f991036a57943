"""The C library's memory allocator, told that large buffers come and go."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt(3)
TRIM_BYTES = 8 << 20
MMAP_BYTES = 4 << 20


def keep_buffers() -> None:
    """Serve buffers of up to 4 MiB from the heap, and keep 8 MiB of it; nothing where the library is not glibc.

    Left alone, glibc gives large buffers pages of their own, and free ones back to the system, until it happens to
    learn better: each read of half a megabyte then clears 128 new pages, and a transfer has half its speed.
    """
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(_TRIM_THRESHOLD, TRIM_BYTES)
        library.mallopt(_MMAP_THRESHOLD, MMAP_BYTES)
