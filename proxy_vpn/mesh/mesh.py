"""One network as this device lives it: finds members, keeps one session to each, and opens flows over them.

candidates --probe--> pong --Dial--> handshake --AUTH--> live --flows--> lost --retry--> candidates
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Protocol

from proxy_vpn import __version__
from proxy_vpn.addresses import Address, Scope, Target
from proxy_vpn.errors import FlowError, Status
from proxy_vpn.keys import Identity, NetworkKey
from proxy_vpn.mesh.candidates import Source
from proxy_vpn.mesh.credit import PEER_GROWTH_LIMIT_BYTES, Budget
from proxy_vpn.mesh.detours import Detours
from proxy_vpn.mesh.exchange import Exchange
from proxy_vpn.mesh.flow import Flow
from proxy_vpn.mesh.keyring import Keyring
from proxy_vpn.mesh.openings import Incoming
from proxy_vpn.mesh.paths import Kind, PathMonitor, kind_of
from proxy_vpn.mesh.relay import Relay
from proxy_vpn.mesh.rivals import Rivals
from proxy_vpn.mesh.roster import Peer, Roster
from proxy_vpn.mesh.routes import offered
from proxy_vpn.mesh.seeker import Seeker
from proxy_vpn.mesh.session import Session, State
from proxy_vpn.mesh.sizes import LARGEST_BYTES, SizeCheck
from proxy_vpn.mesh.tap import Tap
from proxy_vpn.mesh.tunnels import TunnelNumbers, Tunnels
from proxy_vpn.mesh.udp_flow import UdpFlow
from proxy_vpn.mesh.unreached import UNREACHED_HINT, Unreached
from proxy_vpn.mesh.virtual import VirtualNetwork
from proxy_vpn.mesh.watcher import Watcher
from proxy_vpn.net.demux import Demultiplexer
from proxy_vpn.net.engine import HANDSHAKE_DATAGRAM_BYTES, EngineFactory
from proxy_vpn.net.udp import Path
from proxy_vpn.ranges import Network
from proxy_vpn.wire.membership import LANES, Initiator, Responder
from proxy_vpn.wire.messages import Reach, RelayMessage, Routes, Welcome
from proxy_vpn.wire.probe import BOOT_BYTES
from proxy_vpn.wire.seal import HINT_BYTES, SealKey

TICK_S = 0.25
OFFLINE_WAIT_S = 5.0
LEFT_WAIT_S = 1.0
OBSERVED_LIMIT = 8
SEARCH_S = 60.0
SESSIONS_LIMIT = 512
REACH_EVERY_S = 5.0
PING_AGAIN_S = 1.0
_log = logging.getLogger(__name__)

TWIN_WARNING = (
    "another machine carries this device's identity and was there first"
    " - give this one a state directory of its own (--state), or stop the other"
)


class MeshObserver(Protocol):
    """Who tells the user."""

    def peer_live(self, peer: Peer, session: Session, took_s: float) -> None: ...

    def peer_lost(self, peer: Peer, reason: str) -> None: ...

    def warning(self, text: str) -> None: ...

    def flow_offered(self, peer: Peer, offer: Incoming) -> None: ...

    def reach(self) -> Reach: ...


@dataclass(frozen=True, slots=True)
class World:
    """What the meshes of one process share, and what makes a test's world deterministic."""

    demux: Demultiplexer
    keyring: Keyring
    engine: EngineFactory
    budget: Budget
    entropy: Callable[[int], bytes]
    unix_time: Callable[[], float]
    local_addresses: Callable[[], list[Address]]
    tap: Tap = field(default_factory=Tap)
    networks_in_use: list[Network] = field(default_factory=list)
    virtual: list[VirtualNetwork] = field(default_factory=list)


