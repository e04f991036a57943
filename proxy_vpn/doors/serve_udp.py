"""ServedUdp: a peer's UDP flow joined with a local service, at the first of its addresses that doesn't refuse."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from proxy_vpn.addresses import Address
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.doors.udp import DatagramFlow, UdpSocket

IDLE_S = 60.0
_PREFERRED_BY_LOOPBACK = frozenset({"127.0.0.1", "::1"})


class ServedUdp:
    """Relays between `flow` and the service at one of `candidates`.

    Until the service has answered, an ICMP refusal moves on to the next address and sends the last datagram there.
    """

    def __init__(
        self, flow: DatagramFlow, candidates: Sequence[Address], own: OwnListeners, idle_s: float = IDLE_S
    ) -> None:
        self._flow = flow
        self._candidates = candidates
        self._own = own
        self._siblings = frozenset(address.ip for address in candidates) | _PREFERRED_BY_LOOPBACK
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._used = self._loop.time()
        self._index = 0
        self._socket: UdpSocket | None = None
        self._last = b""
        self._answered = False

    async def run(self) -> None:
        """Until the flow is closed or unused for `idle_s`; the flow is closed at the end."""
        self._connect()
        self._flow.on_closed = self._on_closed
        self._flow.on_datagram = self._to_service
        try:
            while not self._closed.done():
                left_s = self._used + self._idle_s - self._loop.time()
                if left_s <= 0:
                    break
                await asyncio.wait((self._closed,), timeout=left_s)
        finally:
            self._flow.on_datagram = None
            self._flow.close()
            self._disconnect()

    def _to_service(self, payload: bytes) -> None:
        self._used = self._loop.time()
        self._last = payload
        if self._socket is None:
            self._index = 0
            self._connect()
        if self._socket is not None:
            self._socket.send(payload)

    def _to_peer(self, payload: bytes) -> None:
        self._used = self._loop.time()
        self._answered = True
        self._flow.send(payload)

    def _on_closed(self) -> None:
        if not self._closed.done():
            self._closed.set_result(None)

    def _connect(self) -> None:
        """Connect to the first address from `_index` on that can be; with none left, the next datagram starts over."""
        self._disconnect()
        while self._index < len(self._candidates):
            try:
                self._socket = UdpSocket(self._candidates[self._index], self._siblings)
            except OSError:
                self._index += 1
                continue
            self._own.add(self._socket.bound, udp=True)  # unconnected: it hears whoever sends there
            self._socket.on_datagram = self._to_peer
            self._socket.on_refused = self._refused
            return

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._own.discard(self._socket.bound, udp=True)
            self._socket.close()
            self._socket = None

    def _refused(self) -> None:
        if self._answered:
            return
        self._index += 1
        self._connect()
        if self._socket is not None:
            self._socket.send(self._last)
