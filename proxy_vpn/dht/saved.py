"""What a node remembers between runs, as plain data (numbers, bytes, lists): nodes, closest sets, its own ids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from proxy_vpn.addresses import Address
from proxy_vpn.errors import WireError
from proxy_vpn.wire.krpc import ID_BYTES, NodeInfo, pack_nodes

MAX_NODES = 400
MAX_CLOSEST = 16
MAX_CLOSEST_NODES = 20


class Saved(msgspec.Struct, frozen=True):
    """Nodes are compact node info (26 or 38 bytes); `ids` is kept by serving nodes only: a lasting id is a trace."""

    nodes: list[bytes] = []
    closest: list[tuple[bytes, list[bytes]]] = []
    ids: list[tuple[int, bytes]] = []

    def own_id(self, family: int) -> bytes | None:
        """The id last used for this family, 4 or 6."""
        return next((own_id for known, own_id in self.ids if known == family and len(own_id) == ID_BYTES), None)

    def known_nodes(self) -> list[NodeInfo]:
        return unpack(self.nodes[:MAX_NODES])

    def closest_sets(self) -> dict[bytes, list[NodeInfo]]:
        return {
            info_hash: unpack(nodes[:MAX_CLOSEST_NODES])
            for info_hash, nodes in self.closest[:MAX_CLOSEST]
            if len(info_hash) == ID_BYTES
        }


def pack(nodes: Iterable[NodeInfo]) -> list[bytes]:
    """Each node as its own compact entry."""
    return [pack_nodes([node]) for node in nodes]


def unpack(entries: Iterable[bytes]) -> list[NodeInfo]:
    """The inverse of `pack`; entries that are not nodes are left out."""
    nodes = []
    for entry in entries:
        try:
            address = Address.from_packed(entry[ID_BYTES:])
        except WireError:
            continue
        if address.is_unicast:
            nodes.append(NodeInfo(entry[:ID_BYTES], address))
    return nodes


def dump(saved: Saved) -> dict[str, Any]:
    """To a dictionary that msgpack can hold."""
    plain: dict[str, Any] = msgspec.to_builtins(saved, builtin_types=(bytes,))
    return plain


def load(plain: object) -> Saved:
    """From what `dump` made; anything else is an empty memory."""
    try:
        return msgspec.convert(plain, Saved)
    except msgspec.ValidationError:
        return Saved()
