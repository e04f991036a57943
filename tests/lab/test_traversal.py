"""Whole peers behind routers find each other through strangers' DHT, connect directly, and carry programs."""

from __future__ import annotations

import re
import time
from itertools import combinations_with_replacement
from pathlib import Path

import pytest

from tests.lab.daemon import SOCKS_PORT, Daemon, make_key
from tests.lab.hosts import PUBLIC, Lab
from tests.lab.nat import CONES, Kind, Router
from tests.lab.scenarios import DIRECT, RELAYED, meeting, path_text
from tests.lab.scenes import EXCHANGE_PORT, curl, serve_exchange, serve_web

# Peers look for each other in the DHT again 2, 5 and 10 s after they began.
CONNECTED_S = 25.0
PROXY = f"socks5h://127.0.0.1:{SOCKS_PORT}"
CONE_PAIRS = [f"{a}+{b}" for a, b in combinations_with_replacement(CONES, 2)]
OTHERS = ["no-nat", "firewalls", "no-nat+port-restricted", "masquerade+masquerade", "carriers", "one-carrier-hairpin"]
LAN_S = 15.0
NO_WAY = "no direct path and no relay"
TOLD_S = 15.0
LOST_S = 90.0
MOVED_TO = "250.1"
MOVED_S = 45.0
STALL_S = 8.0  # below 2 s as a rule (docs/how-it-works.md); a busy machine takes longer, a connection lost much longer


@pytest.mark.parametrize("name", [*CONE_PAIRS, *OTHERS])
def test_two_peers_connect_directly(internet: Lab, tmp_path: Path, name: str) -> None:
    pair = meeting(internet, tmp_path, DIRECT[name](internet))
    outcome = pair.run(timeout_s=CONNECTED_S)
    assert outcome.path in ("direct", "lan"), f"{outcome}: {pair.peer_a.output}\n\n{pair.peer_b.output}"
    serve_web(pair.peer_a.host, tmp_path / "web-a")
    serve_web(pair.peer_b.host, tmp_path / "web-b")
    assert curl(pair.peer_a.host, "-x", PROXY, "http://peer-b:8000/hello") == "hello from b"
    assert curl(pair.peer_b.host, "-x", PROXY, "http://peer-a:8000/hello") == "hello from a"


@pytest.mark.parametrize("name", sorted(RELAYED))
def test_a_third_peer_carries_where_no_direct_path_is(internet: Lab, tmp_path: Path, name: str) -> None:
    pair = meeting(internet, tmp_path, RELAYED[name](internet), third=True)
    outcome = pair.run(timeout_s=CONNECTED_S)
    assert outcome.path != "none", f"{outcome}: {pair.peer_a.output}\n\n{pair.peer_b.output}"
    assert path_text(pair.peer_a, pair.peer_b) == "relay via peer-c"
    serve_web(pair.peer_b.host, tmp_path / "web-b")
    assert curl(pair.peer_a.host, "-x", PROXY, "http://peer-b:8000/hello") == "hello from b"


def test_without_a_third_peer_both_are_told_that_there_is_no_way(internet: Lab, tmp_path: Path) -> None:
    """First as strangers, who know no more of each other than addresses in the DHT; then the one who lost the other."""
    pair = meeting(internet, tmp_path, RELAYED["symmetric+symmetric"](internet))
    for peer in (pair.peer_a, pair.peer_b):
        peer.start()
    began = time.monotonic()
    for peer in (pair.peer_b, pair.peer_a):
        peer.wait_for(f"^! .*{NO_WAY} to somebody of this network", timeout_s=TOLD_S)
        print(f"{peer.name} was told after {time.monotonic() - began:.1f} s")
        assert time.monotonic() - began < TOLD_S
        assert NO_WAY in peer.pvpn("peers").stdout and NO_WAY in peer.pvpn("status").stdout
    third = Daemon(internet.host("c"), pair.peer_a.key, "peer-c", *pair.peer_b.options, udp_port=None).start()
    for near, far in ((pair.peer_a, pair.peer_b), (pair.peer_b, pair.peer_a)):
        near.wait_for(rf"^\+ {far.name} .*relay via peer-c", timeout_s=CONNECTED_S)
        assert near.output.count(NO_WAY) == 1 and NO_WAY not in near.pvpn("status").stdout
    serve_exchange(pair.peer_b.host)
    pair.peer_a.exchange("hold", "peer-b", EXCHANGE_PORT).wait_for("^holding")  # a flow is given up sooner than silence
    third.kill()
    for near, far in ((pair.peer_a, pair.peer_b), (pair.peer_b, pair.peer_a)):
        near.wait_for(rf"^! {NO_WAY} to .*{far.name}", timeout_s=LOST_S)
        assert re.search(rf"^{far.name} +lost: {NO_WAY}", near.pvpn("peers").stdout, re.MULTILINE)
        for command in (("ping", far.name), ("connect", far.name, "8000")):
            assert NO_WAY in near.pvpn(*command, check=False).stderr


