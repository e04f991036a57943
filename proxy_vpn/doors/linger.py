"""Linger: the end of a socket whose outgoing direction is complete and must arrive, while the incoming one is broken.

A socket closed too early takes its last bytes with it: Linux answers data that comes for a closed socket with an RST
and drops what it had yet to send. So what still comes in is read and dropped until the far end has everything.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import socket
import sys
import termios
from collections.abc import Callable
from contextlib import suppress

from proxy_vpn.doors.sendqueue import SendQueue

POLL_S = 0.1
GRACE_S = 1.0  # for a far end that has everything and is still sending; then it gets its RST
STALL_S = 120.0  # without one byte of progress
_DISCARD_BYTES = 65536


class Linger:
    """Sends `queue` and a FIN on `sock`, waits until they have arrived, then calls `close(reset)` once.

    `broken`: bytes of the far end's have been dropped already, so it is owed an RST, as when some are dropped here.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        queue: SendQueue,
        broken: bool,
        close: Callable[[bool], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._queue = queue
        self._broken = broken
        self._close = close
        self._eof_in = False
        self._shut = False
        self._unacknowledged = -1
        self._since = loop.time()
        loop.add_reader(sock, self._discard)
        if queue:
            loop.add_writer(sock, self._flush)
        self._timer: asyncio.Handle = loop.call_soon(self._poll)

    def stop(self) -> None:
        """Let go of the socket; idempotent while it is open."""
        self._timer.cancel()
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)

    def _end(self, reset: bool) -> None:
        self.stop()
        self._close(reset)

    def _flush(self) -> None:
        try:
            self._queue.send(self._sock)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._end(reset=True)
            return
        self._since = self._loop.time()
        if not self._queue:
            self._loop.remove_writer(self._sock)

    def _discard(self) -> None:
        try:
            data = self._sock.recv(_DISCARD_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._end(reset=True)
            return
        if data:
            self._broken = True
        else:
            self._eof_in = True
            self._loop.remove_reader(self._sock)

    def _poll(self) -> None:
        if self._is_over():
            # After a clean end of both directions an orderly close leaves the rest to the kernel.
            self._end(reset=self._broken and not self._eof_in)
        elif self._loop.time() - self._since >= STALL_S:
            self._end(reset=True)
        else:
            self._timer = self._loop.call_later(POLL_S, self._poll)

    def _is_over(self) -> bool:
        if self._queue:
            return False
        if not self._shut:
            self._shut = True
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)
        if self._eof_in:
            return True
        unacknowledged = _unacknowledged_bytes(self._sock)
        if unacknowledged != self._unacknowledged:
            self._unacknowledged, self._since = unacknowledged, self._loop.time()
        return unacknowledged == 0 and (not self._broken or self._loop.time() - self._since >= GRACE_S)


def _unacknowledged_bytes(sock: socket.socket) -> int:
    """How much of what was sent, FIN included, the far end's kernel does not have yet (0 where that can't be asked)."""
    if sys.platform != "linux" or sock.family == socket.AF_UNIX:
        return 0
    count = array.array("i", [0])
    with suppress(OSError):
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, count)  # SIOCOUTQ
    return count[0]
