"""--tun on a host with systemd-resolved: what it asks pvpn's name server, and that others hear nothing of peers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.lab.daemon import Daemon
from tests.lab.hosts import Lab
from tests.lab.resolved import ResolvedHost

ELSEWHERE = "192.0.2.7"


@pytest.fixture(autouse=True)
def needs_root(lab: Lab) -> None:
    if lab.rootless:
        pytest.skip("a TUN device needs root")


def test_names_of_peers_are_asked_of_pvpn_alone(lab: Lab, key: Path) -> None:
    upstream, host = lab.host("upstream"), lab.host("a")
    near = ResolvedHost(host, upstream.address)
    near.run("resolvectl", "llmnr", "eth0", "no")
    asked = upstream.python("-m", "tests.lab.name_server", upstream.address, ELSEWHERE)
    asked.wait_for("^serving")
    spied = upstream.popen(["tcpdump", "-n", "-l", "-i", "eth0", "port 5353 or port 5355"])
    spied.wait_for("listening on")
    peer_b = Daemon(lab.host("b"), key, "peer-b", "--no-dht").start()
    peer_a = near.daemon(key, "peer-a", "--no-dht", "--tun", "--peer", peer_b.endpoint).start()
    peer_a.wait_for("asked by systemd-resolved")
    peer_a.meet(peer_b)
    [peer] = json.loads(peer_a.pvpn("peers", "--json").stdout)["peers"]
    for name in ("peer-b", "PEER-B", "peer-b.pvpn", "peer-b.home.pvpn"):
        for family in (4, 6):
            assert peer[f"ipv{family}"] in near.run("getent", f"ahostsv{family}", name).split()
    assert "2 received" in near.run("ping", "-c", "2", "-i", "0.2", "-w", "10", "peer-b")
    for family in (4, 6):
        assert near.run("getent", "hosts", peer[f"ipv{family}"]).split()[1] == "peer-b.home.pvpn"
    for nobody in ("nobody", "nobody.pvpn", "pvpn"):
        assert near.run("getent", "ahosts", nobody, check=False) == ""
    assert ELSEWHERE in near.run("getent", "ahostsv4", "www.example")
    asked.wait_for("^asked www.example")
    assert {line.split()[1] for line in asked.output.splitlines() if line.startswith("asked ")} == {"www.example."}
    assert "> 224.0.0.25" not in spied.output and "> ff02::" not in spied.output, spied.output
    assert near.run("resolvectl", "llmnr", "pvpn0").split()[-1] == "no"  # else names that nobody has would take 8 s
    peer_a.stop()
    assert near.run("getent", "ahosts", "peer-b", check=False) == ""


def test_what_goes_around_an_exit_is_told(lab: Lab, key: Path) -> None:
    server = lab.host("upstream").address
    near = ResolvedHost(lab.host("a"), server, ["corp.example"])
    near.run("resolvectl", "dns", "eth0", server)
    near.run("resolvectl", "domain", "eth0", "lan.example", "~more.example")
    peer_b = Daemon(lab.host("b"), key, "peer-b", "--no-dht", "--offer-exit").start()
    peer_a = near.daemon(key, "peer-a", "--no-dht", "--tun", "--exit", "peer-b", "--peer", peer_b.endpoint).start()
    around = "systemd-resolved asks {} for names under {}, around the exit"
    peer_a.wait_for(around.format("eth0's name servers", "lan.example ~more.example"))
    peer_a.wait_for(around.format("the servers in resolved.conf", "corp.example"))
