"""Watches live sessions: is the peer still there, does the path still carry, and datagrams of this size?"""

from __future__ import annotations

from collections.abc import Callable

from proxy_vpn.mesh.paths import PathMonitor
from proxy_vpn.mesh.seeker import Seeker
from proxy_vpn.mesh.session import Session
from proxy_vpn.mesh.sizes import SizeCheck
from proxy_vpn.wire.probe import SMALL_PROBE_BYTES

SILENCE_S = 0.75
FIRST_PROBE_S = 0.5
ALARM_S = 1.0


class Watcher:
    """Looks after the sessions of one network; `now` is the loop's clock in seconds."""

    def __init__(self, seeker: Seeker, now: Callable[[], float]) -> None:
        self._seeker = seeker
        self._now = now
        self._alarm_at = 0.0

    def watch(self, session: Session) -> None:
        """Called a few times a second for every session; closes one whose peer is lost."""
        paths, sizes, member = session.paths, session.sizes, session.member
        if paths is None or sizes is None or member is None or self._rests(session, paths):
            return
        session.link.keep()
        session.streams.look_after()
        session.tell_repairs()
        if paths.rtt_s is None and self._now() - session.live_at > FIRST_PROBE_S:
            # Not at once: the other side may not be live yet, and a probe that it never took could be sent it again.
            paths.check()
        self._listen(session, paths)
        if session.link.silence_s(paths.heard_at) > min(SILENCE_S, paths.answer_wait_s):
            # Dead, away or restarted: a path probe tells the first two apart, a PONG's boot nonce the third.
            paths.check()
            self._seeker.prober.probe(paths.current, member.identity, SMALL_PROBE_BYTES)
        if self._now() - session.link.received_at > SILENCE_S:
            sizes.check()
        link = session.link
        sizes.tick(min(link.supply.datagram_bytes, link.engine.size), link.engine.unacknowledged > 0)
        if paths.suspect is not session.racing:
            session.racing = paths.suspect
            if session.racing:
                self._seeker.want(member.identity)
        if not paths.tick(session.heard_at, len(session.streams) > 0):
            session.close("no answer any more")
        session.rests_until, session.rests_with = self._rest(session, paths, sizes), _moved(session)

    def _rests(self, session: Session, paths: PathMonitor) -> bool:
        """Whether a look at a session would find nothing: nothing is due, and nothing has happened since the last."""
        now = self._now()
        return (
            now < session.rests_until
            and now < paths.due
            and now - self._alarm_at >= ALARM_S
            and _moved(session) == session.rests_with
        )

    def _rest(self, session: Session, paths: PathMonitor, sizes: SizeCheck) -> float:
        """Until when a session needs no look, if nothing happens: 0 while it carries or awaits anything."""
        link = session.link
        waits = paths.rtt_s is None or session.racing or link.awaits_answer or link.engine.unacknowledged > 0
        if waits or len(session.streams) or session.streams.awaits_ends:
            return 0.0
        return min(link.keep_due, sizes.due(min(link.supply.datagram_bytes, link.engine.size)))

    def _listen(self, session: Session, paths: PathMonitor) -> None:
        """Ask once whenever a flow's packets stop to come, and everybody when somebody has stopped to answer.

        Who only receives notices nothing when a router between changes its address, but has to speak first then: what
        goes out makes the new mapping. And what cut one off may have cut off all, of whom one can tell the others.
        """
        received_at, limit_s = session.link.received_at, min(SILENCE_S, paths.answer_wait_s)
        if len(session.streams) and session.asked_for != received_at and self._now() - received_at > limit_s:
            session.asked_for = received_at
            paths.check()
        silent = session.link.silence_s(paths.heard_at) > limit_s
        if silent and not session.alarmed:
            self._alarm_at = self._now()
        session.alarmed = silent
        if paths.heard_at < self._alarm_at and self._now() - self._alarm_at < ALARM_S:
            paths.check()


def _moved(session: Session) -> int:
    return session.link.sent_bytes + session.link.received_bytes
