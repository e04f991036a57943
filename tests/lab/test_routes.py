"""Whole daemons: a LAN and the internet behind a peer, for those that accept it; what is never led to; exits lost."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from proxy_vpn.doors.dns_elsewhere import name_servers
from tests.lab.daemon import PVPN, SOCKS_PORT, Daemon
from tests.lab.hosts import PUBLIC, Host, Lab, resolving
from tests.lab.scenes import curl, serve_web, two_peers
from tests.support.processes import Process

PROXY = f"socks5h://127.0.0.1:{SOCKS_PORT}"
PRINTER, PRINTER_PORT = "192.168.7.9", 8000
LAN = "192.168.7.0/24"
TOLD_S = 10.0
FAR_SITE = "45.67.89.9"
# One datagram through the SOCKS proxy (RFC 1928, section 7); prints what comes back.
SOCKS_UDP = """
import socket, sys
control = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
control.sendall(b"\\5\\1\\0")
control.recv(2)
control.sendall(b"\\5\\3\\0\\1" + bytes(6))
relay = int.from_bytes(control.recv(64)[8:10], "big")
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(10)
head = b"\\0\\0\\0\\1" + socket.inet_aton(sys.argv[2]) + int(sys.argv[3]).to_bytes(2, "big")
sock.sendto(head + b"hello", ("127.0.0.1", relay))
print(sock.recv(99)[len(head):].decode())
"""
UDP_PORT = 5300
NO_SOCKS_ANSWER = 97  # curl's exit code for a SOCKS reply that is no success


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Hosts with addresses that programs take for the internet's."""
    with Lab(PUBLIC) as built:
        yield built


def a_printer(lab: Lab, next_to: Host, directory: Path) -> Host:
    """A host without pvpn, with an address on a LAN that only `next_to` has a way to."""
    printer = lab.host("printer")
    printer.run(["ip", "address", "add", f"{PRINTER}/24", "dev", "eth0"])
    serve_udp(printer)
    next_to.run(["ip", "address", "add", "192.168.7.2/24", "dev", "eth0"])
    serve_web(printer, directory, PRINTER_PORT)
    return printer


def serve_udp(host: Host) -> None:
    """What returns every datagram."""
    host.popen(["socat", "-d", "-d", f"UDP4-RECVFROM:{UDP_PORT},fork", "EXEC:cat"]).wait_for("receiving on")


def datagram(host: Host, ip: str) -> str:
    """What comes back of one, through the proxy."""
    return host.run([sys.executable, "-c", SOCKS_UDP, str(SOCKS_PORT), ip, str(UDP_PORT)]).stdout.strip()


def plain_datagram(host: Host, ip: str) -> str:
    """The same without a proxy."""
    return host.run(["socat", "-t", "5", "-", f"UDP4:{ip}:{UDP_PORT}"], text="hello").stdout


def fetch(host: Host, url: str) -> tuple[str, int]:
    """What curl got through the proxy, and its exit code."""
    done = host.run(["curl", "-sS", "--fail", "--max-time", "30", "-x", PROXY, url], check=False)
    return done.stdout or done.stderr, done.returncode


def until_fetched(host: Host, url: str) -> str:
    """The page, once the other side has told what it leads to."""
    deadline = time.monotonic() + TOLD_S
    while (got := fetch(host, url))[1] != 0:
        assert time.monotonic() < deadline, got
    return got[0]


def test_a_lan_behind_a_peer(lab: Lab, key: Path, tmp_path: Path) -> None:
    peer_a, peer_b = two_peers(lab, key, ["--accept-routes"], ["--route", LAN])
    a_printer(lab, peer_b.host, tmp_path / "web")
    assert until_fetched(peer_a.host, f"http://{PRINTER}:{PRINTER_PORT}/hello") == "hello from printer"
    assert fetch(peer_a.host, f"http://[::ffff:{PRINTER}]:{PRINTER_PORT}/hello") == ("hello from printer", 0)
    assert datagram(peer_a.host, PRINTER) == "hello"
    refused = fetch(peer_a.host, f"http://{PRINTER}:1/")
    assert refused[1] == NO_SOCKS_ANSWER and "(5)" in refused[0]  # RFC 1928: connection refused
    # The offering host itself is reached by its name alone, and an address that was not offered not at all.
    for url in ("http://192.168.7.2:8000/", "http://192.168.8.9:8000/", f"http://{peer_b.host.address}:1/"):
        assert fetch(peer_a.host, url)[1] != 0
    peer_b.stop()
    assert fetch(peer_a.host, f"http://{PRINTER}:{PRINTER_PORT}/hello")[1] != 0


