"""Two links on an in-memory wire, each with a handler that keeps what it is told; meant for the virtual clock."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from proxy_vpn.addresses import Address
from proxy_vpn.errors import WireError
from proxy_vpn.net.demux import LinkReceiver
from proxy_vpn.net.engine import initial_destination, long_destination
from proxy_vpn.net.engines import engine_factory
from proxy_vpn.net.quic import Link
from proxy_vpn.net.trains import Parts
from proxy_vpn.net.udp import Path
from proxy_vpn.wire.seal import NONCE_BYTES, OVERHEAD_BYTES, SealKey
from proxy_vpn.wire.segments import alone
from tests.support.engine_pair import RecordingHandler
from tests.support.mesh_world import Changes, Wire, WireDemux

SEAL = SealKey(b"\x07" * 32)
HERE, THERE, ELSEWHERE = (Address(f"10.0.0.{number}", 4000) for number in (1, 2, 3))
DATAGRAM_BYTES = 1452


def seal(datagram: bytes) -> bytes:
    return SEAL.seal(random.randbytes(NONCE_BYTES), datagram)


class LinkRecorder(RecordingHandler):
    """Uses a link as a session would; `feed` is written as room permits."""

    def __init__(self) -> None:
        super().__init__()
        self.changes = Changes()
        self.link: Link
        self.closed: list[str] = []
        self.heard: list[Path] = []
        self.rooms = 0
        self.feed: list[tuple[int, bytes, bool]] = []

    @property
    def waits_for_room(self) -> bool:
        return bool(self.feed)

    def room_available(self) -> bool:
        self.rooms += 1
        if self.feed:
            self.link.engine.send(*self.feed.pop(0))
            return True
        return False

    def path_heard(self, path: Path) -> None:
        self.heard.append(path)

    def link_closed(self, reason: str) -> None:
        self.closed.append(reason)
        self.changes.note()

    def connection_id_issued(self, connection_id: bytes) -> None:
        super().connection_id_issued(connection_id)
        self.link.add_connection_id(connection_id)

    def connection_id_retired(self, connection_id: bytes) -> None:
        super().connection_id_retired(connection_id)
        self.link.remove_connection_id(connection_id)

    def handshake_completed(self) -> None:
        super().handshake_completed()
        self.changes.note()

    def stream_data_received(self, stream_id: int, data: bytes, end: bool) -> None:
        super().stream_data_received(stream_id, data, end)
        self.changes.note()

    def terminated(self, code: int, reason: str) -> None:
        super().terminated(code, reason)
        self.link.ended(reason or str(code))

    def say(self, stream_id: int, data: bytes) -> None:
        """Send it at once."""
        self.link.engine.send(stream_id, data)
        self.link.flush()

    async def until_ended(self, stream_id: int) -> None:
        await self.until(lambda handler: stream_id in handler.ended)

    async def until(self, condition: Callable[[LinkRecorder], object]) -> None:
        await self.changes.until(lambda: condition(self))


class Host:
    """An address on the wire that dials and answers."""

    def __init__(self, wire: Wire, address: Address, engine: str) -> None:
        self.demux = WireDemux(wire, [address])
        self.demux.on_sealed = self._on_sealed
        self.address = address
        self.accepted: list[LinkRecorder] = []
        self.changes = Changes()
        self._engine = engine_factory(engine)
        self._half_open: dict[bytes, Link] = {}
        self._size = 1200
        self._parts = Parts()

    def dial(self, other: Host, size: int = 1200) -> LinkRecorder:
        self._size = other._size = size
        return self._link(True, size, b"", Path("", 0, other.address), connect=True)

    def _link(self, is_client: bool, size: int, destination: bytes, path: Path, connect: bool = False) -> LinkRecorder:
        handler = LinkRecorder()
        datagram_bytes = min(size + OVERHEAD_BYTES, DATAGRAM_BYTES)
        engine = self._engine(is_client, size, destination)
        handler.link = Link(engine, self.demux, handler, path, seal, datagram_bytes)
        if connect:
            handler.link.connect()
        else:
            self.accepted.append(handler)
            self._half_open[destination] = handler.link
            self.changes.note()
        return handler

    def _on_sealed(self, datagram: bytes, path: Path) -> LinkReceiver | None:
        link: LinkReceiver | None = None
        try:
            for opened in self._parts.whole(SEAL.open(datagram), path.remote):
                destination = long_destination(opened)
                link = self._half_open.get(destination) or self.demux.links.get(destination)
                if link is None:
                    link = self._link(False, self._size, initial_destination(opened), path).link
                link.receive(alone(opened), path)
        except WireError:
            return None
        return link


@asynccontextmanager
async def connected(
    engines: tuple[str, str], size: int = 1200
) -> AsyncIterator[tuple[Wire, Host, Host, LinkRecorder, LinkRecorder]]:
    wire = Wire()
    one, two = Host(wire, HERE, engines[0]), Host(wire, THERE, engines[1])
    client = one.dial(two, size)
    await client.until(lambda handler: handler.completed)
    server = two.accepted[0]
    await server.until(lambda handler: handler.completed)
    await asyncio.sleep(0.2)
    try:
        yield wire, one, two, client, server
    finally:
        for handler in (client, server):
            handler.link.close(0x100, "")
