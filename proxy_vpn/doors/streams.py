"""A Duplex as a pair of asyncio streams: the door for Python programs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from proxy_vpn.mesh.duplex import Duplex

HIGH_WATER_BYTES = 256 * 1024
LOW_WATER_BYTES = 64 * 1024


async def open_streams(duplex: Duplex) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Reader and writer over `duplex`; a lost stream raises ConnectionResetError from both."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport = DuplexTransport(duplex, protocol)
    protocol.connection_made(transport)
    duplex.start(transport)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


class DuplexTransport(asyncio.Transport):
    """The asyncio transport over a Duplex, and the Sink that it delivers to."""

    def __init__(self, duplex: Duplex, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._duplex = duplex
        self._protocol = protocol
        self._owed = 0
        self._unwritten = 0
        self._reading = True
        self._writing_paused = False
        self._closing = False
        self._over = False

    # --- Sink ---------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._owed += len(data)
        if not self._closing:
            self._protocol.data_received(data)
        self._pay()

    def eof_received(self) -> None:
        if not self._protocol.eof_received():
            self.write_eof()

    def written(self, size: int) -> None:
        self._unwritten -= size
        if self._writing_paused and self._unwritten <= LOW_WATER_BYTES:
            self._writing_paused = False
            self._protocol.resume_writing()

    def finished(self) -> None:
        self._end(None)

    def lost(self, error: Exception) -> None:
        self._end(ConnectionResetError(str(error)))

    def _end(self, error: Exception | None) -> None:
        if not self._over:
            self._over = self._closing = True
            self._protocol.connection_lost(error)

    def _pay(self) -> None:
        if self._reading and self._owed:
            owed, self._owed = self._owed, 0
            self._duplex.consumed(owed)

    # --- asyncio.Transport ----------------------------------------------------------------------------------------

    def write(self, data: Any) -> None:
        if self._closing or not data:
            return
        self._unwritten += len(data)
        self._duplex.write(bytes(data))
        if self._unwritten > HIGH_WATER_BYTES and not self._writing_paused:
            self._writing_paused = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._duplex.write_eof()

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._pay()

    def is_reading(self) -> bool:
        return self._reading

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """End our direction; what still arrives is read and thrown away."""
        self._closing = True
        self._reading = True
        self._duplex.write_eof()
        self._pay()

    def abort(self) -> None:
        self._duplex.reset()
        self._end(None)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default