class Mesh:
    """The sessions of one device in one network."""

    def __init__(self, key: NetworkKey, identity: Identity, name: str, world: World, observer: MeshObserver) -> None:
        self.key = key
        self.identity = identity
        self.name = name
        self.roster = Roster(key.name, name)
        self.virtual = VirtualNetwork(key, identity.id, world.networks_in_use)
        world.networks_in_use.append(self.virtual.v4)
        world.virtual.append(self.virtual)
        self.boot = world.entropy(BOOT_BYTES)
        self.clock_offset_s: float | None = None
        self._world = world
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self.seeker = Seeker(
            key,
            identity.id,
            self.boot,
            self,
            demux=world.demux,
            keyring=world.keyring,
            engine=world.engine,
            entropy=world.entropy,
            unix_time=world.unix_time,
        )
        self._exchange = Exchange(
            key,
            identity,
            name,
            self.roster,
            own_addresses=self.own_addresses,
            on_address=lambda device, address: self.seeker.found(address, Source.EXCHANGE, identity=device),
            sessions=lambda: self._sessions,
            unix_time=world.unix_time,
            on_clock=self.clock_differs,
        )
        self._sessions: set[Session] = set()
        numbers = self._numbers = TunnelNumbers()
        self.relay = Relay(numbers, self.live_session)
        self.tunnels = Tunnels(
            world.demux,
            numbers,
            on_tunnel=lambda device, address: self.seeker.found(address, Source.RELAY, identity=device),
            on_refused=lambda relay, device, reason: self.detours.refused(relay, device, reason),
        )
        self.detours = Detours(self.roster, self.tunnels, self.seeker.want, self.live_session)
        self.unreached = Unreached(self.roster, self.detours, self.live_session)
        self._rivals = Rivals(identity.id, observer.warning, self._carries)
        self._watcher = Watcher(self.seeker, self._loop.time)
        self._waiters: dict[bytes, list[asyncio.Future[None]]] = {}
        self._observed: dict[Address, None] = {}
        self._seen_as: dict[Session, Address] = {}
        self._ticker = self._loop.call_soon(self._tick)
        self._started_at = self._loop.time()
        self._reach_due = 0.0
        self.leads_to: tuple[Routes, ...] = ()

    # --- what the node and the doors ask for -------------------------------------------------------------------

    def is_virtual(self, address: Address) -> bool:
        """Whether it lies in a network of ours: nobody is reached there but through ourselves."""
        ip = ip_address(address.ip)
        return any(ip in virtual for virtual in self._world.virtual)

    def any_peer_live(self) -> bool:
        return any(session.state is State.LIVE for session in self._sessions)

    def live_peers(self) -> Iterator[Peer]:
        """The peers that take flows now."""
        return (peer for peer in self.roster if self._usable(peer) is not None)

    async def session_for(self, peer: Peer) -> Session:
        """The peer's session, waiting a little for one that is offline; raises FlowError."""
        session = self._usable(peer)
        if session is not None:
            return session
        self.seeker.want(peer.identity)
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.setdefault(peer.identity, []).append(waiter)
        try:
            async with asyncio.timeout(LEFT_WAIT_S if peer.left else OFFLINE_WAIT_S):
                await waiter
        except TimeoutError:
            raise self._out_of_reach(peer) from None
        finally:
            self._waiters.get(peer.identity, []).remove(waiter)
        session = self._usable(peer)
        if session is None:
            raise FlowError(Status.UNREACHABLE, f"{peer.name} has just gone", "try again")
        return session

    def _out_of_reach(self, peer: Peer) -> FlowError:
        why = self.unreached.why(peer)
        if not why:
            return FlowError(Status.UNREACHABLE, f"{peer.name} is offline", "start pvpn there")
        return FlowError(Status.UNREACHABLE, f"{peer.name} is offline, or there is {why}", UNREACHED_HINT)

    async def open_tcp(self, peer: Peer, port: int, beyond: str = "") -> Flow:
        """A TCP flow to a port of the peer, or of a host `beyond` it; raises FlowError."""
        streams = (await self.session_for(peer)).streams
        return await streams.open_tcp(Target(beyond or peer.name, port), bool(beyond))

    async def open_udp(self, peer: Peer, port: int, beyond: str = "") -> UdpFlow:
        """A UDP flow to a port of the peer, or of a host `beyond` it; raises FlowError."""
        streams = (await self.session_for(peer)).streams
        return await streams.open_udp(Target(beyond or peer.name, port), bool(beyond))

    async def ping(self, peer: Peer) -> tuple[float, Path]:
        """A path probe, and another each second until one is answered: its round trip in seconds, and the path it took.

        Raises FlowError.
        """
        session = await self.session_for(peer)
        answer: asyncio.Future[float] = self._loop.create_future()
        assert session.paths is not None

        def done(rtt_s: float) -> None:
            if not answer.done():
                answer.set_result(rtt_s)

        for _attempt in range(int(OFFLINE_WAIT_S / PING_AGAIN_S)):
            session.paths.probe(done=done)
            await asyncio.wait([answer], timeout=PING_AGAIN_S)
            if answer.done():
                return answer.result(), session.paths.current
        raise FlowError(Status.TIMEOUT, f"{peer.name} did not answer within {OFFLINE_WAIT_S:.0f} s")

    def forget(self, name: str) -> Peer:
        """Give a name free; the peer that bore it must be met anew. Raises UsageError."""
        peer = self.roster.forget(name)
        for session in list(peer.sessions):
            session.close("forgotten")
        return peer

    async def close(self) -> None:
        """Say goodbye to every peer and wait for their flows (2 s)."""
        self.seeker.stop()
        self._ticker.cancel()
        self._rivals.stop()
        async with asyncio.TaskGroup() as group:
            for session in tuple(self._sessions):
                group.create_task(session.finish("stopping"))

    def network_changed(self) -> None:
        """The host's network changed, or it woke up: look whether paths still carry, and for everybody else."""
        self._observed.clear()
        for session in tuple(self._sessions):
            if session.paths is not None:
                session.paths.network_changed()
        for peer in self.roster:
            if not peer.left:
                self.seeker.want(peer.identity)

    def own_addresses(self) -> list[Address]:
        """Where other members may reach us: our interfaces, and what peers saw us as."""
        return list(dict.fromkeys([*self._observed, *self._world.local_addresses()]))

    # --- time and the search ------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        self.seeker.tick()
        for session in tuple(self._sessions):
            self._watcher.watch(session)
            self._note_outside(session)
        self.detours.tick(self._sessions)
        self.unreached.tick(self._sessions)
        self._exchange.tick(self._loop.time())
        if self._loop.time() >= self._reach_due:
            self._reach_due = self._loop.time() + REACH_EVERY_S
            self._tell()

    def _tell(self) -> None:
        """Tell peers how we are connected and what we lead to, when it is not what they were told last."""
        for ours in (self._observer.reach(), *self.leads_to):
            for session in tuple(self._sessions):
                if session.state is State.LIVE and session.told.get(type(ours)) != ours:
                    session.told[type(ours)] = ours
                    session.send_control(ours)

    def live_session(self, identity: bytes) -> Session | None:
        """The session that takes new flows to this device."""
        peer = self.roster.get(identity)
        return None if peer is None else self._usable(peer)

    def live_addresses(self) -> set[Address]:
        """Where the peers of our sessions are."""
        return {session.paths.current.remote for session in self._sessions if session.paths is not None}

    def boot_seen(self, identity: bytes, boot: bytes) -> bool:
        """A live peer showed this boot nonce; an unknown one has it checked."""
        peer, session = self.roster.get(identity), self.live_session(identity)
        if peer is None or session is None:
            return True
        if any(known.member is not None and known.member.boot == boot for known in peer.sessions):
            return True
        self._rivals.check_boot(peer)
        return False

    def observed(self) -> list[Address]:
        """How peers see us."""
        return list(self._observed)

    def observed_as(self, address: Address) -> None:
        """Somebody sees us under this address: other members may reach us there."""
        if address.scope is Scope.LOOPBACK or address.relayed:
            return
        self._observed.pop(address, None)
        self._observed[address] = None
        while len(self._observed) > OBSERVED_LIMIT:
            self._observed.pop(next(iter(self._observed)))

    def _note_outside(self, session: Session) -> None:
        """What the peer of a session sees us as, once each time that it is another address."""
        seen = session.paths.observed if session.paths is not None else None
        if seen is not None and seen != self._seen_as.get(session):
            self._seen_as[session] = seen
            self.observed_as(seen)

    def clock_differs(self, sender: bytes, difference_s: float) -> None:
        """A member's clock is far from ours."""
        if self.clock_offset_s is None:
            hours = difference_s / 3600
            self._observer.warning(f"a member's clock differs from this machine's by {hours:+.1f} hours - set both")
        self.clock_offset_s = difference_s

    def routes_received(self, session: Session, message: Routes) -> None:
        """What a peer offers to lead to; what nobody may lead to is left out."""
        peer = None if session.member is None else self.roster.get(session.member.identity)
        if peer is not None:
            peer.routes, peer.is_exit = offered(message), message.exit

    def peers_received(self, session: Session, records: list[bytes]) -> None:
        """Peer exchange from a peer."""
        self.virtual.give(self._exchange.receive(session, records))

    def relay_received(self, session: Session, message: RelayMessage) -> None:
        """A peer's word about a tunnel: one of ours, or one that goes through us."""
        if not self.tunnels.handle(session, message):
            self.relay.handle(session, message)

    def relayed_received(self, session: Session, frame: bytes) -> None:
        """A DATAGRAM frame of a tunnel, ours or another's."""
        if not self.tunnels.frame(session, frame):
            self.relay.frame(session, frame)

    def describe(self, path: Path) -> str:
        """A path as users read it: `lan 192.168.1.2:41641`, `direct ...`, `relay via peer-c`."""
        kind = kind_of(path)
        if kind is not Kind.RELAY:
            return f"{kind} {path}"
        relay = self.tunnels.relay_of(path.remote)
        return f"{kind} via {relay.peer_name}" if relay else str(kind)

    # --- sessions -----------------------------------------------------------------------------------------------

    def make_session(self, *, initiator: bool, wanted: bytes, lane: int = 0) -> Session:
        """A session for one new connection, as the dialer asks."""
        path_key, path_index = self._world.entropy(32), self._world.entropy(HINT_BYTES)

        def prove(binding: bytes) -> Initiator | Responder:
            if initiator:
                return Initiator(self.key, self.identity, self.boot, binding, wanted=wanted, lane=lane)
            return Responder(self.key, self.identity, self.boot, binding, admit=self._admit)

        def welcome() -> Welcome:
            return Welcome(self.name, __version__, self._world.engine.name, path_key, path_index)

        session = Session(
            self,
            prove,
            welcome,
            initiator=initiator,
            budget=Budget(PEER_GROWTH_LIMIT_BYTES, self._world.budget),
        )
        session.path_secret = (path_key, path_index)
        self._sessions.add(session)
        return session

    def _admit(self, identity: bytes, boot: bytes) -> bool:
        if len(self._sessions) > SESSIONS_LIMIT and self.roster.get(identity) is None:
            return False
        return self.seeker.dialer.admission.identities.allow(identity, self._loop.time())

    def session_live(self, session: Session) -> None:
        """AUTH is done on both sides and the peer has introduced itself."""
        assert session.member is not None and session.theirs is not None and session.link.path is not None
        member = session.member
        peer = self.roster.meet(member.identity, session.theirs.name)
        self.virtual.give([member.identity])
        session.introduce(peer.name)
        session.streams.line = self._world.tap.line(self.key.name, member.identity, initiator=session.initiator)
        if peer.name != peer.claimed:
            self._observer.warning(
                f"another machine calls itself {peer.claimed}: it is {peer.name} here"
                f" - if {peer.claimed} was installed anew: pvpn forget {peer.claimed}"
            )
        self.seeker.met(member.identity)
        own_key, own_index = session.path_secret
        session.paths = PathMonitor(
            session.link.path,
            SealKey(own_key, own_index),
            own_index,
            SealKey(session.theirs.path_key, session.theirs.path_index),
            keyring=self._world.keyring,
            send=self._world.demux.send,
            entropy=self._world.entropy,
            now=self._loop.time,
            on_switch=lambda path: self._switched(session, path),
            on_return=lambda: session.link.kick(),
            on_rtt=lambda rtt_s: session.link.supply.measured(rtt_s),
        )
        session.sizes = SizeCheck(
            session.paths,
            self._loop.time,
            on_black_hole=lambda: self._black_hole(session),
            on_larger=lambda: self._larger_datagrams(session),
        )
        old = self._usable(peer)
        session.live_at = self._loop.time()
        if old is None:
            self._take(peer, session)
        else:
            self._rivals.settle(peer, old, session)

    def _take(self, peer: Peer, session: Session) -> None:
        peer.sessions.insert(0, session)
        self._reach_due = 0.0
        assert session.link.path is not None
        if not session.link.path.remote.relayed:
            peer.remember(session.link.path.remote)
        peer.last_seen = self._world.unix_time()
        peer.since = peer.last_seen
        peer.left = False
        for waiter in self._waiters.get(peer.identity, []):
            if not waiter.done():
                waiter.set_result(None)
        self._observer.peer_live(peer, session, self._loop.time() - self._sought_since(peer, session))
        self._exchange.greet(session, peer)

    def _sought_since(self, peer: Peer, session: Session) -> float:
        """When the search for this peer began: our start or its loss if that was lately, else this connection's."""
        began = max(peer.lost_at, self._started_at)
        return began if session.started_at - began < SEARCH_S else session.started_at

    def _switched(self, session: Session, path: Path) -> None:
        session.link.move(path)
        if session.sizes is not None:
            session.sizes.path_changed()
        session.link.kick()

    def _carries(self, session: Session) -> bool:
        """Whether anything is under way over a session: flows, tunnels of ours or of others."""
        return len(session.streams) > 0 or self.tunnels.uses(session) or self.relay.uses(session)

    def _black_hole(self, session: Session) -> None:
        _log.info("%s: the path to %s carries only small datagrams now", self.key.name, session.peer_name)
        session.link.resize(HANDSHAKE_DATAGRAM_BYTES)

    def _larger_datagrams(self, session: Session) -> None:
        """The path carries the largest datagrams: use them, on a new lane if this one's packets can't be larger."""
        session.link.resize(LARGEST_BYTES)
        if session.link.engine.size < LARGEST_BYTES and session.member is not None:
            peer = self.roster.get(session.member.identity)
            if peer is not None and peer.session is session and session.paths is not None:
                lane = (session.member.lane + 1) % LANES
                self.seeker.dial_lane(peer.identity, session.paths.current, session.paths.rtt_s or 0.0, lane)

    def session_closed(self, session: Session, reason: str) -> None:
        """A session ended, live or not."""
        self._sessions.discard(session)
        self._seen_as.pop(session, None)
        self.tunnels.session_gone(session)
        self.relay.session_gone(session)
        self._numbers.forget(session)
        self.seeker.session_closed(session)
        if session.twin and session.member is not None:
            self.seeker.pause(session.member.identity)
            self._observer.warning(TWIN_WARNING)
        peer = self.roster.get(session.member.identity) if session.member else None
        if peer is None or session not in peer.sessions:
            return
        peer.sent_bytes += session.link.sent_bytes
        peer.received_bytes += session.link.received_bytes
        was_first = peer.sessions[0] is session
        peer.sessions.remove(session)
        peer.last_seen = self._world.unix_time()
        if was_first and not peer.sessions:
            peer.since, peer.lost_at = peer.last_seen, self._loop.time()
            peer.left = session.said_goodbye
            if self.seeker.stopped:
                return
            self._observer.peer_lost(peer, reason)
            for address in peer.addresses:
                self.seeker.found(address, Source.MEMORY, identity=peer.identity)
            if not session.twin:
                self.seeker.want(peer.identity)
        elif was_first:
            follower = peer.sessions.pop(0)
            self._take(peer, follower)

    def session_path_heard(self, session: Session, path: Path) -> None:
        """A connection's ID came from another source."""
        if session.paths is not None:
            session.paths.heard_on(path)

    def flow_offered(self, session: Session, offer: Incoming) -> None:
        """A peer wants to reach a service here."""
        peer = self.roster.get(session.member.identity) if session.member else None
        if peer is None:
            offer.refuse(Status.INTERNAL)
        else:
            self._observer.flow_offered(peer, offer)

    def _usable(self, peer: Peer) -> Session | None:
        session = peer.session
        return session if session is not None and session.state is State.LIVE else None
