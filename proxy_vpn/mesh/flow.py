"""A TCP flow: one QUIC stream with credit of our own (mesh.credit).

On its stream:

    opener                                   other end
    Open head ------------------------------> offered: accept() or refuse()
    <----------------------------- one Status byte
    raw bytes, FIN each way                   a reset or a lost peer is `lost`, never an end
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from proxy_vpn.addresses import Target
from proxy_vpn.errors import FlowLost
from proxy_vpn.mesh.credit import IMPLIED_CREDIT_BYTES, Connection, Window
from proxy_vpn.mesh.duplex import Sink
from proxy_vpn.mesh.tap import Kind, Line
from proxy_vpn.net.turns import SMALL_BYTES, TURNS

RESET_CODE = 1


class Carrier(Connection, Protocol):
    """What a flow needs of the session that carries it."""

    peer_name: str
    line: Line

    def has_room(self, size: int) -> bool:
        """Whether the engine takes `size` more bytes of stream data now; little ones go past bulk."""

    @property
    def is_clear(self) -> bool:
        """Whether the engine sends what it is given now without waiting; it must before an end goes to it."""

    def send_stream(self, stream_id: int, data: bytes | memoryview, end: bool) -> None: ...

    def end_stream(self, stream_id: int, offset: int) -> None:
        """End our direction, all of whose `offset` bytes were sent before."""

    def flow_ready(self, flow: Flow) -> None:
        """The flow has bytes and credit: pump it when there is room."""

    def grant(self, stream_id: int, limit: int) -> None: ...

    def abort_stream(self, stream_id: int) -> None:
        """Break both directions."""

    def refuse_stream(self, stream_id: int) -> None:
        """Break the peer's direction only."""

    def flow_ended(self, stream_id: int) -> None: ...

    def send_flow_datagram(self, stream_id: int, payload: bytes) -> None: ...


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
        self._pending.append(memoryview(data))
        self._become_ready()

    def _note_size(self, size: int) -> None:
        """The rest of something large is no small message."""
        is_small = size < SMALL_BYTES
        if is_small and self._sends_small:
            TURNS.hurry(self._carrier.now())
        self._sends_small = is_small

    def write_eof(self) -> None:
        if self._over or self._eof_wanted:
            return
        self._eof_wanted = True
        if not self._pending and self._carrier.is_clear:
            self._send(b"", True)
        else:
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
        if data:
            self._carrier.send_stream(self.stream_id, data, end)
        else:
            self._carrier.end_stream(self.stream_id, self._send_offset)
        self._send_offset += len(data)
        self._eof_sent = self._eof_sent or end
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
