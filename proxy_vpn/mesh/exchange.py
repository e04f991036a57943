"""Peer exchange as it runs: what we tell every peer, what we believe of what they tell, and what we pass on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from proxy_vpn.addresses import Address
from proxy_vpn.errors import WireError
from proxy_vpn.keys import Identity, NetworkKey
from proxy_vpn.mesh import pex
from proxy_vpn.mesh.admission import RateLimit
from proxy_vpn.mesh.roster import Peer, Roster
from proxy_vpn.mesh.session import Session, State
from proxy_vpn.wire.messages import Peers, Record, SignedRecord, decode

RECORD_EVERY_S = 20 * 60.0
MOVED_LOOK_S = 1.0
MOVES_PER_S, MOVES_BURST = 1 / 60.0, 3.0
WAITING_LIMIT_BYTES = 256 * 1024
CLOCK_FAR_S = 120.0
CLOCK_LIMIT_S = 1e10
_log = logging.getLogger(__name__)


class Exchange:
    """Peer exchange of one network; `on_address` hears where a peer says it is.

    `on_clock(identity, seconds ahead)` hears of a live peer whose clock is far from ours.
    """

    def __init__(
        self,
        key: NetworkKey,
        identity: Identity,
        name: str,
        roster: Roster,
        *,
        own_addresses: Callable[[], list[Address]],
        on_address: Callable[[bytes, Address], None],
        sessions: Callable[[], Iterable[Session]],
        unix_time: Callable[[], float],
        on_clock: Callable[[bytes, float], None] = lambda identity, ahead_s: None,
    ) -> None:
        self._key = key
        self._identity = identity
        self._name = name
        self._roster = roster
        self._own_addresses = own_addresses
        self._on_address = on_address
        self._sessions = sessions
        self._unix_time = unix_time
        self._on_clock = on_clock
        self._due = 0.0
        self._look_due = 0.0
        self._issued = 0.0
        self._named: set[Address] = set()
        self._moves = RateLimit(MOVES_PER_S, MOVES_BURST)

    def tick(self, now: float) -> None:
        """Tell everybody anew before our record expires, and when we are reached elsewhere than it says."""
        if now >= self._due or self._moved(now):
            self._due = now + RECORD_EVERY_S
            self._named = set(self._own_addresses())
            self._spread([self._own_record()])

    def _moved(self, now: float) -> bool:
        """Whether somebody is to hear of an address of ours now that none heard of.

        For a peer behind a NAT that is more than a hint: only once it has sent something there, we get through to it.
        """
        if now < self._look_due or self._unix_time() - self._issued <= pex.REISSUE_S:
            return False
        self._look_due = now + MOVED_LOOK_S
        if not any(session.state is State.LIVE for session in self._sessions()):
            return False
        return not self._named.issuperset(self._own_addresses()) and self._moves.allow(b"", now)

    def greet(self, session: Session, peer: Peer) -> None:
        """A peer became live: tell it of us and of everybody we know."""
        known = [other.record for other in self._roster if other is not peer and self._current(other)]
        self._send(session, [self._own_record(), *known])

    def _current(self, peer: Peer) -> bool:
        """Whether we hold a record of the peer that has not expired; an expired one is forgotten."""
        try:
            pex.read_record(self._key, peer.record, self._unix_time())
        except WireError:
            peer.record = b""
        return bool(peer.record)

    def receive(self, session: Session, records: list[bytes]) -> list[bytes]:
        """Records from a peer: the valid and newer ones are believed and passed on; the identities that they are of."""
        news, devices = [], []
        for data in records[: pex.RECORDS_PER_MESSAGE]:
            with suppress(WireError):
                self._compare_clocks(session, data)
                record, addresses = pex.read_record(self._key, data, self._unix_time())
                if record.identity == self._identity.id:
                    continue
                peer = self._roster.hear_of(record.identity, record.name)
                if peer is None or not pex.newer(data, peer.record):
                    continue
                peer.record = data
                news.append(data)
                devices.append(record.identity)
                where = " ".join(map(str, addresses))
                _log.info("%s: %s says that %s is at %s", self._key.name, session.peer_name, peer.name, where)
                for address in addresses:
                    self._on_address(record.identity, address)
        if news:
            self._spread(news, but=session)
        return devices

    def _compare_clocks(self, session: Session, data: bytes) -> None:
        """A peer issues its own record when it sends it, and whatever clock it has, it says so itself."""
        record = decode(decode(data, SignedRecord).record, Record)
        if session.member is None or record.identity != session.member.identity:
            return
        ahead_s = record.issued - self._unix_time()
        if CLOCK_FAR_S < abs(ahead_s) < CLOCK_LIMIT_S:
            self._on_clock(record.identity, ahead_s)

    def _own_record(self) -> bytes:
        self._issued = self._unix_time()
        return pex.make_record(self._key, self._identity, self._name, self._own_addresses(), self._issued)

    def _send(self, session: Session, records: Sequence[bytes]) -> None:
        if session.link.engine.backlog > WAITING_LIMIT_BYTES:
            return  # its path is dead or full; the next record comes in 20 minutes
        for start in range(0, len(records), pex.RECORDS_PER_MESSAGE):
            session.send_control(Peers(list(records[start : start + pex.RECORDS_PER_MESSAGE])))

    def _spread(self, records: Sequence[bytes], but: Session | None = None) -> None:
        for session in tuple(self._sessions()):
            if session.state is State.LIVE and session is not but:
                self._send(session, records)
