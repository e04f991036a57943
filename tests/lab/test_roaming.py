"""Flows survive a move: another address in the middle of a transfer, an interface that goes and comes, a sleep."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.lab.daemon import Daemon
from tests.lab.hosts import Host, Lab
from tests.lab.scenes import EXCHANGE_PORT, serve_exchange, two_peers

SIZE_BYTES = 200 << 20
TRANSFER_S = 60.0
RESET_S = 10.0
BACK_S = 5.0
SHORT_S = 5.0
LOST_S = 60.0  # an idle peer is given up after 50 s
LINK_BACK_S = 4.0  # 3 s are promised; a machine that does other things meanwhile gets one more


@pytest.mark.parametrize("who", ["who dialled", "who was dialled"])
def test_an_address_changes_during_a_transfer(lab: Lab, key: Path, who: str) -> None:
    """The peer that moves is the one whose program asked: a service's own connection ends with its host's address."""
    mover, other = peers = two_peers(lab, key)
    if who == "who was dialled":
        other, mover = peers
    server = serve_exchange(other.host)
    client = mover.exchange("get", other.name, EXCHANGE_PORT, SIZE_BYTES)
    client.wait_for("^flowing")
    _move(mover.host)
    got = client.result(TRANSFER_S)
    assert (got["bytes"], got["end"]) == (SIZE_BYTES, "clean"), got
    server.wait_for(rf'"sha256": "{got["sha256"]}", "end": "clean"')
    _nobody_left(*peers)


def test_a_service_whose_address_goes_is_reset_and_reached_again_at_the_new_one(lab: Lab, key: Path) -> None:
    """The service's own connection can't outlive its address: the program is told, and does not hang."""
    asker, server = two_peers(lab, key)
    serve_exchange(server.host)
    client = asker.exchange("get", server.name, EXCHANGE_PORT, 0)
    client.wait_for("^flowing")
    _move(server.host)
    assert client.result(RESET_S)["end"] == "reset"
    again = asker.exchange("get", server.name, EXCHANGE_PORT, 1 << 20)
    assert again.result(BACK_S)["end"] == "clean"
    _nobody_left(asker, server)


def test_an_interface_that_is_down_for_a_moment_only_pauses_a_transfer(lab: Lab, key: Path) -> None:
    """The kernel takes its IPv6 addresses and all routes away meanwhile."""
    mover, other = two_peers(lab, key)
    server = serve_exchange(other.host)
    client = mover.exchange("get", other.name, EXCHANGE_PORT, SIZE_BYTES)
    client.wait_for("^flowing")
    _link(mover.host, "down")
    _nothing_for(SHORT_S, mover, "^- ")
    _link(mover.host, "up")
    got = client.result(TRANSFER_S)
    assert (got["bytes"], got["end"]) == (SIZE_BYTES, "clean"), got
    server.wait_for(rf'"sha256": "{got["sha256"]}", "end": "clean"')
    _nobody_left(mover, other)


def test_an_interface_that_is_down_for_long_resets_flows_and_peers_are_back_with_it(lab: Lab, key: Path) -> None:
    mover, other = two_peers(lab, key)
    serve_exchange(other.host)
    client = mover.exchange("follow", other.name, EXCHANGE_PORT)
    client.wait_for("^at ")
    _link(mover.host, "down")
    for peer, name in ((mover, other.name), (other, mover.name)):
        peer.wait_for(f"^- {name}", LOST_S)
    assert client.result(LOST_S)["end"] == "reset"
    marks = mover.mark(), other.mark()
    _link(mover.host, "up")
    began = time.monotonic()
    mover.wait_for(f"^\\+ {other.name}", LINK_BACK_S, since=marks[0])
    other.wait_for(f"^\\+ {mover.name}", LINK_BACK_S, since=marks[1])
    print(f"back {time.monotonic() - began:.1f} s after the link")
    assert mover.exchange("get", other.name, EXCHANGE_PORT, 1 << 20).result(BACK_S)["end"] == "clean"


def test_a_process_that_sleeps_is_back_when_it_wakes(lab: Lab, key: Path) -> None:
    """Stopped, as a host that is suspended; only its clock goes on, which NetworkWatch's own tests turn."""
    sleeper, other = two_peers(lab, key)
    serve_exchange(other.host)
    assert sleeper.process is not None
    os.kill(sleeper.process.pid, signal.SIGSTOP)
    try:
        _nothing_for(SHORT_S, other, "^- ")
    finally:
        os.kill(sleeper.process.pid, signal.SIGCONT)
    assert sleeper.exchange("get", other.name, EXCHANGE_PORT, 1 << 20).result(BACK_S)["end"] == "clean"


def _link(host: Host, state: str) -> None:
    host.run(["ip", "link", "set", "eth0", state])
    if state == "up":  # as whoever manages the network does
        host.run(["ip", "route", "replace", "default", "via", host.segment.gateway])


def _nothing_for(period_s: float, peer: Daemon, pattern: str) -> None:
    with pytest.raises(AssertionError, match="still running"):
        peer.wait_for(pattern, period_s, since=peer.mark())


def _move(host: Host) -> None:
    """Another address and no other, as after a change of networks."""
    new = f"{host.address.rpartition('.')[0]}.77"
    host.run(["ip", "address", "del", f"{host.address}/16", "dev", "eth0"])
    host.run(["ip", "address", "add", f"{new}/16", "dev", "eth0"])
    host.run(["ip", "route", "replace", "default", "via", host.segment.gateway])


def _nobody_left(*peers: Daemon) -> None:
    for peer in peers:
        assert not any(line.startswith("- ") for line in peer.output.splitlines()), peer.output
