"""What goes in comes out: large transfers each way, in every pairing of the engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.hosts import Lab
from tests.lab.scenes import EXCHANGE_PORT, serve_exchange, two_peers_through_dht

LARGE_BYTES = 1 << 30
SMALL_BYTES = 64 << 20
TRANSFER_S = 110.0


@pytest.mark.parametrize("engine_b", ["qh3", "aioquic"])
@pytest.mark.parametrize("engine_a", ["qh3", "aioquic"])
def test_large_transfers_arrive_whole(lab: Lab, key: Path, engine_a: str, engine_b: str) -> None:
    peer_a, peer_b = two_peers_through_dht(lab, key, ["--engine", engine_a], ["--engine", engine_b])
    server = serve_exchange(peer_b.host)
    size = LARGE_BYTES if engine_a == engine_b == "qh3" else SMALL_BYTES
    for role in ("get", "put"):
        got = peer_a.exchange(role, "peer-b", EXCHANGE_PORT, size).result(TRANSFER_S)
        assert (got["bytes"], got["end"]) == (size, "clean"), got
        server.wait_for(rf'"role": "{role}", "bytes": {size}, "sha256": "{got["sha256"]}", "end": "clean"')


def test_many_streams_at_once_arrive_whole(lab: Lab, key: Path) -> None:
    peer_a, peer_b = two_peers_through_dht(lab, key)
    server = serve_exchange(peer_b.host)
    roles = ["get", "put"] * 8
    clients = [peer_a.exchange(role, "peer-b", EXCHANGE_PORT, 8 << 20) for role in roles]
    for role, client in zip(roles, clients, strict=True):
        got = client.result(TRANSFER_S)
        assert (got["bytes"], got["end"]) == (8 << 20, "clean"), got
        server.wait_for(rf'"role": "{role}", .*"sha256": "{got["sha256"]}", "end": "clean"')
