"""A lost peer is never a clean end, and it is back soon: kill -9 in the middle of transfers."""

from __future__ import annotations

import time
from pathlib import Path

from tests.lab.daemon import SOCKS_PORT, Daemon
from tests.lab.hosts import Lab
from tests.lab.scenes import EXCHANGE_PORT, curl, serve_exchange, serve_web, two_peers
from tests.support.processes import Process

LOST_S = 40.0
BACK_S = 5.0
ROLES = ("get", "put")


def test_the_far_peer_is_killed(lab: Lab, key: Path) -> None:
    peer_a, _, peer_b, clients = transfers(lab, key)
    peer_b.kill()
    for client in clients:
        assert client.result(LOST_S)["end"] == "reset"
    assert peer_a.process is not None and peer_a.process.running


def test_the_near_peer_is_killed(lab: Lab, key: Path) -> None:
    """The service learns it too: half an upload never looks like a whole one."""
    peer_a, server, *_ = transfers(lab, key)
    peer_a.kill()
    for role in ROLES:
        server.wait_for(rf'"role": "{role}".*"end": "reset"', LOST_S)


def transfers(lab: Lab, key: Path) -> tuple[Daemon, Process, Daemon, list[Process]]:
    """A transfer each way from peer-a to a service of peer-b, amid; the service and its clients."""
    peer_a, peer_b = two_peers(lab, key)
    server = serve_exchange(peer_b.host)
    clients = [peer_a.exchange(role, "peer-b", EXCHANGE_PORT) for role in ROLES]
    clients[0].wait_for("^flowing")
    server.wait_for("^flowing")
    return peer_a, server, peer_b, clients


def test_a_killed_peer_is_back_soon(lab: Lab, key: Path, tmp_path: Path) -> None:
    peer_a, peer_b = two_peers(lab, key)
    serve_web(peer_b.host, tmp_path / "web")
    forward = peer_a.start_command("forward", "8080:peer-b:8000")
    forward.wait_for("8080")
    assert curl(peer_a.host, "http://127.0.0.1:8080/hello") == "hello from b"
    peer_b.kill()
    peer_b.start()
    took = _seconds_until_served(peer_a, "-x", f"socks5h://127.0.0.1:{SOCKS_PORT}", "http://peer-b:8000/hello")
    assert took < BACK_S, f"back after {took:.1f} s"
    assert curl(peer_a.host, "http://127.0.0.1:8080/hello") == "hello from b"


def test_a_peer_that_stops_says_goodbye(lab: Lab, key: Path) -> None:
    peer_a, peer_b = two_peers(lab, key)
    assert peer_a.process is not None
    heard = peer_a.process.mark()
    assert peer_b.stop() == 0
    peer_a.wait_for("^- peer-b ", BACK_S, since=heard)


def _seconds_until_served(peer: Daemon, *asked: str) -> float:
    began = time.monotonic()
    while time.monotonic() - began < 4 * BACK_S:
        done = peer.host.run(["curl", "-s", "--fail", "--max-time", str(BACK_S), *asked], check=False)
        if done.returncode == 0:
            break
    return time.monotonic() - began
