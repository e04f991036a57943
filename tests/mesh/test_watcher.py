"""The watcher: a session at rest takes no looks, and whatever happens to it is seen as soon as ever."""

from __future__ import annotations

import asyncio

import pytest

from proxy_vpn.mesh.mesh import TICK_S
from proxy_vpn.mesh.paths import IDLE_INTERVAL_S, IDLE_LOST_S
from tests.support.mesh_world import Member, pause, two_members
from tests.support.virtual_loop import run_virtually


def count_looks(member: Member, peer: Member, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the member's session with the peer was looked at from now on."""
    link, looks, loop = member.session(peer).link, list[float](), asyncio.get_running_loop()
    keep = link.keep

    def look() -> None:
        looks.append(loop.time())
        keep()

    monkeypatch.setattr(link, "keep", look)
    return looks


def test_a_session_at_rest_is_looked_at_when_something_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with two_members() as (_, one, two):
            await pause(30.0)
            looks = count_looks(one, two, monkeypatch)
            await pause(600.0)
            assert 600.0 / IDLE_INTERVAL_S <= len(looks) <= 600.0 / TICK_S / 8
            assert not one.lost and not two.lost

    run_virtually(main())


def test_one_that_carries_is_looked_at_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with two_members() as (_, one, two):
            await pause(30.0)
            looks = count_looks(one, two, monkeypatch)
            await one.open_tcp(two)
            await pause(10.0)
            assert len(looks) >= 10.0 / TICK_S - 3

    run_virtually(main())


def test_the_end_of_a_peer_is_noticed_from_rest() -> None:
    async def main() -> None:
        async with two_members() as (wire, one, two):
            await pause(30.0)
            session = one.session(two)
            wire.drops = lambda source, target, datagram: True
            await pause(IDLE_INTERVAL_S + 5.0)
            assert session.paths is not None and session.paths.suspect
            await pause(IDLE_LOST_S)
            assert len(one.lost) == 1

    run_virtually(main())
