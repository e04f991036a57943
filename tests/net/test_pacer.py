"""The pacer: a window leaves spread over a round trip, and short round trips are not held up."""

from __future__ import annotations

import pytest

from proxy_vpn.net.pacer import BURST_BYTES, BURST_S, STEADY_GAIN, UNPACED_RTT_S, Pacer

WINDOW_BYTES = 500_000
RTT_S = 0.04
CHUNK_BYTES = 10_000


def sent_within(pacer: Pacer, duration_s: float, *, starting: bool = False, rtt_s: float | None = RTT_S) -> list[float]:
    """When chunks left that were always waiting to leave."""
    now = 100.0
    if rtt_s is not None:
        pacer.measured(rtt_s)
    times: list[float] = []
    while now < 100.0 + duration_s and len(times) < 10_000:
        wait_s = pacer.wait_s(now, WINDOW_BYTES, rtt_s, starting)
        assert wait_s >= 0
        if wait_s:
            now += wait_s
        else:
            pacer.sent(CHUNK_BYTES)
            times.append(now)
    return times


@pytest.mark.parametrize("starting", [False, True])
def test_a_window_takes_most_of_a_round_trip(starting: bool) -> None:
    times = sent_within(Pacer(), 10 * RTT_S, starting=starting)
    rate = len(times) * CHUNK_BYTES / (10 * RTT_S)
    gain = rate / (WINDOW_BYTES / RTT_S)
    assert 1.0 < gain < (2.2 if starting else 1.4), "neither slower than the window allows nor all at once"


def test_no_burst_is_larger_than_allowed() -> None:
    times = sent_within(Pacer(), 10 * RTT_S)
    largest = max(times.count(at) for at in set(times)) * CHUNK_BYTES
    rate = STEADY_GAIN * WINDOW_BYTES / RTT_S
    assert largest <= BURST_BYTES + BURST_S * rate + CHUNK_BYTES


def test_after_a_pause_only_a_burst_is_saved_up() -> None:
    pacer = Pacer()
    sent_within(pacer, RTT_S)
    now, count = 200.0, 0
    while not pacer.wait_s(now, WINDOW_BYTES, RTT_S, False):
        pacer.sent(CHUNK_BYTES)
        count += 1
    assert count * CHUNK_BYTES <= BURST_BYTES + BURST_S * STEADY_GAIN * WINDOW_BYTES / RTT_S + CHUNK_BYTES


@pytest.mark.parametrize("rtt_s", [None, UNPACED_RTT_S / 2])
def test_short_or_unknown_round_trips_are_not_paced(rtt_s: float | None) -> None:
    pacer = Pacer()
    if rtt_s is not None:
        pacer.measured(rtt_s)
    for _ in range(1000):
        assert pacer.wait_s(100.0, WINDOW_BYTES, rtt_s, True) == 0.0
        pacer.sent(CHUNK_BYTES)


def test_a_queue_of_our_own_making_does_not_begin_it() -> None:
    pacer = Pacer()
    pacer.measured(UNPACED_RTT_S / 2)
    assert pacer.wait_s(100.0, WINDOW_BYTES, UNPACED_RTT_S / 2, True) == 0.0
    pacer.sent(10 * WINDOW_BYTES)
    assert pacer.wait_s(100.0, WINDOW_BYTES, 20 * UNPACED_RTT_S, True) == 0.0


def test_a_debt_is_never_more_than_a_window() -> None:
    pacer = Pacer()
    pacer.measured(RTT_S)
    pacer.sent(100 * WINDOW_BYTES)
    pacer.wait_s(100.0, WINDOW_BYTES, RTT_S, False)
    assert pacer.wait_s(100.0, WINDOW_BYTES, RTT_S, False) <= RTT_S + BURST_S


def test_on_a_busy_machine_one_short_round_trip_is_enough_to_know_a_short_path() -> None:
    pacer = Pacer()
    pacer.measured(4 * UNPACED_RTT_S)
    assert pacer.wait_s(100.0, WINDOW_BYTES, 4 * UNPACED_RTT_S, True) == 0.0
    pacer.sent(10 * WINDOW_BYTES)
    assert pacer.wait_s(100.0, WINDOW_BYTES, 4 * UNPACED_RTT_S, True) > 0.0 and pacer.active
    pacer.measured(UNPACED_RTT_S / 4)
    assert pacer.least_rtt_s == UNPACED_RTT_S / 4 and not pacer.active
    assert pacer.wait_s(100.0, WINDOW_BYTES, 4 * UNPACED_RTT_S, True) == 0.0
    assert not pacer.queued(4 * UNPACED_RTT_S), "the smoothed one is always so long here: no queue"
