"""The search for peers as a user sees it: what may be wrong while nobody is there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from proxy_vpn.daemon.status import no_answer
from proxy_vpn.mesh.mesh import Mesh

if TYPE_CHECKING:
    from proxy_vpn.daemon.node import Node

DHT_ANSWERS_WITHIN_S: Final = 15.0
PEERS_ANSWER_WITHIN_S: Final = 30.0
DHT_SILENT: Final = "the DHT does not answer - is UDP blocked? peers at --peer addresses are still found"


async def watch(node: Node) -> None:
    """Say once, a while after the start, why nobody is there yet; nothing while a peer is."""
    await asyncio.sleep(DHT_ANSWERS_WITHIN_S)
    if dht_silent(node) and not any_peer_live(node):
        node.warnings.add(DHT_SILENT, lambda: not dht_silent(node) or any_peer_live(node))
    await asyncio.sleep(PEERS_ANSWER_WITHIN_S - DHT_ANSWERS_WITHIN_S)
    count = sum(unanswered(node, mesh) for mesh in node.meshes)
    if count and not any_peer_live(node):
        node.warnings.say(no_answer(count))  # `status` counts for itself


def any_peer_live(node: Node) -> bool:
    """Whether any peer of any network is there."""
    return any(mesh.any_peer_live() for mesh in node.meshes)


def dht_silent(node: Node) -> bool:
    """Whether no node of the DHT has answered; False where it is not used."""
    if node.dht is None:
        return False
    dht = node.dht.status()
    return not dht.nodes4 + dht.nodes6


def unanswered(node: Node, mesh: Mesh) -> int:
    """How many IP addresses were found where a peer may be, of which none answered: not our own, nor known peers'.

    Not endpoints: a machine behind a NAT that maps each destination apart is named under many ports.
    """
    own = set(mesh.own_addresses())
    known = {address for peer in mesh.roster for address in peer.addresses} | mesh.live_addresses()
    # Before a NAT of ours the DHT goes on naming ports that we had: what it names there is mostly ourselves.
    outside = set(node.dht.status().external_ips) if node.dht else set()
    outside -= {address.ip for address in node.demux.addresses}
    found = mesh.seeker.book.ownerless(asyncio.get_running_loop().time())
    return len({address.ip for address in found - own - known} - outside)
