"""Peers without any way to them: when that is known, who is worth a word, and when it is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from proxy_vpn.addresses import Address
from proxy_vpn.errors import FlowError
from proxy_vpn.mesh.detours import FIRST_S
from proxy_vpn.mesh.unreached import LOOK_EVERY_S, NO_WAY, UNREACHED_AFTER_S
from tests.support.mesh_world import Member, Wire, ordered, pause
from tests.support.virtual_loop import run_virtually

KNOWN_S = UNREACHED_AFTER_S + 2 * LOOK_EVERY_S


class World:
    """Three members, of whom `apart` pairs lose every datagram; who is `gone` is in no lab any more."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.one, self.two, self.three = (
            Member(self.wire, who, f"peer-{n}", f"10.{n}.0.1") for n, who in enumerate(ordered(1, 2, 3), 1)
        )
        self.apart: list[set[Address]] = []
        self.wire.drops = lambda source, target, datagram: {source, target} in self.apart

    def part(self, near: Member, far: Member) -> None:
        self.apart.append({near.address, far.address})

    def unreached(self, near: Member) -> list[str]:
        return [peer.name for peer in near.mesh.unreached.peers()]


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    built = World()
    try:
        yield built
    finally:
        for member in (built.one, built.two, built.three):
            await member.close()


def test_a_remembered_peer_that_does_not_answer_is_unreached_until_it_comes() -> None:
    async def scene() -> None:
        async with world() as at:
            one, two = at.one, at.two
            at.part(one, two)
            peer = one.mesh.roster.load(two.mesh.identity.id, "peer-2", [two.address], 1.0)
            one.knows(two)
            await pause(UNREACHED_AFTER_S - LOOK_EVERY_S)
            assert at.unreached(one) == [] and one.mesh.unreached.why(peer) == ""
            await pause(KNOWN_S - UNREACHED_AFTER_S + LOOK_EVERY_S)
            assert at.unreached(one) == ["peer-2"] and one.mesh.unreached.why(peer) == NO_WAY
            with pytest.raises(FlowError, match=NO_WAY) as caught:
                await one.mesh.open_tcp(peer, 80)
            assert "pvpn doctor" in caught.value.hint
            at.apart.clear()
            await one.until_live(two, 60.0)
            assert at.unreached(one) == [] and one.mesh.unreached.why(peer) == ""

    run_virtually(scene())


def test_a_loss_counts_from_its_own_time_and_a_goodbye_is_none() -> None:
    async def scene() -> None:
        async with world() as at:
            at.one.knows(at.two)
            at.one.knows(at.three)
            for other in (at.two, at.three):
                await at.one.until_live(other)
                await other.until_live(at.one)
            await at.three.close()
            at.two.vanish()
            await at.one.until_lost(2)
            began = asyncio.get_running_loop().time()
            while at.unreached(at.one) != ["peer-2"]:
                assert at.unreached(at.one) == []
                await pause(LOOK_EVERY_S)
            assert UNREACHED_AFTER_S <= asyncio.get_running_loop().time() - began <= KNOWN_S

    run_virtually(scene())


@pytest.mark.parametrize(("carries", "heard"), [(True, []), (False, ["peer-2"])])
def test_a_member_that_could_carry_makes_the_difference(carries: bool, heard: list[str]) -> None:
    async def scene() -> None:
        async with world() as at:
            at.part(at.one, at.two)
            at.three.mesh.relay.enabled = carries
            for near in (at.one, at.two):
                near.knows(at.three)
                await near.until_live(at.three)
            await pause(FIRST_S + KNOWN_S)
            assert at.unreached(at.one) == heard
            assert at.one.sees(at.two) is carries

    run_virtually(scene())


def test_with_others_there_a_peer_that_none_of_them_reaches_is_no_news() -> None:
    async def scene() -> None:
        async with world() as at:
            peer = at.one.mesh.roster.load(at.two.mesh.identity.id, "peer-2", [at.two.address], 1.0)
            at.part(at.one, at.two)
            at.one.knows(at.three)
            await at.one.until_live(at.three)
            await pause(FIRST_S + KNOWN_S)
            assert at.unreached(at.one) == [] and at.one.mesh.unreached.why(peer) == NO_WAY
            await at.three.close()
            await at.one.until_lost()
            await pause(KNOWN_S)
            assert at.unreached(at.one) == ["peer-2"]

    run_virtually(scene())
