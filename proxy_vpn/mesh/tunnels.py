"""Tunnels: ways to a member through another one, as each of the two ends sees them.

A tunnel looks like any path: its address is a made-up one in the discard-only prefix, which the demultiplexer hands
to us instead of to a socket. So probes, cookies, limits, handshakes and connections go through it as they go
anywhere else, and the relay sees only what a router would: sealed datagrams and QUIC packets.

    A --RelayOpen--> R --RelayIncoming--> B        then DATAGRAM frames A <-> R <-> B, numbered anew by R
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from proxy_vpn.addresses import RELAY_PREFIX, Address
from proxy_vpn.errors import WireError
from proxy_vpn.mesh.session import Session, State
from proxy_vpn.net.demux import Demultiplexer
from proxy_vpn.net.udp import Path
from proxy_vpn.wire.messages import (
    Reassembler,
    RelayAccepted,
    RelayClose,
    RelayIncoming,
    RelayMessage,
    RelayOpen,
    RelayRefused,
    datagram_frames,
    split_datagram,
)

TUNNELS_PER_RELAY = 64
ASKED_LIMIT = 64
DATAGRAM_LIMIT_BYTES = 1500
_PORT = 1
_HOST_BYTES = 8


class TunnelNumbers:
    """Numbers for the tunnels that one side of a session names: even from who began the session, odd from the other."""

    def __init__(self) -> None:
        self._next: dict[Session, int] = {}

    def new(self, session: Session) -> int:
        number = self._next.get(session, 0 if session.initiator else 1)
        self._next[session] = number + 2
        return number

    def forget(self, session: Session) -> None:
        self._next.pop(session, None)


def relay_address(relay: bytes, peer: bytes) -> Address:
    """What stands for the way to `peer` through `relay`; nobody can choose it to look like another's."""
    digest = hashlib.blake2b(relay + peer, digest_size=_HOST_BYTES, person=b"pvpn1 relay").digest()
    return Address(str(IPv6Address(IPv6Address(RELAY_PREFIX).packed[:8] + digest)), _PORT)


def can_carry(session: Session | None) -> bool:
    """Whether tunnels may lead over a session: a live one that answers, and does not itself go through a relay."""
    return session is not None and session.state is State.LIVE and session.paths is not None and session.settled


class Parts(Reassembler):
    """The pieces of a tunnel's datagrams: there are many tunnels, and no datagram of theirs is large."""

    PENDING_LIMIT = 8
    PENDING_BYTES = 8 * DATAGRAM_LIMIT_BYTES

    def join(self, frame: tuple[int, int, int, int, bytes], now: float) -> bytes | None:
        """The datagram that a frame completes, if it is one that a path could carry."""
        datagram = self.feed(*frame[1:], now)
        return datagram if datagram and len(datagram) <= DATAGRAM_LIMIT_BYTES else None


@dataclass(slots=True, eq=False)
class Tunnel:
    """One end of a tunnel: the session to the relay, its number there, and who is at the other end."""

    session: Session
    number: int
    peer: bytes
    address: Address
    parts: Parts = field(default_factory=Parts)
    count: int = 0

    def send(self, datagrams: Sequence[bytes]) -> None:
        """Give datagrams to the relay; lost like any when it can't take them."""
        if not can_carry(self.session):
            return
        link = self.session.link
        for datagram in datagrams:
            self.count += 1
            try:
                frames = datagram_frames(self.number, self.count, datagram, link.supply.frame_limit, relayed=True)
            except WireError:
                continue
            link.send_datagrams(frames)


class Tunnels:
    """The tunnels that end here; `on_tunnel` hears of a new way to a peer, `on_refused` why there is none."""

    def __init__(
        self,
        demux: Demultiplexer,
        numbers: TunnelNumbers,
        *,
        on_tunnel: Callable[[bytes, Address], None],
        on_refused: Callable[[Session, bytes, str], None],
    ) -> None:
        self._demux = demux
        self._numbers = numbers
        self._on_tunnel = on_tunnel
        self._on_refused = on_refused
        self._asked: dict[tuple[Session, int], bytes] = {}
        self._tunnels: dict[tuple[Session, int], Tunnel] = {}
        self._now = asyncio.get_running_loop().time

    def relay_of(self, address: Address) -> Session | None:
        """The session to the relay that an address of ours stands for."""
        return next((tunnel.session for tunnel in self._tunnels.values() if tunnel.address == address), None)

    def ask(self, relay: Session, target: bytes) -> bool:
        """Ask a member to carry datagrams between us and `target`; False if that was done already."""
        if len(self._asked) >= ASKED_LIMIT or (relay, target) in {
            *((session, asked) for (session, _), asked in self._asked.items()),
            *((tunnel.session, tunnel.peer) for tunnel in self._tunnels.values()),
        }:
            return False
        number = self._numbers.new(relay)
        self._asked[relay, number] = target
        relay.send_control(RelayOpen(number, target))
        return True

    def handle(self, session: Session, message: RelayMessage) -> bool:
        """A relay's word; False if it is about none of our tunnels."""
        match message:
            case RelayAccepted():
                target = self._asked.pop((session, message.tunnel), None)
                if target is not None:
                    self._add(session, message.tunnel, target)
                return target is not None
            case RelayRefused():
                target = self._asked.pop((session, message.tunnel), None)
                if target is not None:
                    self._on_refused(session, target, message.reason)
                return target is not None
            case RelayIncoming():
                self._incoming(session, message)
                return True
            case RelayClose():
                return self._remove((session, message.tunnel))
        return False

    def _incoming(self, session: Session, message: RelayIncoming) -> None:
        here = sum(1 for held, _ in self._tunnels if held is session)
        fresh = (session, message.tunnel) not in self._tunnels
        if len(message.sender) == 32 and here < TUNNELS_PER_RELAY and fresh and can_carry(session):
            self._add(session, message.tunnel, message.sender)
        else:
            session.send_control(RelayClose(message.tunnel))

    def frame(self, session: Session, frame: bytes) -> bool:
        """A DATAGRAM frame; False if it belongs to none of our tunnels."""
        try:
            pieces = split_datagram(frame)
        except WireError:
            return True
        tunnel = self._tunnels.get((session, pieces[0]))
        if tunnel is None:
            return False
        datagram = tunnel.parts.join(pieces, self._now())
        if datagram is not None:
            self._demux.receive_relayed(datagram, Path("", 0, tunnel.address))
        return True

    def uses(self, session: Session) -> bool:
        """Whether tunnels of ours lead over a session, or are to."""
        return any(slot[0] is session for slot in (*self._tunnels, *self._asked))

    def session_gone(self, session: Session) -> None:
        """A session ended, and with it the tunnels through that peer."""
        for slot in [slot for slot in self._tunnels if slot[0] is session]:
            self._remove(slot)
        for slot in [slot for slot in self._asked if slot[0] is session]:
            del self._asked[slot]

    def _add(self, session: Session, number: int, peer: bytes) -> None:
        assert session.member is not None
        tunnel = Tunnel(session, number, peer, relay_address(session.member.identity, peer))
        self._tunnels[session, number] = tunnel
        self._demux.tunnels[tunnel.address] = tunnel.send
        self._on_tunnel(peer, tunnel.address)

    def _remove(self, slot: tuple[Session, int]) -> bool:
        tunnel = self._tunnels.pop(slot, None)
        if tunnel is None:
            return False
        left = [other for other in self._tunnels.values() if other.address == tunnel.address]
        if left:
            self._demux.tunnels[tunnel.address] = left[-1].send
        else:
            self._demux.tunnels.pop(tunnel.address, None)
        return True
