"""Hosts of one LAN find each other by multicast alone, and what they send names nobody."""

from __future__ import annotations

import getpass
import os
import socket

from tests.lab.hosts import Host, Lab
from tests.support.processes import Process

PORT_A, PORT_B = 41641, 41642


def tag() -> str:
    return os.urandom(13).hex()


def member(host: Host, port: int, *tags: str) -> Process:
    return host.python("-m", "tests.lab.lan_member", str(port), *tags)


def end(process: Process) -> int:
    process.tell("end")
    return process.wait()


def test_two_hosts_find_each_other(lab: Lab) -> None:
    home = tag()
    host_a, host_b = lab.host("alices-laptop"), lab.host("bobs-desktop")
    a = member(host_a, PORT_A, home)
    a.wait_for("^started")
    b = member(host_b, PORT_B, home)
    for heard, host, port in ((a, host_b, PORT_B), (b, host_a, PORT_A)):
        found = heard.wait_for(rf"^heard {host.address}:{port} after (.*)")
        print(found[0])
        heard.wait_for(rf"^heard \[{host.address6}\]:{port}")
    assert end(a) == 0 and end(b) == 0


def test_over_ipv6_alone(lab: Lab) -> None:
    home = tag()
    host_a, host_b = lab.host("a"), lab.host("b")
    for host in (host_a, host_b):
        host.run(["ip", "address", "del", f"{host.address}/16", "dev", "eth0"])
    a, b = member(host_a, PORT_A, home), member(host_b, PORT_B, home)
    a.wait_for(rf"^heard \[{host_b.address6}\]:{PORT_B}")
    b.wait_for(rf"^heard \[{host_a.address6}\]:{PORT_A}")


def test_other_networks_and_later_ones(lab: Lab) -> None:
    """A third host of another network is not heard; one whose network comes later is."""
    home, work = tag(), tag()
    host_a, host_b, host_c = lab.host("a"), lab.host("b"), lab.host("c")
    host_b.run(["ip", "link", "set", "eth0", "down"])
    a, b, c = member(host_a, PORT_A, home), member(host_b, PORT_B, home), member(host_c, PORT_B, work)
    a.wait_for("^started")
    c.wait_for("^started")
    b.wait_for("^started")
    host_b.run(["ip", "link", "set", "eth0", "up"])
    b.tell("changed")
    a.wait_for(rf"^heard {host_b.address}:{PORT_B}")
    b.wait_for(rf"^heard {host_a.address}:{PORT_A}")
    assert "heard" not in c.output and host_c.address not in a.output


def test_two_processes_of_one_host_share_the_port(lab: Lab) -> None:
    home = tag()
    host_a, host_b = lab.host("a"), lab.host("b")
    first, second, other = member(host_a, PORT_A, home), member(host_a, PORT_B, home), member(host_b, PORT_A, home)
    first.wait_for(rf"^heard {host_a.address}:{PORT_B}")
    second.wait_for(rf"^heard {host_a.address}:{PORT_A}")
    for process in (first, second):
        process.wait_for(rf"^heard {host_b.address}:{PORT_A}")
    other.wait_for(rf"^heard {host_a.address}:{PORT_A}")
    other.wait_for(rf"^heard {host_a.address}:{PORT_B}")


def test_nothing_sent_names_host_or_user(lab: Lab) -> None:
    home = tag()
    host_a, host_b = lab.host("alices-laptop"), lab.host("watcher")
    watcher = host_b.python("-m", "tests.lab.lan_member", "--watch", "eth0")
    watcher.wait_for("^watching")
    a = member(host_a, PORT_A, home)
    watcher.wait_for(home.encode().hex())
    assert end(a) == 0
    watcher.wait_for(home.encode().hex() + ".*0021800100000000")  # the goodbye
    frames = b"".join(bytes.fromhex(line) for line in watcher.output.splitlines()[1:]).lower()
    assert b"_pvpn" in frames
    names = {socket.gethostname(), socket.getfqdn(), getpass.getuser(), host_a.name, "pvpn1", "home"}
    assert not [name for name in names if len(name) > 3 and name.lower().encode() in frames]
