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

from proxy_vpn.errors import WireError
from proxy_vpn.mesh.credit import Budget
from proxy_vpn.mesh.openings import Incoming
from proxy_vpn.mesh.paths import PathMonitor
from proxy_vpn.mesh.sizes import SizeCheck
from proxy_vpn.mesh.streams import CONTROL_STREAM, Streams
from proxy_vpn.net.quic import INTERNAL_ERROR, Link
from proxy_vpn.net.udp import Path
from proxy_vpn.wire import messages
from proxy_vpn.wire.membership import Frames, Initiator, Member, Refused, Responder, channel_binding

AUTH_TIMEOUT_S = 5.0
DRAIN_TIMEOUT_S = 2.0
BYE_TIMEOUT_S = 3.0
EARLY_BYTES = 64 * 1024
EARLY_EVENTS = 64
_CLOSE_NORMAL, _CLOSE_AUTH, _CLOSE_PROTOCOL, _CLOSE_TWIN = 0x100, 0x101, 0x102, 0x103
_CLOSE_TEXTS = {
    _CLOSE_NORMAL: "closed by the peer",
    _CLOSE_AUTH: "the peer did not accept our authentication",
    _CLOSE_PROTOCOL: "the peer found a mistake in what we sent",
    INTERNAL_ERROR: "the peer had an internal error",
    _CLOSE_TWIN: "another machine carries this device's identity",
}
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

    def routes_received(self, session: Session, message: messages.Routes) -> None: ...

    def relay_received(self, session: Session, message: messages.RelayMessage) -> None: ...

    def relayed_received(self, session: Session, frame: bytes) -> None: ...


