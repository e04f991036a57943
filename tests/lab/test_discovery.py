"""Peers find each other: through a DHT made only of other people's nodes, and through each other."""

from __future__ import annotations

import json
from pathlib import Path

from tests.lab.daemon import SOCKS_PORT, Daemon
from tests.lab.hosts import Lab
from tests.lab.scenes import EXCHANGE_PORT, curl, serve_exchange, serve_web, two_peers, two_peers_through_dht

PROXY = f"socks5h://127.0.0.1:{SOCKS_PORT}"


def test_a_key_file_and_strangers_nodes_are_enough(lab: Lab, key: Path, tmp_path: Path) -> None:
    peer_a, peer_b = two_peers_through_dht(lab, key)
    serve_web(peer_b.host, tmp_path / "web-b")
    serve_web(peer_a.host, tmp_path / "web-a")
    assert curl(peer_a.host, "-x", PROXY, "http://peer-b:8000/hello") == "hello from b"
    assert curl(peer_b.host, "-x", PROXY, "http://peer-a:8000/hello") == "hello from a"
    serve_exchange(peer_b.host)
    forward = peer_a.start_command("forward", f"127.0.0.1:0:peer-b:{EXCHANGE_PORT}")
    port = forward.wait_for(r"127\.0\.0\.1:(\d+)")[1]
    for way in (f"TCP:127.0.0.1:{port}", f"EXEC:{peer_a.wrapper} connect peer-b {EXCHANGE_PORT}"):
        done = peer_a.host.run(["socat", "-t", "20", "-", way], text="put\nhello")
        assert json.loads(done.stdout)["bytes"] == 5
    assert forward.interrupt() == 0
    assert peer_a.stop() == 0 and peer_b.stop() == 0


def test_a_lan_without_internet_is_enough(lab: Lab, key: Path, tmp_path: Path) -> None:
    peer_a = Daemon(lab.host("a"), key, "peer-a", "--no-dht", lan=True).start()
    peer_b = Daemon(lab.host("b"), key, "peer-b", "--no-dht", lan=True).start()
    peer_b.meet(peer_a)
    peer_a.wait_for(r"^\+ peer-b \(home\): lan ")
    serve_web(peer_a.host, tmp_path / "web")
    assert curl(peer_b.host, "-x", PROXY, "http://peer-a:8000/hello") == "hello from a"
    assert peer_a.stop() == 0 and peer_b.stop() == 0


def test_a_third_peer_is_found_through_the_first(lab: Lab, key: Path, tmp_path: Path) -> None:
    peer_a, peer_b = two_peers(lab, key)
    peer_c = Daemon(lab.host("c"), key, "peer-c", "--no-dht", "--peer", peer_b.endpoint).start()
    peer_c.meet(peer_b, peer_a)
    serve_web(peer_a.host, tmp_path / "web")
    assert curl(peer_c.host, "-x", PROXY, "http://peer-a:8000/hello") == "hello from a"
    assert peer_b.stop() == 0  # nothing goes through it
    assert curl(peer_c.host, "-x", PROXY, "http://peer-a:8000/hello") == "hello from a"


def test_a_restart_needs_neither_dht_nor_peer(lab: Lab, key: Path, tmp_path: Path) -> None:
    """Known peers' last addresses are tried first, so the one that was told nothing finds the other again."""
    peer_a, peer_b = two_peers(lab, key)
    serve_web(peer_a.host, tmp_path / "web")
    assert peer_b.stop() == 0 and peer_a.stop() == 0
    peer_a.options = peer_b.options  # without --peer
    peer_a.start()
    peer_b.start().meet(peer_a)
    assert curl(peer_b.host, "-x", PROXY, "http://peer-a:8000/hello") == "hello from a"
