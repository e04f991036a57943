"""Credit: how far a flow's sender may send, so that a receiver which does not read is not flooded.

Neither engine holds back a sender whose receiver does not read, so credit does (DESIGN: "Credit"): a flow may be
sent up to an absolute offset of its stream, head included. The first 64 KiB each way are implied; more is granted
as the sink consumes, within a window that doubles while it is consumed at the pace of three round trips for all.
"""

from __future__ import annotations

from typing import Protocol

IMPLIED_CREDIT_BYTES = 64 * 1024
FLOW_WINDOW_LIMIT_BYTES = 8 << 20
PEER_GROWTH_LIMIT_BYTES = 16 << 20
PROCESS_GROWTH_LIMIT_BYTES = 256 << 20
BULK_WINDOW_BYTES = 128 * 1024
BULK_WITHIN_S = 0.1
_GRANT_FRACTION, _MEASURED_FRACTION = 2, 4
_GROW_WITHIN_RTTS = 3
_SCHEDULING_S = 0.0005


class Budget:
    """How much window beyond the implied 64 KiB a process, and within it a peer, may hand out."""

    def __init__(self, limit_bytes: int, parent: Budget | None = None) -> None:
        self._left = limit_bytes
        self._parent = parent

    def take(self, size: int) -> bool:
        """Whether `size` more bytes may be granted; they are then taken."""
        if size > self._left or (self._parent is not None and not self._parent.take(size)):
            return False
        self._left -= size
        return True

    def give_back(self, size: int) -> None:
        self._left += size
        if self._parent is not None:
            self._parent.give_back(size)


class Connection(Protocol):
    """What a window needs to know of the connection that fills it."""

    budget: Budget

    @property
    def rtt_s(self) -> float | None: ...

    def now(self) -> float: ...


class Window:
    """The receiving side's credit: what was received, consumed and granted, and how large the window may be."""

    def __init__(self, connection: Connection, received: int) -> None:
        self._connection = connection
        self.received = received
        self.consumed = received
        self.granted = IMPLIED_CREDIT_BYTES
        self._size = IMPLIED_CREDIT_BYTES
        self._measured_from = received
        self._measured_at = connection.now()

    def receive(self, size: int) -> bool:
        """Whether `size` more bytes are within what was granted."""
        self.received += size
        return self.received <= self.granted

    def consume(self, size: int) -> int | None:
        """A new limit worth announcing, if any."""
        self.consumed += size
        if self.consumed - self._measured_from >= self._size // _MEASURED_FRACTION:
            self._measure()
        limit = self.consumed + self._size
        if limit - self.granted < self._size // _GRANT_FRACTION:
            return None
        self.granted = limit
        return limit

    def _measure(self) -> None:
        """At least a quarter of a window was consumed: double it, if all of it would take three round trips at most.

        Or 100 ms, for a small one. Granted by halves, three quarters of a window are on their way on average: two round
        trips would hold a flow there. By quarters, it keeps up with a sender whose own window doubles every round trip.
        """
        now, began, size = self._connection.now(), self._measured_at, self.consumed - self._measured_from
        self._measured_from, self._measured_at = self.consumed, now
        quick_s = _GROW_WITHIN_RTTS * (self._connection.rtt_s or 0.0) + _SCHEDULING_S
        if self._size < BULK_WINDOW_BYTES:
            quick_s = max(quick_s, BULK_WITHIN_S)
        is_quick = (now - began) * self._size <= quick_s * size
        grown = self._size * 2
        if is_quick and grown <= FLOW_WINDOW_LIMIT_BYTES and self._connection.budget.take(self._size):
            self._size = grown

    def release(self) -> None:
        """The flow ended: give the growth back to the budgets."""
        self._connection.budget.give_back(self._size - IMPLIED_CREDIT_BYTES)
        self._size = IMPLIED_CREDIT_BYTES
