"""SendQueue: what a socket's kernel buffer had no room for; bounded by the window of whoever writes (mesh.duplex)."""

from __future__ import annotations

import socket
from collections import deque
from itertools import islice

from proxy_vpn.doors.end_mark import send_mark

_GATHER_PIECES = 64
_SMALL_BYTES = 4 * 1024
_JOINED_BYTES = 64 * 1024


class SendQueue:
    """Pieces of bytes in order, sent many at a time."""

    def __init__(self) -> None:
        self._pieces: deque[memoryview | bytearray] = deque()
        self._mark = False

    def __bool__(self) -> bool:
        return bool(self._pieces) or self._mark

    def append(self, data: memoryview) -> None:
        """Queue `data`, which is kept and not copied unless it is small: a piece costs more than a few bytes do."""
        if len(data) >= _SMALL_BYTES:
            self._pieces.append(data)
            return
        last = self._pieces[-1] if self._pieces else None
        if isinstance(last, bytearray) and len(last) + len(data) <= _JOINED_BYTES:
            last += data
        else:
            self._pieces.append(bytearray(data))

    def append_mark(self) -> None:
        """Queue the mark of a clean end, behind which nothing may come."""
        self._mark = True

    def clear(self) -> None:
        """Drop everything."""
        self._pieces.clear()
        self._mark = False

    def send(self, sock: socket.socket) -> int:
        """Hand `sock` what it takes in one call; how many bytes of data that was. Raises OSError, BlockingIOError."""
        if not self._pieces:
            send_mark(sock)
            self._mark = False
            return 0
        sent = left = sock.sendmsg(list(islice(self._pieces, _GATHER_PIECES)))
        while left:
            piece = self._pieces.popleft()
            if len(piece) > left:
                self._pieces.appendleft(piece[left:])
                break
            left -= len(piece)
        return sent
