"""SocketSource: TCP sockets inside a command's network, for connections from peers to what the command serves."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import Final

ANSWER_S: Final = 5.0


class SocketSource:
    """Asks for sockets at `sock`, the running process's end; owns it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._turn = asyncio.Lock()
        self._number = 0
        self._loop = asyncio.get_running_loop()

    async def make(self, family: int) -> socket.socket:
        """A TCP socket inside, neither bound nor connected; raises OSError."""
        async with self._turn, asyncio.timeout(ANSWER_S):
            descriptor = await self._ask(family)
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
        self._sock.close()

    async def _ask(self, family: int) -> int:
        # Who gave up waiting has left an answer behind: the number tells it from this one's.
        self._number = (self._number + 1) % 256
        await self._loop.sock_sendall(self._sock, bytes((self._number, family)))
        while True:
            answer, descriptors = await self._receive()
            if len(answer) == 2 and answer[0] == self._number and descriptors:
                return descriptors[0]
            for descriptor in descriptors:
                os.close(descriptor)
            if len(answer) != 2 or answer[0] == self._number:
                error = answer[1] if len(answer) == 2 else errno.ENETDOWN
                raise OSError(error, os.strerror(error))

    async def _receive(self) -> tuple[bytes, list[int]]:
        readable = asyncio.Event()
        descriptor = os.dup(self._sock.fileno())  # stays open while it is watched, whatever happens meanwhile
        try:
            self._loop.add_reader(descriptor, readable.set)
            await readable.wait()
        finally:
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
        flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
        answer, descriptors, _, _ = socket.recv_fds(self._sock, 2, 1, flags)
        return answer, descriptors