Prover = Initiator | Responder


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
        self.reach: messages.Reach | None = None
        self.told: dict[type[messages.Message], messages.Message] = {}
        self.peer_name = "?"
        self.link: Link
        self.streams = Streams(
            initiator=initiator,
            budget=budget,
            on_offer=lambda offer: owner.flow_offered(self, offer),
            is_open=lambda: self.is_open,
            takes_new=lambda: self.state is State.LIVE,
        )
        self.closing_reason = ""
        self.said_goodbye = False
        self.twin = False
        self.racing = False
        self.asked_for = 0.0
        self.alarmed = False
        self.rests_until = 0.0
        self.rests_with = 0
        self.paths: PathMonitor | None = None
        self.sizes: SizeCheck | None = None
        self.path_secret = (b"", b"")
        self.on_settled: list[Callable[[], object]] = []
        self.on_closed: list[Callable[[], object]] = []
        self._owner = owner
        self._prove = prove
        self._welcome = welcome
        self._prover: Prover | None = None
        self._frames = Frames()
        self._control = messages.ControlReader()
        self._early: list[tuple[int, bytes, bool]] = []
        self._repaired = 0
        self._drained = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.started_at = self.heard_at = self.live_at = self._loop.time()
        self._deadline = self._loop.call_later(AUTH_TIMEOUT_S, self._auth_timed_out)

    def attach(self, link: Link) -> None:
        """The link that carries this session; called once, right after construction."""
        self.link = self.streams.link = link

    # --- what the mesh asks for -----------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether streams can still be answered."""
        return self.state in (State.LIVE, State.CLOSING)

    @property
    def relayed(self) -> bool:
        """Whether it goes through another member now."""
        return self.paths is not None and self.paths.current.remote.relayed

    @property
    def settled(self) -> bool:
        """Whether no better path is needed than the one in use."""
        return self.paths is None or not (self.paths.suspect or self.relayed)

    def introduce(self, peer_name: str) -> None:
        """What we call the peer."""
        self.peer_name = self.streams.peer_name = peer_name

    def send_control(self, message: messages.Message) -> None:
        """Queue a control message."""
        self.streams.send_control(message)

    def tell_repairs(self) -> None:
        """Tell the peer what its parities were good for, if they were; called a few times a second."""
        repaired = self.link.trains.repaired
        if repaired != self._repaired:
            self._repaired = repaired
            self.send_control(messages.Repaired(repaired))

    async def finish(self, reason: str) -> None:
        """Bye: no new flows; wait for the open ones (2 s), then close."""
        if self.state is State.LIVE:
            self.state = State.CLOSING
            self.send_control(messages.Bye(reason))
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_TIMEOUT_S):
                    await self._drained.wait()
        self.close(reason)

    def close(self, reason: str, *, twin: bool = False) -> None:
        """Close now; open flows are lost. `twin`: because another machine carries the peer's identity."""
        self.closing_reason = self.closing_reason or reason
        self.link.close(_CLOSE_TWIN if twin else _CLOSE_NORMAL, "")

    # --- LinkHandler: what the engine reports ------------------------------------------------------------------

    def handshake_completed(self) -> None:
        if self.state is State.CLOSED:
            return
        self.state = State.AUTHENTICATING
        try:
            self._prover = self._prove(channel_binding(*self.link.engine.secrets()))
        except WireError as error:
            self._fail(_CLOSE_AUTH, str(error))
            return
        if isinstance(self._prover, Initiator):
            self.streams.send_stream(self.link.engine.open_stream(), self._prover.start(), False)

    def stream_data_received(self, stream_id: int, data: bytes, end: bool) -> None:
        if self.state is State.CLOSED:  # by an event just before this one
            return
        self.heard_at = self.link.received_at
        if stream_id == CONTROL_STREAM:
            self._control_received(data, end)
        elif self.member is not None and self.theirs is None:
            self._keep_early(stream_id, data, end)
        elif not self.is_open:
            self._fail(_CLOSE_PROTOCOL, "a stream before authentication")
        else:
            try:
                self.streams.received(stream_id, data, end)
            except WireError as error:
                self._fail(_CLOSE_PROTOCOL, str(error))

    def _keep_early(self, stream_id: int, data: bytes, end: bool) -> None:
        """A proven peer's first flows may overtake its welcome; they wait for it."""
        self._early.append((stream_id, data, end))
        if sum(len(held) for _, held, _ in self._early) > EARLY_BYTES or len(self._early) > EARLY_EVENTS:
            self._fail(_CLOSE_PROTOCOL, "too much before the welcome")

    def stream_reset_received(self, stream_id: int, code: int) -> None:
        self._stream_broken(stream_id, sending=False)

    def stop_sending_received(self, stream_id: int, code: int) -> None:
        self._stream_broken(stream_id, sending=True)

    def _stream_broken(self, stream_id: int, *, sending: bool) -> None:
        if self.state is State.CLOSED:
            return
        if stream_id == CONTROL_STREAM:
            self._fail(_CLOSE_PROTOCOL, "the control stream was reset")
        else:
            self.streams.broken(stream_id, sending=sending)

    def datagram_received(self, data: bytes) -> None:
        self.heard_at = self.link.received_at
        if not self.is_open:
            return
        if messages.is_relayed(data):
            self._owner.relayed_received(self, data)
        else:
            self.streams.datagram(data, self.heard_at)

    def ping_acknowledged(self, number: int) -> None:
        self.heard_at = self.link.received_at

    def connection_id_issued(self, connection_id: bytes) -> None:
        self.link.add_connection_id(connection_id)

    def connection_id_retired(self, connection_id: bytes) -> None:
        self.link.remove_connection_id(connection_id)

    def terminated(self, code: int, reason: str) -> None:
        self.twin = self.twin or code == _CLOSE_TWIN
        self.link.ended(_CLOSE_TEXTS.get(code) or reason or f"QUIC error {code:#x}")

    def path_heard(self, path: Path) -> None:
        self._owner.session_path_heard(self, path)

    @property
    def waits_for_room(self) -> bool:
        return self.state is not State.LIVE or self.streams.waits

    def room_available(self) -> bool:
        limits = self.streams.take_grants()
        if limits:
            self.send_control(messages.Credit(limits))
        moved = self.streams.pump()
        # Sent is not arrived, and close() drops what is not acknowledged.
        if self.state is State.CLOSING and not len(self.streams) and not self.link.engine.unacknowledged:
            self._drained.set()
        return moved or bool(limits)

    def link_closed(self, reason: str) -> None:
        was, self.state = self.state, State.CLOSED
        self._drained.set()
        self._settled()
        if self.paths is not None:
            self.paths.close()
        for callback in self.on_closed:
            callback()
        reason = self.closing_reason = self.closing_reason or reason
        self.streams.lose_all()
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
                self.streams.send_stream(CONTROL_STREAM, reply, False)
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
            early, self._early = self._early, []
            for stream_id, data, end in early:
                self.stream_data_received(stream_id, data, end)
            return
        match message:
            case messages.Credit():
                self.streams.credit(message.limits)
            case messages.Repaired():
                self.link.trains.expect_losses(self._loop.time())
            case messages.Ended():
                self.streams.end_told(message.stream, message.offset)
            case messages.Reach():
                self.reach = message
            case messages.Routes():
                self._owner.routes_received(self, message)
            case messages.Peers():
                self._owner.peers_received(self, message.records)
            case (
                messages.RelayOpen()
                | messages.RelayAccepted()
                | messages.RelayRefused()
                | messages.RelayIncoming()
                | messages.RelayClose()
            ):
                if self.is_open:
                    self._owner.relay_received(self, message)
            case messages.Bye():
                if self.state is State.LIVE:
                    self.state = State.CLOSING
                    self.said_goodbye = True
                    self.closing_reason = "said goodbye"
                    # The peer's close is one datagram, which may get lost.
                    self._deadline = self._loop.call_later(BYE_TIMEOUT_S, self.close, "said goodbye")

    def _settled(self) -> None:
        """No longer half open: authenticated, or over."""
        self._deadline.cancel()
        for callback in self.on_settled:
            callback()
        self.on_settled.clear()

    def _auth_timed_out(self) -> None:
        self._fail(_CLOSE_AUTH, f"no authentication within {AUTH_TIMEOUT_S:.0f} s")

    def _fail(self, code: int, reason: str) -> None:
        self.closing_reason = self.closing_reason or reason
        self.link.close(code, "")
