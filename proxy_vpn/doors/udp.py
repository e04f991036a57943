"""Datagrams at the edges: DatagramFlow, the one interface, and UdpSocket, a connected UDP socket that has it."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Protocol

from proxy_vpn.addresses import Address

MAX_DATAGRAM_BYTES = 65536
DATAGRAMS_A_TURN = 64  # read at one go, before others on the event loop have their turn


class DatagramFlow(Protocol):
    """Datagrams to and from one target; mesh.flow.UdpFlow is another."""

    on_datagram: Callable[[bytes], None] | None
    on_closed: Callable[[], None] | None

    def send(self, payload: bytes) -> None:
        """Send one datagram, or drop it when it must be dropped."""

    def close(self) -> None:
        """End the flow; idempotent. `on_closed` is not called for it."""


class UdpSocket:
    """A DatagramFlow over a connected UDP socket; `on_refused` hears of each ICMP "port unreachable"."""

    def __init__(self, sock: socket.socket) -> None:
        self.on_datagram: Callable[[bytes], None] | None = None
        self.on_closed: Callable[[], None] | None = None
        self.on_refused: Callable[[], None] | None = None
        self._sock = sock
        self._open = True
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._on_readable)

    @classmethod
    def connect(cls, address: Address, source_ip: str = "") -> UdpSocket:
        """A socket that hears from `address` only; raises OSError."""
        sock = socket.socket(address.family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            if source_ip:
                sock.bind((source_ip, 0))
            sock.connect(tuple(address))
        except OSError:
            sock.close()
            raise
        return cls(sock)

    def send(self, payload: bytes) -> None:
        """Send, or drop when the kernel's buffer is full or the datagram too large."""
        if not self._open:
            return
        try:
            self._sock.send(payload)
        except BlockingIOError:
            pass
        except OSError as error:
            # The error belongs to an earlier datagram; this one was not sent.
            self._failed(error)

    def close(self) -> None:
        """Close the socket; idempotent."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock)
            self._sock.close()

    def _on_readable(self) -> None:
        for _turn in range(DATAGRAMS_A_TURN):
            if not self._open:
                return
            try:
                payload = self._sock.recv(MAX_DATAGRAM_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._failed(error)
                return
            if self.on_datagram is not None:
                self.on_datagram(payload)

    def _failed(self, error: OSError) -> None:
        if error.errno == errno.ECONNREFUSED and self.on_refused is not None:
            self.on_refused()