def test_who_does_not_accept_is_not_led(lab: Lab, key: Path, tmp_path: Path) -> None:
    peer_a, peer_b = two_peers(lab, key, [], ["--route", LAN])
    a_printer(lab, peer_b.host, tmp_path / "web")
    assert fetch(peer_a.host, f"http://{PRINTER}:{PRINTER_PORT}/hello")[1] != 0


def test_an_exit(lab: Lab, key: Path, tmp_path: Path) -> None:
    peer_a, peer_b = two_peers(lab, key, ["--exit", "peer-b"], ["--offer-exit"])
    site = lab.host("site")
    web = serve_web(site, tmp_path / "web")
    url = f"http://{site.address}:8000/hello"
    assert curl(peer_a.host, "-x", PROXY, url) == "hello from site"
    web.wait_for(rf"{peer_b.host.address} .*GET /hello")
    serve_udp(site)
    assert datagram(peer_a.host, site.address) == "hello"
    # Its own network and the metadata service are no part of the internet.
    peer_b.host.run(["ip", "address", "add", "169.254.169.254/32", "dev", "lo"])
    serve_web(peer_b.host, tmp_path / "secret")
    for ip in ("169.254.169.254", peer_b.host.address, "[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::1]"):
        assert fetch(peer_a.host, f"http://{ip}:8000/hello")[1] != 0, ip
    assert curl(peer_a.host, "-x", PROXY, "http://peer-b:8000/hello") == "hello from b"
    peer_b.stop()
    text, code = fetch(peer_a.host, url)
    assert code != 0 and not any(peer_a.host.address in line for line in web.output.splitlines()), text


def a_far_site(lab: Lab, exit_host: Host, directory: Path) -> tuple[Host, Process]:
    """A host that only `exit_host` has a network with."""
    site = lab.host("site")
    site.run(["ip", "address", "add", f"{FAR_SITE}/24", "dev", "eth0"])
    exit_host.run(["ip", "address", "add", "45.67.89.2/24", "dev", "eth0"])
    return site, serve_web(site, directory)


def test_an_exit_for_programs_that_know_no_proxy(lab: Lab, key: Path, tmp_path: Path) -> None:
    if lab.rootless:
        pytest.skip("a TUN device needs root")
    peer_a, peer_b = two_peers(lab, key, ["--tun", "--exit", "peer-b"], ["--offer-exit"])
    site, web = a_far_site(lab, peer_b.host, tmp_path / "web")
    # A way around the exit, which must not be taken.
    peer_a.host.run(["ip", "route", "replace", "default", "via", site.address])
    url = f"http://{FAR_SITE}:8000/hello"
    assert curl(peer_a.host, url) == "hello from site"
    web.wait_for("45.67.89.2 .*GET /hello")
    serve_udp(site)
    assert plain_datagram(peer_a.host, FAR_SITE) == "hello"
    seen = len(web.output.splitlines())
    peer_b.stop()
    peer_a.wait_for("^- peer-b")
    assert peer_a.host.run(["curl", "-sS", "--max-time", "10", url], check=False).returncode != 0
    assert len(web.output.splitlines()) == seen, "nothing goes around an exit that is away"
    peer_a.stop()
    assert curl(peer_a.host, url) == "hello from site", "its routes went with it"


@pytest.mark.parametrize("way", ["--tun", "exec"])
def test_names_resolve_at_the_exit(lab: Lab, key: Path, tmp_path: Path, way: str) -> None:
    if lab.rootless:
        pytest.skip("a TUN device needs root")
    server = next((ip for ip in name_servers() if ":" not in ip and not ip_address(ip).is_loopback), None)
    if server is None:
        pytest.skip("no name server in resolv.conf")
    peer_b = Daemon(lab.host("b"), key, "peer-b", "--no-dht", "--offer-exit").start()
    site, _ = a_far_site(lab, peer_b.host, tmp_path / "web")
    # The same address here would answer something else.
    liar, near = lab.host("liar"), lab.host("a")
    for host, ip in ((site, FAR_SITE), (liar, "45.67.89.1")):
        host.run(["ip", "address", "add", f"{server}/32", "dev", "eth0"])
        host.python("-m", "tests.lab.name_server", server, ip).wait_for("^serving")
    options = ["--exit", "peer-b", "--peer", peer_b.endpoint, *(["--tun"] if way == "--tun" else [])]
    own_way = [f"{server}/32", "via", liar.address]
    near.run(["ip", "route", "add", *own_way, "metric", "100"])
    peer_b.host.run(["ip", "route", "replace", f"{server}/32", "via", site.address])
    peer_a = Daemon(near, key, "peer-a", "--no-dht", *options).start()
    peer_a.meet(peer_b)
    url = "http://site.example:8000/hello"
    if way == "exec":
        assert peer_a.pvpn("exec", "--", "curl", "-sS", "--max-time", "20", url).stdout == "hello from site"
        return
    assert curl(near, url) == "hello from site"
    assert near.run(["dig", "+short", "+tcp", f"@{server}", "peer-b.pvpn"]).stdout.strip()
    assert len(near.run(["dig", "+short", f"@{server}", "large.example", "TXT"]).stdout) > 12 * 250
    peer_b.stop()
    peer_a.wait_for("^- peer-b")
    lost = near.run(["curl", "-sS", "--max-time", "10", url], check=False)
    assert lost.returncode == 6, "there is no name now, and the liar's is not taken"
    peer_a.stop()
    near.run(["ip", "route", "add", *own_way])
    peer_a.begin()
    peer_a.wait_for(f"this host has a route to {server}/32 .* - remove it")


