"""What a new run knows of earlier ones: peers keep their virtual addresses; those without get theirs in one order."""

from __future__ import annotations

import pytest

from proxy_vpn.daemon.memory import recall, snapshot
from proxy_vpn.daemon.state import KnownPeer, NetworkMemory
from proxy_vpn.mesh.virtual import VirtualNetwork
from tests.support.mesh_world import two_members
from tests.support.virtual_loop import run_virtually

FIRST, SECOND, THIRD = (bytes([number]) * 32 for number in (1, 2, 3))


@pytest.mark.parametrize("turned", [False, True])
def test_places_in_the_virtual_network(turned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VirtualNetwork, "_candidates", lambda self, identity: iter(range(7, 20)))
    places = {FIRST: -1, SECOND: -1, THIRD: 9}
    known = [KnownPeer(name=f"peer-{id[0]}", id=id, last_seen=1.0, place=place) for id, place in places.items()]

    async def main() -> None:
        async with two_members() as (_, one, two):
            assert [one.mesh.virtual.place(each.mesh.identity.id) for each in (one, two)] == [7, 8]
            recall(one.mesh, NetworkMemory(peers=tuple(reversed(known) if turned else known)))
            found = {peer.id: peer.place for peer in snapshot(one.mesh).peers}
            assert [found[id] for id in places] == [10, 11, 9]

    run_virtually(main())
