"""Between what runs and its files: peers, pins and answered probes of a mesh, and the DHT node's contacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from proxy_vpn.daemon import files
from proxy_vpn.daemon.state import KnownPeer, NetworkMemory, NetworkState
from proxy_vpn.mesh.candidates import Source
from proxy_vpn.mesh.mesh import Mesh

_REPLAYS = "replays.msgpack"
_DHT = "dht.msgpack"


def recall(mesh: Mesh, state: NetworkState) -> None:
    """Give a new mesh what earlier runs knew: the peers' last addresses are tried first."""
    memory = state.load()
    mesh.roster.pins.update(memory.pins)
    mesh.seeker.prober.remember_seen(_read(state.path / _REPLAYS, dict[bytes, float]) or {})
    for known in memory.peers:
        peer = mesh.roster.load(known.id, known.name, list(known.addresses), known.last_seen)
        for address in peer.addresses:
            mesh.seeker.found(address, Source.MEMORY, identity=peer.identity)
    mesh.roster.changed = False


def remember(mesh: Mesh, state: NetworkState) -> None:
    """Write what the next start should know."""
    if mesh.roster.changed:
        mesh.roster.changed = False
        peers = tuple(
            KnownPeer(name=peer.claimed, id=peer.identity, addresses=tuple(peer.addresses), last_seen=peer.last_seen)
            for peer in mesh.roster
            if peer.last_seen
        )
        state.save(NetworkMemory(peers=peers, pins=dict(mesh.roster.pins)).bounded())
    files.write_atomic(state.path / _REPLAYS, msgspec.msgpack.encode(mesh.seeker.prober.seen()))


def recall_dht(directory: Path) -> dict[str, Any]:
    """The DHT node's contacts of the last run; empty when there are none."""
    return _read(directory / _DHT, dict[str, Any]) or {}


def remember_dht(directory: Path, contacts: dict[str, Any]) -> None:
    """Keep the DHT node's contacts for the next start."""
    files.write_atomic(directory / _DHT, msgspec.msgpack.encode(contacts))


def _read(path: Path, kind: type[Any]) -> Any:
    """A cache file's content; one that can't be read is as good as none."""
    data = files.read_bounded(path)
    if data is None:
        return None
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
