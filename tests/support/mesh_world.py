"""Whole meshes on an in-memory wire with latency, loss, silence and NATs; meant for the virtual clock."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Self

from proxy_vpn.addresses import Address, Target
from proxy_vpn.errors import FlowLost
from proxy_vpn.keys import Identity, NetworkKey
from proxy_vpn.mesh.candidates import Source
from proxy_vpn.mesh.credit import PROCESS_GROWTH_LIMIT_BYTES, Budget
from proxy_vpn.mesh.duplex import Duplex
from proxy_vpn.mesh.flow import Flow
from proxy_vpn.mesh.keyring import Keyring
from proxy_vpn.mesh.mesh import Mesh, World
from proxy_vpn.mesh.openings import Incoming, IncomingTcp
from proxy_vpn.mesh.roster import Peer
from proxy_vpn.mesh.session import Session
from proxy_vpn.mesh.udp_flow import UdpFlow
from proxy_vpn.net.demux import Demultiplexer, LinkReceiver
from proxy_vpn.net.engines import engine_factory
from proxy_vpn.net.udp import Path
from proxy_vpn.wire.messages import Reach
from proxy_vpn.wire.segments import alone
from proxy_vpn.wire.train import cut

PORT = 41641
WAIT_S = 30.0
UNIX_TIME_S = 1_800_000_000.0
KEY = NetworkKey.generate("home", random.Random("network").randbytes)


def identity(number: int) -> Identity:
    """The same identity for the same number; ids are in no order."""
    return Identity(bytes([number]) * 32)


def ordered(*numbers: int) -> list[Identity]:
    """Identities of which the first has the lowest id."""
    return sorted((identity(number) for number in numbers), key=lambda one: one.id)


class Wire:
    """Carries datagrams between hosts; `drops` (from, to, datagram) decides beyond `loss` what is lost."""

    def __init__(self, latency_s: float = 0.01, loss: float = 0.0, seed: int = 1) -> None:
        self.latency_s = latency_s
        self.loss = loss
        self.drops: Callable[[Address, Address, bytes], bool] = lambda source, target, datagram: False
        self.seen: list[tuple[Address, Address, bytes]] = []
        self.recording = False
        self.carried = 0
        self._random = random.Random(seed)
        self._line: deque[tuple[float, bytes, Address, Address]] = deque()
        self._hosts: dict[Address, WireDemux] = {}
        self._outside: dict[Address, Address] = {}
        self._inside: dict[Address, Address] = {}
        self._loop = asyncio.get_running_loop()

    def plug(self, demux: WireDemux) -> None:
        for address in demux.addresses:
            self._hosts[address] = demux

    def unplug(self, demux: WireDemux) -> None:
        self._hosts = {address: host for address, host in self._hosts.items() if host is not demux}

    def translate(self, inside: Address, outside: Address) -> None:
        """A NAT shows `inside` as `outside` from now on; what it showed before leads nowhere."""
        old = self._outside.pop(inside, None)
        if old is not None:
            del self._inside[old]
        self._outside[inside], self._inside[outside] = outside, inside

    def carry(self, datagrams: Sequence[bytes], source: Address, target: Address) -> None:
        """Deliver later what is not lost."""
        source = self._outside.get(source, source)
        for datagram in datagrams:
            if self.recording:
                self.seen.append((source, target, datagram))
            if not self.drops(source, target, datagram) and self._random.random() >= self.loss:
                self._line.append((self._loop.time() + self.latency_s, datagram, source, target))
                self._loop.call_later(self.latency_s, self._next)  # the loop keeps no order among equal times

    def _next(self) -> None:
        if self._line and self._line[0][0] <= self._loop.time() + 1e-9:
            _, datagram, source, target = self._line.popleft()
            self.arrive(datagram, source, target)

    def arrive(self, datagram: bytes, source: Address, target: Address) -> None:
        """A datagram reaches `target` now, whoever sent it."""
        if target in self._outside:
            return
        inner = self._inside.get(target, target)
        demux = self._hosts.get(inner)
        if demux is not None:
            self.carried += 1
            demux.deliver(datagram, Path(inner.ip, 0, source))


class WireDemux(Demultiplexer):
    """The real routing of datagrams without a socket beneath."""

    def __init__(self, wire: Wire, addresses: Sequence[Address]) -> None:
        super().__init__([])
        self._wire = wire
        self._own = list(addresses)
        self.sent: list[bytes] = []
        self.holding = False
        self.gone = False
        wire.plug(self)

    @property
    def addresses(self) -> list[Address]:
        return self._own

    def send(self, datagrams: Sequence[bytes], path: Path, segment_bytes: int = 0) -> None:
        if path.remote.relayed:
            super().send(datagrams, path, segment_bytes)
            return
        datagrams = [each for data in datagrams for each in cut(data, segment_bytes or len(data))]
        self.sent_bytes += sum(map(len, datagrams))
        if self.gone:
            return
        local = path.local or self._own[0].ip
        source = next((own for own in self._own if own.ip == local), None)
        if source is not None and path.remote != source:
            self._wire.carry(datagrams, source, path.remote)
        elif source is not None:
            self._wire.carry(datagrams, source, source)

    def holds_back(self, link: LinkReceiver, path: Path) -> bool:
        return self.holding

    def release(self) -> None:
        """The kernel takes datagrams again."""
        self.holding = False
        for link in {id(link): link for link in self.links.values()}.values():
            link.settle()

    def deliver(self, datagram: bytes, path: Path) -> None:
        touched: dict[int, LinkReceiver] = {}
        self.received_bytes += len(datagram)
        self._route(alone(datagram), path, touched)
        for link in touched.values():
            link.settle()

    def close(self) -> None:
        super().close()
        self._wire.unplug(self)


class Changes:
    """Lets tests wait for conditions instead of times."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def note(self) -> None:
        self._changed.set()

    async def until(self, condition: Callable[[], object], within_s: float = WAIT_S) -> None:
        async with asyncio.timeout(within_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


class StreamSink:
    """What a flow delivers, kept and consumed at once unless `eager` is False."""

    def __init__(self, flow: Duplex, eager: bool = True) -> None:
        self.flow = flow
        self.data = bytearray()
        self.events: list[str] = []
        self.error: Exception | None = None
        self.written_bytes = 0
        self.eager = eager
        self.echo = False
        self._changes = Changes()
        flow.start(self)

    @property
    def over(self) -> bool:
        return "lost" in self.events or "finished" in self.events

    def data_received(self, data: bytes) -> None:
        assert "eof" not in self.events and not self.over
        self.data += data
        if self.echo:
            self.flow.write(data)
        if self.eager:
            self.flow.consumed(len(data))
        self._changes.note()

    def eof_received(self) -> None:
        self._event("eof")
        if self.echo:
            self.flow.write_eof()

    def written(self, size: int) -> None:
        assert size > 0 and not self.over
        self.written_bytes += size
        self._changes.note()

    def finished(self) -> None:
        self._event("finished")

    def lost(self, error: Exception) -> None:
        assert isinstance(error, FlowLost)
        self.error = error
        self._event("lost")

    def _event(self, name: str) -> None:
        assert name not in self.events and not self.over
        self.events.append(name)
        self._changes.note()

    async def until_received(self, size: int) -> Self:
        return await self.until(lambda sink: len(sink.data) >= size)

    async def until(self, condition: Callable[[Self], object], within_s: float = WAIT_S) -> Self:
        await self._changes.until(lambda: condition(self), within_s)
        return self


class Member:
    """One device of a network on a wire, and the observer of its own mesh."""

    def __init__(
        self,
        wire: Wire,
        who: Identity,
        name: str,
        ip: str | Sequence[str],
        *,
        key: NetworkKey = KEY,
        engine: str = "qh3",
        clock_offset_s: float = 0.0,
        demux: WireDemux | None = None,
        keyring: Keyring | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        ips = [ip] if isinstance(ip, str) else list(ip)
        self.demux = demux or WireDemux(wire, [Address(one, PORT) for one in ips])
        self.address = self.demux.addresses[0]
        self.keyring = keyring or Keyring()
        self.demux.on_sealed = self.keyring.receive
        self.live: list[Peer] = []
        self.lost: list[tuple[Peer, str]] = []
        self.warnings: list[str] = []
        self.offers: list[Incoming] = []
        self.accepting = True
        self.sinks: list[StreamSink] = []
        self.udp_flows: list[UdpFlow] = []
        self.changes = Changes()
        entropy = random.Random(f"{name} {ips} {loop.time()}").randbytes
        self.mesh = Mesh(
            key,
            who,
            name,
            World(
                self.demux,
                self.keyring,
                engine_factory(engine),
                Budget(PROCESS_GROWTH_LIMIT_BYTES),
                entropy,
                lambda: UNIX_TIME_S + clock_offset_s + loop.time(),
                lambda: list(self.demux.addresses),
            ),
            self,
        )

    # --- MeshObserver ---

    def peer_live(self, peer: Peer, session: Session, took_s: float) -> None:
        assert took_s >= 0
        self.live.append(peer)
        self.changes.note()

    def peer_lost(self, peer: Peer, reason: str) -> None:
        self.lost.append((peer, reason))
        self.changes.note()

    def warning(self, text: str) -> None:
        self.warnings.append(text)
        self.changes.note()

    def reach(self) -> Reach:
        return Reach("none", True, False)

    def flow_offered(self, peer: Peer, offer: Incoming) -> None:
        self.offers.append(offer)
        if self.accepting and isinstance(offer, IncomingTcp):
            self.sinks.append(StreamSink(offer.accept()))
        elif self.accepting:
            self.udp_flows.append(offer.accept())  # type: ignore[attr-defined]
        self.changes.note()

    # --- what tests do with it ---

    def knows(self, other: Member) -> None:
        """The user names the other's address."""
        self.mesh.seeker.found(other.address, Source.USER)

    def peer(self, other: Member) -> Peer:
        peer = self.mesh.roster.get(other.mesh.identity.id)
        assert peer is not None
        return peer

    def session(self, other: Member) -> Session:
        session = self.mesh.live_session(other.mesh.identity.id)
        assert session is not None
        return session

    def sees(self, other: Member) -> bool:
        return self.mesh.live_session(other.mesh.identity.id) is not None

    def knows_boot_of(self, other: Member) -> bool:
        """Whether the session in use is with this very process of the other."""
        session = self.mesh.live_session(other.mesh.identity.id)
        return session is not None and session.member is not None and session.member.boot == other.mesh.boot

    def flows(self, other: Member) -> int:
        return len(self.session(other).streams)

    async def until_live(self, other: Member, within_s: float = WAIT_S) -> None:
        await self.changes.until(lambda: self.sees(other), within_s)

    async def until_lost(self, count: int = 1, within_s: float = 120.0) -> None:
        await self.changes.until(lambda: len(self.lost) >= count, within_s)

    async def until_offered(self, count: int = 1) -> Incoming:
        await self.changes.until(lambda: len(self.offers) >= count)
        return self.offers[count - 1]

    async def open_tcp(self, other: Member, port: int = 80, eager: bool = True) -> StreamSink:
        return StreamSink(await self.open_flow(other, port), eager)

    async def open_flow(self, other: Member, port: int = 80) -> Flow:
        return await self.session(other).streams.open_tcp(Target(other.mesh.name, port))

    async def until_sink(self, count: int = 1) -> StreamSink:
        await self.changes.until(lambda: len(self.sinks) >= count)
        return self.sinks[count - 1]

    async def until_udp(self, count: int = 1) -> UdpFlow:
        await self.changes.until(lambda: len(self.udp_flows) >= count)
        return self.udp_flows[count - 1]

    async def close(self) -> None:
        await self.mesh.close()
        self.demux.close()

    def vanish(self) -> None:
        """The process is gone without a word."""
        self.demux.gone = True
        self.demux._wire.unplug(self.demux)


@asynccontextmanager
async def two_members(
    engines: tuple[str, str] = ("qh3", "qh3"), *, latency_s: float = 0.01, loss: float = 0.0, seed: int = 1
) -> AsyncIterator[tuple[Wire, Member, Member]]:
    """A wire and two members with a live session between them."""
    wire = Wire(latency_s, loss, seed)
    low, high = ordered(1, 2)
    one = Member(wire, low, "one", "10.0.0.1", engine=engines[0])
    two = Member(wire, high, "two", "10.0.0.2", engine=engines[1])
    try:
        one.knows(two)
        await one.until_live(two)
        await two.until_live(one)
        yield wire, one, two
    finally:
        await one.close()
        await two.close()


async def pause(duration_s: float) -> None:
    """Let virtual time pass: for what must not happen."""
    await asyncio.sleep(duration_s)
