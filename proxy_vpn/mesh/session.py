"""A Session is one authenticated connection to a peer: AUTH, the control stream, and the flows it carries.

    connecting --HandshakeCompleted--> authenticating --M4 and Welcome--> live --> closed
         \\________________5 s______________/                              \\_ Bye: no new flows, then closed

Stream 0 carries AUTH and then control messages; every other stream is a flow. The control reader never waits
for a flow or a program.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import Protocol

from proxy_vpn.addresses import Target
from proxy_vpn.errors import FlowError, FlowLost, Status, WireError
from proxy_vpn.mesh.datagrams import DatagramSender
from proxy_vpn.mesh.flow import CHUNK_BYTES, RESET_CODE, Budget, Flow, UdpFlow
from proxy_vpn.mesh.openings import Head, Incoming, IncomingTcp, IncomingUdp, Opening, refusal
from proxy_vpn.mesh.paths import PathMonitor
from proxy_vpn.net.engine import StreamsExhausted
from proxy_vpn.net.quic import BACKLOG_BYTES, Link
from proxy_vpn.net.udp import Path
from proxy_vpn.wire import messages
from proxy_vpn.wire.membership import Frames, Initiator, Member, Refused, Responder, channel_binding

AUTH_TIMEOUT_S = 5.0
OPEN_TIMEOUT_S = 15.0
STREAM_WAIT_S = 10.0
DRAIN_TIMEOUT_S = 2.0
FLOWS_LIMIT = 1024
OVERRUNS_LIMIT = 3
ENDED_REMEMBERED = 4096
SMALL_WRITE_BYTES = 4096
SMALL_BACKLOG_BYTES = 512 * 1024
_CONTROL_STREAM = 0
_LAST_PING = 1
_CLOSE_NORMAL, _CLOSE_AUTH, _CLOSE_PROTOCOL = 0x100, 0x101, 0x102
_log = logging.getLogger(__name__)


class State(Enum):
    """Where a session is in its life; see the picture above."""

    CONNECTING = "connecting"
    AUTHENTICATING = "authenticating"
    LIVE = "live"
    CLOSING = "closing"
    CLOSED = "closed"


class Owner(Protocol):
    """The mesh: who hears of a session's life and answers its questions."""

    def session_live(self, session: Session) -> None: ...

    def session_closed(self, session: Session, reason: str) -> None: ...

    def session_path_heard(self, session: Session, path: Path) -> None: ...

    def flow_offered(self, session: Session, offer: Incoming) -> None: ...

    def peers_received(self, session: Session, records: list[bytes]) -> None: ...


Prover = Initiator | Responder


_Stream = Flow | UdpFlow | Incoming | Opening | Head


