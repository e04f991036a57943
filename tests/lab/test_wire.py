"""The wire itself: each fault it was asked for, in the measure it was asked for, and nothing else.

Counts come from the wire's own counters and the probe's datagrams. Of times only lower bounds are exact: a busy machine
makes everything later, and nothing earlier.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.lab.carrier import Lane, Line
from tests.lab.hosts import Host, Lab, LabError
from tests.lab.scenes import EXCHANGE_PORT, serve_exchange
from tests.lab.wire import Wire, unavailable

ECHO_PORT = 9000
SLACK_MS = 500.0
TRANSFER_S = 60.0

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

Probe = Callable[..., dict[str, Any]]


@pytest.fixture
def ends(lab: Lab) -> tuple[Host, Host]:
    """Two hosts; the second echoes datagrams."""
    near, far = lab.host("near"), lab.host("far")
    far.python("-m", "tests.lab.probes", "echo", str(ECHO_PORT)).wait_for("^echoing")
    return near, far


@pytest.fixture
def probe(ends: tuple[Host, Host]) -> Probe:
    """Sends datagrams from the first host to the second's echo; what the probe counted."""

    def send(count: int, *, size: int = 100, interval_ms: float = 0.5) -> dict[str, Any]:
        numbers = (str(number) for number in (ECHO_PORT, count, size, interval_ms))
        return ends[0].python("-m", "tests.lab.probes", "send", ends[1].address, *numbers).result(TRANSFER_S)

    return send


def test_a_plain_wire_changes_nothing(ends: tuple[Host, Host], probe: Probe) -> None:
    wire = Wire(*ends)
    seen = probe(500)
    assert (seen["came"], seen["doubled"], seen["overtaken"]) == (500, 0, 0)
    assert all(counts.carried >= 500 and not counts.lost + counts.overflowed for counts in wire.counts().values())


def test_a_line_to_the_bridge_reaches_every_host(lab: Lab, ends: tuple[Host, Host], probe: Probe) -> None:
    Wire(ends[0], delay_ms=10)
    assert probe(20)["came"] == 20
    third = lab.host("third")
    assert probe(20)["min_ms"] >= 20
    answer = third.python("-m", "tests.lab.probes", "send", ends[1].address, str(ECHO_PORT), "20", "100", "1").result()
    assert answer["came"] == 20 and answer["min_ms"] < 20
    assert third.run(["ip", "route", "get", ends[0].address6]).returncode == 0


def test_delay_counts_both_ways_and_changes_while_it_runs(ends: tuple[Host, Host], probe: Probe) -> None:
    wire = Wire(*ends, delay_ms=20)
    assert 40 <= probe(100)["min_ms"] <= 40 + SLACK_MS
    wire.set("out", delay_ms=50)
    assert 70 <= probe(100)["min_ms"] <= 70 + SLACK_MS
    wire.set(delay_ms=0)
    assert probe(100)["min_ms"] < 40


def test_loss_is_as_often_as_asked(ends: tuple[Host, Host], probe: Probe) -> None:
    wire = Wire(*ends)
    probe(1)  # neighbours know each other before any of their questions is lost
    wire.set("out", loss=0.1)
    before = wire.counts()["out"]
    seen = probe(1000)
    after = wire.counts()["out"]
    lost = after.lost - before.lost
    assert 50 <= lost <= 150  # five standard deviations
    assert 1000 - seen["came"] <= lost <= 1000 - seen["came"] + 20  # what is no datagram of ours is rare here
    assert after.frames - before.frames == lost + after.carried - before.carried


def test_doubles_come_twice(ends: tuple[Host, Host], probe: Probe) -> None:
    wire = Wire(*ends)
    wire.set("in", duplicate=0.2)
    seen = probe(500)
    assert seen["came"] == 500 and 55 <= seen["doubled"] <= 145
    assert wire.counts()["in"].doubled >= seen["doubled"]


def test_frames_held_back_are_overtaken(ends: tuple[Host, Host], probe: Probe) -> None:
    wire = Wire(*ends)
    wire.set("out", reorder=0.1, extra_ms=50)
    seen = probe(1000, interval_ms=1)
    assert seen["came"] == 1000 and 50 <= wire.counts()["out"].held_back <= 160
    assert seen["overtaken"] >= 30 and seen["max_ms"] >= 50


