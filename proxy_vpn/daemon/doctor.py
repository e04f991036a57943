"""`pvpn doctor`: what stands between this host and its peers, and what would mend it.

A check is good, a warning (works, but not as well as it could) or bad (keeps peers away). For a peer that is reached
through a relay, or not at all, both ends' networks are told: ours is measured here, the peer's is its own word.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from proxy_vpn.daemon import search
from proxy_vpn.daemon.findings import Check, DoctorReply
from proxy_vpn.mesh.mesh import Mesh
from proxy_vpn.mesh.roster import Peer
from proxy_vpn.net.overflow import overflows
from proxy_vpn.net.udp import RECEIVE_BUFFER_BYTES
from proxy_vpn.wire.messages import Reach

if TYPE_CHECKING:
    from proxy_vpn.daemon.node import Node

CLOCK_FAR_S = 120.0
LOST_LEAST = 100
NAT_TEXTS = {
    "none": "no NAT",
    "cone": "a NAT that keeps one outside port for all (cone)",
    "symmetric": "a NAT that takes another outside port for each destination (symmetric)",
    "unknown": "not known yet",
}


def reach(node: Node) -> Reach:
    """What our peers may know of our network: address families and the kind of NAT."""
    own = node.discovery.local_addresses()
    return Reach(nat_kind(node), any(":" not in address.ip for address in own), any(":" in a.ip for a in own))


def nat_kind(node: Node) -> str:
    """`none`, `cone`, `symmetric` or `unknown`, from how DHT nodes and peers see us (IPv4)."""
    dht = node.discovery.dht.status() if node.discovery.dht else None
    if dht is not None and dht.symmetric4:
        return "symmetric"
    own = {address.ip for address in node.discovery.local_addresses()}
    seen = [dht.external4] if dht is not None and dht.external4 else []
    seen += [address for mesh in node.meshes for address in mesh.observed() if ":" not in address.ip]
    if any(address.ip in own for address in seen):
        return "none"
    return "cone" if seen else "unknown"


def examine(node: Node) -> DoctorReply:
    """All checks at once; nothing is sent."""
    return DoctorReply(checks=tuple(_checks(node)))


def _checks(node: Node) -> Iterator[Check]:
    yield _udp(node)
    yield _families(node)
    yield _nat(node)
    yield _mapping(node)
    yield _dht(node)
    yield from _clock(node)
    yield buffer(node.demux.receive_buffer_bytes, overflows() - node.overflows_before)
    for mesh in node.meshes:
        for peer in mesh.roster:
            yield _peer(node, mesh, peer)


def _udp(node: Node) -> Check:
    port = node.demux.addresses[0].port if node.demux.addresses else 0
    if search.any_peer_live(node) or (node.discovery.dht is not None and not search.dht_silent(node)):
        return Check(name="udp", state="good", text=f"port {port}: datagrams go out and answers come back")
    if time.time() - node.started < search.DHT_ANSWERS_WITHIN_S:
        return Check(name="udp", state="warning", text=f"port {port}: no answer yet", hint="ask again in a moment")
    hint = "a firewall may block UDP: allow it outwards, or try another network"
    return Check(name="udp", state="bad", text=f"port {port}: nobody answers", hint=hint)


def _families(node: Node) -> Check:
    ours = reach(node)
    have = [name for name, there in (("IPv4", ours.ipv4), ("IPv6", ours.ipv6)) if there]
    if not have:
        return Check(name="address", state="bad", text="this host has no address", hint="connect it to a network")
    dht = node.discovery.dht.status() if node.discovery.dht else None
    outside = [str(address) for address in (dht.external4, dht.external6) if address] if dht else []
    seen = f"; seen from outside as {' '.join(outside)}" if outside else ""
    return Check(name="address", state="good", text=" and ".join(have) + seen)


def _nat(node: Node) -> Check:
    kind = nat_kind(node)
    if kind == "symmetric":
        hint = "give it a fixed port: --listen PORT and the same UDP port opened in the router"
        return Check(name="nat", state="warning", text=NAT_TEXTS[kind], hint=hint)
    return Check(name="nat", state="warning" if kind == "unknown" else "good", text=NAT_TEXTS[kind])


def _mapping(node: Node) -> Check:
    if node.discovery.mapper is None:
        return Check(name="mapping", state="good", text="off")
    mapped = node.discovery.mapper.status
    if mapped.external is not None:
        nested = "; that is no public address: there is another NAT behind the router" if mapped.nested else ""
        return Check(name="mapping", state="good", text=f"{mapped.protocol}: {mapped.external} leads here{nested}")
    if nat_kind(node) == "none":
        return Check(name="mapping", state="good", text="none, and none is needed")
    hint = "switch on UPnP or NAT-PMP in the router, or open a port by hand: --listen PORT"
    text = "the router gives no port" + (f": {mapped.error}" if mapped.error else "")
    return Check(name="mapping", state="warning", text=text, hint=hint)


def _dht(node: Node) -> Check:
    if node.discovery.dht is None:
        return Check(name="dht", state="good", text="off")
    dht = node.discovery.dht.status()
    count = f"{dht.nodes4 + dht.nodes6} nodes known, {dht.good4 + dht.good6} answered lately"
    if dht.announced:
        return Check(name="dht", state="good", text=f"{count}; announced at {dht.announced}")
    if not search.dht_silent(node):
        return Check(name="dht", state="warning", text=f"{count}; not announced yet", hint="ask again in a moment")
    hint = "peers on the same LAN, those at --peer addresses and those met before are still found"
    return Check(name="dht", state="warning", text=f"{count}; nobody answers", hint=hint)


def _clock(node: Node) -> Iterator[Check]:
    far = [mesh.clock_offset_s for mesh in node.meshes if mesh.clock_offset_s is not None]
    if far and abs(far[0]) > CLOCK_FAR_S:
        text = f"a member's clock differs by {far[0] / 3600:+.1f} hours"
        yield Check(
            name="clock", state="warning", text=text, hint="set both clocks: without it new peers are not found"
        )
    elif search.any_peer_live(node):
        yield Check(name="clock", state="good", text="no member's clock differs")
    else:
        here = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
        yield Check(name="clock", state="good", text=f"here it is {here} UTC, and nobody is there to compare with")


def buffer(size: int, lost: int) -> Check:
    """Of a receive buffer of `size` bytes; `lost`: so many datagrams found no room since the process's start.

    They are counted for the whole host, and a few are nobody's concern.
    """
    text = f"{size // 1024} KB for what arrives"
    if size >= RECEIVE_BUFFER_BYTES or lost < LOST_LEAST:
        return Check(name="buffer", state="good", text=text)
    hint = f"links above 2.5 Gbit/s need more: sysctl -w net.core.rmem_max={RECEIVE_BUFFER_BYTES}, and start pvpn anew"
    text += f"; since the start this host's programs had no room for {lost} datagrams"
    return Check(name="buffer", state="warning", text=text, hint=hint)


def _peer(node: Node, mesh: Mesh, peer: Peer) -> Check:
    name = f"{peer.name}.{peer.network}" if len(node.meshes) > 1 else peer.name
    session = mesh.live_session(peer.identity)
    if session is not None and session.paths is not None:
        path = mesh.describe(session.paths.current)
        if not session.relayed:
            return Check(name=name, state="good", text=path)
        text, hint = why_apart(reach(node), session.reach)
        return Check(name=name, state="warning", text=f"{path}: {text}", hint=hint)
    if peer.left:
        return Check(name=name, state="good", text="offline: it said goodbye")
    refusals = [f"{relay}: {reason}" for relay, reason in mesh.detours.reasons(peer.identity).items()]
    why = "no direct path and no relay" + (f" ({'; '.join(refusals)})" if refusals else "")
    hint = "is it on? if so, open a UDP port on one side (--listen), or add a member that both reach"
    return Check(name=name, state="bad", text=why, hint=hint)


def why_apart(ours: Reach, theirs: Reach | None) -> tuple[str, str]:
    """Why two ends do not reach each other directly, and what would mend it."""
    opened = "open a UDP port on one side: --listen PORT there and the same port in its router"
    if theirs is None:
        return "the peer does not say how it is connected", opened
    if not (ours.ipv4 and theirs.ipv4) and not (ours.ipv6 and theirs.ipv6):
        return "one side has only IPv4, the other only IPv6", "give both one of them"
    here, there = (NAT_TEXTS.get(reach.nat, NAT_TEXTS["unknown"]) for reach in (ours, theirs))
    if "symmetric" in (ours.nat, theirs.nat):
        return f"here {here}, there {there}", opened
    return f"here {here}, there {there}; a firewall may drop UDP", opened
