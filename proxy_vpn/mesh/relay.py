"""Carrying other members' datagrams: what this device does for two that reach it and not each other.

Nothing is opened: a tunnel's datagrams are sealed or QUIC packets between its ends. Each sender has a token bucket and
each member a quota a day. Nothing is carried over a session that goes through a relay itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from proxy_vpn.errors import WireError
from proxy_vpn.mesh.session import Session
from proxy_vpn.mesh.tunnels import Parts, TunnelNumbers, can_carry
from proxy_vpn.wire.messages import (
    RelayAccepted,
    RelayClose,
    RelayIncoming,
    RelayMessage,
    RelayOpen,
    RelayRefused,
    datagram_frames,
    split_datagram,
)

RATE_BYTES_S = 2_500_000
BURST_BYTES = 256 * 1024
QUOTA_BYTES = 20_000_000_000
QUOTA_EVERY_S = 24 * 3600.0
TUNNELS_PER_MEMBER = 32
TUNNELS_LIMIT = 512
MEMBERS_COUNTED = 4096
REFUSED_OFF = "it carries nothing for others"
REFUSED_UNKNOWN = "it does not reach that peer either"
REFUSED_CHAIN = "it is reached through a relay itself"
REFUSED_LIMIT = "it carries too much already"


@dataclass(slots=True, eq=False)
class _Leg:
    """One half of a tunnel: what comes on (session, number) goes out on the other half's."""

    session: Session
    number: int
    member: bytes
    asked: bool = False
    other: _Leg | None = None
    level_bytes: float = BURST_BYTES
    at: float = 0.0
    count: int = 0
    parts: Parts = field(default_factory=Parts)

    def passes(self, size: int, now: float) -> bool:
        """Whether the sender is within its rate; what it sends is then counted."""
        self.level_bytes = min(BURST_BYTES, self.level_bytes + (now - self.at) * RATE_BYTES_S)
        self.at = now
        if self.level_bytes < size:
            return False
        self.level_bytes -= size
        return True


class Relay:
    """The tunnels that go through this device; `session_of` finds the session to a member."""

    def __init__(self, numbers: TunnelNumbers, session_of: Callable[[bytes], Session | None]) -> None:
        self.enabled = True
        self.carried_bytes = 0
        self._numbers = numbers
        self._session_of = session_of
        self._legs: dict[tuple[Session, int], _Leg] = {}
        self._used: dict[bytes, int] = {}
        self._used_since = 0.0
        self._now = asyncio.get_running_loop().time

    def __len__(self) -> int:
        return len(self._legs) // 2

    def handle(self, session: Session, message: RelayMessage) -> None:
        """What a member asks of us as a relay."""
        if isinstance(message, RelayOpen):
            reason = self._refusal(session, message)
            if reason:
                session.send_control(RelayRefused(message.tunnel, reason))
            else:
                self._open(session, message)
        elif isinstance(message, RelayClose):
            self._close((session, message.tunnel))

    def _refusal(self, session: Session, message: RelayOpen) -> str:
        assert session.member is not None
        target = self._session_of(message.target)
        if not self.enabled:
            return REFUSED_OFF
        if target is None or target is session:
            return REFUSED_UNKNOWN
        if not can_carry(session) or not can_carry(target):
            return REFUSED_CHAIN
        held = sum(1 for leg in self._legs.values() if leg.asked and leg.member == session.member.identity)
        full = held >= TUNNELS_PER_MEMBER or len(self) >= TUNNELS_LIMIT
        if full or (session, message.tunnel) in self._legs or self._quota_left(session.member.identity) <= 0:
            return REFUSED_LIMIT
        return ""

    def _open(self, session: Session, message: RelayOpen) -> None:
        assert session.member is not None
        target = self._session_of(message.target)
        assert target is not None
        sender, now = session.member.identity, self._now()
        here = _Leg(session, message.tunnel, sender, asked=True, at=now)
        there = _Leg(target, self._numbers.new(target), message.target, other=here, at=now)
        here.other = there
        self._legs[session, here.number] = here
        self._legs[target, there.number] = there
        target.send_control(RelayIncoming(there.number, sender))
        session.send_control(RelayAccepted(here.number))

    def frame(self, session: Session, frame: bytes) -> None:
        """A DATAGRAM frame of a tunnel: pass it on, in pieces that fit there."""
        try:
            pieces = split_datagram(frame)
        except WireError:
            return
        leg, now, part = self._legs.get((session, pieces[0])), self._now(), pieces[4]
        if leg is None or leg.other is None or not can_carry(session) or not can_carry(leg.other.session):
            return
        if not leg.passes(len(part), now) or not self._spend(leg.member, len(part)):
            return
        datagram = leg.parts.join(pieces, now)
        if datagram is None:
            return
        leg.count += 1
        to = leg.other
        try:
            frames = datagram_frames(to.number, leg.count, datagram, to.session.link.supply.frame_limit, relayed=True)
        except WireError:
            return
        to.session.link.send_datagrams(frames)
        self.carried_bytes += len(datagram)

    def uses(self, session: Session) -> bool:
        """Whether tunnels lead over a session."""
        return any(slot[0] is session for slot in self._legs)

    def session_gone(self, session: Session) -> None:
        """A session ended: so do the tunnels over it."""
        for slot in [slot for slot in self._legs if slot[0] is session]:
            self._close(slot)

    def _close(self, slot: tuple[Session, int]) -> None:
        leg = self._legs.pop(slot, None)
        if leg is None or leg.other is None:
            return
        self._legs.pop((leg.other.session, leg.other.number), None)
        if leg.other.session.is_open:
            leg.other.session.send_control(RelayClose(leg.other.number))

    def _quota_left(self, member: bytes) -> int:
        if self._now() - self._used_since > QUOTA_EVERY_S:
            self._used.clear()
            self._used_since = self._now()
        return QUOTA_BYTES - self._used.get(member, 0)

    def _spend(self, member: bytes, size: int) -> bool:
        if self._quota_left(member) < size or (member not in self._used and len(self._used) >= MEMBERS_COUNTED):
            return False
        self._used[member] = self._used.get(member, 0) + size
        return True