def test_rate_bounds_the_kernels_own_tcp(ends: tuple[Host, Host]) -> None:
    wire = Wire(*ends, rate_mbit=50, delay_ms=5)
    serve_exchange(ends[1])
    for role, way in (("get", "in"), ("put", "out")):
        before = wire.counts()[way]
        got = _tcp(ends, role, 8 << 20)
        carried = wire.counts()[way].carried_bytes - before.carried_bytes
        rate_mbit = carried * 8 / got["seconds"] / 1e6
        assert got["end"] == "clean" and 20 <= rate_mbit <= 51, rate_mbit


def test_what_finds_no_room_in_the_queue_is_dropped(ends: tuple[Host, Host], probe: Probe) -> None:
    wire = Wire(*ends)
    probe(1)
    wire.set("out", rate_mbit=4, queue_bytes=50_000)
    seen = probe(300, size=1400, interval_ms=0)
    counts = wire.counts()["out"]
    assert counts.overflowed == 300 - seen["came"] > 0
    assert 48_000 <= counts.largest_backlog_bytes <= 50_000
    assert seen["max_ms"] >= 48_000 * 8 / 4_000  # the last one that found room waited for all before it


def test_a_black_hole_takes_what_is_large_and_no_more(ends: tuple[Host, Host], probe: Probe) -> None:
    wire = Wire(*ends)
    fits, headers = 1300 - 28, 28
    assert probe(20, size=1500 - headers)["came"] == 20
    wire.set("out", largest_bytes=1300)
    assert probe(20, size=fits)["came"] == 20
    assert probe(20, size=fits + 1)["came"] == 0
    assert wire.counts()["out"].oversized == 20
    wire.set(largest_bytes=0)
    assert probe(20, size=fits + 1)["came"] == 20


def test_a_line_goes_down_and_up(ends: tuple[Host, Host], probe: Probe) -> None:
    wire = Wire(*ends)
    assert probe(20)["came"] == 20
    wire.down()
    assert probe(20)["came"] == 0
    assert wire.counts()["out"].cut >= 20
    assert "UP" in ends[0].run(["ip", "link", "show", "dev", "eth0"]).stdout
    wire.up()
    assert probe(20)["came"] == 20


def test_a_cut_loses_what_is_on_its_way(ends: tuple[Host, Host], probe: Probe) -> None:
    wire = Wire(*ends)
    probe(1)
    wire.set("out", delay_ms=60_000)
    assert probe(20)["came"] == 0
    assert wire.counts()["out"].cut == 0
    wire.down()
    assert wire.counts()["out"].cut >= 20
    wire.set(delay_ms=0, up=1)
    assert probe(20)["came"] == 20


def test_a_seed_decides_what_is_lost() -> None:
    def fates(seed: int) -> list[int]:
        with open(os.devnull, "wb") as sink:
            lane = Lane(sink.fileno(), seed)
            lane.change(Line(loss=0.5))
            lost = []
            for _ in range(64):
                lane.take(bytes(60), 0.0)
                lost.append(lane.counts.lost)
        return lost

    assert fates(3) == fates(3) != fates(4)


def test_a_smaller_mtu_is_the_hosts_own(ends: tuple[Host, Host]) -> None:
    Wire(*ends, mtu=1280)
    for host in ends:
        assert "mtu 1280" in host.run(["ip", "link", "show", "dev", "eth0"]).stdout


@pytest.mark.parametrize("words", [{"speed": 3.0}, {"way": 1.0}])
def test_what_it_does_not_know_is_an_error(ends: tuple[Host, Host], probe: Probe, words: dict[str, float]) -> None:
    wire = Wire(*ends)
    with pytest.raises(LabError, match="does not understand"):
        wire.set(**words)
    assert probe(5)["came"] == 5


def _tcp(ends: tuple[Host, Host], role: str, size: int) -> dict[str, Any]:
    where = ["--host", ends[1].address, "--size", str(size)]
    return ends[0].python("-m", "tests.lab.exchange", role, str(EXCHANGE_PORT), *where).result(TRANSFER_S)
