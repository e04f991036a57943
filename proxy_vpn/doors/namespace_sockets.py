"""TCP sockets inside a command's network (`pvpn exec`), for connections from peers to what the command serves.

A socket belongs for ever to the network it was made in, and the running process has no right to enter that one. So
`pvpn exec` leaves a process there that does nothing but make sockets and hand them over. It can do nothing else any
more, and ends when the running process lets go of it.

    SocketSource (running process) --"4" or "6"--> give (inside)
                                   <--a socket, or the number of the error--
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import Final

from proxy_vpn.doors import capabilities

ANSWER_S: Final = 5.0
_FAMILIES: Final = {b"4": socket.AF_INET, b"6": socket.AF_INET6}
_DONE: Final = b"\0"
_MOST_FILES: Final = 1 << 16  # this process has opened a few; where the limit is a billion, asking for each takes long


class SocketSource:
    """Asks for sockets at `sock`, the running process's end; owns it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._turn = asyncio.Lock()
        self._loop = asyncio.get_running_loop()

    async def make(self, family: int) -> socket.socket:
        """A TCP socket inside, neither bound nor connected; raises OSError."""
        try:
            async with self._turn, asyncio.timeout(ANSWER_S):
                descriptor = await self._ask(b"6" if family == socket.AF_INET6 else b"4")
        except TimeoutError:
            self.close()  # a late answer would be taken for the next one's
            raise
        try:
            made = socket.socket(fileno=descriptor)
        except OSError:
            os.close(descriptor)
            raise
        if (made.family, made.type) != (family, socket.SOCK_STREAM):
            made.close()
            raise OSError(errno.EPROTO, "not the socket that was asked for")
        return made

    def close(self) -> None:
        """Let the process inside end; idempotent."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()

    async def _ask(self, request: bytes) -> int:
        if self._sock.fileno() < 0:
            raise OSError(errno.ENETDOWN, os.strerror(errno.ENETDOWN))
        await self._loop.sock_sendall(self._sock, request)
        readable = asyncio.Event()
        self._loop.add_reader(self._sock, readable.set)
        try:
            await readable.wait()
        finally:
            self._loop.remove_reader(self._sock)
        answer, descriptors, _, _ = socket.recv_fds(self._sock, 1, 1, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
        if not descriptors:
            number = answer[0] if answer and answer != _DONE else errno.ENETDOWN
            raise OSError(number, os.strerror(number))
        return descriptors[0]


def leave_giver() -> socket.socket:
    """Leave a process in this one's network that makes sockets there; the other end of it. Raises OSError.

    It is nobody's child here: what takes this process's place would not expect one.
    """
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with far:
        child = os.fork()
        if child == 0:
            try:
                os.setsid()  # a terminal's signals are for the command
                if os.fork() == 0:
                    _become_giver(far.fileno())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
    return near


def give(sock: socket.socket) -> None:
    """Answer until the other end is closed; blocking."""
    while family := _FAMILIES.get(sock.recv(1)):
        try:
            made = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            sock.send(bytes((error.errno or errno.EIO,)))
            continue
        with made:
            socket.send_fds(sock, [_DONE], [made.fileno()])


def _become_giver(descriptor: int) -> None:
    """Keep nothing of what this process was but its network and one descriptor."""
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    own = os.dup2(descriptor, 3 if descriptor != 3 else 4)
    os.closerange(3, own)
    os.closerange(own + 1, min(os.sysconf("SC_OPEN_MAX"), _MOST_FILES))
    capabilities.keep_only(0)
    give(socket.socket(fileno=own))
