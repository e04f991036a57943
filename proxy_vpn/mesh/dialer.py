"""Making connections: from a PONG to a sealed QUIC handshake, and the answering side of it.

    dialling:   pong -> probes of 1232, 1312 and 1452 bytes -> largest answered -> QUIC Initial under K_to(id)
    answering:  sealed Initial -> recompute the cookie from the source -> limits -> a half-open connection

Handshake datagrams initiator to responder: K_to(id), associated data "hs>" and the cookie; back: K_rep(cookie),
associated data "hs<". A half-open connection keeps the cookie it began with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from proxy_vpn.addresses import Address
from proxy_vpn.errors import WireError
from proxy_vpn.keys import NetworkKey
from proxy_vpn.mesh.admission import COOKIE_LIFE_S, Admission, CookieJar
from proxy_vpn.mesh.keyring import Keyring
from proxy_vpn.mesh.prober import Sent, handshake_key
from proxy_vpn.mesh.session import Session
from proxy_vpn.net.demux import Demultiplexer, LinkReceiver
from proxy_vpn.net.engine import EngineFactory, initial_destination, long_destination
from proxy_vpn.net.quic import Link
from proxy_vpn.net.trains import Parts
from proxy_vpn.net.udp import Path
from proxy_vpn.wire.probe import PROBE_SIZES_BYTES, Pong
from proxy_vpn.wire.seal import HINT_BYTES, NONCE_BYTES, OVERHEAD_BYTES, SealKey
from proxy_vpn.wire.segments import alone
from proxy_vpn.wire.train import PACKET_BYTES

SIZE_WAIT_S = 0.25
SIZE_WAIT_RTTS = 2.0
BEGUN_LIMIT = 8192
_TO_RESPONDER, _TO_INITIATOR = b"hs>", b"hs<"


def packet_bytes(datagram_bytes: int) -> int:
    """How large a connection's packets may be where datagrams of that size arrive: a relay's have the smallest."""
    return PACKET_BYTES if datagram_bytes > PROBE_SIZES_BYTES[0] else datagram_bytes - OVERHEAD_BYTES


class SessionMaker(Protocol):
    """Builds sessions and hears about them: the mesh."""

    def make_session(self, *, initiator: bool, wanted: bytes, lane: int = 0) -> Session: ...


class Dial:
    """One attempt to reach a peer: sizes are measured, then the handshake begins on the same path."""

    def __init__(self, identity: bytes, path: Path, now: float, rtt_s: float, lane: int = 0) -> None:
        # What a relay carries is split if it is large: the smallest size is the one that is not.
        self.sizes = PROBE_SIZES_BYTES[:1] if path.remote.relayed else PROBE_SIZES_BYTES
        self.identity = identity
        self.path = path
        self.lane = lane
        self.started = now
        self.deadline = now + max(SIZE_WAIT_S, SIZE_WAIT_RTTS * rtt_s)
        self.cookies: dict[int, bytes] = {}
        self.session: Session | None = None

    def measured(self, sent: Sent, pong: Pong, path: Path) -> None:
        """A size probe came back."""
        if path.remote == self.path.remote and sent.size_bytes == pong.size_bytes:
            self.cookies[sent.size_bytes] = pong.cookie

    def ready(self, now: float) -> bool:
        """Whether the handshake may begin: the largest size is proven, or no more is to be expected."""
        return self.sizes[-1] in self.cookies or (bool(self.cookies) and now >= self.deadline)


class Dialer:
    """Both ends of sealed QUIC handshakes for one device in one network."""

    def __init__(
        self,
        key: NetworkKey,
        identity: bytes,
        *,
        demux: Demultiplexer,
        keyring: Keyring,
        cookies: CookieJar,
        engine: EngineFactory,
        maker: SessionMaker,
        entropy: Callable[[int], bytes],
        now: Callable[[], float],
    ) -> None:
        self._key = key
        self._demux = demux
        self._keyring = keyring
        self._cookies = cookies
        self._engine = engine
        self._maker = maker
        self._entropy = entropy
        self._now = now
        self._admission = Admission()
        self._parts = Parts()
        self.stopped = False
        self._own_key = handshake_key(key, identity)
        self._begun: dict[tuple[Address, bytes], float] = {}
        self._half_open: dict[tuple[Address, bytes], tuple[Link, bytes]] = {}
        keyring.add_standing(self._standing)

    @property
    def admission(self) -> Admission:
        return self._admission

    def connect(self, dial: Dial) -> Session:
        """Begin the handshake of a dial that is ready."""
        size = max(dial.cookies)
        cookie = dial.cookies[size]
        to_responder = handshake_key(self._key, dial.identity)
        to_initiator = SealKey(self._key.reply_key(cookie), cookie[:HINT_BYTES])
        opener = self._reply_opener(to_initiator)
        self._keyring.add_index(cookie[:HINT_BYTES], opener)

        def seal(datagram: bytes) -> bytes:
            return to_responder.seal(self._entropy(NONCE_BYTES), datagram, _TO_RESPONDER + cookie)

        session = self._maker.make_session(initiator=True, wanted=dial.identity, lane=dial.lane)
        link = Link(self._engine(True, packet_bytes(size), b""), self._demux, session, dial.path, seal, size)
        session.attach(link)
        session.on_closed.append(lambda: self._keyring.remove_index(cookie[:HINT_BYTES], opener))
        dial.session = session
        link.connect()
        return session

    def _reply_opener(self, key: SealKey) -> Callable[[bytes, Path], LinkReceiver | None]:
        def receive(datagram: bytes, path: Path) -> LinkReceiver | None:
            link = None
            try:
                for opened in self._parts.whole(key.open(datagram, _TO_INITIATOR), path.remote):
                    link = self._demux.links.get(long_destination(opened))
                    if link is not None:
                        link.receive(alone(opened), path)
            except WireError:
                return None
            return link

        return receive

    def _standing(self) -> Iterable[tuple[SealKey, Callable[[bytes, Path], LinkReceiver | None]]]:
        yield self._own_key, self._receive_handshake

    def _receive_handshake(self, datagram: bytes, path: Path) -> LinkReceiver | None:
        for size, cookie in self._cookies.candidates(path.remote, self._now()):
            try:
                opened = self._own_key.open(datagram, _TO_RESPONDER + cookie)
            except WireError:
                continue
            return self._parted(opened, path, size, cookie)
        for (source, _), (_, cookie) in tuple(self._half_open.items()):
            if source == path.remote:
                try:
                    opened = self._own_key.open(datagram, _TO_RESPONDER + cookie)
                except WireError:
                    continue
                return self._parted(opened, path, 0, cookie)
        return None

    def _parted(self, opened: bytes, path: Path, size: int, cookie: bytes) -> LinkReceiver | None:
        link = None
        for datagram in self._parts.whole(opened, path.remote):
            link = self._opened(datagram, path, size, cookie)
        return link

    def _opened(self, datagram: bytes, path: Path, size: int, cookie: bytes) -> LinkReceiver | None:
        try:
            destination = long_destination(datagram)
            known = self._half_open.get((path.remote, destination))
            link: LinkReceiver | None = known[0] if known else self._demux.links.get(destination)
            if link is None:
                link = self._accept(initial_destination(datagram), path, size, cookie)
        except WireError:
            return None
        if link is not None:
            link.receive(alone(datagram), path)
        return link

    def _accept(self, destination: bytes, path: Path, size: int, cookie: bytes) -> Link | None:
        self._begun = {slot: at for slot, at in self._begun.items() if self._now() - at < 2 * COOKIE_LIFE_S}
        if (path.remote, destination) in self._begun or len(self._begun) >= BEGUN_LIMIT:
            return None  # a recorded handshake sent again, for as long as its cookie is good
        if self.stopped or not size or not self._admission.admits(path.remote, len(self._half_open), self._now()):
            return None
        to_initiator = SealKey(self._key.reply_key(cookie), cookie[:HINT_BYTES])

        def seal(datagram: bytes) -> bytes:
            return to_initiator.seal(self._entropy(NONCE_BYTES), datagram, _TO_INITIATOR)

        session = self._maker.make_session(initiator=False, wanted=b"")
        link = Link(self._engine(False, packet_bytes(size), destination), self._demux, session, path, seal, size)
        session.attach(link)
        slot = (path.remote, destination)
        self._begun[slot] = self._now()
        self._half_open[slot] = (link, cookie)
        session.on_settled.append(lambda: self._half_open.pop(slot, None))
        return link
