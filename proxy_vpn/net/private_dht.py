"""A private DHT in one process, for the demo and for tests: serving nodes on loopback that all know each other.

async with PrivateDht(8) as dht:
    ...  Dht(send, os.urandom, bootstrap=[tuple(address) for address in dht.addresses])
"""

from __future__ import annotations

import asyncio
import os
import socket
from types import TracebackType
from typing import Any

from proxy_vpn.addresses import Address
from proxy_vpn.net.dht import Dht
from proxy_vpn.wire.krpc import NodeInfo

MAX_NODES = 250


class PrivateDht:
    """`size` nodes (at most MAX_NODES), each on its own UDP socket at 127.0.<i>.1 and a free port."""

    def __init__(self, size: int = 8) -> None:
        self.addresses: list[Address] = []
        self._size = min(size, MAX_NODES)
        self._endpoints: list[_Endpoint] = []

    async def __aenter__(self) -> PrivateDht:
        loop = asyncio.get_running_loop()
        try:
            for number in range(1, self._size + 1):
                local = (f"127.0.{number}.1", 0)
                _, endpoint = await loop.create_datagram_endpoint(_Endpoint, local_addr=local)
                self._endpoints.append(endpoint)
        except BaseException:
            await self.close()
            raise
        self.addresses = [endpoint.address for endpoint in self._endpoints]
        nodes = [NodeInfo(endpoint.dht.node.halves[4].id, endpoint.address) for endpoint in self._endpoints]
        for endpoint in self._endpoints:
            endpoint.dht.adopt([node for node in nodes if node.address != endpoint.address])
            endpoint.dht.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop every node and free its socket; idempotent."""
        for endpoint in self._endpoints:
            await endpoint.dht.close()
            endpoint.transport.close()
        self._endpoints.clear()


class _Endpoint(asyncio.DatagramProtocol):
    """One node's socket."""

    transport: asyncio.DatagramTransport

    def __init__(self) -> None:
        self.dht = Dht(self._send, os.urandom, bootstrap=(), serve=True, families=(socket.AF_INET,))

    @property
    def address(self) -> Address:
        ip, port = self.transport.get_extra_info("sockname")[:2]
        return Address(ip, port)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self.dht.receive(data, Address(addr[0], addr[1]))

    def _send(self, datagram: bytes, address: Address) -> None:
        self.transport.sendto(datagram, address)
