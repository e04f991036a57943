"""TcpDuplex: a connected TCP or Unix stream socket as a Duplex, straight on the event loop's readiness calls."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from contextlib import suppress

from proxy_vpn.doors.linger import Linger
from proxy_vpn.doors.sendqueue import SendQueue
from proxy_vpn.errors import FlowLost
from proxy_vpn.mesh.duplex import Sink
from proxy_vpn.net.turns import TURNS

READ_BYTES, SHORT_READ_BYTES = 512 * 1024, 64 * 1024
WINDOW_BYTES = 256 * 1024
RESUME_BYTES = 128 * 1024


class TcpDuplex:
    """A Duplex over `sock`, which it owns from now on: connected, a stream, made non-blocking here.

    `early` bytes, read from the socket before, are delivered first. At most WINDOW_BYTES + READ_BYTES are delivered and
    not yet consumed. A reset is a TCP RST; a Unix socket knows none, so there it is a plain close.
    With `marks_end` (a Unix socket's only) `write_eof` sends the mark of a clean end first.
    """

    def __init__(self, sock: socket.socket, early: bytes = b"", marks_end: bool = False) -> None:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._sock = sock
        self._fd = sock.fileno()  # a socket that is not watched costs the loop its repr
        self._loop = asyncio.get_running_loop()
        self._early = early
        self._marks_end = marks_end
        self._sink: Sink | None = None
        self._queue = SendQueue()
        self._unconsumed = 0
        self._preface = 0  # bytes written before `start`, which no sink is told of
        self._paused = self._reads = self._writes = False
        self._eof_in = False
        self._eof_wanted = False
        self._eof_out = False
        self._write_error: OSError | None = None
        self._failing = False  # a write has failed, which is told in the next turn
        self._ended = False
        self._linger: Linger | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()

    @property
    def local_ip(self) -> str:
        """Our end's address; an internet socket's only, while it is open."""
        return str(self._sock.getsockname()[0])

    def start(self, sink: Sink) -> None:
        """Deliver to `sink`, never from within this call."""
        self._sink = sink
        if self._ended:
            return
        if self._early:
            self._loop.call_soon(self._begin)
        else:
            self._read_on()

    def write(self, data: bytes | memoryview) -> None:
        """Send what the kernel takes at once and queue the rest."""
        if self._ended or self._eof_wanted or self._failing or not data:
            return
        if self._sink is None:
            self._preface += len(data)
        if self._queue:
            self._queue.append(memoryview(data))
            return
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._failing = True
            self._loop.call_soon(self._write_failed, error)
            return
        if sent < len(data):
            self._queue.append(memoryview(data)[sent:])
            self._await_writable()
        self._report_written(sent)

    def write_eof(self) -> None:
        """Shut the outgoing direction down once the queue is empty."""
        if not self._eof_wanted:
            self._eof_wanted = True
            if self._marks_end and not self._ended and not self._failing:
                self._queue.append_mark()
                self._await_writable()
            self._shut_down_when_sent()

    def consumed(self, size: int) -> None:
        """Room for `size` more bytes; reading goes on once enough is free."""
        self._unconsumed -= size
        if self._paused and self._unconsumed <= RESUME_BYTES:
            self._paused = False
            if not (self._ended or self._eof_in):
                self._read_on()

    def reset(self) -> None:
        """Break what is open: a RST. But a direction that `write_eof` ended is still delivered, with its FIN, first."""
        if self._ended:
            return
        if not self._eof_wanted or self._write_error is not None:
            self.abort()
            return
        self._detach()
        self._linger = Linger(self._loop, self._sock, self._queue, self._unconsumed > 0, self._close)

    def abort(self) -> None:
        """RST at once, whatever is still queued; idempotent."""
        if not self._closed.done():
            self._detach()
            if self._linger is not None:
                self._linger.stop()
            self._close(reset=True)

    async def wait_closed(self) -> None:
        """Until the socket is closed; cancelled, it aborts."""
        try:
            await asyncio.shield(self._closed)
        except asyncio.CancelledError:
            self.abort()
            raise

    def _begin(self) -> None:
        if self._ended or self._sink is None:
            return
        early, self._early = self._early, b""
        self._unconsumed += len(early)
        self._sink.data_received(early)
        if not self._ended:
            self._read_on()

    def _read_on(self) -> None:
        self._reads = True
        self._loop.add_reader(self._fd, self._on_readable)

    def _read_no_more(self) -> None:
        if self._reads:  # to forget what is not known costs the loop two exceptions
            self._reads = False
            self._loop.remove_reader(self._fd)

    def _await_writable(self) -> None:
        self._writes = True
        self._loop.add_writer(self._fd, self._on_writable)

    def _write_no_more(self) -> None:
        if self._writes:
            self._writes = False
            self._loop.remove_writer(self._fd)

    def _on_readable(self) -> None:
        try:
            data = self._sock.recv(SHORT_READ_BYTES if TURNS.are_short(self._loop.time()) else READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.lose(error)
            return
        assert self._sink is not None
        if not data:
            self._read_eof()
            return
        self._unconsumed += len(data)
        self._sink.data_received(data)
        if self._unconsumed >= WINDOW_BYTES and not self._ended:
            self._paused = True
            self._read_no_more()

    def _read_eof(self) -> None:
        # A connection that was reset reads as ended once its error has been reported to a send. EPIPE alone says
        # that the FIN came before (Linux, tcp_reset: EPIPE in CLOSE_WAIT, else ECONNRESET); a shutdown's ENOTCONN
        # takes no error away, and what is read tells.
        if self._write_error is not None and self._write_error.errno not in (errno.EPIPE, errno.ENOTCONN):
            self.lose(self._write_error)
            return
        self._eof_in = True
        self._read_no_more()
        assert self._sink is not None
        self._sink.eof_received()
        if self._write_error is not None:
            self.lose(self._write_error)
        else:
            self._finish_when_done()

    def _on_writable(self) -> None:
        try:
            sent = self._queue.send(self._sock)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._write_failed(error)
            return
        if not self._queue:
            self._write_no_more()
        self._report_written(sent)
        self._shut_down_when_sent()

    def _report_written(self, size: int) -> None:
        preface = min(size, self._preface)
        self._preface -= preface
        if size > preface and self._sink is not None:
            self._sink.written(size - preface)

    def _shut_down_when_sent(self) -> None:
        if self._ended or self._queue or not self._eof_wanted or self._eof_out or self._failing:
            return
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._write_failed(error)
            return
        self._eof_out = True
        self._finish_when_done()

    def _write_failed(self, error: OSError) -> None:
        """What the far end sent before it went may still wait to be read; the break is told after it."""
        if self._ended or self._write_error is not None:
            return
        self._failing = True
        self._write_error = error
        self._queue.clear()
        self._write_no_more()
        if self._eof_in:
            self.lose(error)

    def _finish_when_done(self) -> None:
        if self._eof_in and self._eof_out and not self._ended:
            self._detach()
            self._close()
            if self._sink is not None:
                self._sink.finished()

    def lose(self, error: OSError) -> None:
        """The connection is of no use any more: close it with a RST and tell the sink; idempotent."""
        if not self._ended:
            self._detach()
            self._close(reset=True)
            if self._sink is not None:
                self._sink.lost(FlowLost(f"the connection broke: {error.strerror or error}"))

    def _detach(self) -> None:
        if not self._ended:
            self._ended = True
            self._read_no_more()
            self._write_no_more()

    def _close(self, reset: bool = False) -> None:
        if not self._closed.done():
            self._closed.set_result(None)
            close_socket(self._sock, reset)


def close_socket(sock: socket.socket, reset: bool) -> None:
    """Close `sock`: with an RST (SO_LINGER 0), or in order."""
    if reset:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
