"""Scenes the lab's tests begin with: two peers, a DHT made of strangers, programs to talk to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.lab.daemon import Daemon
from tests.lab.hosts import Host, Lab
from tests.support.processes import Process

EXCHANGE_PORT = 7000
DHT_NODES = 8
DHT_PORT = 6881
DHT_MEET_S = 60.0


def two_peers(
    lab: Lab, key: Path, options_a: Sequence[str] = (), options_b: Sequence[str] = ()
) -> tuple[Daemon, Daemon]:
    """peer-a and peer-b on hosts of their own, without the DHT; only a was told the other's address."""
    peer_b = Daemon(lab.host("b"), key, "peer-b", "--no-dht", *options_b).start()
    peer_a = Daemon(lab.host("a"), key, "peer-a", "--no-dht", "--peer", peer_b.endpoint, *options_a).start()
    peer_a.meet(peer_b)
    peer_b.meet(peer_a)
    return peer_a, peer_b


def strangers_dht(lab: Lab) -> list[str]:
    """A DHT of libtorrent nodes, each on an address of its own; their endpoints."""
    host = lab.host("strangers", addresses=DHT_NODES)
    endpoints = [f"{address}:{DHT_PORT}" for address in host.addresses]
    host.python("-m", "tests.support.libtorrent_dht", *endpoints).wait_for("^ready", timeout_s=30)
    return endpoints


def two_peers_through_dht(
    lab: Lab, key: Path, options_a: Sequence[str] = (), options_b: Sequence[str] = ()
) -> tuple[Daemon, Daemon]:
    """peer-a and peer-b that share the key file and nothing else, and know one stranger's address each."""
    first, *_, last = strangers_dht(lab)
    peer_b = Daemon(lab.host("b"), key, "peer-b", "--dht-bootstrap", first, *options_b, udp_port=None).start()
    peer_a = Daemon(lab.host("a"), key, "peer-a", "--dht-bootstrap", last, *options_a, udp_port=None).start()
    peer_a.meet(peer_b, timeout_s=DHT_MEET_S)
    peer_b.meet(peer_a, timeout_s=DHT_MEET_S)
    return peer_a, peer_b


def serve_exchange(host: Host) -> Process:
    """The exchange's server on every address of a host, ready."""
    server = host.python("-m", "tests.lab.exchange", "serve", str(EXCHANGE_PORT))
    server.wait_for("^serving")
    return server


def serve_web(host: Host, directory: Path, port: int = 8000, ip: str = "0.0.0.0") -> Process:
    """Python's web server on every IPv4 address of a host, or on one of its addresses, with one page `hello`."""
    directory.mkdir(exist_ok=True)
    (directory / "hello").write_text(f"hello from {host.name}")
    server = host.python("-m", "http.server", str(port), "--bind", ip, "--directory", str(directory))
    server.wait_for("Serving HTTP")
    return server


def curl(host: Host, *arguments: str) -> str:
    """What curl prints; AssertionError when it fails."""
    return host.run(["curl", "-sS", "--fail", "--max-time", "30", *arguments]).stdout
