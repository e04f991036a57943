"""No DHT node answers, from the start or later on: peers meet in other ways, stay connected, and are told of it."""

from __future__ import annotations

import re
import time
from pathlib import Path

from tests.lab.daemon import Daemon
from tests.lab.hosts import Lab
from tests.lab.scenes import DHT_PORT, EXCHANGE_PORT, serve_exchange, strangers_dht

SILENT = r"^dht +unreachable: no node answers"
SAID_AT_START_S = 30.0
NOTICED_S = 75.0


def test_dead_at_the_start(lab: Lab, key: Path) -> None:
    """A LAN, a friend's address and its acquaintances, and where peers were last: each is enough."""
    dead = ("--dht-bootstrap", f"{lab.host('nobody').address}:{DHT_PORT}")
    peer_a = Daemon(lab.host("a"), key, "peer-a", *dead, lan=True).start()
    peer_a.wait_for("^! the DHT does not answer")
    _wait_for_status(peer_a, SILENT, SAID_AT_START_S)
    peer_b = Daemon(lab.host("b"), key, "peer-b", *dead, lan=True).start()
    peer_b.meet(peer_a)
    host_c, told = lab.host("c"), ("--peer", peer_a.endpoint)
    peer_c = Daemon(host_c, key, "peer-c", *dead, *told).start()
    peer_c.meet(peer_a, peer_b)
    peer_b.meet(peer_c)
    assert peer_c.stop() == 0
    peer_c = Daemon(host_c, key, "peer-c", *dead).start()
    peer_c.meet(peer_a, peer_b)
    _wait_for_status(peer_a, SILENT, 1.0)


def test_dead_later_and_at_the_next_start(lab: Lab, key: Path) -> None:
    """Connections and flows stay; what an earlier run saved of the DHT is dead too, what it saved of peers is not."""
    first, *_, last = strangers_dht(lab)
    strangers = next(host for host in lab.hosts if host.name == "strangers")
    peer_a = Daemon(lab.host("a"), key, "peer-a", "--dht-bootstrap", first).start()
    peer_b = Daemon(lab.host("b"), key, "peer-b", "--dht-bootstrap", last).start()
    for peer, other in ((peer_a, peer_b), (peer_b, peer_a)):
        peer.meet(other, timeout_s=60.0)
        _wait_for_status(peer, "^dht +announced", SAID_AT_START_S)
    serve_exchange(peer_b.host)
    flow = peer_a.exchange("hold", peer_b.name, EXCHANGE_PORT)
    flow.wait_for("^holding")

    strangers.run(["ip", "link", "set", "eth0", "down"])
    began = time.monotonic()
    for peer in (peer_a, peer_b):
        _wait_for_status(peer, SILENT, NOTICED_S)
    print(f"both say so {time.monotonic() - began:.0f} s after the last node died")
    flow.tell("still here")
    flow.wait_for("^echo still here")
    assert flow.finish()["end"] == "clean"
    assert not any(line.startswith("- ") for peer in (peer_a, peer_b) for line in peer.output.splitlines())

    assert peer_a.stop() == 0 and peer_b.stop() == 0
    peer_b.start()
    peer_a.start().meet(peer_b)
    peer_c = Daemon(lab.host("c"), key, "peer-c", "--dht-bootstrap", first, "--peer", peer_a.endpoint).start()
    peer_c.meet(peer_a, peer_b)
    _wait_for_status(peer_b, SILENT, SAID_AT_START_S)


def _wait_for_status(peer: Daemon, pattern: str, timeout_s: float) -> None:
    """Ask `pvpn status` until a line of it holds the pattern."""
    deadline = time.monotonic() + timeout_s
    while True:
        said = peer.pvpn("status").stdout
        if re.search(pattern, said, re.MULTILINE):
            return
        assert time.monotonic() < deadline, f"no {pattern!r} within {timeout_s:g} s in\n{said}"
