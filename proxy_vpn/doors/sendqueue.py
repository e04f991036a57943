"""SendQueue: what a socket's kernel buffer had no room for; bounded by the window of whoever writes (mesh.duplex)."""

from __future__ import annotations

import socket
from collections import deque
from itertools import islice

_GATHER_PIECES = 64


class SendQueue:
    """Pieces of bytes in order, sent many at a time."""

    def __init__(self) -> None:
        self._pieces: deque[memoryview] = deque()

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def append(self, data: memoryview) -> None:
        """Queue `data`, which is kept and not copied."""
        self._pieces.append(data)

    def clear(self) -> None:
        """Drop everything."""
        self._pieces.clear()

    def send(self, sock: socket.socket) -> int:
        """Hand `sock` what it takes in one call; how many bytes that was. Raises OSError, BlockingIOError too."""
        sent = left = sock.sendmsg(list(islice(self._pieces, _GATHER_PIECES)))
        while left:
            piece = self._pieces.popleft()
            if len(piece) > left:
                self._pieces.appendleft(piece[left:])
                break
            left -= len(piece)
        return sent
