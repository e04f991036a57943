"""The connector behind `pvpn connect HOST PORT`: stdin and stdout joined with a flow, through the daemon's Unix socket.

It runs in the CLI's own process, where starting fast matters: plain blocking descriptors and poll, nothing heavy.
"""

from __future__ import annotations

import array
import fcntl
import os
import select
import socket
import stat
import sys
import termios
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from proxy_vpn.addresses import Target
from proxy_vpn.doors.end_mark import receive
from proxy_vpn.errors import ControlError, FlowLost, PvpnError

OPEN_TIMEOUT_S = 60.0
EXIT_BROKEN_PIPE = 128 + 13  # what a shell reports of a program that SIGPIPE ended
_READ_BYTES = 65536
_MAX_HEAD_BYTES = 65536
_ATOMIC_BYTES = 4096  # a pipe or terminal that polls writable takes that much without blocking (PIPE_BUF)


def connect(socket_path: str, target: Target, stdin: int = 0, stdout: int = 1) -> int:
    """Copy both ways until both have ended; the exit code: 0, 1 after one line on stderr, or 141 if nobody reads."""
    try:
        sock, early, ended = _open(socket_path, target)
        with sock:
            _Copier(sock, stdin, stdout, early, ended).run()
    except BrokenPipeError:
        return EXIT_BROKEN_PIPE  # whoever reads our stdout is gone: nobody is left to tell
    except PvpnError as error:
        print(f"pvpn: {error}", file=sys.stderr)
        return 1
    return 0


def not_running(socket_path: str) -> ControlError:
    """What to say when nobody listens on a socket of a state directory."""
    hint = "start one with: pvpn run home.key --socks 1080 (or name its directory with --state)"
    return ControlError(f"no pvpn is running with {os.path.dirname(socket_path)!r}", hint)


def _open(socket_path: str, target: Target) -> tuple[socket.socket, bytes, bool]:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(OPEN_TIMEOUT_S)
        sock.connect(socket_path)
        sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nPvpn-End-Mark: 1\r\n\r\n".encode())
        head, early, ended = _read_head(sock)
        if head.split(maxsplit=2)[1:2] != [b"200"]:
            raise ControlError(_refusal(sock, early))
        sock.settimeout(None)
    except BaseException as error:
        sock.close()
        if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
            raise not_running(socket_path) from None
        if isinstance(error, OSError):
            hint = "run this as the user who started it"
            raise ControlError(f"the running pvpn can't be asked: {error.strerror or error}", hint) from None
        raise
    return sock, early, ended


def _read_head(sock: socket.socket) -> tuple[bytes, bytes, bool]:
    data, ended = b"", False
    while b"\r\n\r\n" not in data:
        piece, ended = receive(sock, _READ_BYTES)
        if not piece or len(data) > _MAX_HEAD_BYTES:
            raise ControlError("the running pvpn gave no answer", "see its log")
        data += piece
    head, _blank, early = data.partition(b"\r\n\r\n")
    return head, early, ended


def _refusal(sock: socket.socket, body: bytes) -> str:
    while piece := sock.recv(_READ_BYTES):
        body = (body + piece)[:_READ_BYTES]
    return body.decode("ascii", "replace").removeprefix("pvpn: ").strip()


