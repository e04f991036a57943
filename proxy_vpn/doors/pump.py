"""A splice joins two Duplexes: bytes, room for more of them, clean ends and breaks all cross it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from proxy_vpn.mesh.duplex import Duplex


class Splice:
    """Two Duplexes joined until both have ended; `done` is then set, and never holds an error.

    A break of one side becomes a `reset` of the other, a clean end of a direction a `write_eof`. After a `write_eof`
    a `reset` may only break what is still open: the Duplex delivers the ended direction (see TcpDuplex.reset).
    """

    def __init__(self, a: Duplex, b: Duplex) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: Exception | None = None
        self._a = _Side(self, a, b)
        self._b = _Side(self, b, a)
        self._open = {a, b}
        a.start(self._a)
        b.start(self._b)
        self._a.release()
        self._b.release()

    @property
    def a_to_b_bytes(self) -> int:
        """How many bytes `a` has delivered so far."""
        return self._a.delivered_bytes

    @property
    def b_to_a_bytes(self) -> int:
        """How many bytes `b` has delivered so far."""
        return self._b.delivered_bytes

    def cancel(self) -> None:
        """Reset both sides; idempotent."""
        for side in (self._a, self._b):
            if side.source in self._open:
                self._open.discard(side.source)
                side.source.reset()
        self._settle()

    async def wait(self) -> None:
        """Until both sides have ended; cancelled, it resets both."""
        try:
            await self.done
        except asyncio.CancelledError:
            self.cancel()
            raise

    def side_finished(self, source: Duplex) -> None:
        """`source` ended cleanly in both directions."""
        self._open.discard(source)
        self._settle()

    def side_lost(self, source: Duplex, target: Duplex, error: Exception) -> None:
        """`source` broke: so must `target`."""
        self.error = self.error or error
        self._open.discard(source)
        if target in self._open:
            self._open.discard(target)
            target.reset()
        self._settle()

    def _settle(self) -> None:
        if not self._open and not self.done.done():
            self.done.set_result(None)


def splice(a: Duplex, b: Duplex) -> Splice:
    """Join `a` and `b`, neither of them started yet."""
    return Splice(a, b)


class _Side:
    """The Sink of one side. Until `release` it holds what a `start` delivers at once: the other is not started yet."""

    def __init__(self, owner: Splice, source: Duplex, target: Duplex) -> None:
        self.source = source
        self.delivered_bytes = 0
        self._owner = owner
        self._target = target
        self._held: list[Callable[[], None]] | None = []

    def release(self) -> None:
        held, self._held = self._held or [], None
        for call in held:
            call()

    def data_received(self, data: bytes) -> None:
        if self._held is not None:
            self._held.append(partial(self.data_received, data))
            return
        self.delivered_bytes += len(data)
        self._target.write(data)

    def eof_received(self) -> None:
        if self._held is not None:
            self._held.append(self.eof_received)
            return
        self._target.write_eof()

    def written(self, size: int) -> None:
        self._target.consumed(size)

    def finished(self) -> None:
        if self._held is not None:
            self._held.append(self.finished)
            return
        self._owner.side_finished(self.source)

    def lost(self, error: Exception) -> None:
        if self._held is not None:
            self._held.append(partial(self.lost, error))
            return
        self._owner.side_lost(self.source, self._target, error)