def test_two_behind_one_carrier_are_told_that_there_is_no_way(internet: Lab, tmp_path: Path) -> None:
    """The DHT names both under one address, which each takes for its own."""
    pair = meeting(internet, tmp_path, RELAYED["one-carrier"](internet))
    for peer in (pair.peer_a, pair.peer_b):
        peer.start()
    began = time.monotonic()
    for peer in (pair.peer_b, pair.peer_a):
        peer.wait_for(f"^! .*{NO_WAY} to somebody of this network", timeout_s=TOLD_S)
    print(f"both were told after {time.monotonic() - began:.1f} s")


@pytest.mark.parametrize("asker", ["who moves", "who stays"])
def test_a_router_gets_another_address_and_flows_go_on(internet: Lab, tmp_path: Path, asker: str) -> None:
    """The host behind it notices nothing by itself; the other peer is reachable for all."""
    key = make_key(tmp_path)
    router = Router(internet, Kind.MASQUERADE)
    peer_b = Daemon(internet.host("b"), key, "peer-b", "--no-dht").start()
    known = ("--no-dht", "--peer", peer_b.endpoint)
    peer_a = Daemon(router.host("a"), key, "peer-a", *known, udp_port=None).start()
    peer_a.meet(peer_b)
    near, far = (peer_a, peer_b) if asker == "who moves" else (peer_b, peer_a)
    serve_exchange(far.host)
    flow = near.exchange("hold", far.name, EXCHANGE_PORT)
    flow.wait_for("^holding")
    router.move(f"{PUBLIC}.{MOVED_TO}")
    began = time.monotonic()
    flow.tell("still here")
    flow.wait_for("^echo still here", timeout_s=STALL_S)
    print(f"the flow went on after {time.monotonic() - began:.1f} s")
    flow.tell("and here")
    flow.wait_for("^echo and here")
    assert flow.finish()["end"] == "clean"


def test_a_router_gets_another_address_and_peers_behind_others_follow(internet: Lab, tmp_path: Path) -> None:
    """Without a DHT: the third peer sees the new address, and only once the other has heard of it is there a way."""
    key = make_key(tmp_path)
    third = Daemon(internet.host("c"), key, "peer-c", "--no-dht").start()
    router = Router(internet, Kind.MASQUERADE)
    hosts = (router.host("a"), Router(internet, Kind.PORT_RESTRICTED).host("b"))
    known = ("--no-dht", "--peer", third.endpoint)
    peer_a, peer_b = (Daemon(host, key, f"peer-{host.name}", *known, udp_port=None).start() for host in hosts)
    peer_a.meet(peer_b, third)
    serve_exchange(peer_b.host)
    flow = peer_a.exchange("hold", peer_b.name, EXCHANGE_PORT)
    flow.wait_for("^holding")
    router.move(f"{PUBLIC}.{MOVED_TO}")
    began = time.monotonic()
    flow.tell("still here")
    flow.wait_for("^echo still here", timeout_s=STALL_S)
    print(f"the flow went on after {time.monotonic() - began:.1f} s")
    for near, far, ip in ((peer_a, peer_b, ""), (peer_b, peer_a, router.address)):
        while not (path := path_text(near, far)).startswith(f"direct {ip}"):
            assert time.monotonic() - began < MOVED_S, path
    print(f"the path was direct again after {time.monotonic() - began:.1f} s")
    flow.tell("and here")
    flow.wait_for("^echo and here")
    assert flow.finish()["end"] == "clean"
    assert not any(line.startswith("- ") for peer in (peer_a, peer_b) for line in peer.output.splitlines())


@pytest.mark.parametrize("name", ["same-home", "same-home-hairpin"])
def test_two_peers_of_one_home_use_its_network(internet: Lab, tmp_path: Path, name: str) -> None:
    """Also where the router would turn their packets round."""
    pair = meeting(internet, tmp_path, DIRECT[name](internet))
    outcome = pair.run(timeout_s=CONNECTED_S)
    assert outcome.path in ("direct", "lan"), f"{outcome}: {pair.peer_a.output}\n\n{pair.peer_b.output}"
    for peer, other in ((pair.peer_a, pair.peer_b), (pair.peer_b, pair.peer_a)):
        deadline = time.monotonic() + LAN_S
        while f" {other.host.address}:" not in (path := path_text(peer, other)):
            assert time.monotonic() < deadline, f"{peer.name} reaches {other.name} by {path}"
    serve_web(pair.peer_b.host, tmp_path / "web-b")
    assert curl(pair.peer_a.host, "-x", PROXY, "http://peer-b:8000/hello") == "hello from b"
