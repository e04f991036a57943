"""Busy polling on a clock and a kernel of the test's own, and on real sockets in a real loop."""

from __future__ import annotations

import asyncio
import selectors
import socket

import pytest

from proxy_vpn.net import busy_poll
from proxy_vpn.net.busy_poll import BUSY_S, VAIN_LIMIT_S, VAIN_SHARE, BusyPollSelector
from proxy_vpn.net.turns import HURRY_S, Turns

QUESTION_S = 2e-6
SOON_S, LATE_S = BUSY_S / 4, BUSY_S * 40


class Kernel:
    """Something is ready at `ready_at`; a question takes QUESTION_S, and a sleep lasts until then or its timeout."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.ready_at = float("inf")
        self.asked = self.yielded = 0
        self.slept: list[float | None] = []
        self.key = selectors.SelectorKey(0, 0, selectors.EVENT_READ, None)

    def select(self, _selector: object, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout == 0:
            self.asked += 1
            self.now += QUESTION_S
        else:
            self.slept.append(timeout)
            self.now = min(self.ready_at, float("inf") if timeout is None else self.now + timeout)
        return [(self.key, selectors.EVENT_READ)] if self.ready_at <= self.now else []

    def note_yield(self) -> None:
        self.yielded += 1


class Bench:
    """A selector on that kernel."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel, self.turns = Kernel(), Turns()
        self.selector = BusyPollSelector(lambda: self.kernel.now)
        monkeypatch.setattr(
            selectors.DefaultSelector, "select", lambda selector, timeout=None: self.kernel.select(selector, timeout)
        )
        monkeypatch.setattr(busy_poll, "TURNS", self.turns)
        monkeypatch.setattr(busy_poll, "_let_others_run", self.kernel.note_yield)

    def wait(self, ready_in_s: float, timeout: float | None = None) -> bool:
        """Whether what is ready in so many seconds was there within `timeout`."""
        self.kernel.ready_at = self.kernel.now + ready_in_s
        self.kernel.asked = self.kernel.yielded = 0
        self.kernel.slept.clear()
        return bool(self.selector.select(timeout))

    def hurry(self) -> None:
        """A small message is sent, and one wait is short."""
        self.turns.hurry(self.kernel.now)
        assert self.wait(SOON_S)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def test_after_a_short_wait_what_comes_soon_is_asked_for_without_sleep(bench: Bench) -> None:
    bench.hurry()
    assert bench.kernel.slept == [None], "nothing was known before"
    assert bench.wait(SOON_S) and not bench.kernel.slept
    assert bench.kernel.yielded == bench.kernel.asked - 1 > 0, "others have the processor between two questions"
    assert bench.wait(SOON_S) and not bench.kernel.slept, "and it goes on like that"


def test_nobody_is_asked_while_nothing_small_is_sent(bench: Bench) -> None:
    for _ in range(3):
        assert bench.wait(SOON_S) and bench.kernel.slept == [None]
    bench.hurry()
    bench.kernel.now += HURRY_S
    assert bench.wait(SOON_S) and bench.kernel.slept == [None] and not bench.kernel.asked


def test_what_does_not_come_soon_is_slept_for_and_the_next_too(bench: Bench) -> None:
    bench.hurry()
    began = bench.kernel.now
    assert bench.wait(LATE_S, timeout=1.0)
    (slept_s,) = bench.kernel.slept
    assert slept_s is not None
    assert bench.kernel.asked * QUESTION_S == pytest.approx(BUSY_S, rel=0.05)
    assert slept_s == pytest.approx(1.0 - BUSY_S, rel=0.05) and bench.kernel.now == pytest.approx(began + LATE_S)
    assert bench.wait(SOON_S) and bench.kernel.slept == [None] and not bench.kernel.asked
    assert bench.wait(SOON_S) and not bench.kernel.slept, "waits are short again"


def test_a_timer_that_is_due_sooner_ends_the_wait_in_time(bench: Bench) -> None:
    bench.hurry()
    began = bench.kernel.now
    assert not bench.wait(LATE_S, timeout=SOON_S)
    assert bench.kernel.now == pytest.approx(began + SOON_S, abs=2 * QUESTION_S), "the kernel's own clock is coarser"
    assert not bench.kernel.slept


def test_who_does_not_want_to_wait_is_answered_at_once(bench: Bench) -> None:
    bench.hurry()
    assert not bench.wait(SOON_S, timeout=0)
    assert bench.kernel.asked == 1 and not bench.kernel.yielded


def test_only_what_was_waited_for_says_that_waits_are_short(bench: Bench) -> None:
    bench.hurry()
    assert bench.wait(LATE_S)
    assert bench.wait(0, timeout=0)
    assert bench.wait(LATE_S) and not bench.kernel.asked, "it was there already"
    assert not bench.wait(LATE_S, timeout=SOON_S)
    assert bench.wait(LATE_S) and not bench.kernel.asked, "only a timer was due"


def test_vain_waits_are_a_small_share_of_the_time(bench: Bench) -> None:
    began, asked = bench.kernel.now, 0
    for _ in range(5000):
        bench.hurry()
        assert bench.wait(BUSY_S * 5)
        asked += bench.kernel.asked
    allowed_s = VAIN_LIMIT_S + BUSY_S + VAIN_SHARE * (bench.kernel.now - began)
    assert 0.8 * allowed_s < asked * QUESTION_S < 1.2 * allowed_s


def test_a_loop_answers_timers_and_sockets_with_it() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        one, two = socket.socketpair()
        with one, two:
            one.setblocking(False)
            two.setblocking(False)
            for number in range(200):
                busy_poll.TURNS.hurry(loop.time())
                two.send(bytes([number]))
                assert await loop.sock_recv(one, 10) == bytes([number])
                loop.call_soon(two.send, b"again")
                assert await loop.sock_recv(one, 10) == b"again"
                began = loop.time()
                await asyncio.sleep(BUSY_S / 2)
                assert loop.time() - began >= BUSY_S / 2 - 1e-6

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(BusyPollSelector())) as runner:
        runner.run(main())
