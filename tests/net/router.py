"""A router on loopback that speaks PCP and NAT-PMP as told, a UPnP device in memory, and a mapper that asks them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from proxy_vpn.addresses import Address
from proxy_vpn.net.gateway import Mapping, PortMapError
from proxy_vpn.net.portmap import PortMapper
from proxy_vpn.net.upnp import LEASE_S
from proxy_vpn.wire.portmap import (
    NONCE_BYTES,
    Answer,
    PcpAnnounceAnswer,
    PcpAnnounceRequest,
    PcpMapAnswer,
    PcpMapRequest,
    PmpAddressAnswer,
    PmpAddressRequest,
    PmpMapAnswer,
    PmpMapRequest,
    Refusal,
    Request,
)

PORT = 41641
NONCE = bytes(range(NONCE_BYTES))
GLOBAL = "1.2.3.4"


class Router(asyncio.DatagramProtocol):
    """Answers what it `speaks`; drops the first `drops` datagrams; keeps one mapping."""

    def __init__(self, *speaks: str) -> None:
        self.speaks = speaks
        self.requests: list[tuple[float, Request]] = []
        self.drops = 0
        self.lifetime_s = 7200
        self.external = Address(GLOBAL, PORT)
        self.booted_at = -1000.0
        self.refuses = 0
        self.mapped = False
        self.noise: list[bytes] = []
        self.client: Any = None
        self.seen = asyncio.Event()
        self.transport: asyncio.DatagramTransport

    @property
    def epoch_s(self) -> int:
        return int(asyncio.get_running_loop().time() - self.booted_at)

    @property
    def address(self) -> Address:
        return Address(*self.transport.get_extra_info("sockname")[:2])

    def times(self, kind: type[Request]) -> list[float]:
        return [at for at, request in self.requests if isinstance(request, kind)]

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.client = addr
        request = parse_request(data)
        self.requests.append((asyncio.get_running_loop().time(), request))
        self.seen.set()
        if self.drops:
            self.drops -= 1
            return
        for noise in self.noise:
            self.transport.sendto(noise, addr)
        answer = self.answer(request)
        if answer is not None:
            self.say(answer)

    def say(self, answer: Answer) -> None:
        self.transport.sendto(answer.encode(), self.client)

    def answer(self, request: Request) -> Answer | None:
        epoch_s = self.epoch_s
        pcp = isinstance(request, PcpMapRequest | PcpAnnounceRequest)
        if pcp and "pcp" not in self.speaks:
            return Refusal("nat-pmp", 1, epoch_s) if self.speaks else None
        if not pcp and "nat-pmp" not in self.speaks:
            return Refusal("pcp", 1, epoch_s) if self.speaks else None
        if isinstance(request, PcpAnnounceRequest):
            return PcpAnnounceAnswer(0, epoch_s)
        if isinstance(request, PmpAddressRequest):
            return PmpAddressAnswer(self.refuses, self.external.ip, epoch_s)
        lifetime_s = min(self.lifetime_s, request.lifetime_s)
        self.mapped = bool(lifetime_s) and not self.refuses
        if isinstance(request, PcpMapRequest):
            return PcpMapAnswer(self.refuses, request.nonce, request.internal_port, self.external, lifetime_s, epoch_s)
        external_port = self.external.port if lifetime_s else 0
        return PmpMapAnswer(self.refuses, request.internal_port, external_port, lifetime_s, epoch_s)


class Device:
    """A UPnP device in memory."""

    def __init__(self, external: Address | None = None, takes_s: float = 0.0) -> None:
        self.external = external
        self.takes_s = takes_s
        self.asked_at: list[float] = []
        self.mapped = False

    def __call__(self, gateway_ip: str | None, port: int) -> Device:
        return self

    async def map(self) -> Mapping:
        self.asked_at.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.takes_s)
        if self.external is None:
            raise PortMapError("no UPnP device answers")
        self.mapped = True
        return Mapping("upnp", self.external, LEASE_S)

    async def unmap(self) -> None:
        self.mapped = False


def parse_request(data: bytes) -> Request:
    if data[0] == 2:
        return PcpMapRequest.decode(data) if data[1] == 1 else PcpAnnounceRequest.decode(data)
    return PmpMapRequest.decode(data) if data[1] else PmpAddressRequest.decode(data)


class Scene:
    """A mapper at a router, and what it told us."""

    def __init__(self, router: Router, device: Device) -> None:
        self.router = router
        self.device = device
        self.told: list[Address | None] = []
        self.changed = asyncio.Event()
        self.gateway: Address | None = None
        self.mapper = PortMapper(PORT, self.hear, nonce=NONCE, find_gateway=lambda: self.gateway, upnp=device)

    def hear(self, external: Address | None) -> None:
        self.told.append(external)
        self.changed.set()

    async def next(self, within_s: float) -> Address | None:
        async with asyncio.timeout(within_s):
            await self.changed.wait()
        self.changed.clear()
        return self.told[-1]


@asynccontextmanager
async def scene(router: Router, device: Device | None = None) -> AsyncIterator[Scene]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: router, local_addr=("127.0.0.1", 0))
    router.transport = transport
    built = Scene(router, device or Device())
    built.gateway = router.address
    built.mapper.start()
    try:
        yield built
    finally:
        await built.mapper.close()
        await asyncio.sleep(0.01)  # the router hears what was sent last
        transport.close()


def now() -> float:
    return asyncio.get_running_loop().time()
