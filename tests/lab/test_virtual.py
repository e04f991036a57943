"""Whole daemons: peers reached by their virtual addresses, and a range that this host already uses."""

from __future__ import annotations

import json
import time
from ipaddress import ip_network
from pathlib import Path

import pytest

from tests.lab.daemon import SOCKS_PORT, Daemon
from tests.lab.hosts import Lab
from tests.lab.scenes import curl, serve_web, two_peers

SETTLED_S = 10.0


def peer(daemon: Daemon) -> dict[str, object]:
    """What a daemon with one peer says of it."""
    (only,) = json.loads(daemon.pvpn("peers", "--json").stdout)["peers"]
    return dict(only)


def test_a_peer_is_reached_by_its_addresses(lab: Lab, key: Path, tmp_path: Path) -> None:
    peer_a, peer_b = two_peers(lab, key)
    serve_web(peer_b.host, tmp_path / "web")
    seen = peer(peer_a)
    assert str(seen["ipv4"]) in peer_a.pvpn("peers").stdout
    own = json.loads(peer_b.pvpn("status", "--json").stdout)["networks"][0]
    assert (own["ipv4"], own["ipv6"]) == (seen["ipv4"], seen["ipv6"])
    for host in (seen["ipv4"], f"[{seen['ipv6']}]"):
        for proxy in ("socks5", "socks5h", "http"):
            url = f"http://{host}:8000/hello"
            assert curl(peer_a.host, "-x", f"{proxy}://127.0.0.1:{SOCKS_PORT}", url) == "hello from b"
        peer_a.pvpn("forward", f"8001:{host}:8000", "--background")
        assert curl(peer_a.host, "http://127.0.0.1:8001/hello") == "hello from b"
        peer_a.pvpn("forward", "--remove", f"8001:{host}:8000")
    assert "pong from peer-b" in peer_a.pvpn("ping", str(seen["ipv4"])).stdout
    nobody = str(ip_network(own["range4"])[53])
    refused = peer_a.pvpn("ping", nobody, check=False)
    assert refused.returncode != 0 and f"no peer has the address {nobody}" in refused.stderr


@pytest.mark.parametrize("how", ["by an address", "by a route in a table of its own"])
def test_a_range_that_this_host_uses_is_left_alone(lab: Lab, key: Path, tmp_path: Path, how: str) -> None:
    peer_a, peer_b = two_peers(lab, key)
    before = json.loads(peer_a.pvpn("status", "--json").stdout)["networks"][0]["range4"]
    peer_a.stop()
    other = ip_network(before)[5]
    if how == "by an address":
        peer_a.host.run(["ip", "address", "add", f"{other}/24", "dev", "eth0"])
    else:
        peer_a.host.run(["ip", "route", "add", f"{other}/32", "dev", "eth0", "table", "52"])
    peer_a.start()
    peer_a.meet(peer_b)
    after = json.loads(peer_a.pvpn("status", "--json").stdout)["networks"][0]["range4"]
    assert not ip_network(after).overlaps(ip_network(before))
    serve_web(peer_b.host, tmp_path / "web")
    url = f"http://{peer(peer_a)['ipv4']}:8000/hello"
    assert curl(peer_a.host, "-x", f"socks5h://127.0.0.1:{SOCKS_PORT}", url) == "hello from b"


def test_a_range_that_another_network_takes_meanwhile_is_told(lab: Lab, key: Path) -> None:
    peer_a, _ = two_peers(lab, key)
    own = json.loads(peer_a.pvpn("status", "--json").stdout)["networks"][0]["range4"]
    peer_a.host.run(["ip", "address", "add", f"{ip_network(own)[5]}/24", "dev", "eth0"])
    peer_a.wait_for(f"a network within {own} now")
    peer_a.host.run(["ip", "address", "del", f"{ip_network(own)[5]}/24", "dev", "eth0"])
    deadline = time.monotonic() + SETTLED_S
    while json.loads(peer_a.pvpn("status", "--json").stdout)["warnings"]:
        assert time.monotonic() < deadline
