"""What happens to two peers that are connected, and how long flows wait for it: seconds, each run in a lab of its own.

`python -m tests.lab.scenarios` runs them and prints the table. Where a flow lives through the event, the time is from
the event to the first byte that is echoed; where it can't, from the end of the event until the peer is there again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.lab.daemon import Daemon, make_key
from tests.lab.hosts import PUBLIC, Host, Lab
from tests.lab.nat import Kind, Router
from tests.lab.scenes import EXCHANGE_PORT, serve_exchange, two_peers
from tests.lab.wire import Wire
from tests.support.processes import Process

PATIENCE_S = 60.0
SHORT_S, LONG_S = 5.0, 30.0
SETTLED_S = 11.0  # addresses are told anew at most every 10 s
CROWD = 20
MOVED_TO = "250.1"


@dataclass(frozen=True)
class Event:
    """`promised_s` is what users are told, `seconds` makes it happen once."""

    promised_s: float
    seconds: Callable[[Lab, Path], float]


def hold(near: Daemon, far: Daemon) -> Process:
    """An open flow from one peer to another."""
    serve_exchange(far.host)
    flow = near.exchange("hold", far.name, EXCHANGE_PORT)
    flow.wait_for("^holding")
    return flow


def echoed(flow: Process) -> float:
    """Seconds until the flow carries again."""
    began = time.monotonic()
    flow.tell("still here")
    flow.wait_for("^echo still here", PATIENCE_S)
    return time.monotonic() - began


def back(peer: Daemon, other: Daemon, event: Callable[[], object]) -> float:
    """Seconds from an event's end until `peer` sees the other again."""
    mark = peer.mark()
    event()
    began = time.monotonic()
    peer.wait_for(rf"^\+ {other.name} ", PATIENCE_S, since=mark)
    return time.monotonic() - began


def link(host: Host, state: str) -> None:
    """Take the interface down, or up with the default route as whoever manages networks does."""
    host.run(["ip", "link", "set", "eth0", state])
    if state == "up":
        host.run(["ip", "route", "replace", "default", "via", host.segment.gateway])


def lan(lab: Lab, directory: Path) -> float:
    key = make_key(directory)
    peer_a = Daemon(lab.host("a"), key, "peer-a", "--no-dht", lan=True).start()
    peer_b = Daemon(lab.host("b"), key, "peer-b", "--no-dht", lan=True).start()
    began = time.monotonic()
    peer_b.meet(peer_a)
    return time.monotonic() - began


def another_address(lab: Lab, directory: Path) -> float:
    peer_a, peer_b = two_peers(lab, make_key(directory))
    flow, host = hold(peer_a, peer_b), peer_a.host
    host.run(["ip", "address", "del", f"{host.address}/16", "dev", "eth0"])
    host.run(["ip", "address", "add", f"{host.address.rpartition('.')[0]}.77/16", "dev", "eth0"])
    host.run(["ip", "route", "replace", "default", "via", host.segment.gateway])
    return echoed(flow)


def routers_address(lab: Lab, directory: Path, *, walled: bool) -> float:
    """Nobody behind the router notices; `walled`: the other peer lets in only answers, and a third reaches both."""
    key, router = make_key(directory), Router(lab, Kind.MASQUERADE)
    place = Router(lab, Kind.PORT_RESTRICTED) if walled else lab
    known = Daemon(lab.host("c") if walled else place.host("b"), key, "peer-c" if walled else "peer-b", "--no-dht")
    known.start()
    options = ("--no-dht", "--peer", known.endpoint)
    peer_b = Daemon(place.host("b"), key, "peer-b", *options, udp_port=None).start() if walled else known
    peer_a = Daemon(router.host("a"), key, "peer-a", *options, udp_port=None).start()
    peer_a.meet(peer_b)
    flow = hold(peer_a, peer_b)
    time.sleep(SETTLED_S)
    router.move(f"{PUBLIC}.{MOVED_TO}")
    return echoed(flow)


def link_down_short(lab: Lab, directory: Path) -> float:
    peer_a, peer_b = two_peers(lab, make_key(directory))
    flow = hold(peer_a, peer_b)
    link(peer_a.host, "down")
    time.sleep(SHORT_S)
    link(peer_a.host, "up")
    return echoed(flow)


def link_down_long(lab: Lab, directory: Path) -> float:
    peer_a, peer_b = two_peers(lab, make_key(directory))
    flow = hold(peer_a, peer_b)
    link(peer_a.host, "down")
    flow.tell("anybody there?")
    for peer, other in ((peer_a, peer_b), (peer_b, peer_a)):
        peer.wait_for(f"^- {other.name} ", PATIENCE_S)
    return back(peer_a, peer_b, lambda: link(peer_a.host, "up"))


def killed(lab: Lab, directory: Path) -> float:
    peer_a, peer_b = two_peers(lab, make_key(directory))
    peer_b.kill()
    return back(peer_a, peer_b, peer_b.begin)


def black_hole(lab: Lab, directory: Path) -> float:
    """Datagrams above 1300 bytes vanish from now on, in the middle of a transfer."""
    key = make_key(directory)
    host_a, host_b = lab.host("a"), lab.host("b")
    wire = Wire(host_a, host_b)
    wire.set(delay_ms=10.0, rate_mbit=20.0)
    peer_b = Daemon(host_b, key, "peer-b", "--no-dht").start()
    peer_a = Daemon(host_a, key, "peer-a", "--no-dht", "--peer", peer_b.endpoint).start()
    peer_a.meet(peer_b)
    serve_exchange(peer_b.host)
    client = peer_a.exchange("follow", "peer-b", EXCHANGE_PORT)
    client.wait_for("^at ")
    wire.set(largest_bytes=1300)
    began = time.monotonic()
    last = began
    while time.monotonic() - last < 1.0:  # what was on its way still arrives
        client.wait_for("^at ", PATIENCE_S, since=client.mark())
        now = time.monotonic()
        if now - last > 0.5:
            return now - began
        last = now
        if now - began > PATIENCE_S:
            break
    return time.monotonic() - began


def crowd(lab: Lab, directory: Path) -> float:
    key = make_key(directory)
    hosts = [lab.host(f"h{number}") for number in range(CROWD)]
    first = f"{hosts[0].address}:41641"
    peers = [Daemon(host, key, f"peer-{number}", "--no-dht", "--peer", first) for number, host in enumerate(hosts)]
    began = time.monotonic()
    for peer in peers:
        peer.begin()
    for peer in peers:
        peer.meet(*(other for other in peers if other is not peer), timeout_s=PATIENCE_S)
    return time.monotonic() - began


EVENTS: dict[str, Event] = {
    "one LAN, no internet": Event(1.0, lan),
    "the asking host gets another address": Event(2.0, another_address),
    "a router gets another outside address": Event(2.0, lambda lab, at: routers_address(lab, at, walled=False)),
    "the same, the other peer behind a NAT": Event(2.0, lambda lab, at: routers_address(lab, at, walled=True)),
    "the interface is down for 5 s": Event(3.0, link_down_short),
    "the interface is down until the peer is lost": Event(3.0, link_down_long),
    "kill -9 and a new start": Event(5.0, killed),
    "a black hole above 1300 bytes appears": Event(5.0, black_hole),
    "20 peers start at once": Event(60.0, crowd),
}
