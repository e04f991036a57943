"""A flow's first steps: asked for by us (Opening), or by the peer (Head, then Incoming) until it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from proxy_vpn.addresses import Target
from proxy_vpn.errors import FlowError, FlowLost, Status
from proxy_vpn.mesh.credit import IMPLIED_CREDIT_BYTES
from proxy_vpn.mesh.flow import Carrier, Flow
from proxy_vpn.mesh.udp_flow import UdpFlow

_AnyFlow = TypeVar("_AnyFlow", Flow, UdpFlow)
_STATUSES = {int(status): status for status in Status}


class Answering(Carrier, Protocol):
    """What an offer needs of its session."""

    @property
    def is_open(self) -> bool: ...

    def answer(self, stream_id: int, status: Status, flow: Flow | UdpFlow | None) -> None: ...


class Incoming:
    """A flow that a peer asks for, to `port` of this host or of `host` beyond it: accept or refuse it, once."""

    def __init__(
        self, session: Answering, stream_id: int, wanted: Target, received: int, rest: bytes, ended: bool
    ) -> None:
        self.host = wanted.host
        self.port = wanted.port
        self.peer_name = session.peer_name
        self.target = Target(wanted.host or self.peer_name, wanted.port)
        self.head_bytes = received
        self.reset = False
        self._session = session
        self._stream_id = stream_id
        self._rest = rest
        self._ended = ended

    def buffer(self, data: bytes, end: bool) -> bool:
        """Bytes that arrive before the answer; False beyond the implied credit."""
        self._rest += data
        self._ended = self._ended or end
        return self.head_bytes + len(self._rest) <= IMPLIED_CREDIT_BYTES

    def refuse(self, status: Status) -> None:
        """Say no; nothing happens if the peer has given up."""
        if not self.reset and self._session.is_open:
            self._session.answer(self._stream_id, status, None)

    def _answer(self, flow: Flow | UdpFlow) -> None:
        if self.reset or not self._session.is_open:
            raise FlowLost(f"{self.peer_name} gave up")
        self._session.answer(self._stream_id, Status.OK, flow)


class IncomingTcp(Incoming):
    """A TCP flow that a peer asks for."""

    def accept(self) -> Flow:
        """Say yes; raises FlowLost if the peer has given up."""
        flow = Flow(self._session, self._stream_id, self.target, sent=1, received=self.head_bytes)
        self._answer(flow)
        flow.stream_received(self._rest, self._ended)
        return flow


class IncomingUdp(Incoming):
    """A UDP flow that a peer asks for."""

    def accept(self) -> UdpFlow:
        """Say yes; raises FlowLost if the peer has given up."""
        flow = UdpFlow(self._session, self._stream_id, self.target)
        self._answer(flow)
        return flow


class Opening(Generic[_AnyFlow]):
    """A flow we asked for: `answered` turns the status byte into a flow in our place, or fails `answer`."""

    def __init__(
        self, target: Target, answer: asyncio.Future[_AnyFlow], answered: Callable[[Status], _AnyFlow | None]
    ) -> None:
        self._target = target
        self._answer: asyncio.Future[_AnyFlow] = answer
        self._answered: Callable[[Status], _AnyFlow | None] = answered

    def stream_received(self, data: bytes, end: bool) -> bool:
        """The status byte, and perhaps what follows it."""
        if self._answer.done():
            return True
        if not data:
            self.stream_reset()
            return True
        status = _STATUSES.get(data[0], Status.INTERNAL)
        flow = self._answered(status)
        return flow is None or (len(data) == 1 and not end) or flow.stream_received(data[1:], end)

    def stream_reset(self) -> None:
        """The peer gave up."""
        self._fail(FlowError(Status.UNREACHABLE, "the peer gave the connection up"))

    def sending_refused(self) -> None:
        """The peer gave up, or has answered no: then the status says why."""

    def stream_lost(self, error: FlowLost, abort: bool = False) -> None:
        """The connection broke."""
        self._fail(FlowError(Status.UNREACHABLE, str(error)))

    def out_of_time(self, limit_s: float) -> None:
        """No answer came within `limit_s`."""
        self._fail(FlowError(Status.TIMEOUT, f"{self._target} did not answer within {limit_s:.0f} s"))

    def _fail(self, error: FlowError) -> None:
        if not self._answer.done():
            self._answer.set_exception(error)


class Head:
    """A peer's new stream until its Open is complete."""

    def __init__(self) -> None:
        self.buffer = bytearray()


def refusal(status: Status, target: Target, through: str = "") -> FlowError:
    """The error that tells a user why a peer did not open a flow to `target`, which may lie beyond it."""
    if through:
        return _refusal_beyond(status, target, through)
    texts = {
        Status.POLICY: (f"{target.host} does not expose port {target.port}", f"run 'pvpn expose {target.port}' there"),
        Status.REFUSED: (f"nothing listens on port {target.port} of {target.host}", "start the service there"),
        Status.TIMEOUT: (f"the service at {target} did not answer in time", "is it overloaded or firewalled?"),
        Status.LIMIT: (f"{target.host} has too many open connections", "close some and try again"),
    }
    what, hint = texts.get(status, (f"{target.host} could not reach port {target.port}", ""))
    return FlowError(status, what, hint)


def _refusal_beyond(status: Status, target: Target, through: str) -> FlowError:
    texts = {
        Status.POLICY: (
            f"{through} does not lead to {target.host}",
            "see --route and --offer-exit of 'pvpn run' there",
        ),
        Status.REFUSED: (f"nothing listens on {target}, says {through}", "start the service there"),
        Status.TIMEOUT: (f"{target} did not answer {through} in time", "is it overloaded or firewalled?"),
        Status.NO_SUCH_NAME: (f"no host is called {target.host}, says {through}", ""),
        Status.LIMIT: (f"{through} has too many open connections", "close some and try again"),
    }
    what, hint = texts.get(status, (f"{through} could not reach {target}", ""))
    return FlowError(status, what, hint)
