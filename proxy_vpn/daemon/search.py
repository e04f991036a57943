"""The search for peers as a user sees it: what may be wrong while somebody is not there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from proxy_vpn.daemon.status import no_answer
from proxy_vpn.mesh.mesh import Mesh
from proxy_vpn.mesh.unreached import NO_WAY, UNREACHED_AFTER_S, UNREACHED_HINT

if TYPE_CHECKING:
    from proxy_vpn.daemon.node import Node

DHT_ANSWERS_WITHIN_S: Final = 15.0
LOOK_EVERY_S: Final = 1.0
NAMES_SAID: Final = 4
NEW_S: Final = 30.0
LATE_PATIENCE_S: Final = 5.0
DHT_SILENT: Final = "the DHT does not answer - is UDP blocked? peers at --peer addresses are still found"


async def watch(node: Node) -> None:
    """Say once, a while after the start, that the DHT is silent; nothing while a peer is there."""
    await asyncio.sleep(DHT_ANSWERS_WITHIN_S)
    if dht_silent(node) and not any_peer_live(node):
        node.warnings.add(DHT_SILENT, lambda: not dht_silent(node) or any_peer_live(node))


async def watch_unreached(node: Node) -> None:
    """Say who is not reached, once each until it has come; `status` says it as long as it is so."""
    told = {mesh: Told() for mesh in node.meshes}
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        if node.discovery.local_addresses():
            for mesh, already in told.items():
                if text := already.news(node, mesh, asyncio.get_running_loop().time()):
                    node.warnings.say(text)


@dataclass
class Told:
    """What the user has heard of one network's peers that are not reached."""

    _peers: set[bytes] = field(default_factory=set)
    _began: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    _strangers_since: float | None = None
    _strangers_told: bool = False

    def news(self, node: Node, mesh: Mesh, now: float) -> str:
        """What to say now: peers by name, else that somebody is there whom we never met; mostly nothing."""
        unreached = mesh.unreached.peers()
        new = [peer.name for peer in unreached if peer.identity not in self._peers]
        self._peers = {identity for identity in self._peers if mesh.unreached.is_away(identity)}
        self._peers |= {peer.identity for peer in unreached}
        if new:
            return _no_way(new if len(node.meshes) == 1 else [f"{name}.{mesh.key.name}" for name in new])
        return self._strangers(node, mesh, now)

    def _strangers(self, node: Node, mesh: Mesh, now: float) -> str:
        if mesh.any_peer_live():
            self._strangers_since, self._strangers_told = None, False
            return ""
        count = unanswered(node, mesh)
        if not count:
            self._strangers_since = None
            return ""
        self._strangers_since = now if self._strangers_since is None else self._strangers_since
        # Who was alone for long is the one who hears late: the other has been trying for a while.
        patience_s = UNREACHED_AFTER_S if self._strangers_since - self._began < NEW_S else LATE_PATIENCE_S
        if self._strangers_told or self._peers or now - self._strangers_since < patience_s:
            return ""
        self._strangers_told = True
        return no_answer(count)


def _no_way(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SAID} more" if len(names) > NAMES_SAID else ""
    who = ", ".join(names[:NAMES_SAID]) + more
    return f"{NO_WAY} to {who} - {UNREACHED_HINT}"


def any_peer_live(node: Node) -> bool:
    """Whether any peer of any network is there."""
    return any(mesh.any_peer_live() for mesh in node.meshes)


def dht_silent(node: Node) -> bool:
    """Whether no node of the DHT has answered; False where it is not used."""
    if node.discovery.dht is None:
        return False
    dht = node.discovery.dht.status()
    return not dht.nodes4 + dht.nodes6


def unanswered(node: Node, mesh: Mesh) -> int:
    """How many IP addresses were found where a peer may be, of which none answered: not our own, nor known peers'.

    Not endpoints: a machine behind a NAT that maps each destination apart is named under many ports.
    """
    own = set(mesh.own_addresses())
    known = {address for peer in mesh.roster for address in peer.addresses} | mesh.live_addresses()
    # Before a NAT that gives us many ports, what the DHT names there is mostly ourselves; else who shares the NAT.
    outside: set[str] = set()
    if node.discovery.dht:
        dht = node.discovery.dht.status()
        agreed = {address.ip for address in (dht.external4, dht.external6) if address}
        outside = set(dht.external_ips) - agreed - {address.ip for address in node.demux.addresses}
    found = mesh.seeker.book.ownerless(asyncio.get_running_loop().time())
    return len({address.ip for address in found - own - known} - outside)
