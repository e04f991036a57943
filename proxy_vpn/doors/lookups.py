"""Lookups: names asked of the system's resolver, in threads of their own that nobody has to wait for.

The event loop's own threads are few and it waits for them when it ends; a silent name server holds one for many
seconds. These are daemon threads, a bounded number of them, and no other work shares them.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

MAX_THREADS = 32

AddressInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]]


class Lookups:
    """At most `limit` lookups at a time; one nobody waits for any more counts until the resolver has ended it."""

    def __init__(self, limit: int = MAX_THREADS) -> None:
        self._free = asyncio.Semaphore(limit)

    async def look_up(self, host: str, port: int, kind: socket.SocketKind) -> Sequence[AddressInfo]:
        """The addresses of `host`, as getaddrinfo says; raises OSError, UnicodeError. The caller limits the time."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Sequence[AddressInfo]] = loop.create_future()
        await self._free.acquire()

        def settle(infos: Sequence[AddressInfo], error: Exception | None) -> None:
            self._free.release()
            if answer.done():
                return
            if error is None:
                answer.set_result(infos)
            else:
                answer.set_exception(error)

        def ask() -> None:
            infos: Sequence[AddressInfo] = ()
            failure: Exception | None = None
            try:
                infos = socket.getaddrinfo(host, port, type=kind)
            except Exception as error:  # the edge of the thread: whatever it is, the one who asked hears it
                failure = error
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(settle, infos, failure)

        try:
            threading.Thread(target=ask, name=f"look up {host!a}", daemon=True).start()
        except RuntimeError as error:  # the system gives no more threads
            settle((), OSError(str(error)))
        return await answer
