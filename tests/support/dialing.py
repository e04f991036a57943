"""Blocking TCP for test programs: straight to a host, or through a SOCKS5 proxy."""

from __future__ import annotations

import socket
from dataclasses import dataclass

CONNECT_S = 30.0


@dataclass(frozen=True)
class Way:
    """How to reach `host`: through the SOCKS5 proxy at `socks` (127.0.0.1's port), or straight when it is 0."""

    host: str
    socks: int = 0

    def dial(self, port: int) -> socket.socket:
        """A connected socket without a timeout; ConnectionError when the proxy refuses."""
        if not self.socks:
            sock = socket.create_connection((self.host, port), CONNECT_S)
        else:
            sock = socket.create_connection(("127.0.0.1", self.socks), CONNECT_S)
            try:
                _socks_connect(sock, self.host, port)
            except BaseException:
                sock.close()
                raise
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """The next `size` bytes; ConnectionError when the other side ends before."""
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise ConnectionError(f"ended after {len(data)} of {size} bytes")
        data += piece
    return bytes(data)


def receive_line(sock: socket.socket, limit: int = 4096) -> bytes:
    """Bytes up to a newline, which is taken off; ConnectionError when there is none within `limit`."""
    line = bytearray()
    while not line.endswith(b"\n"):
        if len(line) >= limit:
            raise ConnectionError("line too long")
        line += receive_exactly(sock, 1)
    return bytes(line[:-1])


def _socks_connect(sock: socket.socket, host: str, port: int) -> None:
    """RFC 1928 without authentication, the name left to the proxy."""
    sock.sendall(b"\x05\x01\x00")
    if receive_exactly(sock, 2) != b"\x05\x00":
        raise ConnectionError("the proxy wants authentication")
    name = host.encode()
    sock.sendall(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + port.to_bytes(2, "big"))
    _, reply, _, kind = receive_exactly(sock, 4)
    if reply:
        raise ConnectionError(f"the proxy answered {reply}")
    size = {1: 4, 4: 16}.get(kind) or receive_exactly(sock, 1)[0]
    receive_exactly(sock, size + 2)
