"""What a node says of itself: the structures of `pvpn status`, and the lines of a start."""

from __future__ import annotations

import os
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING

from proxy_vpn import __version__
from proxy_vpn.daemon import search
from proxy_vpn.daemon.status import (
    DaemonStatus,
    DhtState,
    DhtStatus,
    ExposeStatus,
    NetworkStatus,
    OpenPort,
    PeerState,
    PeerStatus,
    open_services,
)
from proxy_vpn.doors.dns_elsewhere import RESOLV_CONF, name_servers
from proxy_vpn.doors.open_ports import open_ports
from proxy_vpn.mesh.mesh import Mesh
from proxy_vpn.mesh.roster import Peer
from proxy_vpn.mesh.session import State

if TYPE_CHECKING:
    from proxy_vpn.daemon.node import Node

SERVICES_NOTICED = 4


def status(node: Node) -> DaemonStatus:
    """Everything at once."""
    return DaemonStatus(
        version=__version__,
        pid=os.getpid(),
        name=node.settings.name,
        started=node.started,
        state_directory=str(node.state.path),
        engine=node.engine_name,
        listen=tuple(str(address) for address in node.demux.addresses),
        proxies=tuple(node.proxies),
        interface=node.tun.name if node.tun else "",
        interface_flows=node.tun.flows if node.tun else 0,
        interface_names=_names(node) if node.tun else "",
        networks=tuple(_network(node, mesh) for mesh in node.meshes),
        forwards=node.forwards(),
        expose=expose(node),
        dht=_dht(node),
        peers=tuple(_peer(mesh, peer) for mesh in node.meshes for peer in mesh.roster),
        warnings=node.warnings.standing(),
    )


def expose(node: Node) -> ExposeStatus:
    """The rules, and what they open on this host now."""
    found = open_ports(node.own, node.policy)
    ports = [OpenPort(port=each.port, protocol="udp" if each.udp else "tcp", address=each.ip) for each in found or ()]
    return ExposeStatus(rules=str(node.policy.expose), open=None if found is None else tuple(ports))


def _network(node: Node, mesh: Mesh) -> NetworkStatus:
    return NetworkStatus(
        name=mesh.key.name,
        id=mesh.key.network_id.hex(),
        fingerprint=mesh.key.fingerprint,
        generation=mesh.key.generation,
        device_id=mesh.identity.id.hex(),
        unanswered=search.unanswered(node, mesh),
        ipv4=str(mesh.virtual.own.v4),
        ipv6=str(mesh.virtual.own.v6),
        range4=str(mesh.virtual.v4),
        range6=str(mesh.virtual.v6),
        range4_moved=mesh.virtual.moved,
    )


def _peer(mesh: Mesh, peer: Peer) -> PeerStatus:
    session = peer.session
    live = session is not None and session.state is State.LIVE
    state: PeerState = "live" if live else "lost" if peer.last_seen else "probing"
    path, rtt_ms, sent, received = "", None, peer.sent_bytes, peer.received_bytes
    for open_session in peer.sessions:
        sent += open_session.link.sent_bytes
        received += open_session.link.received_bytes
    if live and session is not None and session.paths is not None:
        path = mesh.describe(session.paths.current)
        rtt_ms = None if session.paths.rtt_s is None else session.paths.rtt_s * 1e3
    theirs = session.theirs if session is not None else None
    virtual = mesh.virtual.of(peer.identity)
    return PeerStatus(
        name=peer.name,
        id=peer.identity.hex(),
        network=mesh.key.name,
        state=state,
        path=path,
        connections=len(peer.sessions),
        reason=mesh.unreached.why(peer),
        rtt_ms=rtt_ms,
        tx_bytes=sent,
        rx_bytes=received,
        since=peer.since or peer.last_seen or None,
        engine=theirs.engine[:16] if theirs else "",
        version=theirs.software[:32] if theirs else "",
        ipv4=str(virtual.v4),
        ipv6=str(virtual.v6),
        ipv4_moved=mesh.virtual.is_moved(peer.identity),
        routes=tuple(map(str, peer.routes)),
        exit=peer.is_exit,
    )


def _dht(node: Node) -> DhtStatus:
    if node.discovery.dht is None:
        return DhtStatus()
    dht = node.discovery.dht.status()
    state: DhtState = "searching"
    if dht.announced:
        state = "announced"
    elif search.dht_silent(node):
        state = "starting" if time.time() - node.started < search.DHT_ANSWERS_WITHIN_S else "unreachable"
    external = tuple(str(address) for address in (dht.external4, dht.external6) if address)
    return DhtStatus(state=state, nodes=dht.nodes4 + dht.nodes6, serving=node.settings.dht_serve, external=external)


def greeting(node: Node) -> list[str]:
    """The first lines of `pvpn run`."""
    lines = [f"pvpn {__version__}, this is {node.settings.name}, engine {node.engine_name}"]
    lines += [f"network {mesh.key.name} ({mesh.key.fingerprint})" for mesh in node.meshes]
    lines += [f"proxy: socks5h://{where} and http://{where}" for where in node.proxies]
    lines += _interface(node)
    lines += [f"forward: {forward.spec}" for forward in node.forwards()]
    if node.state.first_run:
        lines += first_notice(expose(node))
    return lines


def _interface(node: Node) -> list[str]:
    if node.tun is None:
        return []
    ranges = ", ".join(f"{mesh.virtual.v4} and {mesh.virtual.v6}" for mesh in node.meshes)
    return [f"tun: {node.tun.name} leads to {ranges}; {_names(node)}"]


def _names(node: Node) -> str:
    ours = [address for mesh in node.meshes for address in (mesh.virtual.dns.v4, mesh.virtual.dns.v6)]
    if node.resolved_asks:
        asked = "asked by systemd-resolved"
    elif node.settings.exit or any(ip_address(ip) in ours for ip in name_servers()):  # an exit's route leads all here
        asked = "asked by this system"
    else:
        asked = f"not asked by this system: put 'nameserver {ours[0]}' before the others in {RESOLV_CONF}"
    return f"name server {ours[0]} ({asked})"


def first_notice(expose: ExposeStatus) -> list[str]:
    """What a first start must say: what is open, and what does not protect it."""
    services = open_services(expose, limit=SERVICES_NOTICED)
    return [
        f"peers can reach {services} here; change it with --expose (rules: {expose.rules})",
        "note: this host's firewall does not apply to what peers can reach",
    ]
