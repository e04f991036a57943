"""Whole daemons with TUN devices: programs that know nothing of proxies."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from proxy_vpn.keys import NetworkKey, load_key_file, write_key_file
from proxy_vpn.mesh.virtual import VirtualNetwork
from tests.bench import usage
from tests.lab.daemon import PVPN, SOCKS_PORT, Daemon
from tests.lab.hosts import Lab, resolving
from tests.lab.scenes import EXCHANGE_PORT, curl, serve_exchange, serve_web, two_peers

NET_BIND_SERVICE = 1 << 10
ELSEWHERE = "192.0.2.7"
HOSTILE_PACKETS = 100_000
FORGOTTEN_WITHIN = 60  # control commands, a tenth of a second each
# A thousand connections one after the other, each of them used and closed.
MANY = """
import socket, sys
for _ in range(1000):
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as sock:
        sock.sendall(b"x")
"""


@pytest.fixture(autouse=True)
def needs_root(lab: Lab) -> None:
    if lab.rootless:
        pytest.skip("a TUN device needs root")


def addresses(daemon: Daemon) -> tuple[str, str]:
    """Its own, IPv4 and IPv6."""
    own = json.loads(daemon.pvpn("status", "--json").stdout)["networks"][0]
    return own["ipv4"], own["ipv6"]


def name_server(daemon: Daemon) -> str:
    """That inside its interface."""
    return networks(daemon)[0]["range4"].replace(".0.0/16", ".0.53")


@pytest.mark.parametrize(("a", "b"), [(["--tun"], ["--tun"]), (["--tun"], []), ([], ["--tun"])])
def test_programs_reach_services_by_address(
    lab: Lab, key: Path, tmp_path: Path, a: Sequence[str], b: Sequence[str]
) -> None:
    peer_a, peer_b = two_peers(lab, key, a, b)
    serve_web(peer_b.host, tmp_path / "web")
    v4, v6 = addresses(peer_b)
    way = () if a else ("-x", f"socks5h://127.0.0.1:{SOCKS_PORT}")
    assert curl(peer_a.host, *way, f"http://{v4}:8000/hello") == "hello from b"
    assert curl(peer_a.host, *way, f"http://[{v6}]:8000/hello") == "hello from b"


def test_ping_and_names(lab: Lab, key: Path) -> None:
    peer_a, peer_b = two_peers(lab, key, ["--tun"], ["--tun"])
    server = name_server(peer_a)

    def dig(*words: str) -> list[str]:
        return peer_a.host.run(["dig", "+short", "+time=5", "+tries=1", f"@{server}", *words]).stdout.split()

    v4, v6 = addresses(peer_b)
    for name in ("peer-b", "peer-b.pvpn", "PEER-B.home.pvpn"):
        assert (dig(name, "A"), dig(name, "AAAA")) == ([v4], [v6])
    assert dig("-x", v4) == dig("-x", v6) == ["peer-b.home.pvpn."]
    assert (dig("+tcp", "peer-b", "A"), dig("+tcp", "-x", v6)) == ([v4], ["peer-b.home.pvpn."])
    assert dig("peer-a", "A") == [addresses(peer_a)[0]]
    assert "NXDOMAIN" in peer_a.host.run(["dig", f"@{server}", "nobody.pvpn"]).stdout
    for ip in (v4, v6, server):
        said = peer_a.host.run(["ping", "-c", "3", "-i", "0.2", "-w", "10", ip]).stdout
        assert "3 received" in said, said
    peer_b.stop()
    peer_a.wait_for("^- peer-b")
    lost = peer_a.host.run(["ping", "-c", "1", "-w", "10", v4], check=False)
    assert "Unreachable" in lost.stdout, lost.stdout


def test_the_system_s_resolver_finds_peers(lab: Lab, key: Path, tmp_path: Path) -> None:
    upstream, resolv_conf = lab.host("upstream"), tmp_path / "resolv.conf"
    theirs = f"nameserver {upstream.address}\n"
    resolv_conf.write_text(theirs)
    asked = upstream.python("-m", "tests.lab.name_server", upstream.address, ELSEWHERE)
    asked.wait_for("^serving")
    peer_b = Daemon(lab.host("b"), key, "peer-b", "--no-dht").start()
    peer_a = Daemon(lab.host("a"), key, "peer-a", "--no-dht", "--tun", "--peer", peer_b.endpoint)
    peer_a.program = resolving(resolv_conf, PVPN)
    peer_a.start()
    peer_a.meet(peer_b)
    # What a user is told to do, word for word.
    line = peer_a.wait_for("not asked by this system: put '(.*)' before the others in /etc/resolv.conf")[1]
    assert line in peer_a.pvpn("status").stdout
    resolv_conf.write_text(f"{line}\n{theirs}")
    assert "(asked by this system)" in peer_a.pvpn("status").stdout
    v4, v6 = addresses(peer_b)
    for database, name, said in (
        ("ahostsv4", "peer-b", v4),
        ("ahostsv4", "peer-b.pvpn", v4),
        ("ahostsv6", "peer-b.home.pvpn", v6),
        ("hosts", v4, "peer-b.home.pvpn"),
        ("hosts", v6, "peer-b.home.pvpn"),
    ):
        assert said in peer_a.host.run(resolving(resolv_conf, ["getent", database, name])).stdout.split()
    for nobody in ("nobody", "nobody.pvpn"):
        unknown = peer_a.host.run(resolving(resolv_conf, ["getent", "hosts", nobody]), check=False)
        assert unknown.returncode == 2
    assert ELSEWHERE in peer_a.host.run(resolving(resolv_conf, ["getent", "ahostsv4", "www.example"])).stdout
    asked.wait_for("^asked www.example")
    assert {line.split()[1] for line in asked.output.splitlines() if line.startswith("asked ")} == {"www.example."}


def test_a_host_without_ipv6(lab: Lab, key: Path, tmp_path: Path) -> None:
    near = lab.host("a")
    near.run(["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"])
    peer_b = Daemon(lab.host("b"), key, "peer-b", "--no-dht", "--offer-exit").start()
    options = ["--no-dht", "--peer", peer_b.endpoint, "--tun"]
    peer_a = Daemon(near, key, "peer-a", *options).start()
    peer_a.wait_for("! IPv6 is switched off on this host: pvpn0 leads to peers by IPv4 alone")
    peer_a.meet(peer_b)
    serve_web(peer_b.host, tmp_path / "web")
    serve_web(near, tmp_path / "web")
    assert curl(near, f"http://{addresses(peer_b)[0]}:8000/hello") == "hello from a"
    assert curl(peer_b.host, "-x", f"socks5h://127.0.0.1:{SOCKS_PORT}", "http://peer-a:8000/hello") == "hello from a"
    assert peer_a.pvpn("exec", "--", "curl", "-sS", "http://peer-b:8000/hello").stdout == "hello from a"
    peer_a.stop()
    # Off for new interfaces alone: what has it would be a way around an exit.
    for each, value in (("all", 0), ("default", 1)):
        near.run(["sysctl", "-qw", f"net.ipv6.conf.{each}.disable_ipv6={value}"])
    near.run(["ip", "address", "replace", f"{near.address6}/64", "dev", "eth0", "nodad"])
    peer_a.options += ["--exit", "peer-b"]
    peer_a.begin()
    peer_a.wait_for("IPv6 is switched off for new interfaces alone")


def test_services_see_the_peer_and_refusals_are_refusals(lab: Lab, key: Path) -> None:
    peer_a, peer_b = two_peers(lab, key, ["--tun"], ["--tun"])
    peer_b.host.popen(["socat", "TCP-LISTEN:7001,fork,reuseaddr", "SYSTEM:echo $SOCAT_PEERADDR"])
    peer_b.host.popen(["socat", "UDP-RECVFROM:7002,fork", "SYSTEM:echo $SOCAT_PEERADDR"])
    v4 = addresses(peer_b)[0]
    own = addresses(peer_a)[0]
    assert peer_a.host.run(["socat", "-T5", "STDIO", f"TCP:{v4}:7001"]).stdout.strip() == own
    refused = peer_a.host.run(["socat", "-", f"TCP:{v4}:7999"], check=False)
    assert "Connection refused" in refused.stderr


def test_only_what_is_needed_is_kept_and_a_crash_leaves_nothing(lab: Lab, key: Path, tmp_path: Path) -> None:
    peer_a, peer_b = two_peers(lab, key, ["--tun"], [])
    serve_web(peer_b.host, tmp_path / "web")
    there = f"http://{addresses(peer_b)[0]}:8000/hello"
    for task in Path(f"/proc/{peer_a.process.pid}/task").iterdir():
        status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == NET_BIND_SERVICE, status["Name"]
    assert curl(peer_a.host, there) == "hello from b"
    peer_a.kill()
    assert "pvpn" not in peer_a.host.run(["ip", "address"]).stdout
    assert "100." not in peer_a.host.run(["ip", "route"]).stdout
    peer_a.start()
    peer_a.meet(peer_b)
    assert curl(peer_a.host, there) == "hello from b"
    peer_a.stop()
    assert "pvpn" not in peer_a.host.run(["ip", "address"]).stdout


def until(holds: Callable[[], bool]) -> None:
    """Asked again and again; each question takes a command's time."""
    assert any(holds() for _ in range(FORGOTTEN_WITHIN))


