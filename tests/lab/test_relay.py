"""Whole daemons: two hosts between which no datagram passes, for their firewalls or for having one address family each,
and a third that reaches both.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.lab.daemon import SOCKS_PORT, UDP_PORT, Daemon
from tests.lab.hosts import Lab
from tests.lab.scenes import EXCHANGE_PORT, curl, serve_exchange, serve_web
from tests.support.tools import missing_tools

PROXY = f"socks5h://127.0.0.1:{SOCKS_PORT}"
SIZE_BYTES = 8 << 20
TRANSFER_S = 60.0
TOLD_S = 15.0
APART = "relay via peer-c: one side has only IPv4, the other only IPv6"


def test_a_member_carries_for_two_that_do_not_reach_each_other(lab: Lab, key: Path, tmp_path: Path) -> None:
    if reason := missing_tools(["nft"]):
        pytest.skip(reason)
    peer_c = Daemon(lab.host("c"), key, "peer-c", "--no-dht").start()
    host_a, host_b = lab.host("a"), lab.host("b")
    for host, other in ((host_a, host_b), (host_b, host_a)):
        drop = f"ip saddr {other.address} meta l4proto udp drop"
        wall = f"table inet wall {{ chain in {{ type filter hook input priority 0; {drop}; }}; }}"
        host.run(["nft", "-f", "-"], text=wall)
    peer_a = Daemon(host_a, key, "peer-a", "--no-dht", "--peer", peer_c.endpoint).start()
    peer_b = Daemon(host_b, key, "peer-b", "--no-dht", "--peer", peer_c.endpoint).start()
    peer_a.wait_for(r"^\+ peer-b .*relay via peer-c")
    peer_b.wait_for(r"^\+ peer-a .*relay via peer-c")
    serve_web(host_b, tmp_path / "web")
    assert curl(host_a, "-x", PROXY, "http://peer-b:8000/hello") == "hello from b"
    server = serve_exchange(host_b)
    got = peer_a.exchange("get", "peer-b", EXCHANGE_PORT, SIZE_BYTES).result(TRANSFER_S)
    assert (got["bytes"], got["end"]) == (SIZE_BYTES, "clean")
    server.wait_for(rf'"sha256": "{got["sha256"]}", "end": "clean"')
    assert "relay via peer-c" in peer_a.pvpn("ping", "peer-b").stdout
    found = peer_a.pvpn("doctor").stdout
    assert "relay via peer-c: here" in found and "a firewall may drop UDP" in found
    for host in (host_a, host_b):
        host.run(["nft", "delete", "table", "inet", "wall"])
    peer_a.pvpn("ping", "peer-b", "--until-direct", "--count", "60", timeout_s=90.0)
    assert curl(host_a, "-x", PROXY, "http://peer-b:8000/hello") == "hello from b"


def test_one_with_ipv4_only_and_one_with_ipv6_only_meet_through_a_third(lab: Lab, key: Path, tmp_path: Path) -> None:
    host_a, host_b, host_c = (lab.host(name) for name in "abc")
    host_a.run(["ip", "-6", "address", "flush", "dev", "eth0"])
    host_b.run(["ip", "-4", "address", "flush", "dev", "eth0"])
    both = ("--listen", f"0.0.0.0:{UDP_PORT}", "--listen", f"[::]:{UDP_PORT}")
    Daemon(host_c, key, "peer-c", "--no-dht", *both, udp_port=None).start()
    began = time.monotonic()
    peer_a = Daemon(host_a, key, "peer-a", "--no-dht", "--peer", f"{host_c.address}:{UDP_PORT}", udp_port=None).start()
    peer_b = Daemon(
        host_b, key, "peer-b", "--no-dht", "--peer", f"[{host_c.address6}]:{UDP_PORT}", udp_port=None
    ).start()
    peer_a.wait_for(rf"^\+ peer-c .* {re.escape(host_c.address)}:")
    peer_b.wait_for(rf"^\+ peer-c .*{re.escape(host_c.address6)}\]?:")
    known = time.monotonic()
    peer_a.wait_for(r"^\+ peer-b .*relay via peer-c")
    peer_b.wait_for(r"^\+ peer-a .*relay via peer-c")
    now = time.monotonic()
    print(f"met {now - began:.1f} s after the first one's start, {now - known:.1f} s after both knew the third")
    for near, far in ((peer_a, peer_b), (peer_b, peer_a)):
        serve_web(far.host, tmp_path / f"web-{far.name}")
        assert curl(near.host, "-x", PROXY, f"http://{far.name}:8000/hello") == f"hello from {far.host.name}"
        deadline = time.monotonic() + TOLD_S
        while APART not in (found := near.pvpn("doctor").stdout):
            assert time.monotonic() < deadline, found
        assert not [line for line in near.output.splitlines() if line.startswith("! ")]
