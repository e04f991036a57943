"""Acceptor: the accept loop of a stream listener, one task a client, none of which outlives it."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

from proxy_vpn.doors.listen import Listener
from proxy_vpn.doors.tcp import close_socket

_PAUSE_S = 0.2  # when this process is out of file descriptors
_log = logging.getLogger(__name__)


class Acceptor:
    """Runs `serve(sock)` for every client of `listener`, at most `limit` at a time; those beyond get an RST."""

    def __init__(self, listener: Listener, serve: Callable[[socket.socket], Awaitable[None]], limit: int) -> None:
        self._clients: dict[socket.socket, asyncio.Task[None]] = {}
        self._listener = listener
        self._serve = serve
        self._limit = limit
        self._paused: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._listen()

    @property
    def clients(self) -> int:
        """How many there are now."""
        return len(self._clients)

    async def close(self) -> None:
        """Stop listening and cancel every client; idempotent."""
        self._stop_listening()
        self._listener.close()
        tasks = {*self._clients.values()} - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A task cancelled before its first step has not touched its socket.
        while self._clients:
            close_socket(self._clients.popitem()[0], reset=True)

    def _listen(self) -> None:
        self._paused = None
        self._loop.add_reader(self._listener.sock.fileno(), self._accept)

    def _stop_listening(self) -> None:
        if self._paused is not None:
            self._paused.cancel()
        if self._listener.sock.fileno() >= 0:
            self._loop.remove_reader(self._listener.sock.fileno())

    def _accept(self) -> None:
        """One a turn: a second try, which mostly finds nobody, costs as much as a turn."""
        try:
            sock, _address = self._listener.sock.accept()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            _log.warning("can't accept: %s", error)
            self._stop_listening()
            self._paused = self._loop.call_later(_PAUSE_S, self._listen)
            return
        if self.clients >= self._limit:
            _log.warning("%s: over %d clients, one was turned away", self._listener.where, self._limit)
            close_socket(sock, reset=True)
            return
        sock.setblocking(False)
        self._clients[sock] = self._loop.create_task(self._one(sock))

    async def _one(self, sock: socket.socket) -> None:
        try:
            await self._serve(sock)
        except OSError as error:
            _log.debug("a client left: %s", error)
        except Exception:
            # The edge: one client's trouble must not end the others.
            _log.exception("a client's task failed")
        finally:
            # No more than a formality after an end in order: the socket is closed then.
            if sock.fileno() >= 0:
                close_socket(sock, reset=True)
            self._clients.pop(sock, None)
