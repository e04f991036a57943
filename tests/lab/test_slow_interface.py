"""A host whose own interface is the narrowest part of the way: its queue holds the sender back, and loses nothing."""

from __future__ import annotations

import json
from pathlib import Path

from tests.lab.daemon import Daemon
from tests.lab.hosts import GIGABIT, Host, Lab
from tests.lab.scenes import EXCHANGE_PORT, serve_exchange, two_peers

SIZE_BYTES = 40_000_000
TRANSFER_S = 60.0
UPLINK = "rate 50mbit burst 16kb latency 400ms"
UPLOAD_BYTES = 60_000_000
BESIDE_BYTES = 200_000
BESIDE_S = 5.0


def queue(host: Host) -> dict[str, int]:
    """What the queue of the host's interface has counted."""
    (counts,) = json.loads(host.run(["tc", "-json", "-stats", "qdisc", "show", "dev", "eth0"]).stdout)
    return {name: int(counts[name]) for name in ("bytes", "drops")}


def test_a_transfer_through_a_slow_interface_overruns_no_queue(lab: Lab, key: Path) -> None:
    peer_a, peer_b = two_peers(lab, key)
    for peer in (peer_a, peer_b):
        peer.host.slow_down(GIGABIT)
    server = serve_exchange(peer_b.host)
    for role, sender in (("get", peer_b), ("put", peer_a)):
        got = peer_a.exchange(role, "peer-b", EXCHANGE_PORT, SIZE_BYTES).result(TRANSFER_S)
        assert (got["bytes"], got["end"]) == (SIZE_BYTES, "clean"), got
        server.wait_for(rf'"role": "{role}", "bytes": {SIZE_BYTES}, "sha256": "{got["sha256"]}", "end": "clean"')
        counted = queue(sender.host)
        assert counted["bytes"] > SIZE_BYTES
        assert not counted["drops"], counted


def test_an_upload_that_fills_the_interface_leaves_other_peers_their_turns(lab: Lab, key: Path) -> None:
    peer_a, peer_b = two_peers(lab, key)
    peer_c = Daemon(lab.host("c"), key, "peer-c", "--no-dht", "--peer", peer_a.endpoint).start()
    peer_c.meet(peer_a)
    peer_a.meet(peer_c)
    receiver = serve_exchange(peer_b.host)
    serve_exchange(peer_c.host)
    peer_a.host.slow_down(UPLINK)
    uploads = [peer_a.exchange("put", "peer-b", EXCHANGE_PORT, UPLOAD_BYTES) for _ in range(4)]
    receiver.wait_for("^flowing")
    for role in ("put", "get"):
        got = peer_a.exchange(role, "peer-c", EXCHANGE_PORT, BESIDE_BYTES).result(BESIDE_S)
        assert (got["bytes"], got["end"]) == (BESIDE_BYTES, "clean"), got
    assert all(upload.running for upload in uploads), "too short to be in anybody's way"
