"""The paths of one session: which one is used, whether it still carries, and which one takes over.

Path probes are sealed under keys that both ends gave each other, so neither a stranger nor another member can
answer them. Two unanswered in a row make the current path suspect: every known path is then raced and the first
to answer is used. The connection above never notices (DESIGN, decision 3).

    good --2 unanswered--> suspect --an answer on any path--> good (the engine is kicked)
                              \\__ 20 s (50 s idle) without an authenticated packet --> the peer is lost
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import ip_address

from proxy_vpn.addresses import Address, Scope
from proxy_vpn.errors import WireError
from proxy_vpn.mesh.keyring import Keyring
from proxy_vpn.net.udp import Path
from proxy_vpn.wire.probe import SMALL_PROBE_BYTES, TX_BYTES, PathProbe
from proxy_vpn.wire.seal import NONCE_BYTES, SealKey

BUSY_INTERVAL_S = 5.0
IDLE_INTERVAL_S = 15.0
BUSY_LOST_S = 20.0
IDLE_LOST_S = 50.0
SUSPECT_AFTER = 2
ANSWER_WAIT_S = 0.3
RACE_INTERVAL_S = 1.0
ELSEWHERE_INTERVAL_S = 1.0
PATHS_LIMIT = 16
OTHERS_INTERVAL_S = 60.0
UPGRADE_INTERVAL_S = 10.0
OTHERS_LIMIT = 4
BETTER_ANSWERS = 2
FASTER_ANSWERS = 3
FASTER_FRACTION = 0.6
FASTER_BY_S = 0.002
PENDING_LIMIT = 64
COUNTER_BYTES = 8
REORDER_WINDOW = 32
REORDER_S = 1.0


class _ReplayWindow:
    """Which probes are new: counters that rise, and for a moment those just behind, which other paths may delay.

    A recorded probe sent again is not answered, even one that never arrived.
    """

    def __init__(self) -> None:
        self._highest = 0
        self._at = 0.0
        self._seen: set[int] = set()

    def is_new(self, count: int, now: float) -> bool:
        """Whether a probe with this counter is to be answered; it is then counted."""
        if count <= self._highest:
            late = count > self._highest - REORDER_WINDOW and now - self._at < REORDER_S
            if not late or count in self._seen:
                return False
        else:
            self._highest, self._at = count, now
            self._seen = {seen for seen in self._seen if seen > count - REORDER_WINDOW}
        self._seen.add(count)
        return True


@dataclass(slots=True)
class _Sent:
    path: Path
    at: float
    done: Callable[[float], None] | None


class PathMonitor:
    """Watches and chooses the path of one session; driven by `tick`."""

    def __init__(
        self,
        path: Path,
        own_key: SealKey,
        own_index: bytes,
        peer_key: SealKey,
        *,
        keyring: Keyring,
        send: Callable[[list[bytes], Path], None],
        entropy: Callable[[int], bytes],
        now: Callable[[], float],
        on_switch: Callable[[Path], None],
        on_return: Callable[[], None] = lambda: None,
        on_rtt: Callable[[float], None] = lambda rtt_s: None,
    ) -> None:
        self.current = path
        self.rtt_s: float | None = None
        self.observed: Address | None = None
        self.heard_at = now()
        self._paths: dict[Path, None] = {path: None}
        self._own_key = own_key
        self._own_index = own_index
        self._peer_key = peer_key
        self._keyring = keyring
        self._send = send
        self._entropy = entropy
        self._now = now
        self._on_switch = on_switch
        self._on_return = on_return
        self._on_rtt = on_rtt
        self._sent: dict[bytes, _Sent] = {}
        self._count = 0
        self._replays = _ReplayWindow()
        self._proven: set[Path] = set()
        self._elsewhere_at = self._next_elsewhere = 0.0
        self._unanswered = 0
        self._waiting: bytes | None = None
        self._next_probe = now() + BUSY_INTERVAL_S
        self._next_others = now() + UPGRADE_INTERVAL_S
        self._better: dict[Path, int] = {}
        keyring.add_index(own_index, self._receive)

    def close(self) -> None:
        """Answer nothing any more."""
        self._keyring.remove_index(self._own_index, self._receive)

    @property
    def suspect(self) -> bool:
        return self._unanswered >= SUSPECT_AFTER

    @property
    def due(self) -> float:
        """When the next `tick` has something to do; 0 while an answer is awaited or paths race."""
        return 0.0 if self._waiting or self.suspect else min(self._next_probe, self._next_others)

    @property
    def known(self) -> list[Path]:
        """All ways to the peer that are kept in mind."""
        return list(self._paths)

    def add(self, paths: Iterable[Path]) -> None:
        """Other ways to the same peer, for when this one fails."""
        for path in paths:
            if len(self._paths) < PATHS_LIMIT:
                self._paths.setdefault(path)

    def offer(self, path: Path) -> None:
        """The peer was found there too: use it at once if it is of a better kind."""
        self.add([path])
        if kind_of(path) < kind_of(self.current):
            self.probe(path)

    @property
    def answer_wait_s(self) -> float:
        """How long to wait for a probe's answer before it counts as lost."""
        return ANSWER_WAIT_S + 3 * (self.rtt_s or ANSWER_WAIT_S)

    def probe(
        self,
        path: Path | None = None,
        done: Callable[[float], None] | None = None,
        size_bytes: int = SMALL_PROBE_BYTES,
    ) -> None:
        """Probe one path (the current one by default); `done` hears the round trip in seconds."""
        if len(self._sent) >= PENDING_LIMIT:
            self._sent.pop(next(iter(self._sent)))
        self._count += 1
        tx = self._count.to_bytes(COUNTER_BYTES, "big") + self._entropy(TX_BYTES - COUNTER_BYTES)
        target = path or self.current
        self._sent[tx] = _Sent(target, self._now(), done)
        if target == self.current and self._waiting is None and size_bytes == SMALL_PROBE_BYTES:
            self._waiting = tx
        self._transmit(PathProbe(tx, False, None, size_bytes), target)

    def heard_on(self, path: Path) -> None:
        """An authentic packet came from another path: the peer may have moved. Probe there, move nothing yet."""
        now = self._now()
        self._elsewhere_at = now
        if now < self._next_elsewhere:
            return
        self._next_elsewhere = now + ELSEWHERE_INTERVAL_S
        if path not in self._paths and len(self._paths) >= PATHS_LIMIT:
            spare = next((old for old in self._paths if old != self.current and old not in self._proven), None)
            if spare is None:
                return
            del self._paths[spare]
        self.add([path])
        self.probe(path)
        self.probe()

    def tick(self, heard_at: float, busy: bool) -> bool:
        """Probe when due; False once the peer is lost. `heard_at`: when its last authenticated packet came."""
        now = self._now()
        self.heard_at = max(self.heard_at, heard_at)
        if now - self.heard_at > (BUSY_LOST_S if busy else IDLE_LOST_S):
            return False
        waiting = self._sent.get(self._waiting) if self._waiting else None
        if waiting is not None and now - waiting.at > self.answer_wait_s:
            self._waiting = None
            if self._elsewhere_at > waiting.at:
                self._unanswered += SUSPECT_AFTER  # it speaks from elsewhere and is silent here: it has moved
            elif self.heard_at < waiting.at:
                self._unanswered += 1
            self._next_probe = now
        if now >= self._next_probe:
            if self.suspect:
                self._next_probe = now + RACE_INTERVAL_S
                for path in tuple(self._paths):
                    self.probe(path)
            else:
                self._next_probe = now + (BUSY_INTERVAL_S if busy else IDLE_INTERVAL_S)
                self.probe()
        if now >= self._next_others and not self.suspect:
            self._look_for_better(now)
        return True

    def _look_for_better(self, now: float) -> None:
        """Probe other paths now and then, of the kinds that could replace the current one."""
        kind = kind_of(self.current)
        self._next_others = now + (UPGRADE_INTERVAL_S if kind is Kind.RELAY else OTHERS_INTERVAL_S)
        others = [path for path in self._paths if path != self.current and kind_of(path) <= kind]
        for path in sorted(others, key=kind_of)[:OTHERS_LIMIT]:
            self.probe(path)

    def network_changed(self) -> None:
        """This host's addresses may be others now: race all paths, from whichever address the kernel would choose."""
        self.add([path._replace(local="") for path in self._paths])
        self._unanswered = max(self._unanswered, SUSPECT_AFTER)
        self._next_probe = self._now() + RACE_INTERVAL_S
        for path in tuple(self._paths):
            self.probe(path)

    def check(self) -> None:
        """Something is odd (a silence): probe the current path now, unless an answer is awaited already."""
        if self._waiting is None:
            self._next_probe = self._now()

    def _transmit(self, probe: PathProbe, path: Path) -> None:
        self._send([self._peer_key.seal(self._entropy(NONCE_BYTES), probe.encode())], path)

    def _receive(self, datagram: bytes, path: Path) -> None:
        try:
            probe = PathProbe.decode(self._own_key.open(datagram))
        except WireError:
            return
        if probe.reply:
            self._answered(probe, path)
            return
        if not self._replays.is_new(int.from_bytes(probe.tx[:COUNTER_BYTES], "big"), self._now()):
            return
        self.heard_at = self._now()
        self._transmit(PathProbe(probe.tx, True, path.remote, probe.size_bytes), path)
        if path != self.current:
            self.heard_on(path)

    def _answered(self, probe: PathProbe, path: Path) -> None:
        sent = self._sent.pop(probe.tx, None)
        if sent is None:
            return
        self.heard_at = self._now()
        if path in self._paths:
            self._proven.add(path)
        rtt_s = self._now() - sent.at
        self.observed = probe.observed or self.observed
        if probe.tx == self._waiting:
            self._waiting = None
        if sent.done is not None:
            sent.done(rtt_s)
        if _same(path, self.current):
            came_back = self.suspect
            self._unanswered = 0
            if came_back:
                self._on_return()
            self.rtt_s = rtt_s if self.rtt_s is None else 0.75 * self.rtt_s + 0.25 * rtt_s
            self._on_rtt(rtt_s)
        elif self.suspect or self._is_better(path, rtt_s):
            self._unanswered = 0
            self._better.clear()
            self._waiting = None
            self.rtt_s = rtt_s
            self.current = path
            self.add([path])
            self._proven &= set(self._paths)
            self._on_switch(path)
            self._on_rtt(rtt_s)

    def _is_better(self, path: Path, rtt_s: float) -> bool:
        """Whether a path has earned to replace the current one: of a better kind, or much faster, again and again."""
        ours, theirs = kind_of(self.current), kind_of(path)
        faster = self.rtt_s is not None and rtt_s < FASTER_FRACTION * self.rtt_s - FASTER_BY_S
        if theirs > ours or (theirs == ours and not faster):
            self._better.pop(path, None)
            return False
        count = self._better[path] = self._better.get(path, 0) + 1
        if count >= (BETTER_ANSWERS if theirs < ours else FASTER_ANSWERS):
            return True
        self.probe(path)
        return False


class Kind(IntEnum):
    """What a path leads through; a smaller value is a better one."""

    LAN = 0
    DIRECT = 1
    RELAY = 2

    def __str__(self) -> str:
        return self.name.lower()


def kind_of(path: Path) -> Kind:
    """The kind of a path: on a LAN both addresses are private, and alike to 16 bits (IPv6: 64)."""
    if path.remote.relayed:
        return Kind.RELAY
    if not path.local or path.remote.scope is Scope.GLOBAL:
        return Kind.DIRECT
    ours, theirs = ip_address(path.local), ip_address(path.remote.ip)
    size = 2 if theirs.version == 4 else 8
    return Kind.LAN if ours.packed[:size] == theirs.packed[:size] else Kind.DIRECT


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are one; where the kernel chose our address, only the peer's tells."""
    return one.remote == other.remote and (one.local == other.local or not one.local or not other.local)
