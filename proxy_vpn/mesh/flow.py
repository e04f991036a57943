"""Flows: one TCP flow is one QUIC stream with credit of our own; one UDP flow is a stream and DATAGRAM frames.

Neither engine holds back a sender whose receiver does not read, so credit does (DESIGN: "Credit"): a flow may be
sent up to an absolute offset of its stream, head included. The first 64 KiB each way are implied; more is granted
as the sink consumes, within a window that doubles while a whole window is consumed in three round trips.

    opener                                   other end
    Open head ------------------------------> offered: accept() or refuse()
    <----------------------------- one Status byte
    raw bytes, FIN each way                   a reset or a lost peer is `lost`, never an end
    <---- (UDP) one more whenever a datagram finds nobody who listens
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from proxy_vpn.addresses import Target
from proxy_vpn.errors import FlowLost, Status, WireError
from proxy_vpn.mesh.duplex import Sink
from proxy_vpn.mesh.tap import Kind, Line
from proxy_vpn.net.turns import SMALL_BYTES, TURNS
from proxy_vpn.wire.messages import Reassembler, split_datagram

IMPLIED_CREDIT_BYTES = 64 * 1024
FLOW_WINDOW_LIMIT_BYTES = 8 << 20
PEER_GROWTH_LIMIT_BYTES = 16 << 20
PROCESS_GROWTH_LIMIT_BYTES = 256 << 20
CHUNK_BYTES = 64 * 1024
RESET_CODE = 1
REFUSED_EVERY_S = 0.1
EARLY_DATAGRAMS = 16
BULK_WINDOW_BYTES = 128 * 1024
BULK_WITHIN_S = 0.1
_GRANT_FRACTION = 2
_GROW_WITHIN_RTTS = 3
_SCHEDULING_S = 0.0005
_REFUSED = bytes((Status.REFUSED,))


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


class Carrier(Protocol):
    """What a flow needs of the session that carries it."""

    peer_name: str
    budget: Budget
    line: Line

    @property
    def rtt_s(self) -> float | None: ...

    def now(self) -> float: ...

    def has_room(self, size: int) -> bool:
        """Whether the engine takes `size` more bytes of stream data now; little ones go past bulk."""

    def send_stream(self, stream_id: int, data: bytes | memoryview, end: bool) -> None: ...

    def tell_end(self, stream_id: int, offset: int) -> None:
        """Our direction has ended, with a FIN that came after its last byte."""

    def flow_ready(self, flow: Flow) -> None:
        """The flow has bytes and credit: pump it when there is room."""

    def grant(self, stream_id: int, limit: int) -> None: ...

    def abort_stream(self, stream_id: int) -> None:
        """Break both directions."""

    def refuse_stream(self, stream_id: int) -> None:
        """Break the peer's direction only."""

    def flow_ended(self, stream_id: int) -> None: ...

    def send_flow_datagram(self, stream_id: int, payload: bytes) -> None: ...


class Window:
    """The receiving side's credit: what was received, consumed and granted, and how large the window may be."""

    def __init__(self, carrier: Carrier, received: int) -> None:
        self._carrier = carrier
        self.received = received
        self.consumed = received
        self.granted = IMPLIED_CREDIT_BYTES
        self._size = IMPLIED_CREDIT_BYTES
        self._measured_from = received
        self._measured_at = carrier.now()

    def receive(self, size: int) -> bool:
        """Whether `size` more bytes are within what was granted."""
        self.received += size
        return self.received <= self.granted

    def consume(self, size: int) -> int | None:
        """A new limit worth announcing, if any."""
        self.consumed += size
        if self.consumed - self._measured_from >= self._size:
            self._measure()
        limit = self.consumed + self._size
        if limit - self.granted < self._size // _GRANT_FRACTION:
            return None
        self.granted = limit
        return limit

    def _measure(self) -> None:
        """A whole window was consumed: double it if that took three round trips, or 100 ms for a small one.

        Granted by halves, three quarters of it are on their way on average: two round trips would hold a flow there.
        """
        now, began = self._carrier.now(), self._measured_at
        self._measured_from, self._measured_at = self.consumed, now
        quick_s = _GROW_WITHIN_RTTS * (self._carrier.rtt_s or 0.0) + _SCHEDULING_S
        if self._size < BULK_WINDOW_BYTES:
            quick_s = max(quick_s, BULK_WITHIN_S)
        grown = self._size * 2
        if now - began <= quick_s and grown <= FLOW_WINDOW_LIMIT_BYTES and self._carrier.budget.take(self._size):
            self._size = grown

    def release(self) -> None:
        """The flow ended: give the growth back to the budgets."""
        self._carrier.budget.give_back(self._size - IMPLIED_CREDIT_BYTES)
        self._size = IMPLIED_CREDIT_BYTES


