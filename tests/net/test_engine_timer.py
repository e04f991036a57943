"""When a connection's engine is called: as it asks, but not without end."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from proxy_vpn.net.engine import Engine
from proxy_vpn.net.engine_timer import HELD_PAUSE_S, PAUSE_S, EngineTimer
from tests.support.virtual_loop import run_virtually

LASTING_S = 0.1


class Asking:
    """An engine that wants to be called so long after each question; its timer is set again whenever it fires."""

    def __init__(self, after_s: float | None, pause_s: float = PAUSE_S) -> None:
        self.after_s = after_s
        self.pause_s = pause_s
        self.due: list[float | None] = []
        self._loop = asyncio.get_running_loop()
        self.timer_of_it = EngineTimer(cast(Engine, self), self._due)

    def timer(self) -> float | None:
        return None if self.after_s is None else self._loop.time() + self.after_s

    def _due(self, at: float | None) -> None:
        self.due.append(at)
        self.timer_of_it.set(pause_s=self.pause_s)


@pytest.mark.parametrize("pause_s", [PAUSE_S, HELD_PAUSE_S])
def test_who_asks_for_now_or_for_times_that_are_past_does_not_get_a_core(pause_s: float) -> None:
    async def main() -> None:
        for after_s in (-1.0, 0.0, 0.00005):
            engine = Asking(after_s, pause_s)
            engine.timer_of_it.set()
            await asyncio.sleep(LASTING_S)
            engine.timer_of_it.close()
            assert LASTING_S / pause_s / 2 < len(engine.due) <= LASTING_S / pause_s + 1
            assert None not in engine.due

    run_virtually(main())


def test_a_time_that_moved_on_is_told_as_early_and_none_is_never() -> None:
    async def main() -> None:
        engine = Asking(0.01)
        engine.timer_of_it.set()
        await asyncio.sleep(0.015)
        assert engine.due == [None], "it wants to be called later by now"
        engine.after_s = None
        await asyncio.sleep(1.0)
        assert engine.due == [None, None]
        engine.timer_of_it.close()
        engine.after_s = 0.01
        engine.timer_of_it.set()
        await asyncio.sleep(1.0)
        assert engine.due == [None, None], "closed"

    run_virtually(main())
