"""Two meshes over real sockets on loopback: the one place where nothing is simulated."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from proxy_vpn.addresses import Address
from proxy_vpn.keys import NetworkKey
from proxy_vpn.mesh.candidates import Source
from proxy_vpn.mesh.credit import PROCESS_GROWTH_LIMIT_BYTES, Budget
from proxy_vpn.mesh.flow import Flow
from proxy_vpn.mesh.keyring import Keyring
from proxy_vpn.mesh.mesh import Mesh, World
from proxy_vpn.mesh.openings import Incoming, IncomingTcp
from proxy_vpn.mesh.roster import Peer
from proxy_vpn.mesh.session import Session
from proxy_vpn.net.demux import Demultiplexer
from proxy_vpn.net.engines import engine_factory
from proxy_vpn.net.udp import UdpSocket
from proxy_vpn.wire.messages import Reach
from tests.support.engine_pair import PAIRINGS
from tests.support.mesh_world import Changes, StreamSink, identity

KEY = NetworkKey.generate("loopback")


class Device:
    """A mesh on a socket of its own; answers every TCP flow with its own bytes."""

    def __init__(self, number: int, bind: str, engine: str) -> None:
        self.demux = Demultiplexer([UdpSocket(Address(bind, 0))])
        keyring = Keyring()
        self.demux.on_sealed = keyring.receive
        self.changes = Changes()
        self.warnings: list[str] = []
        world = World(
            self.demux,
            keyring,
            engine_factory(engine),
            Budget(PROCESS_GROWTH_LIMIT_BYTES),
            os.urandom,
            time.time,
            lambda: [address for address in self.demux.addresses if address.ip != "0.0.0.0"],
        )
        self.mesh = Mesh(KEY, identity(number), f"device-{number}", world, self)

    def peer_live(self, peer: Peer, session: Session, took_s: float) -> None:
        self.changes.note()

    def peer_lost(self, peer: Peer, reason: str) -> None:
        self.changes.note()

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def reach(self) -> Reach:
        return Reach("none", True, False)

    def flow_offered(self, peer: Peer, offer: Incoming) -> None:
        assert isinstance(offer, IncomingTcp)
        echo(offer.accept())

    async def until_live(self, count: int = 1) -> list[Peer]:
        await self.changes.until(lambda: len(list(self.mesh.live_peers())) >= count, 10.0)
        return list(self.mesh.live_peers())

    async def close(self) -> None:
        await self.mesh.close()
        self.demux.close()


def echo(flow: Flow) -> None:
    """Send back what comes, from the first byte on."""
    sink = StreamSink(flow)
    sink.echo = True
    assert not sink.data


@pytest.mark.parametrize("engines", PAIRINGS)
def test_eight_megabytes_there_and_back(engines: tuple[str, str]) -> None:
    async def main() -> None:
        one, two = Device(1, "127.0.7.1", engines[0]), Device(2, "127.0.7.2", engines[1])
        try:
            one.mesh.seeker.found(two.demux.addresses[0], Source.USER)
            (peer,) = await one.until_live()
            await two.until_live()
            sink = StreamSink(await one.mesh.open_tcp(peer, 8000))
            data = os.urandom(1 << 20) * (8 if "aioquic" not in engines else 2)
            for start in range(0, len(data), 1 << 16):
                sink.flow.write(data[start : start + (1 << 16)])
            sink.flow.write_eof()
            await sink.until(lambda sink: sink.over, 30.0)
            assert sink.data == data and sink.events == ["eof", "finished"]
            rtt_s, _ = await one.mesh.ping(peer)
            assert rtt_s < 1.0
            assert not one.warnings and not two.warnings
        finally:
            await asyncio.gather(one.close(), two.close())

    asyncio.run(main())


def test_a_wildcard_socket_is_met_at_any_of_its_addresses_and_answers_from_there() -> None:
    async def main() -> None:
        low, high = sorted((1, 2), key=lambda number: identity(number).id)  # the lower id dials
        one, two = Device(low, "127.0.7.1", "qh3"), Device(high, "0.0.0.0", "qh3")
        try:
            port = two.demux.addresses[0].port
            one.mesh.seeker.found(Address("127.0.7.9", port), Source.USER)
            (peer,) = await one.until_live()
            (other,) = await two.until_live()
            assert peer.session is not None and peer.session.link.path is not None
            assert peer.session.link.path.remote == Address("127.0.7.9", port)
            assert other.session is not None and other.session.link.path is not None
            assert other.session.link.path.local == "127.0.7.9"
            await one.mesh.open_tcp(peer, 80)
        finally:
            await asyncio.gather(one.close(), two.close())

    asyncio.run(main())
