"""How much of an engine's congestion window a path has proved that it carries.

An engine's own window goes on growing while something else holds its sender back (a flow's credit, the own interface),
and nobody tells it of a change of paths: with both, it sends at once what no path has ever carried. So growth counts
only while the window is used (RFC 9002, section 7.8), and another path starts with the first window (RFC 9000, 9.4).
"""

from __future__ import annotations

RENO_GROWTH = 0.53  # of a packet a round trip, beside CUBIC's decrease by 0.7 (RFC 9438, section 4.3)
LEAST_PACKETS = 2


class Usage:
    """Whether windows are used: the most that was in flight within this round trip and the one before.

    Whoever sends packets of `packet_bytes` may leave so much of a window empty.
    """

    def __init__(self, packet_bytes: int) -> None:
        self._packet_bytes = packet_bytes
        self._peak = self._former_peak = self._arrived = 0

    def sent(self, in_flight: int) -> None:
        """Something was sent: so many bytes are `in_flight` now."""
        if in_flight > self._peak:
            self._peak = in_flight

    def arrived(self, size: int, in_flight: int, window: float) -> bool:
        """So many bytes of it have arrived, and so many are left; whether `window` was used enough to grow."""
        used = 2 * (max(self._peak, self._former_peak) + self._packet_bytes) >= window
        self._arrived += size
        if self._arrived >= self._peak:  # all that was in flight at once: a round trip is over
            self._former_peak, self._peak, self._arrived = self._peak, in_flight, 0
        return used


class ProvenWindow:
    """A congestion window within an engine's, which does the rest; sizes in bytes, `packet_bytes` of the largest.

    `limit` is how much may be in flight, what is still underway on a former path included.
    """

    def __init__(self, engine_bytes: int, packet_bytes: int) -> None:
        self._packet_bytes = packet_bytes
        self._first_bytes = engine_bytes
        self.in_flight = self._elsewhere = 0
        self._start(engine_bytes, engine_bytes)

    def _start(self, size: float, engine_bytes: int) -> None:
        """Slow start from `size` on."""
        self.bytes, self._threshold, self._engine_bytes = float(size), float("inf"), engine_bytes
        self._usage = Usage(self._packet_bytes)
        self._bound()

    def _bound(self) -> None:
        self.limit = min(int(self.bytes) + self._elsewhere, self._engine_bytes)

    def sent(self, engine_bytes: int, in_flight: int) -> None:
        """The engine has sent what it had: so much is `in_flight` now."""
        if engine_bytes < self._engine_bytes:  # it begins anew after a pause, and has lost nothing
            self._start(min(self.bytes, engine_bytes), engine_bytes)
        self.in_flight = in_flight
        self._usage.sent(in_flight - self._elsewhere)

    def heard(self, engine_bytes: int, in_flight: int) -> None:
        """The engine has heard of something that was in flight, or has waited for it long enough."""
        arrived, self.in_flight = max(self.in_flight - in_flight, 0), in_flight
        factor, self._engine_bytes = engine_bytes / self._engine_bytes, engine_bytes
        if self._elsewhere:
            self._elsewhere = max(min(self._elsewhere - arrived, in_flight), 0)
        elif factor < 1:
            self._shrink(engine_bytes, factor)
        elif self._usage.arrived(arrived, in_flight, self.bytes) and factor > 1:
            # The engine's own grows too: nothing that it has lost lately was sent after it noticed.
            self.bytes += arrived if self.is_starting else self._steady_growth(arrived, factor)
        if self.bytes > engine_bytes:
            self.bytes = float(engine_bytes)
        self._bound()

    def _shrink(self, engine_bytes: int, factor: float) -> None:
        least = LEAST_PACKETS * self._packet_bytes
        if engine_bytes > least:
            self.bytes = self._threshold = max(self.bytes * factor, least)
        else:  # persistent congestion, or nothing to lose: slow start up to the threshold
            self.bytes = least

    @property
    def is_starting(self) -> bool:
        """Whether this is slow start."""
        return self.bytes < self._threshold

    def _steady_growth(self, arrived: int, factor: float) -> float:
        return max(RENO_GROWTH * self._packet_bytes * arrived / self.bytes, self.bytes * (factor - 1))

    def move(self) -> None:
        """What is sent from now on takes another path; what is in flight arrives, or is lost, on the former one."""
        self._elsewhere = self.in_flight
        self._start(min(self._first_bytes, self._engine_bytes), self._engine_bytes)
