"""Several connections to one peer: which stays, and whether the peer restarted or is twice there.

Of two between the same two boots with one lane both ends keep the one whose initiator has the lower id; another lane
takes over from the old one, whose flows it lets end. One that comes with a new boot nonce replaces the old one if that
stays silent for a second; if it answers, two machines carry one identity, and the newcomer is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy_vpn.mesh.roster import Peer
from proxy_vpn.mesh.session import Session, State

BOOT_PROBE_S = 0.25
BOOT_PROBES = 3
RETIRE_S = 10.0
# Both ends must come to the same verdict: on busy machines a connection begun before the other one was live may
# arrive long after it, and then one end would close the one that the other keeps.
SIMULTANEOUS_S = 5.0
SIMULTANEOUS_RTTS = 2
LANE_CHECK_S = 2.0
SESSIONS_PER_PEER = 8


class Rivals:
    """Settles which of a peer's sessions takes flows.

    `identity` is ours, `warn` tells the user, `carries` whether anything is under way over a session.
    """

    def __init__(self, identity: bytes, warn: Callable[[str], None], carries: Callable[[Session], bool]) -> None:
        self._identity = identity
        self._warn = warn
        self._carries = carries
        self._loop = asyncio.get_running_loop()
        self._checks: dict[bytes, asyncio.TimerHandle] = {}

    def stop(self) -> None:
        """Decide nothing any more."""
        for handle in self._checks.values():
            handle.cancel()

    def settle(self, peer: Peer, old: Session, session: Session) -> None:
        """A second session of this peer is live: note it, and end the one that is not to stay."""
        assert old.member is not None and session.member is not None
        if old.member.boot != session.member.boot:
            peer.sessions.append(session)
            self.check_boot(peer)
        elif len(peer.sessions) >= SESSIONS_PER_PEER:
            session.close("too many connections")
        elif old.member.lane != session.member.lane:
            peer.sessions.insert(0, session)
            if session.paths is not None and old.paths is not None:
                session.paths.add(old.paths.known)
            self._close_unused(peer, old)
        elif session.started_at - old.live_at > SIMULTANEOUS_S + SIMULTANEOUS_RTTS * (old.link.engine.rtt_s or 0.0):
            # Nobody dials whom it has: the peer has lost the old connection, though we have not noticed yet.
            peer.sessions.append(session)
            old.close("the peer connected anew")
        elif self._initiator_of(session, peer) < self._initiator_of(old, peer):
            peer.sessions.insert(0, session)
            self._retire(old)
        else:
            peer.sessions.append(session)
            self._retire(session)

    def _close_unused(self, peer: Peer, session: Session) -> None:
        """Close a lane that another has taken over from, once nothing goes over it any more."""

        def close() -> None:
            if self._carries(session):
                self._close_unused(peer, session)
            elif peer.session is not session:  # it is the one in use again where the other ended first
                session.close("replaced by the peer's other connection")

        if session.is_open:
            self._loop.call_later(LANE_CHECK_S, close)

    def _initiator_of(self, session: Session, peer: Peer) -> bytes:
        return self._identity if session.initiator else peer.identity

    def _retire(self, session: Session) -> None:
        """Take no new flows; close once the open ones have ended, or after 10 s."""
        session.state = State.CLOSING

        def close(attempts: int) -> None:
            if len(session.streams) and attempts:
                self._loop.call_later(1.0, close, attempts - 1)
            else:
                session.close("replaced by the peer's other connection")

        self._loop.call_later(1.0, close, int(RETIRE_S) - 1)

    def check_boot(self, peer: Peer) -> None:
        """The peer shows a new boot nonce: has it restarted, or is it twice there?

        A probe's word for it may be a lie of another member, so the old connection is given up only if several
        probes of its path stay unanswered and nothing else is heard of it meanwhile.
        """
        old = peer.session
        if peer.identity in self._checks or old is None or old.state is not State.LIVE or old.paths is None:
            return
        began, paths = self._loop.time(), old.paths
        paths.probe()

        def decide(probes_left: int) -> None:
            if max(paths.heard_at, old.heard_at) > began:
                del self._checks[peer.identity]
                self._refuse_twins(peer, old)
            elif probes_left:
                paths.probe()
                self._checks[peer.identity] = self._loop.call_later(BOOT_PROBE_S, decide, probes_left - 1)
            else:
                del self._checks[peer.identity]
                old.close("restarted")

        self._checks[peer.identity] = self._loop.call_later(BOOT_PROBE_S, decide, BOOT_PROBES)

    def _refuse_twins(self, peer: Peer, old: Session) -> None:
        """The old connection lives: whoever came with another boot nonce and proved the identity is a copy."""
        assert old.member is not None
        boot = old.member.boot
        twins = [each for each in peer.sessions if each.member is not None and each.member.boot != boot]
        if twins:
            self._warn(
                f"two machines carry the identity of {peer.name} - give one of them a state directory of its own"
            )
        for session in twins:
            session.close("its identity is in use elsewhere", twin=True)
