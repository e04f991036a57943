"""A DHT user on its own socket, for tests: what it found, and waiting without sleeping."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from proxy_vpn.addresses import Address
from proxy_vpn.net.dht import Dht, RendezvousHandle, Urgency
from proxy_vpn.wire.krpc import Query, decode

WAIT_S = 60.0


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


class Member(asyncio.DatagramProtocol):
    """`async with Member(ip, bootstrap)`: a Dht on a socket at `ip`."""

    def __init__(
        self,
        ip: str,
        bootstrap: Sequence[tuple[str, int]],
        *,
        serve: bool = False,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.found: dict[Address, Address] = {}
        self.handles: list[RendezvousHandle] = []
        self.unanswered_queries = 0
        self._ip = ip
        self._changed = asyncio.Event()
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        self.dht = Dht(self._send, os.urandom, bootstrap, serve=serve, families=(family,), state=state)

    async def __aenter__(self) -> Member:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(self._ip, 0))
        self.address = Address(*self._transport.get_extra_info("sockname")[:2])
        self.dht.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.dht.close()
        self._transport.close()

    def join(
        self, info_hash: bytes, port: int | None = 0, urgency: Callable[[], Urgency] = lambda: Urgency.NONE_LIVE
    ) -> RendezvousHandle:
        """Announce (unless `port` is None) and look up; 0 stands for the socket's own port."""
        handle = self.dht.rendezvous(
            lambda _: [info_hash], lambda: self.address.port if port == 0 else port, self._on_peer, urgency
        )
        self.handles.append(handle)
        return handle

    async def finds(self, peer: Address) -> Address:
        """Wait until some node named this peer; returns the node."""
        await self.until(lambda: peer in self.found)
        return self.found[peer]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a datagram makes it true."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        message = decode(data)
        self.unanswered_queries += isinstance(message, Query)
        self.dht.receive(data, Address(addr[0], addr[1]))
        self._changed.set()

    def _send(self, datagram: bytes, address: Address) -> None:
        self._transport.sendto(datagram, address)

    def _on_peer(self, peer: Address, source: Address) -> None:
        self.found.setdefault(peer, source)
        self._changed.set()
