"""The streams of one session: its flows, those being opened or offered, and what they share of the connection.

Stream 0 is not among them. Opening a flow ends with a Flow in place the moment its status byte is read, so no byte
that follows can be missed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from proxy_vpn.addresses import Target
from proxy_vpn.errors import FlowError, FlowLost, Status, WireError
from proxy_vpn.mesh.credit import Budget
from proxy_vpn.mesh.datagrams import DatagramSender
from proxy_vpn.mesh.flow import RESET_CODE, Flow
from proxy_vpn.mesh.openings import Head, Incoming, IncomingTcp, IncomingUdp, Opening, refusal
from proxy_vpn.mesh.tap import Kind, untapped
from proxy_vpn.mesh.udp_flow import UdpFlow
from proxy_vpn.net.engine import StreamsExhausted
from proxy_vpn.net.quic import Link
from proxy_vpn.wire import messages

CONTROL_STREAM = 0
OPEN_TIMEOUT_S = 15.0
STREAM_WAIT_S = 10.0
STREAM_RETRY_S = 0.05
FLOWS_LIMIT = 1024
OVERRUNS_LIMIT = 3
ENDED_REMEMBERED = 4096
FIN_WAIT_S = 10.0
SMALL_WRITE_BYTES = 4096
SMALL_BACKLOG_BYTES = 16 * 1024
_AnyFlow = TypeVar("_AnyFlow", Flow, UdpFlow)
_log = logging.getLogger(__name__)
_Stream = Flow | UdpFlow | Incoming | Opening[Flow] | Opening[UdpFlow] | Head


class Streams:
    """What flows see of their session (the Carrier), and the session of its flows.

    `initiator` says which stream ids are ours, `on_offer` hears what the peer asks for, `is_open` and `takes_new`
    whether streams may be answered and begun.
    """

    def __init__(
        self,
        *,
        initiator: bool,
        budget: Budget,
        on_offer: Callable[[Incoming], None],
        is_open: Callable[[], bool],
        takes_new: Callable[[], bool],
    ) -> None:
        self.peer_name = "?"
        self.budget = budget
        self.line = untapped()
        self.link: Link
        self._initiator = initiator
        self._on_offer = on_offer
        self._is_open = is_open
        self._takes_new = takes_new
        self._streams: dict[int, _Stream] = {}
        self._ready: dict[Flow, None] = {}
        self._grants: dict[int, int] = {}
        self._ended: dict[int, None] = {}
        self._told_ends: dict[int, int] = {}
        self._unfinished: dict[int, float] = {}
        self._asked: dict[int, tuple[float, Opening[Flow] | Opening[UdpFlow]]] = {}  # the oldest first
        self._datagrams = DatagramSender()
        self._overruns = 0
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        return len(self._streams)

    # --- Carrier ------------------------------------------------------------------------------------------------

    @property
    def rtt_s(self) -> float | None:
        return self.link.supply.least_rtt_s

    def now(self) -> float:
        return self._loop.time()

    def has_room(self, size: int) -> bool:
        if self.link.closed:
            return False
        supply = self.link.supply
        return supply.takes(size) or (size <= SMALL_WRITE_BYTES and supply.room > -SMALL_BACKLOG_BYTES)

    @property
    def is_clear(self) -> bool:
        return not self.link.closed and self.link.engine.room > 0

    def send_stream(self, stream_id: int, data: bytes | memoryview, end: bool) -> None:
        if self.link.closed:
            return
        self._give(stream_id, data, end)
        self.link.flush()

    def end_stream(self, stream_id: int, offset: int) -> None:
        if self.link.closed:
            return
        self._give(stream_id, b"", True)
        # qh3 may lose a FIN that goes alone for good, if the packet before it is lost too.
        self.send_control(messages.Ended(stream_id, offset))

    def _give(self, stream_id: int, data: bytes | memoryview, end: bool) -> None:
        try:
            self.link.engine.send(stream_id, data, end)
        except Exception as error:
            # Both packages raise for a stream that the peer has just stopped; the event that says so is on its way.
            _log.debug("stream %d takes no more: %r", stream_id, error)

    def send_control(self, message: messages.Message) -> None:
        """Send a control message, with what was given to the engine before."""
        self.send_stream(CONTROL_STREAM, messages.encode_control(message), False)

    def flow_ready(self, flow: Flow) -> None:
        self._ready[flow] = None
        self.link.wake()

    def grant(self, stream_id: int, limit: int) -> None:
        self._grants[stream_id] = limit
        self.link.wake()

    def abort_stream(self, stream_id: int) -> None:
        if not self.link.closed:
            self.link.engine.abort(stream_id, RESET_CODE)
            self.link.wake()

    def refuse_stream(self, stream_id: int) -> None:
        if not self.link.closed:
            self.link.engine.refuse(stream_id, RESET_CODE)
            self.link.wake()

    def flow_ended(self, stream_id: int) -> None:
        self._forget(stream_id)
        self._grants.pop(stream_id, None)
        if not self._takes_new():
            self.link.wake()  # whoever leaves waits for the last one

    def send_flow_datagram(self, stream_id: int, payload: bytes) -> None:
        if self.link.closed:
            return
        self.link.send_datagrams(self._datagrams.frames(stream_id, payload, self.link.supply.frame_limit, self.now()))

    # --- opening and answering ----------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether streams can still be answered."""
        return self._is_open()

    async def open_tcp(self, target: Target, beyond: bool = False) -> Flow:
        """A TCP flow to a port of the peer, or of a host `beyond` it; raises FlowError."""

        def make(stream_id: int, sent: int) -> Flow:
            return Flow(self, stream_id, target, sent, received=1)

        return await self._open("tcp", target, beyond, make)

    async def open_udp(self, target: Target, beyond: bool = False) -> UdpFlow:
        """A UDP flow to a port of the peer, or of a host `beyond` it; raises FlowError."""
        return await self._open("udp", target, beyond, lambda stream_id, sent: UdpFlow(self, stream_id, target))

    async def _open(self, kind: str, target: Target, beyond: bool, make: Callable[[int, int], _AnyFlow]) -> _AnyFlow:
        stream_id = await self._next_stream()
        host = (messages.HOST_BEYOND, target.host) if beyond else (messages.HOST_PEER, "")
        head = messages.encode_open(messages.Open(kind, host[0], target.port, host[1]))
        answer: asyncio.Future[_AnyFlow] = self._loop.create_future()

        def answered(status: Status) -> _AnyFlow | None:
            self._tell_answer(stream_id, target, kind == "tcp", status is Status.OK, False, len(head))
            if status is Status.OK:
                flow = make(stream_id, len(head))
                self._stands(stream_id, flow)
                answer.set_result(flow)
                return flow
            answer.set_exception(refusal(status, target, self.peer_name if beyond else ""))
            return None

        opening = self._streams[stream_id] = Opening(target, answer, answered)
        if kind == "tcp" and self.line.watchers:
            self.line.tell(Kind.ASKED, stream_id, target, True, len(head) - 1)
        self.send_stream(stream_id, head, False)
        self._asked[stream_id] = (self._loop.time() + OPEN_TIMEOUT_S, opening)
        try:
            return await answer
        except BaseException:
            self._drop(stream_id)
            raise
        finally:
            del self._asked[stream_id]

    async def _next_stream(self) -> int:
        deadline = self._loop.time() + STREAM_WAIT_S
        while self._takes_new():
            try:
                return self.link.engine.open_stream()
            except StreamsExhausted:
                if self._loop.time() > deadline:
                    hint = "close some and try again"
                    raise FlowError(Status.LIMIT, f"too many connections to {self.peer_name}", hint) from None
            # No event tells when the peer raises its limit; ended streams do it.
            await asyncio.sleep(STREAM_RETRY_S)
        raise FlowError(Status.UNREACHABLE, f"{self.peer_name} has just gone", "try again")

    def answer(self, stream_id: int, status: Status, flow: Flow | UdpFlow | None) -> None:
        """The status byte of a flow that the peer asked for."""
        offer = self._streams.get(stream_id)
        if isinstance(offer, Incoming):
            is_tcp = isinstance(offer, IncomingTcp)
            self._tell_answer(stream_id, offer.target, is_tcp, flow is not None, True, offer.head_bytes)
        if flow is None:
            self._forget(stream_id)
            self.send_stream(stream_id, bytes((status,)), True)
            return
        self._stands(stream_id, flow)
        self.send_stream(stream_id, bytes((status,)), False)
        if isinstance(flow, UdpFlow):
            for frame in self._datagrams.kept(stream_id):
                self._loop.call_soon(flow.frame_received, frame, self.now())

    def _stands(self, stream_id: int, flow: Flow | UdpFlow) -> None:
        self._streams[stream_id] = flow
        offset = self._told_ends.pop(stream_id, None)
        if offset is not None and isinstance(flow, Flow):
            self._end(stream_id, flow, offset)

    def _end(self, stream_id: int, flow: Flow, offset: int) -> None:
        if not flow.end_received:
            self._unfinished[stream_id] = self._loop.time()
            flow.end_told(offset)

    def _tell_answer(
        self, stream_id: int, target: Target, is_tcp: bool, accepted: bool, from_here: bool, asked: int
    ) -> None:
        if not self.line.watchers:
            return
        if is_tcp:
            self.line.tell(Kind.ACCEPTED if accepted else Kind.REFUSED, stream_id, target, from_here, 0, asked)
        elif not accepted:
            self.line.tell(Kind.UNREACHABLE, stream_id, target, from_here)

    def _drop(self, stream_id: int) -> None:
        self._forget(stream_id)
        self.abort_stream(stream_id)

    def _forget(self, stream_id: int) -> None:
        """The stream is over: what still comes of it is not a new one."""
        self._streams.pop(stream_id, None)
        self._ended[stream_id] = None
        if len(self._ended) > ENDED_REMEMBERED:
            del self._ended[next(iter(self._ended))]

    # --- what the engine reports of them ------------------------------------------------------------------------

    def received(self, stream_id: int, data: bytes, end: bool) -> None:
        """Bytes of a stream; raises WireError once credit was exceeded three times."""
        if end:
            self._unfinished.pop(stream_id, None)
        stream = self._streams.get(stream_id)
        if isinstance(stream, Flow | UdpFlow | Opening):
            if not stream.stream_received(data, end):
                self._overruns += 1
                if self._overruns >= OVERRUNS_LIMIT:
                    raise WireError("credit was exceeded three times")
        elif isinstance(stream, Incoming):
            if not stream.buffer(data, end):
                stream.reset = True
                self._drop(stream_id)
        elif stream is not None or (stream_id & 3 == self._initiator and stream_id not in self._ended):
            self._head_received(stream_id, data, end)

    def _head_received(self, stream_id: int, data: bytes, end: bool) -> None:
        head = self._streams.get(stream_id)
        if not isinstance(head, Head):
            if not self._takes_new() or len(self._streams) >= FLOWS_LIMIT:
                self.answer(stream_id, Status.LIMIT, None)
                return
            head = self._streams[stream_id] = Head()
        head.buffer += data
        try:
            parsed = messages.split_open(head.buffer)
        except WireError:
            self._drop(stream_id)
            return
        if parsed is None:
            if end:
                self._drop(stream_id)
            return
        opened, size = parsed
        kind = IncomingUdp if opened.kind == "udp" else IncomingTcp
        offer = kind(self, stream_id, Target(opened.host, opened.port), size, bytes(head.buffer[size:]), end)
        self._streams[stream_id] = offer
        if self.line.watchers and isinstance(offer, IncomingTcp):
            self.line.tell(Kind.ASKED, stream_id, offer.target, False, size - 1)
        self._on_offer(offer)

    def broken(self, stream_id: int, *, sending: bool) -> None:
        """The peer reset its direction of a stream, or (`sending`) takes no more of ours."""
        if not sending:
            self._unfinished.pop(stream_id, None)
        stream = self._streams.get(stream_id)
        if isinstance(stream, Flow | UdpFlow | Opening):
            if sending:
                stream.sending_refused()
            else:
                stream.stream_reset()
        elif stream is not None:
            if isinstance(stream, Incoming):
                stream.reset = True
            self._drop(stream_id)
        elif sending and stream_id in self._ended:
            self.abort_stream(stream_id)  # our FIN was lost

    def datagram(self, data: bytes, now: float) -> None:
        """A DATAGRAM frame."""
        try:
            stream_id = messages.split_datagram(data)[0]
        except WireError:
            return
        stream = self._streams.get(stream_id)
        if isinstance(stream, UdpFlow):
            stream.frame_received(data, now)
        elif not isinstance(stream, Flow):
            self._datagrams.keep(stream_id, data, now)

    def credit(self, limits: list[tuple[int, int]]) -> None:
        """How far the peer lets flows be sent."""
        for stream_id, limit in limits:
            stream = self._streams.get(stream_id)
            if isinstance(stream, Flow):
                stream.credit_received(limit)

    def end_told(self, stream_id: int, offset: int) -> None:
        """The peer's direction of a stream ends at this offset, even if no FIN comes."""
        stream = self._streams.get(stream_id)
        if isinstance(stream, Flow):
            self._end(stream_id, stream, offset)
        elif stream_id not in self._ended:  # its first bytes, or our answer, are still on their way
            self._told_ends[stream_id] = offset
            if len(self._told_ends) > FLOWS_LIMIT:
                del self._told_ends[next(iter(self._told_ends))]

    def look_after(self) -> None:
        """Give up what has waited too long for its answer, and ask for FINs whose end was told; called now and then."""
        now = self._loop.time()
        for deadline, opening in list(self._asked.values()):
            if now < deadline:
                break
            opening.out_of_time(OPEN_TIMEOUT_S)
        for stream_id, asked_at in list(self._unfinished.items()):
            if now - asked_at > FIN_WAIT_S and stream_id not in self._streams:
                self._unfinished[stream_id] = now  # again, if the other end is not done with it yet
                self.refuse_stream(stream_id)

    @property
    def awaits_ends(self) -> bool:
        """Whether a stream's FIN has not come though its end was told."""
        return bool(self._unfinished)

    def take_grants(self) -> list[tuple[int, int]]:
        """The credit to announce now."""
        if not self._grants:
            return []
        grants, self._grants = list(self._grants.items()), {}
        return grants

    @property
    def waits(self) -> bool:
        """Whether a flow or a grant is to be sent."""
        return bool(self._ready or self._grants)

    def pump(self) -> bool:
        """Give the engine one more chunk, of the flow whose turn it is; False if it got none."""
        supply = self.link.supply
        room = min(supply.room, supply.chunk_bytes) if self._ready and not self.link.closed else 0
        if room <= 0:
            return False
        flow = next(iter(self._ready))
        del self._ready[flow]
        if flow.ready:
            flow.pump(room)
            if flow.ready:
                self._ready[flow] = None
        return True

    def lose_all(self) -> None:
        """The connection is over."""
        for stream in list(self._streams.values()):
            if isinstance(stream, Flow | UdpFlow | Opening):
                stream.stream_lost(FlowLost(f"the connection to {self.peer_name} was lost"))
            elif isinstance(stream, Incoming):
                stream.reset = True
        self._streams.clear()
        self._ready.clear()
