"""Detours: a way through another member for every peer that can't be reached directly, and back off it again.

A peer that stays offline for 2 s is asked for at up to three members that we reach directly, the nearest first; a
peer that is reached through one is looked for at its own addresses every 30 s, and the paths move over once one of
them answers (mesh.paths).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from proxy_vpn.mesh.roster import Peer, Roster
from proxy_vpn.mesh.session import Session
from proxy_vpn.mesh.tunnels import Tunnels, can_carry

FIRST_S = 2.0
AGAIN_S = 5.0
AGAIN_LIMIT_S = 300.0
DIRECT_AGAIN_S = 30.0
RELAYS_ASKED = 3
PEERS_PER_TURN = 8


@dataclass(slots=True)
class _Search:
    """When a peer is next asked for, and why it was refused last, by relay."""

    due: float
    pause_s: float = AGAIN_S
    relays: frozenset[bytes] = frozenset()


class Detours:
    """Which peers of a network need a relay, and whom to ask; `want` has a peer's own addresses tried again."""

    def __init__(
        self,
        roster: Roster,
        tunnels: Tunnels,
        want: Callable[[bytes], None],
        live_session: Callable[[bytes], Session | None],
    ) -> None:
        self._roster = roster
        self._tunnels = tunnels
        self._want = want
        self._live_session = live_session
        self._searches: dict[bytes, _Search] = {}
        self._reasons: dict[bytes, dict[str, str]] = {}
        self._now = asyncio.get_running_loop().time

    def tick(self, sessions: Iterable[Session]) -> None:
        """Ask for who is due; called a few times a second."""
        now, asked = self._now(), 0
        relays: list[Session] | None = None
        self._forget_unknown()
        for peer in self._roster:
            session = self._live_session(peer.identity)
            if session is not None and session.settled:
                self._searches.pop(peer.identity, None)
                self._reasons.pop(peer.identity, None)
            elif session is not None and session.relayed:
                self._look_for_direct(peer, now)
            elif asked < PEERS_PER_TURN and (peer.record or peer.last_seen) and not peer.left:
                relays = _nearest(sessions) if relays is None else relays
                asked += self._search(peer, relays, now)

    def _forget_unknown(self) -> None:
        """The roster forgets peers, and who invents devices must not be remembered here for it."""
        if len(self._searches) > len(self._roster):
            for device in [device for device in self._searches if self._roster.get(device) is None]:
                del self._searches[device]
                self._reasons.pop(device, None)

    def refused(self, relay: Session, device: bytes, reason: str) -> None:
        """A member does not carry for us and that peer."""
        if self._roster.get(device) is not None:
            self._reasons.setdefault(device, {})[relay.peer_name] = reason[:100]

    def reasons(self, device: bytes) -> dict[str, str]:
        """Why members carry nothing between us and a peer that is offline, by their names."""
        return dict(self._reasons.get(device, {}))

    def _look_for_direct(self, peer: Peer, now: float) -> None:
        search = self._searches.setdefault(peer.identity, _Search(now + DIRECT_AGAIN_S))
        if now >= search.due:
            search.due = now + DIRECT_AGAIN_S
            self._want(peer.identity)

    def _search(self, peer: Peer, relays: list[Session], now: float) -> bool:
        """Ask the nearest members for this peer if it is due, or if one has come that was not asked."""
        # Whoever was there a moment ago has flows that wait.
        first_s = FIRST_S if self._live_session(peer.identity) is None else 0.0
        search = self._searches.setdefault(peer.identity, _Search(now + first_s))
        able = frozenset(relay.member.identity for relay in relays if relay.member is not None)
        if able - search.relays - {peer.identity} and search.pause_s > AGAIN_S:
            search.due, search.pause_s = min(search.due, now), AGAIN_S
        if now < search.due or not able - {peer.identity}:
            return False
        search.due, search.relays = now + search.pause_s, able
        search.pause_s = min(2 * search.pause_s, AGAIN_LIMIT_S)
        others = [relay for relay in relays if relay.member is not None and relay.member.identity != peer.identity]
        for relay in others[:RELAYS_ASKED]:
            self._tunnels.ask(relay, peer.identity)
        return True


def _nearest(sessions: Iterable[Session]) -> list[Session]:
    """Those that can carry, the nearest first."""
    able = [session for session in sessions if can_carry(session)]
    return sorted(able, key=lambda session: (session.paths and session.paths.rtt_s) or 0.0)
