"""Busy polling: to wait for what comes within microseconds without going to sleep.

Whoever sleeps is woken by an interrupt, mostly on a processor that sleeps as well: some 20 microseconds, four times on
the way of a message there and back through two processes. So while somebody sends small messages, and as long as waits
turn out short, the event loop asks again and again before it sleeps. Between two questions the processor is anybody's
who has work for it (sched_yield(2)), and what is waited in vain is a small share of the time. What is waited with
success is not: thousands of small messages a second keep a processor busy that nobody else wants.
"""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable
from typing import Final

from proxy_vpn.net.turns import TURNS

BUSY_S: Final = 0.0002
VAIN_SHARE, VAIN_LIMIT_S = 0.05, 0.01
_Ready = list[tuple[selectors.SelectorKey, int]]
_let_others_run: Callable[[], None] = getattr(os, "sched_yield", lambda: None)


class BusyPollSelector(selectors.DefaultSelector):
    """For asyncio.SelectorEventLoop; `clock` is that loop's."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._was_short = False
        self._vain_s = 0.0  # waited in vain and not made up for yet, as of `_vain_at`
        self._vain_at = 0.0

    def select(self, timeout: float | None = None) -> _Ready:
        """What is ready within `timeout` seconds; None is for ever, and 0 or less does not wait."""
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        began = now = self._clock()
        if self._is_worth_while(began):
            end = began + (BUSY_S if timeout is None else min(timeout, BUSY_S))
            while now < end:
                ready = super().select(0)
                if ready:
                    return ready
                _let_others_run()
                now = self._clock()
            self._vain_s += now - began
            if timeout is not None:
                timeout = max(began + timeout - now, 0)
        ready = super().select(timeout)
        self._was_short = bool(ready) and self._clock() - began < BUSY_S
        return ready

    def _is_worth_while(self, now: float) -> bool:
        if not self._was_short or not TURNS.are_short(now):
            return False
        self._vain_s = max(self._vain_s - VAIN_SHARE * (now - self._vain_at), 0.0)
        self._vain_at = now
        return self._vain_s < VAIN_LIMIT_S
