"""A machine whose clock is wrong: known peers are met all the same, and whoever is not found, the clock is named."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.lab.daemon import Daemon
from tests.lab.hosts import Lab
from tests.lab.scenes import strangers_dht

HOUR_S = 3600.0
YEAR_S = 365.25 * 24 * HOUR_S
AGAIN_S = 10.0
NOT_FOUND_S = 45.0
WRONG = {"+1.0": HOUR_S, "-1.0": -HOUR_S, "+17532.0": 2 * YEAR_S, "-17532.0": -2 * YEAR_S}
"""By how much, in hours as warnings say it and in seconds."""


@pytest.mark.parametrize("hours", WRONG)
def test_known_peers_are_met_and_the_clock_is_named(lab: Lab, key: Path, hours: str) -> None:
    """All three knew each other; now nobody is given an address, and the one with a wrong clock comes last."""
    hosts = [lab.host(name) for name in "abc"]
    first = Daemon(hosts[0], key, "peer-a", "--no-dht").start()
    told = ("--no-dht", "--peer", first.endpoint)
    peers = [first, *(Daemon(host, key, f"peer-{host.name}", *told).start() for host in hosts[1:])]
    for peer in peers:
        peer.meet(*(other for other in peers if other is not peer))
    for peer in peers:
        assert peer.stop() == 0
    *right, wrong = peers
    set_clock(wrong, WRONG[hours])
    for peer in peers:
        peer.options = first.options
    for peer in right:
        peer.begin()
    right[0].meet(right[1])
    right[1].meet(right[0])
    began = time.monotonic()
    wrong.start()
    for peer in right:
        peer.meet(wrong, timeout_s=AGAIN_S)
    wrong.meet(*right, timeout_s=AGAIN_S)
    print(f"clock {hours} hours off: met {time.monotonic() - began:.1f} s after its start")
    for peer in peers:
        peer.wait_for("^! a member's clock differs")
    said = {peer: [line for line in peer.output.splitlines() if line.startswith("! ")] for peer in peers}
    told = [peer for peer in peers if said[peer]]
    assert told
    for peer in told:
        warning = _warning(_opposite(hours) if peer is wrong else hours)
        assert said[peer] == [f"! {warning}"]
        assert warning in peer.pvpn("status").stdout
        assert "set both clocks" in peer.pvpn("doctor").stdout


def test_who_never_met_is_told_that_it_may_be_the_clock(lab: Lab, key: Path) -> None:
    """Two years apart their epochs, and so their places in the DHT and the keys of their probes, do not meet."""
    first, *_, last = strangers_dht(lab)
    peer_a = Daemon(lab.host("a"), key, "peer-a", "--dht-bootstrap", first).start()
    peer_b = Daemon(lab.host("b"), key, "peer-b", "--dht-bootstrap", last, "--peer", peer_a.endpoint)
    set_clock(peer_b, 2 * YEAR_S)
    peer_b.start()
    peer_b.wait_for("none answers .* clocks are right: here it is 20", NOT_FOUND_S)
    for peer in (peer_a, peer_b):
        said = peer.pvpn("status").stdout
        assert "dht     announced" in said and "no peers yet" in said and "see that both clocks are right" in said, said


def set_clock(peer: Daemon, ahead_s: float) -> None:
    """Its daemon's clock is so far ahead from its next start on."""
    peer.program = [sys.executable, "-m", "tests.lab.clocked", str(ahead_s)]


def _opposite(hours: str) -> str:
    return ("-" if hours[0] == "+" else "+") + hours[1:]


def _warning(hours: str) -> str:
    return f"a member's clock differs from this machine's by {hours} hours - set both"
