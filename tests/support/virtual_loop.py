"""An event loop whose clock only moves when nothing is ready: hours pass in moments, and nothing is left to luck."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

START_S = 1000.0
REAL_WAIT_S = 5.0
_Result = TypeVar("_Result")


class _Selector(selectors.DefaultSelector):
    """Never waits for a timer: it moves the clock to it."""

    def __init__(self) -> None:
        super().__init__()
        self.advance: Callable[[float], None]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            ready = super().select(REAL_WAIT_S)
            assert ready, "nothing can ever happen on this loop"
            return ready
        self.advance(timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its `faults` are what reached the loop: exceptions out of callbacks."""

    def __init__(self) -> None:
        self._virtual_now = START_S
        selector = _Selector()
        selector.advance = self._advance
        super().__init__(selector)
        self.faults: list[dict[str, Any]] = []
        self.set_exception_handler(lambda loop, context: self.faults.append(context))

    def time(self) -> float:
        return self._virtual_now

    def _advance(self, duration_s: float) -> None:
        self._virtual_now += duration_s


def run_virtually(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Run `main` on a virtual clock; fails if any exception reached the loop."""
    faults: list[dict[str, Any]] = []

    def make() -> VirtualLoop:
        loop = VirtualLoop()
        loop.faults = faults
        return loop

    with asyncio.Runner(loop_factory=make) as runner:
        result = runner.run(main)
    for fault in faults:
        if isinstance(fault.get("exception"), BaseException):
            raise AssertionError(f"an exception reached the loop: {fault['message']}") from fault["exception"]
    assert not faults, faults
    return result
