"""What may be believed of a reply: never an address nearer to us than the node that names it."""

from __future__ import annotations

from dataclasses import replace

from proxy_vpn.addresses import Address
from proxy_vpn.wire.krpc import Reply

LOWEST_PEER_PORT = 1024


def screened(reply: Reply, source: Address) -> Reply:
    """Without the nodes and values that must not be used: no unicast, a narrower scope, a peer's privileged port."""
    nodes = None if reply.nodes is None else tuple(node for node in reply.nodes if _usable(node.address, source))
    values = tuple(value for value in reply.values if value.port >= LOWEST_PEER_PORT and _usable(value, source))
    return replace(reply, nodes=nodes, values=values)


def _usable(address: Address, source: Address) -> bool:
    return address.is_unicast and address.scope >= source.scope
