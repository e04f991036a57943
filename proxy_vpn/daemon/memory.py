"""Between a running mesh and its file: peers, pins and answered probes of one network."""

from __future__ import annotations

from proxy_vpn.daemon.state import KnownPeer, NetworkMemory
from proxy_vpn.mesh.candidates import Source
from proxy_vpn.mesh.mesh import Mesh


def recall(mesh: Mesh, memory: NetworkMemory) -> None:
    """Give a new mesh what earlier runs knew: the peers' last addresses are tried first."""
    mesh.roster.pins.update(memory.pins)
    mesh.seeker.prober.remember_seen(memory.seen)
    for known in sorted(memory.peers, key=lambda known: known.id):
        mesh.virtual.remember(known.id, known.place)
    mesh.virtual.give(known.id for known in memory.peers)
    for known in memory.peers:
        peer = mesh.roster.load(known.id, known.name, list(known.addresses), known.last_seen)
        for address in peer.addresses:
            mesh.seeker.found(address, Source.MEMORY, identity=peer.identity)


def snapshot(mesh: Mesh) -> NetworkMemory:
    """What the next start should know."""
    peers = tuple(
        KnownPeer(
            name=peer.claimed,
            id=peer.identity,
            addresses=tuple(peer.addresses),
            last_seen=peer.last_seen,
            place=mesh.virtual.place(peer.identity),
        )
        for peer in mesh.roster
        if peer.last_seen
    )
    return NetworkMemory(peers=peers, pins=dict(mesh.roster.pins), seen=mesh.seeker.prober.seen()).bounded()
