"""UdpSessions: one DatagramFlow per key (a client, or a client's target), opened on demand and closed when idle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from typing import Generic, TypeVar

from proxy_vpn.doors.udp import DatagramFlow
from proxy_vpn.errors import FlowError, Status

IDLE_S = 60.0
RETRY_S = 2.0  # before a flow that could not be opened is tried again
MAX_PENDING = 16  # datagrams kept while a flow opens

_NOBODY = FlowError(Status.REFUSED, "nobody listens there")
_log = logging.getLogger(__name__)
K = TypeVar("K", bound=Hashable)


class UdpSessions(Generic[K]):
    """Sends each key's datagrams through its own flow; what comes back goes to `deliver(key, payload)`.

    At most `limit` flows: the one unused longest makes room. One unused for `idle_s` is closed. `failed` hears why a
    datagram is lost: its flow could not be opened, which is believed for RETRY_S, or nobody listens there.
    """

    def __init__(
        self,
        open_flow: Callable[[K], Awaitable[DatagramFlow]],
        deliver: Callable[[K, bytes], None],
        limit: int,
        idle_s: float = IDLE_S,
        failed: Callable[[K, FlowError], None] | None = None,
    ) -> None:
        self._open_flow = open_flow
        self._failed = failed
        self._deliver = deliver
        self._limit = limit
        self._idle_s = idle_s
        self._sessions: dict[K, _Session] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.Handle | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._sessions)

    def send(self, key: K, payload: bytes) -> None:
        """Send `payload` through the flow of `key`, opening it first if need be; dropped when it can't be opened."""
        if self._closed:
            return
        session = self._sessions.get(key)
        if session is None or (session.error is not None and self._loop.time() >= session.used + RETRY_S):
            session = self._new_session(key)
        if session.error is not None:
            self._tell(key, session.error)
            return
        session.used = self._loop.time()
        if session.flow is not None:
            session.flow.send(payload)
        elif len(session.pending) < MAX_PENDING:
            session.pending.append(payload)

    async def close(self) -> None:
        """Close every flow; idempotent."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for key in list(self._sessions):
            self._drop(key)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _new_session(self, key: K) -> _Session:
        self._drop(key)
        if len(self._sessions) >= self._limit:
            self._drop(min(self._sessions, key=lambda each: self._sessions[each].used))
        session = self._sessions[key] = _Session(self._loop.time())
        session.task = self._loop.create_task(self._open(key, session))
        self._tasks.add(session.task)
        session.task.add_done_callback(self._tasks.discard)
        if self._timer is None:
            self._timer = self._loop.call_later(self._idle_s / 4, self._sweep)
        return session

    async def _open(self, key: K, session: _Session) -> None:
        try:
            flow = await self._open_flow(key)
        except FlowError as error:
            _log.info("no UDP flow: %s", error)
            session.fail(error, self._loop.time())
            self._tell(key, error)
            return
        except Exception:
            # The edge to the rest of the process: a datagram may be lost, the door may not.
            _log.exception("opening a UDP flow failed")
            session.fail(FlowError(Status.INTERNAL, "opening a UDP flow failed"), self._loop.time())
            return
        if flow.closed:  # in the turn of the loop in which it was opened
            del self._sessions[key]
            return
        session.flow = flow

        def on_datagram(payload: bytes) -> None:
            session.used = self._loop.time()
            self._deliver(key, payload)

        def on_closed() -> None:
            if self._sessions.get(key) is session:
                del self._sessions[key]

        flow.on_datagram = on_datagram
        flow.on_closed = on_closed
        flow.on_refused = partial(self._tell, key, _NOBODY)
        for payload in session.pending:
            flow.send(payload)
        session.pending.clear()

    def _tell(self, key: K, error: FlowError) -> None:
        if self._failed is not None:
            self._failed(key, error)

    def _drop(self, key: K) -> None:
        session = self._sessions.pop(key, None)
        if session is not None:
            if session.task is not None:
                session.task.cancel()
            if session.flow is not None:
                session.flow.close()

    def _sweep(self) -> None:
        oldest = self._loop.time() - self._idle_s
        for key in [key for key, session in self._sessions.items() if session.used <= oldest]:
            self._drop(key)
        self._timer = self._loop.call_later(self._idle_s / 4, self._sweep) if self._sessions else None


class _Session:
    """One flow, or the wait for it; `used` is the loop time of its last datagram, or of its failure."""

    def __init__(self, now: float) -> None:
        self.used = now
        self.flow: DatagramFlow | None = None
        self.task: asyncio.Task[None] | None = None
        self.pending: list[bytes] = []
        self.error: FlowError | None = None

    def fail(self, error: FlowError, now: float) -> None:
        self.error = error
        self.used = now
        self.pending.clear()
