"""Whether a connection's datagrams have the right size for its path: neither swallowed by it nor needlessly small.

A router that begins to swallow large datagrams leaves the connection open and every transfer hanging. So while data
waits for its acknowledgement the current path is probed with a datagram as large as the connection's own (RFC 8899,
section 4.3: black hole detection). Four in a row unanswered, while small ones are answered, prove the hole. And a
connection with smaller datagrams than paths usually carry asks now and then whether this one does.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy_vpn.mesh.paths import PathMonitor
from proxy_vpn.net.engine import HANDSHAKE_DATAGRAM_BYTES
from proxy_vpn.wire.probe import PROBE_SIZES_BYTES

LARGEST_BYTES = PROBE_SIZES_BYTES[-1]
CHECK_INTERVAL_S = 1.0
RAISE_AFTER_S = 5.0
RAISE_INTERVAL_S = 600.0
UNANSWERED_LIMIT = 4


class SizeCheck:
    """Watches one session's datagram size in bytes; driven by `tick`.

    `on_black_hole`: the connection is to use smaller ones; `on_larger`: the path carries the largest there are.
    """

    def __init__(
        self,
        paths: PathMonitor,
        now: Callable[[], float],
        on_black_hole: Callable[[], None],
        on_larger: Callable[[], None],
    ) -> None:
        self._paths = paths
        self._now = now
        self._on_black_hole = on_black_hole
        self._on_larger = on_larger
        self._due = now() + CHECK_INTERVAL_S
        self._raise_due = now() + RAISE_AFTER_S
        self._sent_at: float | None = None
        self._unanswered = 0

    def check(self) -> None:
        """Something is odd (a silence): probe at once, unless an answer is awaited already."""
        self._due = self._now()

    def path_changed(self) -> None:
        """What was proven holds for the old path only."""
        self._due = self._now()
        self._raise_due = self._now() + RAISE_AFTER_S

    def due(self, size_bytes: int) -> float:
        """When the next `tick` has something to do while no data waits; 0 while an answer is awaited."""
        if self._sent_at is not None:
            return 0.0
        return self._raise_due if size_bytes < LARGEST_BYTES else float("inf")

    def tick(self, size_bytes: int, waiting: bool) -> None:
        """Probe when due and judge what is overdue; `waiting`: data waits for its acknowledgement."""
        now = self._now()
        if self._sent_at is not None and now >= self._sent_at + self._paths.answer_wait_s:
            self._overdue(self._sent_at)
        if self._sent_at is None and waiting and now >= self._due and size_bytes > HANDSHAKE_DATAGRAM_BYTES:
            self._due = now + CHECK_INTERVAL_S
            self._sent_at = now
            self._paths.probe()
            self._paths.probe(done=lambda _: self._answered(now), size_bytes=size_bytes)
        if now >= self._raise_due and size_bytes < LARGEST_BYTES and not self._paths.current.remote.relayed:
            self._raise_due = now + RAISE_INTERVAL_S
            self._paths.probe(done=lambda _: self._on_larger(), size_bytes=PROBE_SIZES_BYTES[-1])

    def _answered(self, sent_at: float) -> None:
        self._unanswered = 0
        if self._sent_at == sent_at:
            self._sent_at = None

    def _overdue(self, sent_at: float) -> None:
        self._sent_at = None
        if self._paths.heard_at <= sent_at:
            return  # nothing gets through: the path is at fault, not the size
        self._unanswered += 1
        self._due = self._now()
        if self._unanswered >= UNANSWERED_LIMIT:
            self._unanswered = 0
            self._on_black_hole()
