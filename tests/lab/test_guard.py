"""The guard of --tun: a neighbour on the LAN neither reaches this host's virtual addresses nor poses as a peer."""

from __future__ import annotations

import json
import re
from ipaddress import ip_network
from pathlib import Path

import pytest

from tests.lab.daemon import Daemon, make_key
from tests.lab.hosts import Host, Lab
from tests.lab.scenes import curl, serve_web, two_peers
from tests.lab.talker import PORT, Talker
from tests.support.tools import missing_tools

THIEF_PORT = PORT + 1
# Long enough for a handshake on the same bridge, and the time that each attempt costs where nobody answers.
TRY_S = "1"


@pytest.fixture(autouse=True)
def needs_root_and_nft(lab: Lab) -> None:
    if lab.rootless:
        pytest.skip("a TUN device needs root")
    if reason := missing_tools(["nft"]):
        pytest.skip(reason)


def ruleset(host: Host) -> str:
    return host.run(["nft", "list", "ruleset"]).stdout


def check_guarded(daemon: Daemon) -> None:
    if reason := re.search(r"has no guard \((.* not supported|Invalid argument)\)", daemon.output):
        pytest.skip(f"this kernel has no tables that a socket owns: {reason[1]}")
    assert "flags owner" in ruleset(daemon.host), daemon.output


def network(daemon: Daemon) -> dict[str, str]:
    return dict(json.loads(daemon.pvpn("status", "--json").stdout)["networks"][0])


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "not guarded"])
def test_a_neighbour_is_kept_out(lab: Lab, key: Path, tmp_path: Path, guarded: bool) -> None:
    peer_a, peer_b = two_peers(lab, key, ["--tun"], ["--tun"])
    check_guarded(peer_a)
    if not guarded:
        peer_a.stop()
        peer_a.host.run(["nft", "add", "table", "inet", "pvpn0"])  # the name is taken
        peer_a.start()
        peer_a.wait_for(r"^! pvpn0 has no guard \(File exists\): .* a firewall that takes 100\..* from pvpn0 alone$")
        peer_a.meet(peer_b)
    neighbour = lab.host("n")
    own, far = network(peer_a), network(peer_b)
    for host in (peer_a.host, neighbour):
        host.run(["sysctl", "-qw", *(f"net.ipv4.conf.{each}.rp_filter=0" for each in ("all", "default", "eth0"))])
    for family, gateway, everywhere in ((4, peer_a.host.address, "0.0.0.0"), (6, peer_a.host.address6, "::")):
        virtual, peer = own[f"ipv{family}"], far[f"ipv{family}"]
        neighbour.run(["ip", f"-{family}", "route", "add", own[f"range{family}"], "via", gateway])
        neighbour.run(["ip", "address", "add", peer, "dev", "lo", *(["nodad"] if family == 6 else [])])
        web, port = 8000 + family, PORT + 10 + family  # a flow tells a port, and no family
        url = f"http://[{virtual}]:{web}/hello" if family == 6 else f"http://{virtual}:{web}/hello"
        serve_web(peer_a.host, tmp_path / "web", web, virtual)
        tried = neighbour.run(["curl", "-sS", "--max-time", TRY_S, url], check=False)
        assert ("hello from a" in tried.stdout) is not guarded, tried
        assert curl(peer_a.host, url) == curl(peer_b.host, url) == "hello from a"

        inside, outside = Talker(peer_a.host, port, virtual), Talker(peer_a.host, PORT, everywhere)
        honest, thief = Talker(neighbour, PORT, everywhere), Talker(neighbour, THIEF_PORT, peer)
        honest.send("knock", (virtual, port))
        thief.send("posed-inside", (virtual, port))
        thief.send("posed", (gateway, PORT))
        honest.send("honest", (gateway, PORT))  # by the same way, after it
        Talker(peer_b.host, PORT, everywhere).send("peer", (virtual, port))
        assert outside.hear("honest")[0] != peer
        assert inside.hear("peer")[0] == peer
        heard = [inside.heard("knock"), inside.heard("posed-inside"), outside.heard("posed")]
        assert heard == [not guarded] * 3
        if not guarded:
            assert outside.hear("posed")[0] == peer


