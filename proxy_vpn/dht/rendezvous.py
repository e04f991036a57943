"""When to announce and look up the info_hashes of one network: fast at first, then as the need is.

    start/poke ──> 0, 2, 5, 10, 20, 40 s ──> none live: 6 to 10 s; some live: 5 min; all known: 15 min

Every 15 min the nearest nodes are searched for anew and our port is announced to them; in between, the same
nodes are re-asked, which costs 95 bytes each. While no node answers the pauses double, up to 5 min; the first that
does answer ends that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from proxy_vpn.dht.events import Announced, Event, LookupDone
from proxy_vpn.dht.ids import Entropy
from proxy_vpn.dht.node import DhtNode

FAST_S = (2.0, 5.0, 10.0, 20.0, 40.0)
ANNOUNCE_S = 15 * 60.0
ANNOUNCE_AGAIN_S = 60.0
ADDRESS_CHANGED_S = 10.0
NOBODY_STORED_S = 30.0
MAX_TOPICS = 4
POKE_PAUSE_S = 1.0
LOOKUP_S = {0: 8.0, 1: 5 * 60.0, 2: 15 * 60.0}
FRUITLESS_MAX_S = 5 * 60.0


class Urgency(IntEnum):
    """How much a lookup is needed: no peer is live, some are, or all known ones are."""

    NONE_LIVE = 0
    SOME_LIVE = 1
    ALL_KNOWN = 2


@dataclass(slots=True)
class Watch:
    """The schedule of one info_hash in one family."""

    info_hash: bytes
    family: int
    started_at: float
    announce_at: float
    jitter: float
    fast_step: int = 0
    looked_at: float | None = None
    running: bool = False
    announcing: bool = False
    announced_at: float | None = None
    stored: int | None = None
    pause_s: float = 0.0

    def due_at(self, urgency: Urgency, pause_s: float) -> float:
        """When the next lookup is due, after this pause at least; an announce has its own time."""
        if self.looked_at is None:
            return self.started_at
        # A NAT lets the other's probe in only once we have learnt of it too, so alone we look often: +-25 %, else 10 %.
        spread = 0.75 + 0.5 * self.jitter if urgency is Urgency.NONE_LIVE else 0.9 + 0.2 * self.jitter
        due = self.looked_at + max(LOOKUP_S[urgency], pause_s) * spread
        if self.fast_step < len(FAST_S) and urgency is not Urgency.ALL_KNOWN:
            due = min(due, self.started_at + FAST_S[self.fast_step] * (0.9 + 0.2 * self.jitter))
        return due


@dataclass
class Rendezvous:
    """Drives `node` for one network; the driver calls `step` when `next_timer` says so."""

    node: DhtNode
    entropy: Entropy
    watches: dict[tuple[bytes, int], Watch] = field(default_factory=dict)

    def step(self, topics: Sequence[bytes], port: int | None, urgency: Urgency, now: float) -> None:
        """Begin what is due. `topics`: the current info_hashes; `port`: what to announce, None to stay unannounced."""
        self._follow(topics[:MAX_TOPICS], now)
        for watch in self.watches.values():
            if watch.running:
                continue
            look_at, announce_at = self._due(watch, urgency)
            announce = port is not None and now >= announce_at
            if announce or now >= look_at:
                self._look(watch, now, cheap=not announce)

    def handle(self, event: Event, port: int | None, now: float) -> None:
        """Take an event of the node; those of other networks are ignored."""
        if not isinstance(event, LookupDone | Announced):
            return
        watch = self.watches.get((event.info_hash, event.family))
        if watch is None:
            return
        if isinstance(event, Announced):
            watch.announcing, watch.stored = False, event.stored
            if not event.stored:
                watch.announce_at = min(watch.announce_at, now + NOBODY_STORED_S)
            return
        watch.running = False
        if event.answered:
            watch.pause_s = 0.0
        elif watch.fast_step >= len(FAST_S):
            watch.pause_s = min(max(2 * watch.pause_s, LOOKUP_S[Urgency.NONE_LIVE]), FRUITLESS_MAX_S)
        # Whatever made us look: as long as nobody holds our announce, any node found is told.
        if port is not None and not watch.announcing and (now >= watch.announce_at or not watch.stored):
            told = self.node.announce(watch.info_hash, watch.family, port, now)
            pause = ANNOUNCE_S * (0.9 + 0.2 * self._random()) if told else NOBODY_STORED_S
            watch.announce_at = now + pause
            watch.announced_at = now if told else watch.announced_at
            watch.announcing = told

    def next_timer(self, urgency: Urgency, port: int | None) -> float | None:
        """When `step` has something to begin."""
        idle = [self._due(watch, urgency) for watch in self.watches.values() if not watch.running]
        return min(
            (look_at if port is None else min(look_at, announce_at) for look_at, announce_at in idle), default=None
        )

    def _due(self, watch: Watch, urgency: Urgency) -> tuple[float, float]:
        """When to look up and when to announce: at once if somebody answered since a lookup that nobody did."""
        heard_at = self.node.halves[watch.family].heard_at
        if watch.looked_at is None or not watch.pause_s or (heard_at is not None and heard_at > watch.looked_at):
            return watch.due_at(urgency, 0.0), watch.announce_at
        paused = max(watch.announce_at, watch.looked_at + watch.pause_s)
        return watch.due_at(urgency, watch.pause_s), paused

    def poke(self, now: float) -> None:
        """Look up now, and announce again unless that was done a moment ago."""
        for watch in self.watches.values():
            if watch.looked_at is not None and now - watch.looked_at < POKE_PAUSE_S:
                watch.started_at, watch.fast_step = now, 0
                continue
            watch.started_at, watch.fast_step, watch.looked_at, watch.pause_s = now, 0, None, 0.0
            if watch.announced_at is not None:
                watch.announce_at = min(watch.announce_at, max(now, watch.announced_at + ANNOUNCE_AGAIN_S))

    def announce_anew(self, family: int, now: float) -> None:
        """Our address in this family changed: what is announced may be wrong."""
        for watch in self.watches.values():
            if watch.family == family and watch.announced_at is not None:
                watch.announce_at = min(watch.announce_at, max(now, watch.announced_at + ADDRESS_CHANGED_S))

    def _follow(self, topics: Sequence[bytes], now: float) -> None:
        wanted = {(topic, family) for topic in topics for family in self.node.halves}
        for key in [key for key in self.watches if key not in wanted]:
            del self.watches[key]
        for info_hash, family in wanted - set(self.watches):
            self.watches[info_hash, family] = Watch(info_hash, family, now, now, self._random())

    def _look(self, watch: Watch, now: float, *, cheap: bool) -> None:
        watch.running = self.node.search(watch.info_hash, watch.family, now, cheap=cheap)
        if not watch.running:
            watch.announce_at = max(watch.announce_at, now + NOBODY_STORED_S)
        while watch.fast_step < len(FAST_S) and watch.started_at + FAST_S[watch.fast_step] * 0.9 <= now:
            watch.fast_step += 1
        watch.looked_at = now
        watch.jitter = self._random()

    def _random(self) -> float:
        return self.entropy(1)[0] / 255
