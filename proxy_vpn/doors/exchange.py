"""ExchangeDuplex: an HTTP client seen through its exchange, so that a plain request is spliced like any stream."""

from __future__ import annotations

from proxy_vpn.doors.tcp import TcpDuplex
from proxy_vpn.errors import WireError
from proxy_vpn.mesh.duplex import Sink
from proxy_vpn.wire.http import HttpExchange


class ExchangeDuplex:
    """A Duplex that delivers the rewritten request and is written the server's answer; the client gets it rewritten.

    Rewriting changes sizes, so bytes are paid for in arrears: what came in counts as dealt with as soon as no more than
    that is left of what went out.
    """

    def __init__(self, client: TcpDuplex, exchange: HttpExchange) -> None:
        self._client = client
        self._exchange = exchange
        self._sink: Sink | None = None
        self._request = _Tally()
        self._answer = _Tally()

    def start(self, sink: Sink) -> None:
        """Deliver to `sink`: the rewritten head first."""
        self._sink = sink
        self._client.start(self)
        try:
            head = self._exchange.start()
        except WireError as error:
            self._refuse(error)
            return
        self._request.add(0, len(head))
        sink.data_received(head)

    def write(self, data: bytes | memoryview) -> None:
        """Bytes of the server's answer."""
        self._pass_answer(bytes(data))

    def write_eof(self) -> None:
        """The server ended its direction, which may be what ends its answer."""
        self._pass_answer(b"")

    def consumed(self, size: int) -> None:
        """`size` more bytes of the rewritten request are dealt with."""
        self._client.consumed(self._request.settle(size))

    def reset(self) -> None:
        """Break the client's connection, or let it have what is complete (see TcpDuplex.reset)."""
        self._client.reset()

    def data_received(self, data: bytes) -> None:
        """Bytes of the client's request."""
        self._pass_request(data)

    def eof_received(self) -> None:
        """The client ended its direction."""
        try:
            self._exchange.end_request()
        except WireError as error:
            self._break(error)
            return
        if self._sink is not None:
            self._sink.eof_received()

    def written(self, size: int) -> None:
        """`size` more bytes of the rewritten answer have left."""
        self._report_written(size)

    def finished(self) -> None:
        """Both of the client's directions ended."""
        if self._sink is not None:
            self._sink.finished()

    def lost(self, error: Exception) -> None:
        """The client broke off."""
        if self._sink is not None:
            self._sink.lost(error)

    def _pass_request(self, data: bytes) -> None:
        if self._sink is None:
            return
        try:
            rewritten = self._exchange.receive_request(data)
        except WireError as error:
            self._refuse(error)
            return
        self._request.add(len(data), len(rewritten))
        if rewritten:
            self._sink.data_received(rewritten)
        self._client.consumed(self._request.settle(0))

    def _pass_answer(self, data: bytes) -> None:
        if self._exchange.downstream_ended:
            # Nothing may follow a complete answer; it is taken and dropped.
            self._answer.add(len(data), 0)
            self._report_written(0)
            return
        try:
            rewritten = self._exchange.receive_answer(data)
        except WireError as error:
            self._refuse(error)
            return
        self._answer.add(len(data), len(rewritten))
        self._client.write(rewritten)
        if self._exchange.downstream_ended:
            self._client.write_eof()
        self._report_written(0)

    def _report_written(self, size: int) -> None:
        settled = self._answer.settle(size)
        if settled and self._sink is not None:
            self._sink.written(settled)

    def _refuse(self, error: WireError) -> None:
        """Say so if the client has heard nothing yet; in the middle of an answer only a broken connection is honest."""
        if not self._exchange.answered:
            self._client.write(self._exchange.refusal(error))
            self._client.write_eof()
        self._break(error)

    def _break(self, error: WireError) -> None:
        self._client.reset()
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.lost(error)


class _Tally:
    """Bytes that came in, against the bytes they became on the way out."""

    def __init__(self) -> None:
        self._came_in = 0
        self._went_out = 0

    def add(self, came_in: int, went_out: int) -> None:
        self._came_in += came_in
        self._went_out += went_out

    def settle(self, left: int) -> int:
        """`left` more of what went out is gone; how many more of what came in are therefore dealt with."""
        self._went_out -= left
        settled = max(0, self._came_in - self._went_out)
        self._came_in -= settled
        return settled
