"""When a connection's engine wants to be called, with as few timers of the event loop as will do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy_vpn.net.engine import Engine

PAUSE_S, HELD_PAUSE_S = 0.0005, 0.005
_SLACK_S = 0.0002


class EngineTimer:
    """Calls `due` with the time for Engine.handle_timer, or with None if it fired early; to be set again then."""

    def __init__(self, engine: Engine, due: Callable[[float | None], None]) -> None:
        self._engine = engine
        self._due = due
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._at = 0.0
        self._over = False

    def set(self, least_s: float = 0.0, *, pause_s: float = PAUSE_S) -> None:
        """Fire when the engine wants it, which is not before `least_s` from now, and no sooner than in `pause_s`."""
        now = self._loop.time()
        if self._over or (self._handle is not None and self._at <= now + least_s):
            return
        at = self._engine.timer()
        if at is None:
            return
        if at < now + pause_s:
            # An engine may ask for a time that is past already, again and again while it waits for something else.
            # What its pacer holds back for microseconds waits as long: to spin until then takes a core.
            at = now + pause_s
        if self._handle is not None and self._at <= at + _SLACK_S:
            return  # it fires first and is set again then: cheaper than moving it with every packet
        self._cancel()
        self._at = at
        self._handle = self._loop.call_at(at, self._fire)

    def close(self) -> None:
        """Fire no more; idempotent."""
        self._over = True
        self._cancel()

    def _cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self) -> None:
        self._handle = None
        now, at = self._loop.time(), self._engine.timer()
        self._due(None if at is None or at > now + _SLACK_S else max(now, at))