class Flow:
    """A TCP flow to or from a peer: a Duplex over one QUIC stream."""

    def __init__(self, carrier: Carrier, stream_id: int, target: Target, sent: int, received: int) -> None:
        self.stream_id = stream_id
        self.target = target
        self.peer_name = carrier.peer_name
        self._carrier = carrier
        self._line = carrier.line
        self._sink: Sink | None = None
        self._window = Window(carrier, received)
        self._send_offset = sent
        self._send_limit = IMPLIED_CREDIT_BYTES
        self._pending: deque[memoryview] = deque()
        self._sends_small = True
        self._eof_wanted = self._eof_sent = self._eof_received = self._eof_delivered = False
        self._inbox: list[bytes] = []
        self._error: FlowLost | None = None
        self._over = False
        self._refused = False  # the peer takes no more
        self._detached = False  # our door takes no more
        self._end_at = -1

    # --- Duplex, towards the door -----------------------------------------------------------------------------

    def start(self, sink: Sink) -> None:
        self._sink = sink
        inbox, self._inbox = self._inbox, []
        for data in inbox:
            if self._sink is sink:  # it may reset the flow at any byte
                sink.data_received(data)
        if self._eof_received:
            self._deliver_eof()
        if self._error is not None and self._sink is sink:
            sink.lost(self._error)

    def write(self, data: bytes | memoryview) -> None:
        if self._over or self._eof_wanted or not data:
            return
        self._note_size(len(data))
        if (
            not self._pending
            and len(data) <= self._send_limit - self._send_offset
            and self._carrier.has_room(len(data))
        ):
            self._send(data, False)
            return
        view = memoryview(data)
        self._pending.extend(view[at : at + CHUNK_BYTES] for at in range(0, len(view), CHUNK_BYTES))
        self._become_ready()

    def _note_size(self, size: int) -> None:
        """The rest of something large is no small message."""
        is_small = size < SMALL_BYTES
        if is_small and self._sends_small:
            TURNS.hurry(self._carrier.now())
        self._sends_small = is_small

    def write_eof(self) -> None:
        if not (self._over or self._eof_wanted):
            self._eof_wanted = True
            self._become_ready()

    def consumed(self, size: int) -> None:
        if self._over:
            return
        limit = self._window.consume(size)
        if limit is not None and not self._eof_received:
            self._carrier.grant(self.stream_id, limit)

    def reset(self) -> None:
        if self._over:
            return
        if self._eof_wanted and not self._refused:
            # What was written and ended is still delivered; only their direction is broken.
            self._sink = None
            self._detached = True
            self._carrier.refuse_stream(self.stream_id)
            self._finish_if_done()
            return
        self._sink = None
        self._carrier.abort_stream(self.stream_id)
        self._end()

    # --- the session's side -----------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether there is something to send and credit to send it."""
        if self._over:
            return False
        if self._pending:
            return self._send_offset < self._send_limit
        return self._eof_wanted and not self._eof_sent

    def pump(self, room: int) -> None:
        """Move at most `room` pending bytes, or the end, into the engine."""
        while self._pending and (most := min(room, self._send_limit - self._send_offset)) > 0:
            chunk = self._pending.popleft()
            if len(chunk) > most:
                self._pending.appendleft(chunk[most:])
                chunk = chunk[:most]
            room -= len(chunk)
            self._send(chunk, self._eof_wanted and not self._pending)
        if self._eof_wanted and not (self._eof_sent or self._pending or self._over):
            self._send(b"", True)

    def _send(self, data: bytes | memoryview, end: bool) -> None:
        if self._line.watchers:
            self._tell(Kind.DATA, True, data, end)
        self._carrier.send_stream(self.stream_id, data, end)
        self._send_offset += len(data)
        self._eof_sent = self._eof_sent or end
        if end and not data:
            # qh3 may lose a FIN that goes alone for good, if the packet before it is lost too.
            self._carrier.tell_end(self.stream_id, self._send_offset)
        self._report_written(len(data))
        if end:
            self._finish_if_done()

    def _report_written(self, size: int) -> None:
        if self._sink is not None and size and not self._over:
            self._sink.written(size)

    def _become_ready(self) -> None:
        if self.ready:
            self._carrier.flow_ready(self)

    def credit_received(self, limit: int) -> None:
        """The peer lets us send up to `limit`."""
        if limit > self._send_limit:
            self._send_limit = limit
            self._become_ready()

    def stream_received(self, data: bytes, end: bool) -> bool:
        """Bytes of the stream; False if they exceed the credit (the flow is then reset)."""
        if self._over or self._eof_received or self._detached:
            return True
        if self._line.watchers and (data or end):
            self._tell(Kind.DATA, False, data, end)
        if not self._window.receive(len(data)):
            self.stream_lost(FlowLost(f"{self.peer_name} sent more than it was allowed to"), abort=True)
            return False
        end = end or self._window.received == self._end_at
        if data:
            if self._sink is None:
                self._inbox.append(data)
            else:
                self._sink.data_received(data)
        if end:
            self._eof_received = True
            if self._sink is not None:
                self._deliver_eof()
        return True

    @property
    def end_received(self) -> bool:
        """Whether the peer's direction has ended."""
        return self._eof_received

    def end_told(self, offset: int) -> None:
        """The peer's direction ends at this offset, whether or not its FIN comes."""
        self._end_at = offset
        if self._window.received == offset:
            self.stream_received(b"", True)

    def _deliver_eof(self) -> None:
        if self._sink is not None and not self._eof_delivered:
            self._eof_delivered = True
            self._sink.eof_received()
            if self._refused and not self._eof_sent:
                self.stream_lost(FlowLost(f"{self.peer_name} reset the connection"), abort=True)
            else:
                self._finish_if_done()

    def stream_reset(self) -> None:
        """The peer reset its direction; ignored once its FIN has arrived, or when we refused it."""
        if not self._eof_received and not self._detached:
            self.stream_lost(FlowLost(f"{self.peer_name} reset the connection"), abort=True)

    def sending_refused(self) -> None:
        """The peer takes no more of our bytes; what it still sends is delivered, then the flow is lost."""
        if self._over or self._eof_sent:
            return
        if self._eof_received or self._detached:
            self.stream_lost(FlowLost(f"{self.peer_name} reset the connection"), abort=True)
            return
        self._refused = True
        unsent = sum(map(len, self._pending))
        self._pending.clear()
        self._report_written(unsent)

    def stream_lost(self, error: FlowLost, abort: bool = False) -> None:
        """The flow broke, or its connection did."""
        if self._over:
            return
        if abort:
            self._carrier.abort_stream(self.stream_id)
        self._error = error
        self._end()
        if self._sink is not None:
            self._sink.lost(error)

    def _finish_if_done(self) -> None:
        if self._eof_sent and (self._eof_delivered or self._detached) and not self._over:
            self._end()
            if self._sink is not None:
                self._sink.finished()

    def _end(self) -> None:
        self._over = True
        if self._line.watchers and not (self._eof_sent and self._eof_received):
            self._tell(Kind.RESET, self._error is None)
        self._pending.clear()
        self._window.release()
        self._carrier.flow_ended(self.stream_id)

    def _tell(self, kind: Kind, from_here: bool, data: bytes | memoryview = b"", end: bool = False) -> None:
        sent, received = self._send_offset + self._eof_sent, self._window.received + self._eof_received
        places = (sent, received) if from_here else (received, sent)
        self._line.tell(kind, self.stream_id, self.target, from_here, *places, data, end)


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
