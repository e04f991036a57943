"""DATAGRAM frames of one session: rated on the way out, kept a moment on the way in until their flow is there."""

from __future__ import annotations

from collections import deque

from proxy_vpn.errors import WireError
from proxy_vpn.wire import messages

RATE_BYTES_S = 25_000_000
BURST_BYTES = 256 * 1024
EARLY_S = 0.1
EARLY_LIMIT = 8


class DatagramSender:
    """A token bucket, because qh3 sends DATAGRAM frames past its congestion control; and the early frames."""

    def __init__(self) -> None:
        self._level_bytes = float(BURST_BYTES)
        self._at = 0.0
        self._number = 0
        self._early: deque[tuple[float, int, bytes]] = deque()

    def frames(self, stream_id: int, payload: bytes, limit_bytes: int, now: float) -> list[bytes]:
        """The frames that carry a payload now; none when it must be dropped (over the rate, or too large)."""
        elapsed, self._at = now - self._at, now
        self._level_bytes = min(BURST_BYTES, self._level_bytes + elapsed * RATE_BYTES_S)
        if self._level_bytes < len(payload):
            return []
        self._level_bytes -= len(payload)
        self._number += 1
        try:
            return messages.datagram_frames(stream_id, self._number, payload, limit_bytes)
        except WireError:
            return []

    def keep(self, stream_id: int, frame: bytes, now: float) -> None:
        """A frame came before its flow was open: it waits 100 ms, with at most 7 others."""
        while self._early and (len(self._early) >= EARLY_LIMIT or now - self._early[0][0] > EARLY_S):
            self._early.popleft()
        self._early.append((now, stream_id, frame))

    def kept(self, stream_id: int) -> list[bytes]:
        """The frames that waited for this flow."""
        frames = [frame for _, waiting, frame in self._early if waiting == stream_id]
        self._early = deque(early for early in self._early if early[1] != stream_id)
        return frames
