"""What a node says while nobody is there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

from proxy_vpn.addresses import Address
from proxy_vpn.daemon.node import Node
from proxy_vpn.daemon.search import DHT_SILENT, unanswered, watch
from proxy_vpn.daemon.warnings import Warnings
from proxy_vpn.mesh.candidates import CandidateBook, Source
from proxy_vpn.mesh.mesh import Mesh
from proxy_vpn.net.dht import DhtStatus
from tests.support.virtual_loop import run_virtually

OWN, OUTSIDE, THERE = Address("192.168.1.10", 41641), Address("203.0.113.7", 41641), Address("198.51.100.23", 41641)


@dataclass
class FakeMesh:
    """A mesh that has only its book; `peers` are addresses of known ones."""

    peers: list[Address] = field(default_factory=list)
    live: bool = False

    def __post_init__(self) -> None:
        self.seeker = SimpleNamespace(book=CandidateBook())
        self.roster = [SimpleNamespace(addresses=self.peers)]

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

    def __post_init__(self) -> None:
        self.said: list[str] = []
        self.meshes = [self.mesh]
        self.warnings = Warnings(self.said.append)
        self.demux = SimpleNamespace(addresses=[OWN])
        status = lambda: DhtStatus(nodes4=self.nodes or 0, external_ips=(OUTSIDE.ip,))  # noqa: E731
        self.dht = None if self.nodes is None else SimpleNamespace(status=status)

    @property
    def node(self) -> Node:
        return cast(Node, self)

    def count(self) -> int:
        return unanswered(self.node, cast(Mesh, self.mesh))


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
        node = FakeNode(FakeMesh().found(THERE), nodes=8)
        assert node.count() == 1
        await watch(node.node)
        assert len(node.said) == 1
        assert node.said[0].startswith("1 address found, none answers - ")
        assert node.warnings.standing() == ()
        live = FakeNode(FakeMesh(live=True).found(THERE), nodes=8)
        await watch(live.node)
        assert live.said == []

    run_virtually(main())


def test_our_own_and_known_peers_addresses_do_not_count() -> None:
    async def main() -> None:
        remapped = Address(OUTSIDE.ip, 40000)
        assert FakeNode(FakeMesh().found(OWN, OUTSIDE, remapped)).count() == 0
        assert FakeNode(FakeMesh(peers=[THERE]).found(THERE)).count() == 0
        assert FakeNode(FakeMesh().found(THERE, remapped), nodes=None).count() == 2
        assert FakeNode(FakeMesh().found(THERE, Address(THERE.ip, 40000))).count() == 1

    run_virtually(main())
