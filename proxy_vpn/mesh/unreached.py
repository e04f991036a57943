"""Unreached: the peers of one network that we know of and have no path to, neither direct nor through a member.

    away --9 s, and 5 s after the last member came that could carry--> unreached --a session--> forgotten

A peer that said goodbye is not away. Whether one that is silent is off or walled in, nobody can tell for sure: what is
told to the user leaves out peers that members we reach do not reach either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from proxy_vpn.mesh.detours import Detours
from proxy_vpn.mesh.relay import REFUSED_UNKNOWN
from proxy_vpn.mesh.roster import Peer, Roster
from proxy_vpn.mesh.session import Session
from proxy_vpn.mesh.tunnels import can_carry

UNREACHED_AFTER_S = 9.0
CARRIER_WAIT_S = 5.0
LOOK_EVERY_S = 1.0
NO_WAY = "no direct path and no relay"
UNREACHED_HINT = "if it is on, run 'pvpn doctor' there and here; a third member that both reach would relay"


class Unreached:
    """Keeps since when each peer has been away; `live_session` finds the session that takes flows to a device."""

    def __init__(self, roster: Roster, detours: Detours, live_session: Callable[[bytes], Session | None]) -> None:
        self._roster = roster
        self._detours = detours
        self._live_session = live_session
        self._since: dict[bytes, float] = {}
        self._carrier_at = 0.0
        self._due = 0.0
        self._now = asyncio.get_running_loop().time

    def tick(self, sessions: Iterable[Session]) -> None:
        """Note who is away now; called a few times a second."""
        now = self._now()
        if now < self._due:
            return
        self._due = now + LOOK_EVERY_S
        self._carrier_at = max((session.live_at for session in sessions if can_carry(session)), default=0.0)
        away = (peer.identity for peer in self._roster if not peer.left and not self._live_session(peer.identity))
        self._since = {identity: self._since.get(identity, now) for identity in away}

    def why(self, peer: Peer) -> str:
        """That there is no way to a peer; empty while that is open."""
        return NO_WAY if self._is_unreached(peer) else ""

    def peers(self) -> list[Peer]:
        """The unreached of whom the user should hear."""
        alone = not any(self._live_session(peer.identity) for peer in self._roster)
        return [peer for peer in self._roster if self._is_unreached(peer) and (alone or self._seems_on(peer))]

    def is_away(self, identity: bytes) -> bool:
        """Whether a peer was not there at the last look."""
        return identity in self._since

    def _is_unreached(self, peer: Peer) -> bool:
        since = self._since.get(peer.identity)
        if since is None or peer.left or self._live_session(peer.identity) is not None:
            return False
        return self._now() >= max(since + UNREACHED_AFTER_S, self._carrier_at + CARRIER_WAIT_S)

    def _seems_on(self, peer: Peer) -> bool:
        """Whether a member reaches the peer and does not carry, or we lost it and no member can be asked."""
        reasons = self._detours.reasons(peer.identity)
        return any(reason != REFUSED_UNKNOWN for reason in reasons.values()) if reasons else peer.lost_at > 0.0
