"""What a node says while nobody is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

from proxy_vpn.addresses import Address
from proxy_vpn.daemon.node import Node
from proxy_vpn.daemon.search import DHT_SILENT, LATE_PATIENCE_S, LOOK_EVERY_S, unanswered, watch, watch_unreached
from proxy_vpn.daemon.warnings import Warnings
from proxy_vpn.mesh.candidates import CandidateBook, Source
from proxy_vpn.mesh.mesh import Mesh
from proxy_vpn.mesh.unreached import NO_WAY, UNREACHED_AFTER_S
from proxy_vpn.net.dht import DhtStatus
from tests.support.virtual_loop import run_virtually

OWN, OUTSIDE, THERE = Address("192.168.1.10", 41641), Address("203.0.113.7", 41641), Address("198.51.100.23", 41641)


@dataclass(eq=False)
class FakeMesh:
    """A mesh that has only its book; `peers` are addresses of known ones, `away` the names of the unreached."""

    peers: list[Address] = field(default_factory=list)
    live: bool = False
    away: list[str] = field(default_factory=list)
    name: str = "home"

    def __post_init__(self) -> None:
        self.key = SimpleNamespace(name=self.name)
        self.seeker = SimpleNamespace(book=CandidateBook())
        self.roster = [SimpleNamespace(addresses=self.peers)]
        self.unreached = SimpleNamespace(
            peers=lambda: [SimpleNamespace(name=name, identity=name.encode()) for name in self.away],
            is_away=lambda identity: identity.decode() in self.away,
        )

    def own_addresses(self) -> list[Address]:
        return [OWN, OUTSIDE]

    def live_addresses(self) -> set[Address]:
        return set()

    def any_peer_live(self) -> bool:
        return self.live

    def found(self, *addresses: Address) -> FakeMesh:
        for address in addresses:
            self.seeker.book.add(address, asyncio.get_running_loop().time(), source=Source.DHT)
        return self


@dataclass
class FakeNode:
    """A node of one mesh; `nodes` of the DHT have answered, None where there is no DHT."""

    mesh: FakeMesh
    nodes: int | None = 0
    agreed: Address | None = None

    def __post_init__(self) -> None:
        self.said: list[str] = []
        self.meshes = [self.mesh]
        self.warnings = Warnings(self.said.append)
        self.demux = SimpleNamespace(addresses=[OWN])
        status = lambda: DhtStatus(nodes4=self.nodes or 0, external4=self.agreed, external_ips=(OUTSIDE.ip,))  # noqa: E731
        dht = None if self.nodes is None else SimpleNamespace(status=status)
        self.discovery = SimpleNamespace(dht=dht, local_addresses=lambda: self.demux.addresses)

    @property
    def node(self) -> Node:
        return cast(Node, self)

    def count(self) -> int:
        return unanswered(self.node, cast(Mesh, self.mesh))


@asynccontextmanager
async def watched(node: FakeNode) -> AsyncIterator[None]:
    watching = asyncio.get_running_loop().create_task(watch_unreached(node.node))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def test_a_silent_dht_is_said_until_it_answers_or_a_peer_is_there() -> None:
    async def main() -> None:
        node = FakeNode(FakeMesh())
        await watch(node.node)
        assert node.said == [DHT_SILENT]
        assert node.warnings.standing() == (DHT_SILENT,)
        node.nodes = 8
        assert node.warnings.standing() == ()
        for quiet in (FakeNode(FakeMesh(live=True)), FakeNode(FakeMesh(), nodes=3), FakeNode(FakeMesh(), nodes=None)):
            await watch(quiet.node)
            assert quiet.said == []

    run_virtually(main())


def test_addresses_that_do_not_answer_are_counted_and_said_once() -> None:
    async def main() -> None:
        node = FakeNode(FakeMesh(), nodes=8)
        async with watched(node):
            await asyncio.sleep(60.0)
            assert node.said == []
            node.mesh.found(THERE)
            assert node.count() == 1
            await asyncio.sleep(LATE_PATIENCE_S - LOOK_EVERY_S)
            assert node.said == []
            await asyncio.sleep(3 * LOOK_EVERY_S)
            assert len(node.said) == 1, "who was alone for long is told soon: the other has been trying for a while"
            await asyncio.sleep(100.0)
            assert len(node.said) == 1
            assert node.said[0].startswith(f"1 address found, none answers - {NO_WAY} to somebody of this network; ")
            assert node.warnings.standing() == ()
        new = FakeNode(FakeMesh().found(THERE), nodes=8)
        async with watched(new):
            await asyncio.sleep(UNREACHED_AFTER_S - LOOK_EVERY_S)
            assert new.said == [], "the other may look for us later"
            await asyncio.sleep(3 * LOOK_EVERY_S)
            assert len(new.said) == 1
        live = FakeNode(FakeMesh(live=True).found(THERE), nodes=8)
        async with watched(live):
            await asyncio.sleep(60.0)
        assert live.said == []

    run_virtually(main())


def test_an_unreached_peer_is_named_once_a_loss_and_stands_for_strangers() -> None:
    async def main() -> None:
        node = FakeNode(FakeMesh(away=["peer-b"]).found(THERE))
        async with watched(node):
            await asyncio.sleep(60.0)
            assert len(node.said) == 1 and node.said[0].startswith(
                f"{NO_WAY} to peer-b - if it is on, run 'pvpn doctor"
            )
            node.mesh.away, node.mesh.live = [], True
            await asyncio.sleep(2 * LOOK_EVERY_S)
            node.mesh.live = False
            node.mesh.away += ["peer-b", *(f"peer-{n}" for n in range(9))]
            await asyncio.sleep(2 * LOOK_EVERY_S)
            assert len(node.said) == 2 and " to peer-b, peer-0, peer-1, peer-2 and 6 more - " in node.said[1]

    run_virtually(main())


def test_networks_are_named_where_there_are_several_and_nothing_is_said_without_any_address() -> None:
    async def main() -> None:
        node = FakeNode(FakeMesh(away=["peer-b"]))
        node.meshes.append(FakeMesh(name="office"))
        addresses, node.demux.addresses = node.demux.addresses, []
        async with watched(node):
            await asyncio.sleep(60.0)
            assert node.said == []
            node.demux.addresses = addresses
            await asyncio.sleep(2 * LOOK_EVERY_S)
            assert len(node.said) == 1 and node.said[0].startswith(f"{NO_WAY} to peer-b.home - ")

    run_virtually(main())


def test_our_own_and_known_peers_addresses_do_not_count() -> None:
    async def main() -> None:
        remapped = Address(OUTSIDE.ip, 40000)
        assert FakeNode(FakeMesh().found(OWN, OUTSIDE, remapped)).count() == 0
        neighbour = FakeNode(FakeMesh().found(OWN, OUTSIDE, remapped), agreed=OUTSIDE)
        assert neighbour.count() == 1, "a NAT that gives us one port gives the others to others"
        assert FakeNode(FakeMesh(peers=[THERE]).found(THERE)).count() == 0
        assert FakeNode(FakeMesh().found(THERE, remapped), nodes=None).count() == 2
        assert FakeNode(FakeMesh().found(THERE, Address(THERE.ip, 40000))).count() == 1

    run_virtually(main())
