"""The search for peers: which candidates are probed, which answers lead to a connection, and who dials.

    candidate --probe--> pong --Dial--> sizes measured --handshake--> a session
                                  \\__ nobody there, refused: a pause, then again

Of two devices that find each other at once the one with the lower id dials; the other waits a second first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from proxy_vpn.addresses import Address, Scope
from proxy_vpn.keys import NetworkKey, short_id
from proxy_vpn.mesh.admission import CookieJar
from proxy_vpn.mesh.candidates import CandidateBook, Source
from proxy_vpn.mesh.dialer import Dial, Dialer, SessionMaker
from proxy_vpn.mesh.keyring import Keyring
from proxy_vpn.mesh.prober import Prober, Sent
from proxy_vpn.mesh.session import Session
from proxy_vpn.net.demux import Demultiplexer
from proxy_vpn.net.engine import EngineFactory
from proxy_vpn.net.udp import Path
from proxy_vpn.wire.probe import PROBE_SIZES_BYTES, SMALL_PROBE_BYTES, Pong

HIGHER_ID_WAITS_S = 1.0
REDIAL_PAUSE_S = 0.5
REDIAL_PAUSE_LIMIT_S = 30.0
DIAL_LIFE_S = 8.0
DIALS_LIMIT = 64
PAUSES_LIMIT = 4096
_log = logging.getLogger(__name__)


class SeekerOwner(SessionMaker, Protocol):
    """What the search asks of the mesh, and tells it."""

    def live_session(self, identity: bytes) -> Session | None: ...

    def any_peer_live(self) -> bool: ...

    def is_virtual(self, address: Address) -> bool: ...

    def live_addresses(self) -> set[Address]: ...

    def boot_seen(self, identity: bytes, boot: bytes) -> bool:
        """A live peer showed this boot nonce; False if it is not the one we know."""

    def observed_as(self, address: Address) -> None: ...

    def clock_differs(self, sender: bytes, difference_s: float) -> None: ...


class Seeker:
    """Finds and dials the peers of one network; driven by `tick`."""

    def __init__(
        self,
        key: NetworkKey,
        identity: bytes,
        boot: bytes,
        owner: SeekerOwner,
        *,
        demux: Demultiplexer,
        keyring: Keyring,
        engine: EngineFactory,
        entropy: Callable[[int], bytes],
        unix_time: Callable[[], float],
    ) -> None:
        self.book = CandidateBook()
        self._network = key.name
        self._identity = identity
        self._owner = owner
        self._now = asyncio.get_running_loop().time
        cookies = CookieJar(entropy(32))
        self.prober = Prober(
            key,
            identity,
            boot,
            keyring=keyring,
            cookies=cookies,
            handler=self,
            send=demux.send,
            entropy=entropy,
            now=self._now,
            unix_time=unix_time,
        )
        self.dialer = Dialer(
            key,
            identity,
            demux=demux,
            keyring=keyring,
            cookies=cookies,
            engine=engine,
            maker=owner,
            entropy=entropy,
            now=self._now,
        )
        self._dials: dict[bytes, Dial] = {}
        self._pauses: dict[bytes, tuple[float, float]] = {}
        self.stopped = False

    def stop(self) -> None:
        """Look for nobody and let nobody in any more."""
        self.stopped = self.dialer.stopped = True

    def found(self, address: Address, source: Source, scope: Scope = Scope.LOOPBACK, identity: bytes = b"") -> None:
        """A peer may be there."""
        if self._owner.is_virtual(address):
            return
        if self.book.add(address, self._now(), identity=identity, source=source, scope=scope):
            whose = f"device {short_id(identity)}" if identity else "a peer"
            _log.info("%s: %s may be at %s (source: %s)", self._network, whose, address, source.name.lower())
            self._probe_candidates()

    def want(self, identity: bytes) -> None:
        """Somebody waits for this peer: try all its addresses at once."""
        self.book.retry(identity, self._now())
        self._pauses.pop(identity, None)
        self._probe_candidates()

    def tick(self) -> None:
        """What is due: probes, dials whose sizes are measured, memories to lose."""
        now = self._now()
        self.prober.expire()
        self._probe_candidates()
        for identity, dial in tuple(self._dials.items()):
            self._advance(dial)
            if dial.session is None and now - dial.started > DIAL_LIFE_S:
                self._dials.pop(identity, None)
                self._dial_failed(dial, f"no probe of any size was answered within {DIAL_LIFE_S:.0f} s")
                self._pause_longer(identity)

    def met(self, identity: bytes) -> None:
        """The peer is live: no dial and no pause any more."""
        self._dials.pop(identity, None)
        self._pauses.pop(identity, None)

    def pause(self, identity: bytes) -> None:
        """This peer does not want us now: leave it alone for a while."""
        self._pauses[identity] = (self._now() + REDIAL_PAUSE_LIMIT_S, REDIAL_PAUSE_LIMIT_S)

    def _pause_longer(self, identity: bytes) -> None:
        """Leave it alone for twice as long as the last time; what is long over counts no more."""
        now = self._now()
        if len(self._pauses) >= PAUSES_LIMIT:
            self._pauses = {who: each for who, each in self._pauses.items() if each[0] > now}
        pause = min(REDIAL_PAUSE_LIMIT_S, 2 * self._pauses.get(identity, (0.0, REDIAL_PAUSE_S / 2))[1])
        self._pauses[identity] = (now + pause, pause)

    def session_closed(self, session: Session) -> None:
        """A connection ended; if it was a dial's, the next one waits a little longer."""
        for identity, dial in tuple(self._dials.items()):
            if dial.session is session:
                del self._dials[identity]
                self._dial_failed(dial, session.closing_reason or "the connection ended")
                self._pause_longer(identity)

    # --- ProbeHandler -------------------------------------------------------------------------------------------

    def any_peer_live(self) -> bool:
        return self._owner.any_peer_live()

    def clock_differs(self, sender: bytes, difference_s: float) -> None:
        self._owner.clock_differs(sender, difference_s)

    def probe_received(self, sender: bytes, boot: bytes, path: Path) -> None:
        """A member asks whether we are here: so it is there."""
        if self._owner.live_session(sender) is not None:
            self._owner.boot_seen(sender, boot)
        else:
            source = Source.RELAY if path.remote.relayed else Source.PROBE
            self.found(path.remote, source, identity=sender)
            if self._identity < sender and sender not in self._dials and not self.stopped:
                # It leaves the dial to us, and where it was known its address may be due only later.
                self.prober.probe(path, sender, SMALL_PROBE_BYTES)

    def own_address_found(self, sent: Sent) -> None:
        """A probe of ours came back to us."""
        self.book.own_address(sent.path.remote, self._now())

    def pong_received(self, sent: Sent, pong: Pong, path: Path, rtt_s: float) -> None:
        """A member answered a probe."""
        self._owner.observed_as(pong.observed)
        dial = self._dials.get(pong.responder)
        if dial is not None and sent.size_bytes in PROBE_SIZES_BYTES:
            dial.measured(sent, pong, path)
            self._advance(dial)
            return
        session = self._owner.live_session(pong.responder)
        if session is not None and self._owner.boot_seen(pong.responder, pong.boot):
            if session.paths is not None:
                session.paths.offer(path)
        elif sent.size_bytes == SMALL_PROBE_BYTES and (dial is None or (dial.lane and session is None)):
            self._start_dial(pong.responder, path, rtt_s)  # a lane's dial began while there was a connection still

    # --- dialling -----------------------------------------------------------------------------------------------

    def _probe_candidates(self) -> None:
        if self.stopped:
            return
        due = self.book.due(self._now())
        live = self._owner.live_addresses() if due else set()
        for candidate in due:
            session = self._owner.live_session(candidate.identity) if candidate.identity else None
            settled = session is not None and session.settled
            if not settled and candidate.address not in live:
                self.prober.probe(Path("", 0, candidate.address), candidate.identity, SMALL_PROBE_BYTES)

    def _start_dial(self, identity: bytes, path: Path, rtt_s: float) -> None:
        self.dial_lane(identity, path, rtt_s, 0)

    def dial_lane(self, identity: bytes, path: Path, rtt_s: float, lane: int) -> None:
        """Connect to a peer on this path, also to one that is live already: `lane` tells its connections apart."""
        now = self._now()
        if self.stopped or len(self._dials) >= DIALS_LIMIT or now < self._pauses.get(identity, (0.0, 0.0))[0]:
            return
        self._dials[identity] = Dial(identity, path, now, rtt_s, lane)
        _log.info("%s: dialling device %s at %s", self._network, short_id(identity), path)
        for size in self._dials[identity].sizes:
            self.prober.probe(path, identity, size)

    def _advance(self, dial: Dial) -> None:
        now = self._now()
        if dial.session is not None or not dial.ready(now):
            return
        if self._identity > dial.identity and now - dial.started < HIGHER_ID_WAITS_S:
            return
        self.dialer.connect(dial)

    def _dial_failed(self, dial: Dial, reason: str) -> None:
        who = short_id(dial.identity)
        _log.info("%s: dialling device %s at %s failed: %a", self._network, who, dial.path, reason)
