"""An exit's name server, asked by the peer that uses it: datagrams, what is too large for them, names of peers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from proxy_vpn.addresses import Target
from proxy_vpn.doors.beyond import Beyond
from proxy_vpn.doors.dns_elsewhere import NAME_SERVER, ExitResolver
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.doors.serve import ServeDoor
from proxy_vpn.errors import FlowError, Status
from proxy_vpn.mesh.routes import Offer
from proxy_vpn.wire.dns import is_truncated, no_such_name
from tests.doors.test_dns_server import query
from tests.doors.test_serve import FakePolicy, TcpOffer, UdpOffer
from tests.support.duplex_pair import MemoryDuplex, MemoryUdp

QUERY = query("large.example")
CUT = QUERY[:2] + b"\x83\x80" + QUERY[4:12]
LONG = QUERY[:2] + b"\x81\x80" + QUERY[4:12] + bytes(5000)


class Servers:
    """This host's name servers: all they know is too large for a datagram."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    async def ask(self, query: bytes, over_tcp: bool = False) -> bytes | None:
        self.asked.append(query)
        return LONG if over_tcp else CUT


class WayToExit:
    """Flows as a peer opens them at the exit; `old`: one that answers datagrams alone."""

    def __init__(self, servers: Servers, old: bool = False) -> None:
        own = OwnListeners()
        self._door = ServeDoor(FakePolicy(), own, Beyond(Offer(exit=True), own))
        self._door._resolver = servers  # type: ignore[assignment]
        self._old = old
        self.serving: list[asyncio.Task[None]] = []

    async def open_tcp(self, target: Target) -> MemoryDuplex | None:
        assert target == NAME_SERVER
        if self._old:
            raise FlowError(Status.NO_SUCH_NAME, "no host is called so")
        offer = TcpOffer(target.port, target.host)
        self.serving.append(asyncio.ensure_future(self._door.serve_tcp(offer)))
        return offer.far

    async def open_udp(self, target: Target) -> MemoryUdp | None:
        offer = UdpOffer(target.port, target.host)
        self.serving.append(asyncio.ensure_future(self._door.serve_udp(offer)))
        await asyncio.sleep(0)
        return offer.far


def run(scene: Callable[[Servers], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(scene(Servers()), 10)

    asyncio.run(main())


@pytest.mark.parametrize("old", [False, True])
def test_the_whole_answer_for_who_asks_over_tcp(old: bool) -> None:
    async def scene(servers: Servers) -> None:
        way = WayToExit(servers, old)
        resolver = ExitResolver(way)
        assert await resolver.ask(QUERY) == CUT and is_truncated(CUT)
        assert await resolver.ask(QUERY, over_tcp=True) == (CUT if old else LONG)
        await asyncio.gather(*way.serving)

    run(scene)


def test_peers_names_are_told_to_no_name_server() -> None:
    async def scene(servers: Servers) -> None:
        way = WayToExit(servers)
        for name in ("peer-c.home.pvpn", "pvpn", "PEER-C.PVPN."):
            assert await ExitResolver(way).ask(query(name)) == no_such_name(query(name))
        await asyncio.gather(*way.serving)
        assert not servers.asked

    run(scene)
