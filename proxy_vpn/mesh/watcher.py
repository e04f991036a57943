"""Watches live sessions: is the peer still there, does the path still carry, and datagrams of this size?

Most sessions rest most of the time, and looking at all of everything four times a second would be what they cost. One
without flows is asked once a second whether anything has left or is due, and looked at every five seconds if not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from proxy_vpn.mesh.paths import PathMonitor
from proxy_vpn.mesh.seeker import Seeker
from proxy_vpn.mesh.session import Session
from proxy_vpn.wire.probe import SMALL_PROBE_BYTES

SILENCE_S = 0.75
FIRST_PROBE_S = 0.5
ALARM_S = 1.0
RESTING_S = 1.0
QUIET_S = 5.0


class Watcher:
    """Looks after the sessions of one network; `now` is the loop's clock in seconds."""

    def __init__(self, seeker: Seeker, now: Callable[[], float]) -> None:
        self._seeker = seeker
        self._now = now
        self._alarm_at = 0.0
        self._round_at = 0.0

    def look(self, sessions: Iterable[Session]) -> Iterator[Session]:
        """Watch those of all sessions whose turn it is, and name them; called a few times a second."""
        now = self._now()
        everybody = now >= self._round_at
        if everybody:
            self._round_at = now + RESTING_S
        for session in tuple(sessions):
            if everybody or not session.resting or now - self._alarm_at < ALARM_S:
                self._watch(session)
                yield session

    def _watch(self, session: Session) -> None:
        """Look after one session; closes it if its peer is lost."""
        paths, sizes, member = session.paths, session.sizes, session.member
        if paths is None or sizes is None or member is None:
            return
        now, busy, link = self._now(), len(session.streams) > 0, session.link
        session.resting = now < session.look_at and not busy and self._is_quiet(session, paths, now)
        if session.resting:
            return
        link.keep()
        session.streams.finish_streams()
        session.tell_repairs()
        if paths.rtt_s is None and now - session.live_at > FIRST_PROBE_S:
            # Not at once: the other side may not be live yet, and a probe that it never took could be sent it again.
            paths.check()
        if self._listen(session, paths, busy):
            # Dead, away or restarted: a path probe tells the first two apart, a PONG's boot nonce the third.
            paths.check()
            self._seeker.prober.probe(paths.current, member.identity, SMALL_PROBE_BYTES)
        if now - link.received_at > SILENCE_S:
            sizes.check()
        waiting = link.engine.unacknowledged > 0
        sizes.tick(min(link.datagram_bytes, link.engine.size), waiting)
        if paths.suspect is not session.racing:
            session.racing = paths.suspect
            if session.racing:
                self._seeker.want(member.identity)
        if not paths.tick(session.heard_at, busy):
            session.close("no answer any more")
        if not (busy or waiting or session.alarmed or sizes.asking or paths.rtt_s is None):
            session.look_at, session.sent_at_look = now + QUIET_S, link.sent_bytes

    def _is_quiet(self, session: Session, paths: PathMonitor, now: float) -> bool:
        """Whether nothing has left since the last look, nothing is due, and nobody is alarmed."""
        return session.link.sent_bytes == session.sent_at_look and paths.at_rest and now - self._alarm_at >= ALARM_S

    def _listen(self, session: Session, paths: PathMonitor, busy: bool) -> bool:
        """Whether the peer has stopped to answer. Ask once whenever a flow's packets stop to come, and everybody then.

        Who only receives notices nothing when a router between changes its address, but has to speak first then: what
        goes out makes the new mapping. And what cut one off may have cut off all, of whom one can tell the others.
        """
        received_at, limit_s = session.link.received_at, min(SILENCE_S, paths.answer_wait_s)
        if busy and session.asked_for != received_at and self._now() - received_at > limit_s:
            session.asked_for = received_at
            paths.check()
        silent = session.link.silence_s(paths.heard_at, busy) > limit_s
        if silent and not session.alarmed:
            self._alarm_at = self._now()
        session.alarmed = silent
        if paths.heard_at < self._alarm_at and self._now() - self._alarm_at < ALARM_S:
            paths.check()
        return silent
