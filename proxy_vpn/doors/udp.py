"""Datagrams at the edges: DatagramFlow, the one interface, and UdpSocket, which is one to a UDP service."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from proxy_vpn.addresses import Address

MAX_DATAGRAM_BYTES = 65536
DATAGRAMS_A_TURN = 64  # read at one go, before others on the event loop have their turn


class DatagramFlow(Protocol):
    """Datagrams to and from one target; mesh.flow.UdpFlow is another."""

    on_datagram: Callable[[bytes], None] | None
    on_closed: Callable[[], None] | None
    on_refused: Callable[[], None] | None  # what was sent found nobody who listens

    @property
    def closed(self) -> bool:
        """Whether it has ended, also before `on_closed` was there to hear it."""

    def send(self, payload: bytes) -> None:
        """Send one datagram, or drop it when it must be dropped."""

    def close(self) -> None:
        """End the flow; idempotent. `on_closed` may be called for it."""


# Linux (in.h, in6.h): an unconnected socket hears of ICMP errors too.
_RECEIVE_ERRORS = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}


class UdpSocket:
    """A DatagramFlow to the UDP service at `address`; `on_refused` hears of each ICMP "port unreachable".

    With `siblings`, for services of this host: the answer may come from any of these IPs. A service bound to every
    address answers from the one the kernel prefers, not from the one it was asked at. Raises OSError.
    """

    def __init__(self, address: Address, siblings: frozenset[str] = frozenset()) -> None:
        self._address = address
        self._siblings = siblings
        self._sock = socket.socket(address.family, socket.SOCK_DGRAM)
        try:
            self._sock.setblocking(False)
            if siblings:
                self._sock.setsockopt(*_RECEIVE_ERRORS[address.family], 1)
                self._sock.bind((address.ip, 0))
            else:
                self._sock.connect(tuple(address))
        except OSError:
            self._sock.close()
            raise
        self.on_datagram: Callable[[bytes], None] | None = None
        self.on_closed: Callable[[], None] | None = None
        self.on_refused: Callable[[], None] | None = None
        self._open = True
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._sock, self._on_readable)

    @property
    def bound(self) -> Address:
        """Where it is itself."""
        return Address(*self._sock.getsockname()[:2])

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._open

    def send(self, payload: bytes) -> None:
        """Send, or drop when the kernel's buffer is full or the datagram too large."""
        if not self._open:
            return
        try:
            if self._siblings:
                self._sock.sendto(payload, tuple(self._address))
            else:
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
                payload, source = self._sock.recvfrom(MAX_DATAGRAM_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._failed(error)
                return
            if self._siblings and (source[0] not in self._siblings or source[1] != self._address.port):
                continue
            if self.on_datagram is not None:
                self.on_datagram(payload)

    def _failed(self, error: OSError) -> None:
        # What the socket keeps of its errors would make it readable for ever.
        with suppress(OSError):
            while self._siblings:
                self._sock.recvmsg(0, 0, socket.MSG_ERRQUEUE)
        if error.errno == errno.ECONNREFUSED and self.on_refused is not None:
            self.on_refused()
