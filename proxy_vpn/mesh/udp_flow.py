"""A UDP flow: a stream, and payloads in DATAGRAM frames; it lives as long as its stream.

On and beside its stream:

    opener                                   other end
    Open head, Status byte                    as for TCP
    payloads in frames, each way
    <-------------- one more Status byte      whenever a datagram finds nobody who listens
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from proxy_vpn.addresses import Target
from proxy_vpn.errors import FlowLost, Status, WireError
from proxy_vpn.mesh.flow import Carrier
from proxy_vpn.mesh.tap import Kind
from proxy_vpn.net.turns import SMALL_BYTES, TURNS
from proxy_vpn.wire.messages import Reassembler, split_datagram

REFUSED_EVERY_S = 0.1
EARLY_DATAGRAMS = 16
_REFUSED = bytes((Status.REFUSED,))


class UdpFlow:
    """A UDP flow to or from a peer: payloads in DATAGRAM frames, living as long as its stream.

    What comes before `on_datagram` is first set, 16 payloads at most, is delivered then.
    """

    def __init__(self, carrier: Carrier, stream_id: int, target: Target) -> None:
        self.stream_id = stream_id
        self.target = target
        self.peer_name = carrier.peer_name
        self._on_datagram: Callable[[bytes], None] | None = None
        self._early: deque[bytes] | None = deque(maxlen=EARLY_DATAGRAMS)
        self.on_closed: Callable[[], None] | None = None
        self.on_refused: Callable[[], None] | None = None
        self._carrier = carrier
        self._line = carrier.line
        self._parts = Reassembler()
        self._refuse_at = 0.0
        self._over = False

    @property
    def closed(self) -> bool:
        """Whether it has ended, perhaps before whoever asked for it had it."""
        return self._over

    @property
    def on_datagram(self) -> Callable[[bytes], None] | None:
        """Who hears each payload."""
        return self._on_datagram

    @on_datagram.setter
    def on_datagram(self, hear: Callable[[bytes], None] | None) -> None:
        self._on_datagram = hear
        early, self._early = self._early, None
        if hear is not None:
            for payload in early or ():
                hear(payload)

    def send(self, payload: bytes) -> None:
        """Send one payload; lost like any datagram when there is no room."""
        if not self._over:
            if len(payload) < SMALL_BYTES:
                TURNS.hurry(self._carrier.now())
            if self._line.watchers:
                self._line.tell(Kind.DATAGRAM, self.stream_id, self.target, True, data=payload)
            self._carrier.send_flow_datagram(self.stream_id, payload)

    def close(self) -> None:
        """End the flow on both sides; idempotent."""
        if not self._over:
            self._carrier.abort_stream(self.stream_id)
            self._end()

    def refuse(self) -> None:
        """Say that nobody listens there now, ten times a second at most; for the side that was asked."""
        now = self._carrier.now()
        if not self._over and now >= self._refuse_at:
            self._refuse_at = now + REFUSED_EVERY_S
            self._tell_unreachable(True)
            self._carrier.send_stream(self.stream_id, _REFUSED, False)

    def frame_received(self, frame: bytes, now: float) -> None:
        """A DATAGRAM frame of this flow."""
        try:
            _, number, index, count, part = split_datagram(frame)
        except WireError:
            return
        payload = self._parts.feed(number, index, count, part, now)
        if payload is None or self._over:
            return
        if self._line.watchers:
            self._line.tell(Kind.DATAGRAM, self.stream_id, self.target, False, data=payload)
        if self._on_datagram is not None:
            self._on_datagram(payload)
        elif self._early is not None:
            self._early.append(payload)

    def stream_received(self, data: bytes, end: bool) -> bool:
        """The stream carries its end, and that datagrams found nobody; False if the peer sends anything else."""
        refused = data[:1] == _REFUSED and not self._over
        if refused:
            self._tell_unreachable(False)
        if refused and self.on_refused is not None:
            self.on_refused()
        if end:
            self.close()
        return not data.strip(_REFUSED)

    def stream_reset(self) -> None:
        """The peer ended the flow."""
        self.close()

    def sending_refused(self) -> None:
        """The peer ended the flow."""
        self.close()

    def stream_lost(self, error: FlowLost, abort: bool = False) -> None:
        """The connection broke."""
        if abort:
            self.close()
        elif not self._over:
            self._end()

    def credit_received(self, limit: int) -> None:
        """UDP needs no credit."""

    def _tell_unreachable(self, from_here: bool) -> None:
        if self._line.watchers:
            self._line.tell(Kind.UNREACHABLE, self.stream_id, self.target, from_here)

    def _end(self) -> None:
        self._over = True
        self._carrier.flow_ended(self.stream_id)
        if self.on_closed is not None:
            self.on_closed()
