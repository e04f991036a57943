"""A host whose own interface is the narrowest part of the way: its queue holds the sender back, and loses nothing."""

from __future__ import annotations

import json
from pathlib import Path

from tests.lab.hosts import Host, Lab
from tests.lab.scenes import EXCHANGE_PORT, serve_exchange, two_peers

SIZE_BYTES = 40_000_000
TRANSFER_S = 60.0
# A queue of half a megabyte: what a socket may hold back by default fits in, four megabytes would not.
GIGABIT = "rate 1gbit burst 128kb latency 4ms"


def queue(host: Host) -> dict[str, int]:
    """What the queue of the host's interface has counted."""
    (counts,) = json.loads(host.run(["tc", "-json", "-stats", "qdisc", "show", "dev", "eth0"]).stdout)
    return {name: int(counts[name]) for name in ("bytes", "drops")}


def test_a_transfer_through_a_slow_interface_overruns_no_queue(lab: Lab, key: Path) -> None:
    peer_a, peer_b = two_peers(lab, key)
    for peer in (peer_a, peer_b):
        peer.host.run(["tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", *GIGABIT.split()])
    server = serve_exchange(peer_b.host)
    for role, sender in (("get", peer_b), ("put", peer_a)):
        got = peer_a.exchange(role, "peer-b", EXCHANGE_PORT, SIZE_BYTES).result(TRANSFER_S)
        assert (got["bytes"], got["end"]) == (SIZE_BYTES, "clean"), got
        server.wait_for(rf'"role": "{role}", "bytes": {SIZE_BYTES}, "sha256": "{got["sha256"]}", "end": "clean"')
        counted = queue(sender.host)
        assert counted["bytes"] > SIZE_BYTES
        assert not counted["drops"], counted