def test_it_goes_with_the_process_however_that_ends(lab: Lab, key: Path) -> None:
    peer_a, _ = two_peers(lab, key, ["--tun"], [])
    check_guarded(peer_a)
    peer_a.stop()
    assert ruleset(peer_a.host) == ""
    peer_a.start()
    check_guarded(peer_a)
    peer_a.host.run(["nft", "flush", "ruleset"])
    check_guarded(peer_a)
    peer_a.kill()
    assert ruleset(peer_a.host) == ""


def test_two_processes_on_one_host_and_guests_behind_it(lab: Lab, key: Path, tmp_path: Path) -> None:
    peer_a, peer_b = two_peers(lab, key, ["--tun"], [])
    check_guarded(peer_a)
    other = make_key(tmp_path, "work")
    peer_c = Daemon(lab.host("c"), other, "peer-c", "--no-dht").start()
    options = ["--no-dht", "--tun", "--peer", peer_c.endpoint]
    second = Daemon(peer_a.host, other, "peer-a", *options, udp_port=41642, socks_port=1081).start()
    second.meet(peer_c)
    assert ruleset(peer_a.host).count("flags owner") == 2
    guest = lab.host("guest")
    lab.allow_forwarding(peer_a.host.anchor)
    for name, process, far in (("pvpn0", peer_a, peer_b), ("pvpn1", second, peer_c)):
        serve_web(far.host, tmp_path / far.name)
        [there] = json.loads(process.pvpn("peers", "--json").stdout)["peers"]
        url = f"http://{there['ipv4']}:8000/hello"
        said = f"hello from {far.host.name}"
        assert curl(peer_a.host, url) == curl(peer_a.host, f"http://[{there['ipv6']}]:8000/hello") == said
        # As container engines do for their networks.
        chain = f"type nat hook postrouting priority 100; oifname {name} masquerade;"
        peer_a.host.run(["nft", f"table ip {name} {{ chain c {{ {chain} }}; }}"])
        guest.run(["ip", "route", "add", network(process)["range4"], "via", peer_a.host.address])
        assert curl(guest, url) == said
    serve_web(peer_a.host, tmp_path / "own")
    way = ("-x", "socks5h://127.0.0.1:1080", "http://peer-a:8000/hello")
    assert curl(peer_b.host, *way) == curl(peer_c.host, *way) == "hello from a"


def test_a_lan_within_the_range(lab: Lab, key: Path) -> None:
    near, neighbour = lab.host("a"), lab.host("n")
    peer_a = Daemon(near, key, "peer-a", "--no-dht", "--tun").start()
    check_guarded(peer_a)
    range4 = ip_network(network(peer_a)["range4"])
    outside = Talker(near)
    near.run(["ip", "address", "add", f"{range4[1]}/24", "dev", "eth0"])
    neighbour.run(["ip", "address", "add", f"{range4[2]}/24", "dev", "eth0"])
    honest, stranger = Talker(neighbour, ip=str(range4[2])), Talker(neighbour, ip=neighbour.address)

    def is_heard(word: str) -> bool:
        honest.send(word, (str(range4[1]), PORT))
        stranger.send(f"after-{word}", outside.endpoint)
        outside.hear(f"after-{word}")
        return outside.heard(word)

    peer_a.wait_for(f"a network within {range4} now, .* and takes nothing from it - restart pvpn to move them")
    assert not is_heard("meanwhile")
    peer_a.stop()
    peer_a.start()
    check_guarded(peer_a)
    assert is_heard("moved")
    peer_a.stop()
    near.run(["ip", "address", "add", "100.127.255.254/10", "dev", "eth0"])  # now there is nowhere to move to
    peer_a.start()
    check_guarded(peer_a)
    own = network(peer_a)
    assert ip_network(own["range4"]) == range4
    assert is_heard("crowded")
    neighbour.run(["ip", "route", "add", f"{own['ipv4']}/32", "via", near.address])
    inside = Talker(near, THIEF_PORT, own["ipv4"])
    stranger.send("knock", inside.endpoint)
    assert is_heard("last") and not inside.heard("knock")