def open_files(daemon: Daemon) -> int:
    assert daemon.process is not None
    return len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir()))


def routes_inside(daemon: Daemon) -> list[str]:
    """Those of its interface, to its own addresses too."""
    words = ("route", "show", "table", "all", "dev", "pvpn0")
    return [daemon.host.run(["ip", family, *words]).stdout for family in ("-4", "-6")]


def test_a_thousand_connections_leave_nothing(lab: Lab, key: Path) -> None:
    peer_a, peer_b = two_peers(lab, key, ["--tun"], ["--tun"])
    serve_exchange(peer_b.host)
    there = addresses(peer_b)[0]
    before = [open_files(peer) for peer in (peer_a, peer_b)]
    routes = [routes_inside(peer) for peer in (peer_a, peer_b)]
    peer_a.host.run([sys.executable, "-c", MANY, there, str(EXCHANGE_PORT)], timeout_s=60)
    for peer in (peer_a, peer_b):
        until(lambda peer=peer: json.loads(peer.pvpn("status", "--json").stdout)["interface_flows"] == 0)
    assert [open_files(peer) for peer in (peer_a, peer_b)] == before
    assert [routes_inside(peer) for peer in (peer_a, peer_b)] == routes


def test_hostile_packets(lab: Lab, key: Path, tmp_path: Path) -> None:
    peer_a, peer_b = two_peers(lab, key, ["--tun"], [])
    serve_web(peer_b.host, tmp_path / "web")
    (own, own6), (peer, peer6) = addresses(peer_a), addresses(peer_b)
    assert peer_a.process is not None
    memory = usage.memory_mb([peer_a.process.pid], "VmRSS")
    words = ("pvpn0", own, peer, own6, peer6, str(HOSTILE_PACKETS), "7")
    sender = peer_a.host.python("-m", "tests.lab.hostile_packets", *words)
    assert curl(peer_a.host, f"http://{peer}:8000/hello") == "hello from b"
    sent = sender.wait_for(r"^sent (\d+)", timeout_s=120)
    assert int(sent[1]) > HOSTILE_PACKETS * 0.9
    assert curl(peer_a.host, f"http://{peer}:8000/hello") == "hello from b"
    assert usage.memory_mb([peer_a.process.pid], "VmRSS") < memory + 100
    assert not re.search("Traceback|task failed|went wrong", peer_a.output), peer_a.output


