"""ServedUdp: a peer's UDP flow joined with a local service, at the first of its addresses that doesn't refuse."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from proxy_vpn.addresses import Address
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.doors.udp import DatagramFlow, UdpSocket

IDLE_S = 60.0
_PREFERRED_BY_LOOPBACK = frozenset({"127.0.0.1", "::1"})


class Asked(DatagramFlow, Protocol):
    """A flow that a peer asked for; mesh.flow.UdpFlow is one."""

    def refuse(self) -> None:
        """Say that nobody listens there now."""


class Service(DatagramFlow, Protocol):
    """Datagrams to and from a service of this host; doors.udp.UdpSocket is one."""

    @property
    def bound(self) -> Address | None:
        """The address it occupies itself, if any."""


class ServedUdp:
    """Relays between `flow` and the service at one of `candidates`.

    Until the service has answered, an ICMP refusal moves on to the next address and sends the last datagram there. The
    peer hears of one that leaves no address to try.
    `first`: ways to the service that are tried before the addresses; each may raise OSError. With `beyond`, the
    addresses are another host's.
    """

    def __init__(
        self,
        flow: Asked,
        candidates: Sequence[Address],
        own: OwnListeners,
        idle_s: float = IDLE_S,
        first: Sequence[Callable[[], Service]] = (),
        beyond: bool = False,
    ) -> None:
        self._flow = flow
        self._own = own
        here = frozenset(address.ip for address in candidates) | _PREFERRED_BY_LOOPBACK
        siblings: frozenset[str] = frozenset() if beyond else here
        sockets = (partial(UdpSocket, address, siblings) for address in candidates)
        self._ways: list[Callable[[], Service]] = [*first, *sockets]
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._used = self._loop.time()
        self._index = 0
        self._service: Service | None = None
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
        if self._service is None:
            self._index = 0
            self._connect()
        if self._service is not None:
            self._service.send(payload)

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
        while self._index < len(self._ways):
            try:
                self._service = self._ways[self._index]()
            except OSError:
                self._index += 1
                continue
            if self._service.bound is not None:
                self._own.add(self._service.bound, udp=True)  # unconnected: it hears whoever sends there
            self._service.on_datagram = self._to_peer
            self._service.on_refused = self._refused
            return
        self._flow.refuse()

    def _disconnect(self) -> None:
        if self._service is not None:
            if self._service.bound is not None:
                self._own.discard(self._service.bound, udp=True)
            self._service.close()
            self._service = None

    def _refused(self) -> None:
        if self._answered:
            self._flow.refuse()
            return
        self._index += 1
        self._connect()
        if self._service is not None:
            self._service.send(self._last)
