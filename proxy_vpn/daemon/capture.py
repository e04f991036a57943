"""Captures: flows of this process as a pcap stream, for whoever asks over the control API.

flows --Tap--> Capture's queue (bounded; what does not fit is dropped and counted) --chunks()--> one HTTP answer

A reader that is slow, or stops, costs packets of its own capture and never holds a flow back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable
from io import BytesIO
from typing import Any, Final

from proxy_vpn.daemon.conversations import AddressBook, Conversations, Headers, count
from proxy_vpn.daemon.pcap import SNAP_LIMIT_BYTES, SNAP_MIN_BYTES
from proxy_vpn.errors import StateError, UsageError
from proxy_vpn.mesh.tap import Seen, Tap

CAPTURES_LIMIT: Final = 4
QUEUE_BYTES: Final = 16 << 20
REPORT_BYTES: Final = 512  # what a report takes beside its data
TURN_BYTES: Final = 256 * 1024
LINKTYPE_RAW: Final = 101  # packets begin with the IP header

Chooser = Callable[[str, str], tuple[str, bytes]]
"""(peer, network) as a user names them, each may be empty -> (network, identity) to watch, either empty for all."""


class Capture:
    """One watcher of the tap: its reports wait in a queue until `chunks` makes packets of them."""

    def __init__(self, number: int, tap: Tap, wanted: tuple[str, bytes], snap_bytes: int) -> None:
        self.number = number
        self.dropped = 0
        self._tap = tap
        self._network, self._identity = wanted
        self._snap_bytes = snap_bytes
        self._queue: deque[Seen] = deque()
        self._queued_bytes = 0
        self._changed = asyncio.Event()
        self._ended = False
        tap.watchers.append(self._see)

    def end(self) -> None:
        """See nothing more; `chunks` ends once the queue is empty. Idempotent."""
        if not self._ended:
            self._ended = True
            self._tap.watchers.remove(self._see)
            self._changed.set()

    def _see(self, seen: Seen) -> None:
        if self._network not in ("", seen.line.network) or self._identity not in (b"", seen.line.identity):
            return
        size = len(seen.data) + REPORT_BYTES
        if self._queued_bytes + size > QUEUE_BYTES:
            self.dropped += count(seen)
            return
        self._queued_bytes += size
        self._queue.append(seen)
        self._changed.set()

    async def chunks(self, conversations: Conversations) -> AsyncGenerator[bytes]:
        """The pcap stream: its header at once, then whole packets as they come."""
        buffer = BytesIO()
        writer = _writer(buffer, self._snap_bytes)
        yield buffer.getvalue()
        while True:
            while self._queue:
                buffer.seek(0)
                buffer.truncate()
                self._fill(writer, buffer, conversations)
                yield buffer.getvalue()
                await asyncio.sleep(0)  # a fast reader must not keep flows waiting
            if self._ended:
                return
            self._changed.clear()
            await self._changed.wait()

    def _fill(self, writer: Any, buffer: BytesIO, conversations: Conversations) -> None:
        while self._queue and buffer.tell() < TURN_BYTES:
            seen = self._queue.popleft()
            self._queued_bytes -= len(seen.data) + REPORT_BYTES
            seconds, microseconds = divmod(int(seen.at * 1e6), 1_000_000)
            for data, wire_bytes in conversations.packets(seen, self._snap_bytes):
                writer.write_packet(data, sec=seconds, usec=microseconds, caplen=len(data), wirelen=wire_bytes)


class Captures:
    """The captures that run; `book` knows virtual addresses, `choose` whom a user means and raises PvpnErrors."""

    def __init__(self, tap: Tap, book: AddressBook, choose: Chooser) -> None:
        self._tap = tap
        self._book = book
        self._choose = choose
        self._conversations: Conversations | None = None
        self._running: dict[int, Capture] = {}
        self._started = 0

    async def start(self, peer: str, net: str, snap_bytes: int) -> tuple[Capture, AsyncGenerator[bytes]]:
        """Begin to watch; the iterator is its pcap stream, and `stop` must follow it. Raises PvpnError."""
        if not SNAP_MIN_BYTES <= snap_bytes <= SNAP_LIMIT_BYTES:
            raise UsageError(f"no snap length: {snap_bytes}", f"choose {SNAP_MIN_BYTES} to {SNAP_LIMIT_BYTES}")
        wanted = self._choose(peer, net)
        if self._conversations is None:
            headers = await asyncio.to_thread(_load)
            self._conversations = self._conversations or Conversations(self._book, headers)
        if len(self._running) >= CAPTURES_LIMIT:
            raise StateError(f"{CAPTURES_LIMIT} captures run already", "end one of them")
        self._started += 1
        capture = self._running[self._started] = Capture(self._started, self._tap, wanted, snap_bytes)
        return capture, capture.chunks(self._conversations)

    def end(self, number: int) -> Capture:
        """End one whose stream is still being read; raises UsageError."""
        capture = self._running.get(number)
        if capture is None:
            raise UsageError(f"there is no capture {number}", "it has ended")
        capture.end()
        return capture

    def stop(self, capture: Capture) -> None:
        """Nobody reads it any more."""
        capture.end()
        self._running.pop(capture.number, None)

    def close(self) -> None:
        """End all: each stream still delivers what was seen."""
        for capture in self._running.values():
            capture.end()


def _load() -> dict[int, Headers]:
    """What scapy is needed for, loaded; takes a while, so in a thread. Raises StateError."""
    logging.getLogger("scapy").setLevel(logging.ERROR)  # it warns of what it misses to sniff and send
    try:
        from scapy.utils import RawPcapWriter  # noqa: F401

        return Headers.both()
    except ImportError:
        raise StateError("captures need the Python package scapy", "install it beside pvpn") from None


def _writer(buffer: BytesIO, snap_bytes: int) -> Any:
    """scapy's writer of pcap records, its file header written."""
    from scapy.utils import RawPcapWriter

    writer = RawPcapWriter(buffer, linktype=LINKTYPE_RAW, snaplen=snap_bytes)
    writer.write_header(None)
    return writer
