"""What watching costs while nothing happens, and that what happens then is noticed as soon as ever."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from proxy_vpn.errors import FlowError
from proxy_vpn.mesh.paths import PathMonitor
from proxy_vpn.mesh.session import Session
from tests.support.engine_pair import PAIRINGS
from tests.support.mesh_world import Member, identity, pause, two_members
from tests.support.virtual_loop import run_virtually

SETTLED_S = 60.0
MINUTES = 10
# A path probe and its answer every 15 s, now and then one from the other end too; a PING and its answer every 20 s.
DATAGRAMS_A_MINUTE = 2 * 5 + 2 * 3 + 2


@pytest.mark.parametrize("engines", PAIRINGS)
def test_idle_members_exchange_few_datagrams_and_go_on_being_there(engines: tuple[str, str]) -> None:
    async def main() -> None:
        async with two_members(engines) as (wire, one, two):
            await pause(SETTLED_S)
            before = wire.carried
            await pause(MINUTES * 60.0)
            assert wire.carried - before <= MINUTES * DATAGRAMS_A_MINUTE
            assert not one.lost and not two.lost
            await _at_rest(one.session(two))

    run_virtually(main())


@pytest.mark.parametrize("rests_s", [0.0, 0.3, 0.6, 0.9])
def test_a_path_that_died_at_rest_is_suspect_two_seconds_after_a_flow_wants_it(rests_s: float) -> None:
    async def main() -> None:
        async with two_members() as (wire, one, two):
            await pause(SETTLED_S + rests_s)
            paths = await _at_rest(one.session(two))
            wire.drops = lambda source, target, datagram: True
            await _want(one, two)
            assert paths.suspect

    run_virtually(main())


def test_whoever_stops_to_answer_has_all_others_asked_who_rest() -> None:
    """What cut one off may have cut off all."""

    async def main() -> None:
        async with two_members() as (wire, one, two):
            three = Member(wire, identity(3), "three", "10.0.0.3")
            one.knows(three)
            await three.until_live(one)
            await three.until_live(two)
            await pause(SETTLED_S)
            paths = await _at_rest(one.session(two))
            paths.observed = None
            wire.drops = lambda source, target, datagram: three.address in (source, target)
            await _want(one, three)
            assert paths.observed == one.address and not paths.suspect
            await three.close()

    run_virtually(main())


async def _at_rest(session: Session) -> PathMonitor:
    """The session's paths, once nothing is under way."""
    while not session.resting:
        await pause(0.1)
    assert session.paths is not None
    return session.paths


async def _want(member: Member, other: Member) -> None:
    """Try for two seconds to open a flow that nobody answers."""
    with suppress(FlowError, TimeoutError):
        async with asyncio.timeout(2.0):
            await member.mesh.open_tcp(member.peer(other), 80)