def test_a_name_server_that_would_go_around_the_exit_is_told(lab: Lab, key: Path, tmp_path: Path) -> None:
    if lab.rootless:
        pytest.skip("a TUN device needs root")
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 127.0.0.1\n")
    peer_b = Daemon(lab.host("b"), key, "peer-b", "--no-dht", "--offer-exit").start()
    options = ["--no-dht", "--peer", peer_b.endpoint, "--tun", "--exit", "peer-b"]
    peer_a = Daemon(lab.host("a"), key, "peer-a", *options)
    peer_a.program = resolving(resolv_conf, PVPN)
    peer_a.begin()
    said = peer_a.wait_for("programs here ask 127.0.0.1 for names, .* - put '(nameserver .*?)', and no other, into")
    assert peer_a.process is not None and peer_a.process.wait() == 1
    assert "pvpn" not in peer_a.host.run(["ip", "address"]).stdout
    resolv_conf.write_text(said[1])
    peer_a.start()
    peer_a.meet(peer_b)
    found = peer_a.host.run(resolving(resolv_conf, ["getent", "ahostsv4", "peer-b.pvpn"])).stdout
    assert found.startswith("100."), found


def test_what_carries_the_tunnel_stays_out_of_it(lab: Lab, key: Path, tmp_path: Path) -> None:
    if lab.rootless:
        pytest.skip("a TUN device needs root")
    # The exit itself is behind the default route: its own packets would be the first to enter the interface.
    peer_a, peer_b = two_peers(lab, key, ["--tun", "--exit", "peer-b"], ["--offer-exit"])
    _, web = a_far_site(lab, peer_b.host, tmp_path / "web")
    router, near = lab.host("router"), peer_a.host
    router.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])
    network = f"{lab.network}.0.0/{near.segment.prefix_bits}"
    near.run(["ip", "route", "add", f"{router.address}/32", "dev", "eth0"])
    near.run(["ip", "route", "replace", "default", "via", router.address])
    near.run(["ip", "route", "del", network])
    assert until_curled(near, f"http://{FAR_SITE}:8000/hello") == "hello from site"
    web.wait_for("45.67.89.2 .*GET /hello")


def test_a_lan_for_programs_that_know_no_proxy(lab: Lab, key: Path, tmp_path: Path) -> None:
    if lab.rootless:
        pytest.skip("a TUN device needs root")
    peer_a, peer_b = two_peers(lab, key, ["--tun", "--accept-routes"], ["--route", LAN])
    a_printer(lab, peer_b.host, tmp_path / "web")
    url = f"http://{PRINTER}:{PRINTER_PORT}/hello"
    assert until_curled(peer_a.host, url) == "hello from printer"
    assert plain_datagram(peer_a.host, PRINTER) == "hello"
    assert LAN in peer_a.host.run(["ip", "route", "show", "dev", "pvpn0"]).stdout
    peer_a.kill()
    assert LAN not in peer_a.host.run(["ip", "route"]).stdout, "a killed process leaves no route behind"


def until_curled(host: Host, url: str) -> str:
    """The page, without a proxy, once there is a way."""
    return host.run(["curl", "-sS", "--fail", "--retry", "20", "--retry-delay", "1", "--retry-all-errors", url]).stdout


def test_an_exit_must_be_offered(lab: Lab, key: Path, tmp_path: Path) -> None:
    peer_a, _peer_b = two_peers(lab, key, ["--exit", "peer-b"])
    site = lab.host("site")
    web = serve_web(site, tmp_path / "web")
    assert fetch(peer_a.host, f"http://{site.address}:8000/hello")[1] != 0
    assert "GET" not in web.output
