"""A name server over TCP (RFC 7766): the far end of a connection to it, as a Duplex."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from typing import Final, Protocol

from proxy_vpn.addresses import Target
from proxy_vpn.mesh.duplex import Duplex, Sink

DNS_PORT: Final = 53
MAX_WAITING_BYTES: Final = 16 * 1024
MAX_UNREAD_BYTES: Final = 64 * 1024
_LENGTH_BYTES: Final = 2
Respond = Callable[[bytes], Awaitable[bytes | None]]


class DnsStream:
    """Answers queries in order, each with its length before it; who floods it or does not read is cut off.

    `respond`: the response to a query; None for what gets none.
    """

    def __init__(self, respond: Respond) -> None:
        self._respond = respond
        self._sink: Sink | None = None
        self._buffer = bytearray()
        self._answers: deque[bytes] = deque()
        self._unread = 0
        self._taken = 0  # bytes not yet reported as written
        self._ended = False
        self._working: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    def start(self, sink: Sink) -> None:
        self._sink = sink
        self._work()

    def write(self, data: bytes | memoryview) -> None:
        if self._ended:
            return
        self._buffer += data
        self._taken += len(data)
        if len(self._buffer) > MAX_WAITING_BYTES or self._unread > MAX_UNREAD_BYTES:
            self._break()
        else:
            self._work()

    def write_eof(self) -> None:
        self._ended = True
        self._work()

    def consumed(self, size: int) -> None:
        self._unread -= size

    def reset(self) -> None:
        self._sink = None
        self._ended = True
        self._buffer.clear()
        if self._working is not None:
            self._working.cancel()

    def _break(self) -> None:
        sink = self._sink
        self.reset()
        if sink is not None:
            self._loop.call_soon(sink.lost, ConnectionResetError("too many queries at once"))

    def _work(self) -> None:
        if self._sink is not None and self._working is None:
            self._working = self._loop.create_task(self._answer_all())

    async def _answer_all(self) -> None:
        try:
            while (query := self._next_query()) is not None:
                self._report_taken()
                response = await self._respond(query)
                if response is not None and self._sink is not None:
                    framed = len(response).to_bytes(_LENGTH_BYTES, "big") + response
                    self._unread += len(framed)
                    self._sink.data_received(framed)
            self._report_taken()
        finally:
            self._working = None
        if self._ended and self._sink is not None:
            sink, self._sink = self._sink, None
            sink.eof_received()
            sink.finished()

    def _report_taken(self) -> None:
        taken, self._taken = self._taken, 0
        if taken and self._sink is not None:
            self._sink.written(taken)

    def _next_query(self) -> bytes | None:
        size = _LENGTH_BYTES + int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
        if self._sink is None or len(self._buffer) < max(size, _LENGTH_BYTES + 1):
            return None
        query = bytes(self._buffer[_LENGTH_BYTES:size])
        del self._buffer[:size]
        return query


class TcpOpener(Protocol):
    """What opens streams to everything else: an Outgoing."""

    async def open_tcp(self, target: Target) -> Duplex:
        """A stream to `target`; raises FlowError."""


class NamesFirst:
    """Opens streams to the name server at `addresses`, and others through `outgoing`."""

    def __init__(self, outgoing: TcpOpener, addresses: Collection[str], respond: Respond) -> None:
        self._beyond = outgoing
        self._addresses = addresses
        self._respond = respond

    async def open_tcp(self, target: Target) -> Duplex:
        """A stream to `target`; raises FlowError."""
        if target.host in self._addresses and target.port == DNS_PORT:
            return DnsStream(self._respond)
        return await self._beyond.open_tcp(target)