class _Copier:
    """Two copies at once, one chunk of each in memory: stdin -> socket (`up`) and socket -> stdout (`down`)."""

    def __init__(self, sock: socket.socket, stdin: int, stdout: int, early: bytes, ended: bool) -> None:
        self._sock = sock
        self._stdin = stdin
        self._stdout = stdout
        self._write_stdout = _writer(stdout)
        self._up = memoryview(b"")
        self._down = memoryview(early)
        self._up_open = True  # stdin may still bring something
        self._down_open = not ended  # the socket may still bring something

    def run(self) -> None:
        """Until both directions have ended; raises FlowLost, BrokenPipeError."""
        if not self._down_open and not self._down:
            self._end_down()
        while self._down_open or self._down or self._up_open or self._up:
            wanted: Counter[int] = Counter()
            if self._up:
                wanted[self._sock.fileno()] |= select.POLLOUT
            elif self._up_open:
                wanted[self._stdin] |= select.POLLIN
            if self._down:
                wanted[self._stdout] |= select.POLLOUT
            elif self._down_open:
                wanted[self._sock.fileno()] |= select.POLLIN
            poll = select.poll()
            for descriptor, events in wanted.items():
                poll.register(descriptor, events)
            self._step(dict(poll.poll()))

    def _step(self, ready: dict[int, int]) -> None:
        on_socket = ready.get(self._sock.fileno(), 0)
        if self._up_open and not self._up and self._stdin in ready:
            self._read_stdin()
        elif self._up and on_socket & (select.POLLOUT | select.POLLERR | select.POLLHUP):
            self._send_up()
        if self._down and self._stdout in ready:
            self._down = self._down[self._write_stdout(self._down) :]
            if not self._down and not self._down_open:
                self._end_down()
        elif self._down_open and not self._down and on_socket & (select.POLLIN | select.POLLERR | select.POLLHUP):
            self._receive_down()

    def _read_stdin(self) -> None:
        try:
            self._up = memoryview(os.read(self._stdin, _READ_BYTES))
        except BlockingIOError:
            return
        except OSError:
            self._up = memoryview(b"")
        if not self._up:
            self._up_open = False
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)

    def _send_up(self) -> None:
        try:
            self._up = self._up[self._sock.send(self._up, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            return
        except ConnectionResetError:
            raise self._lost() from None
        except OSError:
            # The far end hears nothing more; what it has said already is still to be read.
            self._up = memoryview(b"")
            self._up_open = False

    def _receive_down(self) -> None:
        try:
            data, ended = receive(self._sock, _READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            raise self._lost() from None
        if not data and not ended:
            raise self._lost()
        self._down = memoryview(data)
        self._down_open = not ended
        if ended and not data:
            self._end_down()

    def _end_down(self) -> None:
        self._end_stdout()
        if os.isatty(self._stdin):
            self._up_open = False  # nobody should have to press Ctrl-D to be told that it is over

    def _end_stdout(self) -> None:
        """Let the reader of stdout see its end, and keep the descriptor's number taken."""
        if stat.S_ISSOCK(os.fstat(self._stdout).st_mode):
            with socket.socket(fileno=os.dup(self._stdout)) as out, suppress(OSError):
                out.shutdown(socket.SHUT_WR)
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stdout)
        os.close(nowhere)

    def _lost(self) -> FlowLost:
        return FlowLost("the connection was lost")


def _writer(descriptor: int) -> Callable[[memoryview], int]:
    """How to write to a blocking `descriptor` that polls writable without ever waiting; how much it took."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(mode):
        out = socket.socket(fileno=os.dup(descriptor))
        return lambda data: _or_zero(lambda: out.send(data, socket.MSG_DONTWAIT))
    if stat.S_ISREG(mode):
        return lambda data: os.write(descriptor, data)
    room = _pipe_room if stat.S_ISFIFO(mode) else lambda _descriptor: _ATOMIC_BYTES
    return lambda data: _or_zero(lambda: os.write(descriptor, data[: room(descriptor)]))


def _pipe_room(descriptor: int) -> int:
    """How much a pipe that polls writable takes without blocking: all it holds if it is empty (Linux)."""
    queued = array.array("i", [0])
    try:
        fcntl.ioctl(descriptor, termios.FIONREAD, queued)
        return _ATOMIC_BYTES if queued[0] else fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)
    except OSError:
        return _ATOMIC_BYTES


def _or_zero(write: Callable[[], int]) -> int:
    try:
        return write()
    except BlockingIOError:
        return 0
