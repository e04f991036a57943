"""Whole peers over lines that lose, reorder, break, and carry less than they promised."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.lab.daemon import Daemon
from tests.lab.hosts import Lab
from tests.lab.scenes import EXCHANGE_PORT, serve_exchange
from tests.lab.wire import Wire, unavailable
from tests.support.processes import Process

SIZE_BYTES = 5_000_000
LONG_BYTES = 12_000_000
TRANSFER_S = 60.0
SHORT_CUT_S = 5.0
MENDED_S = 5.0
NOTICED_S = 30.0
BACK_S = 3.0
# Throughput under loss falls as the round trip grows; with a short one these tests are short too.
ROUGH = {
    "loss 1 %": {"delay_ms": 1.0, "loss": 0.01},
    "loss 5 %": {"delay_ms": 1.0, "loss": 0.05},
    "loss 10 %": {"delay_ms": 1.0, "loss": 0.1},
    "reordering": {"delay_ms": 1.0, "reorder": 0.05, "extra_ms": 50.0},
}
# Slow enough that a transfer is still going on when the line changes.
BROADBAND = {"delay_ms": 10.0, "rate_mbit": 20.0}

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


class Pair:
    """peer-a and peer-b at the ends of a wire, and the exchange's server beside peer-b."""

    def __init__(self, lab: Lab, key: Path, engines: tuple[str, str] = ("qh3", "qh3"), mtu: int = 1500) -> None:
        host_a, host_b = lab.host("a"), lab.host("b")
        self.wire = Wire(host_a, host_b, mtu=mtu)
        self.b = Daemon(host_b, key, "peer-b", "--no-dht", "--engine", engines[1])
        self.a = Daemon(host_a, key, "peer-a", "--no-dht", "--peer", self.b.endpoint, "--engine", engines[0])

    def meet(self, **line: float) -> Pair:
        """Start both on such a line, until they see each other."""
        self.wire.set(**line)
        self.b.start()
        self.a.start()
        self.a.meet(self.b)
        self.b.meet(self.a)
        self._server = serve_exchange(self.b.host)
        return self

    def begin(self, role: str, size: int) -> Process:
        """A transfer that flows."""
        client = self.a.exchange(role, "peer-b", EXCHANGE_PORT, size)
        (client if role == "get" else self._server).wait_for("^flowing")
        return client

    def check(self, client: Process, role: str, size: int) -> None:
        """The transfer arrives whole."""
        got = client.result(TRANSFER_S)
        assert (got["bytes"], got["end"]) == (size, "clean"), got
        self._server.wait_for(rf'"role": "{role}", "bytes": {size}, "sha256": "{got["sha256"]}", "end": "clean"')

    def exchange_both_ways(self) -> None:
        """A download and an upload arrive whole, and no peer was ever lost."""
        for role in ("get", "put"):
            self.check(self.a.exchange(role, "peer-b", EXCHANGE_PORT, SIZE_BYTES), role, SIZE_BYTES)
        self.check_nobody_left()

    def check_nobody_left(self) -> None:
        left = [line for peer in (self.a, self.b) for line in peer.output.splitlines() if line.startswith("- ")]
        assert not left, left


@pytest.mark.parametrize("line", ROUGH)
def test_transfers_arrive_whole_over_rough_lines(lab: Lab, key: Path, line: str) -> None:
    pair = Pair(lab, key).meet(**ROUGH[line])
    pair.exchange_both_ways()
    counts = pair.wire.counts().values()
    assert all(each.held_back if line == "reordering" else each.lost for each in counts)


@pytest.mark.parametrize("line", ["loss 5 %", "reordering"])
def test_transfers_arrive_whole_between_engines(lab: Lab, key: Path, line: str) -> None:
    Pair(lab, key, engines=("aioquic", "qh3")).meet(**ROUGH[line]).exchange_both_ways()


@pytest.mark.parametrize("mtu", [1280, 1500])
def test_a_line_of_1280_bytes_is_enough(lab: Lab, key: Path, mtu: int) -> None:
    """Whether the devices know it (MTU 1280) or the line between them keeps it to itself."""
    Pair(lab, key, mtu=mtu).meet(largest_bytes=1280).exchange_both_ways()


def test_a_short_cut_only_pauses_transfers(lab: Lab, key: Path) -> None:
    pair = Pair(lab, key).meet(**BROADBAND)
    clients = {role: pair.begin(role, LONG_BYTES) for role in ("get", "put")}
    pair.wire.down()
    _check_silent(pair.a, "^- peer-b", SHORT_CUT_S)
    assert all(client.running for client in clients.values())
    pair.wire.up()
    for role, client in clients.items():
        pair.check(client, role, LONG_BYTES)
    pair.check_nobody_left()


@pytest.mark.parametrize("asked", [True, False])
def test_a_long_cut_resets_flows_and_the_peer_is_back_with_the_line(lab: Lab, key: Path, asked: bool) -> None:
    pair = Pair(lab, key).meet(**BROADBAND)
    client = pair.a.exchange("follow", "peer-b", EXCHANGE_PORT)
    client.wait_for("^at ")
    pair.wire.down()
    for peer, other in ((pair.a, "peer-b"), (pair.b, "peer-a")):
        peer.wait_for(f"^- {other} ", NOTICED_S)
    assert client.result(NOTICED_S)["end"] == "reset"
    since = _lines(pair.a)
    pair.wire.up()
    mended_at = time.monotonic()
    if asked:
        client = pair.a.exchange("get", "peer-b", EXCHANGE_PORT, SIZE_BYTES)
    pair.a.wait_for(r"^\+ peer-b ", since=since)
    took = time.monotonic() - mended_at
    assert took <= BACK_S, f"back after {took:.1f} s"
    if asked:
        pair.check(client, "get", SIZE_BYTES)


@pytest.mark.parametrize("flowing", (r"^at ", r"^at \S+ \d{6}"), ids=("in its first round trips", "as it flows"))
def test_a_black_hole_that_appears_only_pauses_a_transfer(lab: Lab, key: Path, flowing: str) -> None:
    pair = Pair(lab, key).meet(**BROADBAND)
    client = pair.a.exchange("follow", "peer-b", EXCHANGE_PORT)
    client.wait_for(flowing)
    pair.wire.set(largest_bytes=1300)
    began = pair.wire.counts()["in"].carried_bytes
    _check_silent(pair.a, "^- peer-b", MENDED_S)
    mended = client.mark()
    client.wait_for("^at ", 1.0, since=mended)
    assert pair.wire.counts()["in"].carried_bytes - began > 1_000_000
    pair.check_nobody_left()


def _lines(peer: Daemon) -> int:
    assert peer.process is not None
    return peer.process.mark()


def _check_silent(peer: Daemon, pattern: str, period_s: float) -> None:
    """For so long, the peer says nothing of the kind."""
    with pytest.raises(AssertionError, match="still running"):
        peer.wait_for(pattern, period_s, since=_lines(peer))
