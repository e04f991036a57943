"""When a connection may send its next bytes, so that a congestion window leaves spread over a round trip.

A window sent at once overruns the queue of the narrowest line on its way, long before the line is full: slow start
then ends at a fraction of what the path carries (RFC 9002, section 7.7). On short round trips there is nothing to
spread: loops turn in fractions of a millisecond, and the window's bytes are fewer than one burst.
"""

from __future__ import annotations

UNPACED_RTT_S = 0.002
START_GAIN = 2.0
STEADY_GAIN = 1.25
BURST_BYTES = 16 * 1024
BURST_S = 0.002
QUEUED_RTTS, QUEUED_S = 1.125, 0.001


class Pacer:
    """A token bucket filled at a multiple of window by round trip; times in seconds of the loop's clock."""

    def __init__(self) -> None:
        self._tokens = float(BURST_BYTES)
        self._filled_at = 0.0
        self._bytes_s = 0.0
        self._least_smoothed_s = self._least_s = float("inf")

    def measured(self, rtt_s: float) -> None:
        """One round trip was measured. The least counts: on a busy machine the usual ones are the machine's own."""
        self._least_s = min(self._least_s, rtt_s)

    @property
    def least_rtt_s(self) -> float | None:
        """The least round trip measured on this path: without the queues that our own windows make."""
        return None if self._least_s == float("inf") else self._least_s

    @property
    def active(self) -> bool:
        """Whether anything is spread."""
        return UNPACED_RTT_S <= self._least_s < float("inf")

    def queued(self, rtt_s: float | None) -> bool:
        """Whether a queue stands on the path: the smoothed round trip is well above the least of its kind."""
        return rtt_s is not None and rtt_s > self._least_smoothed_s * QUEUED_RTTS + QUEUED_S

    def sent(self, size: int) -> None:
        """`size` bytes have left; what goes out unasked (acknowledgements, retransmissions) counts too."""
        self._tokens -= size

    def wait_s(self, now: float, window: int, rtt_s: float | None, starting: bool) -> float:
        """How long to wait before more is sent: 0 for now.

        `window` is the whole congestion window in bytes, `rtt_s` the smoothed round trip.
        """
        if rtt_s is not None:
            self._least_smoothed_s = min(self._least_smoothed_s, rtt_s)
        if rtt_s is None or not self.active:
            self._tokens, self._filled_at = float(BURST_BYTES), now
            return 0.0
        self._bytes_s = (START_GAIN if starting else STEADY_GAIN) * window / rtt_s
        most = BURST_BYTES + BURST_S * self._bytes_s
        # What went out unasked may leave a debt; it is never larger than a window.
        self._tokens = min(max(self._tokens, -window) + (now - self._filled_at) * self._bytes_s, most)
        self._filled_at = now
        return 0.0 if self._tokens > 0 else BURST_S / 2 - self._tokens / self._bytes_s