class Session:
    """One connection to one peer; `prover` is our side of AUTH once the TLS secrets are there."""

    def __init__(
        self,
        owner: Owner,
        prove: Callable[[bytes], Prover],
        welcome: Callable[[], messages.Welcome],
        *,
        initiator: bool,
        budget: Budget,
    ) -> None:
        self.initiator = initiator
        self.state = State.CONNECTING
        self.member: Member | None = None
        self.theirs: messages.Welcome | None = None
        self.peer_name = "?"
        self.budget = budget
        self.link: Link
        self.closing_reason = ""
        self.said_goodbye = False
        self.paths: PathMonitor | None = None
        self.path_secret = (b"", b"")
        self.on_settled: list[Callable[[], object]] = []
        self.on_closed: list[Callable[[], object]] = []
        self._owner = owner
        self._prove = prove
        self._welcome = welcome
        self._prover: Prover | None = None
        self._frames = Frames()
        self._control = messages.ControlReader()
        self._streams: dict[int, _Stream] = {}
        self._ready: dict[Flow, None] = {}
        self._grants: dict[int, int] = {}
        self._ended: dict[int, None] = {}
        self._datagrams = DatagramSender()
        self._overruns = 0
        self._least_rtt_s: float | None = None
        self._drained = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.started_at = self.heard_at = self._loop.time()
        self._deadline = self._loop.call_later(AUTH_TIMEOUT_S, self._auth_timed_out)

    def attach(self, link: Link) -> None:
        """The link that carries this session; called once, right after construction."""
        self.link = link

    # --- the Carrier that flows see ----------------------------------------------------------------------------

    @property
    def rtt_s(self) -> float | None:
        """The smallest round trip seen: without the queues that our own windows make."""
        seen = [rtt for rtt in (self._least_rtt_s, self.link.engine.rtt_s) if rtt is not None]
        if self.paths is not None and self.paths.rtt_s is not None:
            seen.append(self.paths.rtt_s)
        self._least_rtt_s = min(seen, default=None)
        return self._least_rtt_s

    def now(self) -> float:
        return self._loop.time()

    def has_room(self, size: int) -> bool:
        limit = SMALL_BACKLOG_BYTES if size <= SMALL_WRITE_BYTES else BACKLOG_BYTES
        return self.link.engine.backlog < limit and not self.link.closed

    def send_stream(self, stream_id: int, data: bytes | memoryview, end: bool) -> None:
        if self.link.closed:
            return
        # Both packages raise for a stream that the peer has just stopped; the event that says so is on its way.
        with suppress(Exception):
            self.link.engine.send(stream_id, data, end)
        self.link.wake()

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
        if self.state is State.CLOSING:
            self.link.wake()

    def send_flow_datagram(self, stream_id: int, payload: bytes) -> None:
        if self.link.closed:
            return
        for frame in self._datagrams.frames(stream_id, payload, self.link.engine.datagram_limit, self.now()):
            self.link.engine.send_datagram(frame)
        self.link.wake()

    # --- what the mesh and the doors ask for -------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether streams can still be answered."""
        return self.state in (State.LIVE, State.CLOSING)

    @property
    def flows(self) -> int:
        """How many flows are open or being opened."""
        return len(self._streams)

    async def open_tcp(self, target: Target) -> Flow:
        """A TCP flow to a port of the peer; raises FlowError."""
        stream_id, size, rest, end = await self._open("tcp", target)
        flow = Flow(self, stream_id, target, sent=size, received=1)
        self._streams[stream_id] = flow
        flow.stream_received(rest, end)
        return flow

    async def open_udp(self, target: Target) -> UdpFlow:
        """A UDP flow to a port of the peer; raises FlowError."""
        stream_id, _, _, _ = await self._open("udp", target)
        flow = self._streams[stream_id] = UdpFlow(self, stream_id, target)
        return flow

    async def _open(self, kind: str, target: Target) -> tuple[int, int, bytes, bool]:
        stream_id = await self._next_stream()
        head = messages.encode_open(messages.Open(kind, 0, target.port))
        answer: asyncio.Future[tuple[Status, bytes, bool]] = self._loop.create_future()
        self._streams[stream_id] = Opening(answer)
        self.send_stream(stream_id, head, False)
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                status, rest, end = await answer
        except TimeoutError:
            self._drop(stream_id)
            raise FlowError(Status.TIMEOUT, f"{target} did not answer within {OPEN_TIMEOUT_S:.0f} s") from None
        except BaseException:
            self._drop(stream_id)
            raise
        if status is not Status.OK:
            self._drop(stream_id)
            raise refusal(status, target)
        return stream_id, len(head), rest, end

    async def _next_stream(self) -> int:
        try:
            async with asyncio.timeout(STREAM_WAIT_S):
                while True:
                    if self.state is not State.LIVE:
                        raise FlowError(Status.UNREACHABLE, f"{self.peer_name} has just gone")
                    try:
                        return self.link.engine.open_stream()
                    except StreamsExhausted:
                        # No event tells when the peer raises its limit; ended streams do it.
                        await asyncio.sleep(0.05)
        except TimeoutError:
            hint = "close some and try again"
            raise FlowError(Status.LIMIT, f"too many connections to {self.peer_name}", hint) from None

    def _drop(self, stream_id: int) -> None:
        self._forget(stream_id)
        self.abort_stream(stream_id)

    def _forget(self, stream_id: int) -> None:
        """The stream is over: what still comes of it is not a new one."""
        self._streams.pop(stream_id, None)
        self._ended[stream_id] = None
        if len(self._ended) > ENDED_REMEMBERED:
            del self._ended[next(iter(self._ended))]

    def answer(self, stream_id: int, status: Status, flow: Flow | UdpFlow | None) -> None:
        """The status byte of a flow that the peer asked for."""
        if flow is None:
            self._forget(stream_id)
            self.send_stream(stream_id, bytes((status,)), True)
            return
        self._streams[stream_id] = flow
        self.send_stream(stream_id, bytes((status,)), False)
        if isinstance(flow, UdpFlow):
            for frame in self._datagrams.kept(stream_id):
                self._loop.call_soon(flow.frame_received, frame, self.now())

    def send_control(self, message: messages.Message) -> None:
        """Queue a control message."""
        self.send_stream(_CONTROL_STREAM, messages.encode_control(message), False)

    async def finish(self, reason: str) -> None:
        """Bye: no new flows; wait for the open ones (2 s), then close."""
        if self.state is State.LIVE:
            self.state = State.CLOSING
            self.send_control(messages.Bye(reason))
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_TIMEOUT_S):
                    await self._drained.wait()
                    # Sent is not arrived, and close() drops what is not: an acknowledged PING came after it.
                    self._drained.clear()
                    self.link.engine.ping(_LAST_PING)
                    self.link.wake()
                    await self._drained.wait()
        self.close(reason)

    def close(self, reason: str) -> None:
        """Close now; open flows are lost."""
        self.closing_reason = self.closing_reason or reason
        self.link.close(_CLOSE_NORMAL, "")

    # --- LinkHandler: what the engine reports ------------------------------------------------------------------

    def handshake_completed(self) -> None:
        self.state = State.AUTHENTICATING
        try:
            self._prover = self._prove(channel_binding(*self.link.engine.secrets()))
        except WireError as error:
            self._fail(_CLOSE_AUTH, str(error))
            return
        if isinstance(self._prover, Initiator):
            self.send_stream(self.link.engine.open_stream(), self._prover.start(), False)

    def stream_data_received(self, stream_id: int, data: bytes, end: bool) -> None:
        self.heard_at = self.link.received_at
        stream = self._streams.get(stream_id)
        if isinstance(stream, Flow | UdpFlow | Opening):
            if not stream.stream_received(data, end):
                self._overrun()
        elif stream_id == _CONTROL_STREAM:
            self._control_received(data, end)
        elif not self.is_open:
            self._fail(_CLOSE_PROTOCOL, "a stream before authentication")
        elif isinstance(stream, Incoming):
            if not stream.buffer(data, end):
                self._drop(stream_id)
        elif stream is not None or (stream_id & 3 == self.initiator and stream_id not in self._ended):
            self._head_received(stream_id, data, end)

    def _head_received(self, stream_id: int, data: bytes, end: bool) -> None:
        head = self._streams.get(stream_id)
        if not isinstance(head, Head):
            if self.state is not State.LIVE or len(self._streams) >= FLOWS_LIMIT:
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
        offer = kind(self, stream_id, opened.port, size, bytes(head.buffer[size:]), end)
        self._streams[stream_id] = offer
        self._owner.flow_offered(self, offer)

    def stream_reset_received(self, stream_id: int, code: int) -> None:
        self._stream_broken(stream_id, lambda stream: stream.stream_reset())

    def stop_sending_received(self, stream_id: int, code: int) -> None:
        self._stream_broken(stream_id, lambda stream: stream.sending_refused())

    def _stream_broken(self, stream_id: int, tell: Callable[[Flow | UdpFlow | Opening], None]) -> None:
        if stream_id == _CONTROL_STREAM:
            self._fail(_CLOSE_PROTOCOL, "the control stream was reset")
            return
        stream = self._streams.get(stream_id)
        if isinstance(stream, Flow | UdpFlow | Opening):
            tell(stream)
        elif isinstance(stream, Incoming):
            stream.reset = True
            self._drop(stream_id)
        elif stream is not None:
            self._drop(stream_id)

    def datagram_received(self, data: bytes) -> None:
        self.heard_at = self.link.received_at
        try:
            stream_id = messages.split_datagram(data)[0]
        except WireError:
            return
        stream = self._streams.get(stream_id)
        if isinstance(stream, UdpFlow):
            stream.frame_received(data, self.heard_at)
        elif self.state is State.LIVE and (stream is None or isinstance(stream, Incoming | Head | Opening)):
            self._datagrams.keep(stream_id, data, self.heard_at)

    def ping_acknowledged(self, number: int) -> None:
        self.heard_at = self.link.received_at
        if number == _LAST_PING:
            self._drained.set()

    def connection_id_issued(self, connection_id: bytes) -> None:
        self.link.add_connection_id(connection_id)

    def connection_id_retired(self, connection_id: bytes) -> None:
        self.link.remove_connection_id(connection_id)

    def terminated(self, code: int, reason: str) -> None:
        self.link.ended(reason or f"code {code:#x}")

    def path_heard(self, path: Path) -> None:
        self._owner.session_path_heard(self, path)

    def room_available(self) -> None:
        if self._grants:
            limits = list(self._grants.items())
            self._grants.clear()
            self.send_control(messages.Credit(limits))
        if self._ready and self.has_room(CHUNK_BYTES):
            flow = next(iter(self._ready))
            del self._ready[flow]
            if flow.ready:
                flow.pump()
                if flow.ready:
                    self._ready[flow] = None
        if self.state is State.CLOSING and not self._streams and not self.link.engine.backlog:
            self._drained.set()

    def link_closed(self, reason: str) -> None:
        was, self.state = self.state, State.CLOSED
        self._drained.set()
        self._settled()
        if self.paths is not None:
            self.paths.close()
        for callback in self.on_closed:
            callback()
        reason = self.closing_reason or reason
        for stream in list(self._streams.values()):
            if isinstance(stream, Flow | UdpFlow | Opening):
                stream.stream_lost(FlowLost(f"the connection to {self.peer_name} was lost"))
            elif isinstance(stream, Incoming):
                stream.reset = True
        self._streams.clear()
        self._ready.clear()
        if was is not State.CLOSED:
            self._owner.session_closed(self, reason)

    # --- AUTH and control ---------------------------------------------------------------------------------------

    def _control_received(self, data: bytes, end: bool) -> None:
        try:
            if self.member is None:
                data = self._auth_received(data)
            if self.member is not None and data:
                for message in self._control.feed(data):
                    self._handle(message)
        except WireError as error:
            self._fail(_CLOSE_AUTH if self.member is None else _CLOSE_PROTOCOL, str(error))
            return
        if end:
            self._fail(_CLOSE_PROTOCOL, "the control stream ended")

    def _auth_received(self, data: bytes) -> bytes:
        if self._prover is None:
            raise Refused("authentication before the handshake was done")
        message = self._frames.next_message(data)
        while message is not None:
            reply, member = self._prover.receive(message)
            if reply:
                self.send_stream(_CONTROL_STREAM, reply, False)
            if isinstance(self._prover, Responder) and self._prover.refused:
                self.link.settle()
                raise Refused("this identity is not admitted")
            if member is not None:
                self.member = member
                self.send_control(self._welcome())
                return self._frames.rest()
            message = self._frames.next_message(b"")
        return b""

    def _handle(self, message: messages.Message) -> None:
        if self.theirs is None:
            if not isinstance(message, messages.Welcome):
                raise WireError("the first control message is not a welcome")
            if len(message.path_key) != 32 or len(message.path_index) != 4:
                raise WireError("a welcome's path key is malformed")
            self.theirs = message
            self.state = State.LIVE
            self._settled()
            self._owner.session_live(self)
            return
        match message:
            case messages.Credit():
                for stream_id, limit in message.limits:
                    stream = self._streams.get(stream_id)
                    if isinstance(stream, Flow):
                        stream.credit_received(limit)
            case messages.Peers():
                self._owner.peers_received(self, message.records)
            case messages.Ping():
                self.send_control(messages.Pong(message.number))
            case messages.Bye():
                if self.state is State.LIVE:
                    self.state = State.CLOSING
                    self.said_goodbye = True
                    self.closing_reason = "said goodbye"

    def _settled(self) -> None:
        """No longer half open: authenticated, or over."""
        self._deadline.cancel()
        for callback in self.on_settled:
            callback()
        self.on_settled.clear()

    def _overrun(self) -> None:
        self._overruns += 1
        if self._overruns >= OVERRUNS_LIMIT:
            self._fail(_CLOSE_PROTOCOL, "credit was exceeded three times")

    def _auth_timed_out(self) -> None:
        self._fail(_CLOSE_AUTH, f"no authentication within {AUTH_TIMEOUT_S:.0f} s")

    def _fail(self, code: int, reason: str) -> None:
        self.closing_reason = self.closing_reason or reason
        self.link.close(code, "")