def test_one_interface_for_two_networks(lab: Lab, key: Path, tmp_path: Path) -> None:
    other = key_of_the_same_range(key, tmp_path / "work.key")
    first = Daemon(lab.host("b"), key, "peer-b", "--no-dht", "--tun").start()
    second = Daemon(lab.host("c"), other, "peer-b", "--no-dht", "--tun").start()
    both = ("--peer", first.endpoint, "--peer", second.endpoint)
    peer_a = Daemon(lab.host("a"), key, "peer-a", str(other), "--no-dht", "--tun", *both).start()
    peer_a.wait_for("[+] peer-b [(]home[)]")
    peer_a.wait_for("[+] peer-b [(]work[)]")
    seen = {peer["network"]: peer for peer in json.loads(peer_a.pvpn("peers", "--json").stdout)["peers"]}
    assert seen["work"]["ipv4"] != addresses(second)[0]  # two networks that want one range: the second has the next
    for network, there in (("home", first), ("work", second)):
        serve_web(there.host, tmp_path / there.host.name)
        for host in (seen[network]["ipv4"], f"[{seen[network]['ipv6']}]"):
            assert curl(peer_a.host, f"http://{host}:8000/hello") == f"hello from {there.host.name}"
    servers = [each["range4"].replace(".0.0/16", ".0.53") for each in networks(peer_a)]
    for server in servers:
        for network in seen:
            said = peer_a.host.run(["dig", "+short", f"@{server}", f"peer-b.{network}.pvpn", "A"]).stdout.split()
            assert said == [seen[network]["ipv4"]]


def key_of_the_same_range(key: Path, path: Path) -> Path:
    """Another network's key file, made until it wants the same range of IPv4 addresses: one in 64 does."""
    wanted = default_range(load_key_file(key))
    other = NetworkKey.generate(path.stem)
    while default_range(other) != wanted:
        other = NetworkKey.generate(path.stem)
    write_key_file(path, other)
    return path


def default_range(key: NetworkKey) -> IPv4Network:
    return VirtualNetwork(key, bytes(32)).v4


def networks(daemon: Daemon) -> list[dict[str, str]]:
    """What it says of each of its networks."""
    return list(json.loads(daemon.pvpn("status", "--json").stdout)["networks"])
