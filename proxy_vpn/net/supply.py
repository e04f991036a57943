"""How much stream data a connection's engine is supplied with, when, and in what pieces.

The backlog is refilled a chunk at a time: an engine takes turns between the streams it holds data of, packet by
packet, and packets of one stream in a row are what the receiving side can join into few, large reads.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy_vpn.net.engine import HANDSHAKE_DATAGRAM_BYTES, ROOM_LEAST_BYTES, Engine
from proxy_vpn.net.pacer import Pacer
from proxy_vpn.net.turns import TURNS
from proxy_vpn.net.udp import Path
from proxy_vpn.wire.segments import HEAD_BYTES
from proxy_vpn.wire.train import TRAILER_BYTES

WINDOW_PACKETS = 11
UNPACED_PACKETS, SHORT_TURN_PACKETS = 33, 4
PACKET_OVERHEAD_BYTES = 64
HURRY_FLIGHT_BYTES = 384 * 1024
MEASURES_AFTER_S = 1.0


class Supply:
    """What fits into one engine's packets on a `path` that carries `datagram_bytes`, and what may be sent of it now.

    `now` is the loop's clock in seconds.
    """

    def __init__(self, engine: Engine, now: Callable[[], float], path: Path | None, datagram_bytes: int) -> None:
        self.path = path
        self.datagram_bytes = datagram_bytes
        self._engine = engine
        self._now = now
        self._pacer = Pacer()
        self._measures_from = 0.0
        self._former_rtt_s: float | None = None

    def move(self, path: Path | None) -> None:
        """The path is another now; what the engine measures right after that is still the old one's."""
        if path != self.path:
            is_elsewhere = _place(path) != _place(self.path)
            self.path, self._pacer = path, Pacer()
            self._measures_from = self._now() + MEASURES_AFTER_S
            self._former_rtt_s = self._engine.latest_rtt_s
            if is_elsewhere:
                self._engine.moved(self._now())

    @property
    def size(self) -> int:
        """Of datagrams on this path; a relay splits those that are larger than the smallest."""
        return min(self.datagram_bytes, HANDSHAKE_DATAGRAM_BYTES) if self._is_relayed else self.datagram_bytes

    @property
    def frame_limit(self) -> int:
        """The largest DATAGRAM payload that is safe to send."""
        return min(self._engine.size, self.size) - self._engine.frame_overhead_bytes

    @property
    def chunk_bytes(self) -> int:
        """How much stream data the engine is to get before it is asked for packets: what fills one, or a few of them.

        A packet is no larger than a small part of the congestion window, so that slow lines carry small ones.
        """
        size, largest = self.size, self._engine.size
        whole = size - HEAD_BYTES - TRAILER_BYTES
        parts = self._engine.window // (WINDOW_PACKETS * size)
        if largest <= size or parts < 2 or self.path is None or self._is_relayed:
            return min(largest, size) - PACKET_OVERHEAD_BYTES
        if parts * whole < largest:
            return parts * whole - PACKET_OVERHEAD_BYTES
        if self.is_paced:
            return largest - PACKET_OVERHEAD_BYTES
        packets = SHORT_TURN_PACKETS if TURNS.are_short(self._now()) else UNPACED_PACKETS
        return (largest - PACKET_OVERHEAD_BYTES) * packets

    @property
    def room(self) -> int:
        """How many bytes of stream data the engine may be given now.

        Where nothing is paced, what is in flight waits in the peer's socket, and small messages wait behind it.
        """
        room = self._engine.room
        if room > 0 and not self._pacer.active and TURNS.are_short(self._now()):
            left = HURRY_FLIGHT_BYTES - self._engine.unacknowledged
            return min(room, left if left >= ROOM_LEAST_BYTES else min(left, 0))
        return room

    def takes(self, size: int) -> bool:
        """Whether the engine may be given so many bytes of stream data at once, past those that wait."""
        room = self.room
        return room >= size and (size <= self.chunk_bytes or not self.is_paced)

    @property
    def is_paced(self) -> bool:
        """By us: an engine that does it itself has no `pace`."""
        return self._pacer.active and self._engine.pace is not None

    def wait_s(self) -> float:
        """How long to wait before the engine is given more: 0 for now."""
        pace = self._engine.pace
        return self._pacer.wait_s(self._now(), *pace) if pace is not None else 0.0

    def sent(self, size: int) -> None:
        """`size` bytes have left on the path."""
        self._pacer.sent(size)

    def measured(self, rtt_s: float) -> None:
        """A round trip on the path was measured past the engine."""
        self._pacer.measured(rtt_s)

    def measure(self, now: float) -> None:
        """The engine has heard the peer, and may have measured a round trip."""
        latest_s = self._engine.latest_rtt_s
        if latest_s is None or latest_s == self._former_rtt_s or now < self._measures_from:
            return
        self._former_rtt_s = None
        self._pacer.measured(latest_s)

    @property
    def least_rtt_s(self) -> float | None:
        """The least round trip measured on the path: without the queues that our own windows make."""
        return self._pacer.least_rtt_s

    @property
    def is_queued(self) -> bool:
        """Whether a queue stands on the path."""
        return self._pacer.queued(self._engine.rtt_s)

    @property
    def _is_relayed(self) -> bool:
        return self.path is not None and self.path.remote.relayed


def _place(path: Path | None) -> tuple[str, int, str] | None:
    """Without the peer's port: another one alone is mostly its NAT's doing (RFC 9000, section 9.4)."""
    return None if path is None else (path.local, path.interface, path.remote.ip)
