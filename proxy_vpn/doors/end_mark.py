"""The mark of a clean end: on a Unix socket, where a break is no RST, it says that nothing more was to come.

It is one byte with a file descriptor beside it (SCM_RIGHTS), which no other byte has: never mistaken for data, and in
order behind all of it. Only a program gets it that asked for it in its CONNECT (wire.http.END_MARK_FIELD).
"""

from __future__ import annotations

import os
import socket


def send_mark(sock: socket.socket) -> None:
    """Send the mark, whole or not at all; raises OSError, BlockingIOError too."""
    socket.send_fds(sock, [b"\0"], [sock.fileno()])


def receive(sock: socket.socket, size: int, flags: int = 0) -> tuple[bytes, bool]:
    """The next bytes and whether the mark came behind them; b"" without it is a break. Raises OSError."""
    data, descriptors, found, _address = socket.recv_fds(sock, size, 1, flags)
    for descriptor in descriptors:
        os.close(descriptor)
    # Truncated: the descriptor came, and this process may open no more.
    return (data[:-1], True) if descriptors or found & socket.MSG_CTRUNC else (data, False)
