"""What a serving node answers: BEP 5's four queries, never more than asked for, and no storage but peers."""

from __future__ import annotations

from collections.abc import Mapping

from proxy_vpn.addresses import Address
from proxy_vpn.dht.half import Half
from proxy_vpn.dht.ids import Entropy, family_of
from proxy_vpn.dht.store import PeerStore, Tokens
from proxy_vpn.wire.krpc import AnnouncePeer, Failure, FindNode, GetPeers, NodeInfo, Query, Reply, UnknownCall

PROTOCOL_ERROR = 203
METHOD_UNKNOWN = 204


class Server:
    """Peers and tokens for others."""

    def __init__(self, entropy: Entropy, now: float) -> None:
        self.peers = PeerStore(entropy)
        self._tokens = Tokens(entropy, now)

    def answer(self, query: Query, source: Address, halves: Mapping[int, Half], now: float) -> Reply | Failure:
        """The reply to a query; an announce with a wrong token or port is refused with error 203."""
        own_id = halves[family_of(source)].id
        call, token = query.call, None
        nodes: tuple[NodeInfo, ...] | None = None
        values: tuple[Address, ...] = ()
        if isinstance(call, UnknownCall):
            return Failure(query.tid, METHOD_UNKNOWN, "Method Unknown")
        if isinstance(call, AnnouncePeer) and not self._announce(call, source, now):
            return Failure(query.tid, PROTOCOL_ERROR, "bad token or port")
        if isinstance(call, FindNode):
            nodes = _nodes(call.target, call.want, source, halves, now)
        if isinstance(call, GetPeers):
            nodes = _nodes(call.info_hash, call.want, source, halves, now)
            token = self._tokens.make(source.ip, call.info_hash, now)
            found = self.peers.get(call.info_hash, family_of(source), now)
            values = tuple(peer for peer in found if peer.scope >= source.scope)
        return Reply(query.tid, own_id, nodes, values, token, source)

    def _announce(self, call: AnnouncePeer, source: Address, now: float) -> bool:
        peer = source if call.implied_port else Address(source.ip, call.port)
        if not peer.port or not self._tokens.accept(call.token, source.ip, call.info_hash, now):
            return False
        self.peers.add(call.info_hash, peer, now)
        return True


def _nodes(
    target: bytes, want: tuple[int, ...], source: Address, halves: Mapping[int, Half], now: float
) -> tuple[NodeInfo, ...]:
    wanted = want or (family_of(source),)
    found = [
        NodeInfo(contact.id, contact.address)
        for family, half in halves.items()
        if family in wanted
        for contact in half.table.closest(target, now)
    ]
    return tuple(node for node in found if node.address.scope >= source.scope and node.address != source)
