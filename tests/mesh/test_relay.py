"""Two members that can't reach each other, and one that reaches both: a relayed path, and off it again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from proxy_vpn.addresses import Address
from proxy_vpn.mesh.candidates import Source
from proxy_vpn.mesh.detours import FIRST_S
from proxy_vpn.mesh.paths import Kind, kind_of
from proxy_vpn.mesh.tunnels import relay_address
from proxy_vpn.net.udp import Path
from tests.support.engine_pair import PAIRINGS
from tests.support.mesh_world import Member, Wire, ordered, pause, two_members
from tests.support.virtual_loop import run_virtually

NEEDED_S = 5.0
TEXT = bytes(range(256)) * 1000


@asynccontextmanager
async def three(engines: tuple[str, str] = ("qh3", "qh3"), relay_on: bool = True) -> AsyncIterator[_Three]:
    """one and two, between which every datagram is lost, and the relay that both know."""
    wire = Wire()
    low, high, middle = ordered(1, 2, 3)
    one = Member(wire, low, "one", "10.1.0.1", engine=engines[0])
    two = Member(wire, high, "two", "10.2.0.2", engine=engines[1])
    relay = Member(wire, middle, "relay", "10.3.0.3")
    relay.mesh.relay.enabled = relay_on
    world = _Three(wire, one, two, relay)
    wire.drops = world.drops
    try:
        for member in (one, two):
            member.knows(relay)
            await member.until_live(relay)
        yield world
    finally:
        for member in (one, two, relay):
            await member.close()


class _Three:
    def __init__(self, wire: Wire, one: Member, two: Member, relay: Member) -> None:
        self.wire, self.one, self.two, self.relay = wire, one, two, relay
        self.apart = True

    def drops(self, source: Address, target: Address, datagram: bytes) -> bool:
        return self.apart and {source, target} == {self.one.address, self.two.address}

    def kinds(self) -> set[Kind]:
        sessions = (self.one.session(self.two), self.two.session(self.one))
        return {kind_of(session.paths.current) for session in sessions if session.paths is not None}


@pytest.mark.parametrize("engines", PAIRINGS)
def test_a_common_member_carries(engines: tuple[str, str]) -> None:
    async def scenario() -> None:
        async with three(engines) as world:
            await world.one.until_live(world.two, FIRST_S + NEEDED_S)
            await world.two.until_live(world.one, NEEDED_S)
            assert world.kinds() == {Kind.RELAY}
            path = world.one.session(world.two).paths
            assert path is not None and world.one.mesh.describe(path.current) == "relay via relay"
            near = await world.one.open_tcp(world.two)
            far = await world.two.until_sink()
            for sink in (near, far):
                sink.flow.write(TEXT)
                sink.flow.write_eof()
            await near.until(lambda sink: sink.over)
            await far.until(lambda sink: sink.over)
            assert bytes(near.data) == bytes(far.data) == TEXT

    run_virtually(scenario())


def test_the_relay_sees_no_plaintext_and_neither_end_of_it_is_a_flow() -> None:
    async def scenario() -> None:
        async with three() as world:
            await world.one.until_live(world.two, FIRST_S + NEEDED_S)
            world.wire.recording = True
            near = await world.one.open_tcp(world.two)
            near.flow.write(TEXT)
            await (await world.two.until_sink()).until_received(len(TEXT))
            assert not world.relay.offers and not world.relay.flows(world.one)
            assert all(TEXT[:64] not in datagram for _, _, datagram in world.wire.seen)
            assert world.relay.mesh.relay.carried_bytes > len(TEXT)

    run_virtually(scenario())


def test_a_direct_path_takes_over_under_open_flows() -> None:
    async def scenario() -> None:
        async with three() as world:
            await world.one.until_live(world.two, FIRST_S + NEEDED_S)
            near = await world.one.open_tcp(world.two)
            far = await world.two.until_sink()
            near.flow.write(TEXT)
            world.apart = False
            for _ in range(60):
                await pause(1.0)
                if world.kinds() == {Kind.DIRECT}:
                    break
            assert world.kinds() == {Kind.DIRECT}
            near.flow.write(TEXT)
            await far.until_received(2 * len(TEXT))
            assert not world.one.lost and not world.two.lost

    run_virtually(scenario())


def test_a_member_that_carries_nothing_refuses() -> None:
    async def scenario() -> None:
        async with three(relay_on=False) as world:
            await pause(FIRST_S + NEEDED_S)
            assert not world.one.sees(world.two)
            reasons = world.one.mesh.detours.reasons(world.two.mesh.identity.id)
            assert reasons == {"relay": "it carries nothing for others"}

    run_virtually(scenario())


def test_the_relay_goes_and_its_tunnels_with_it() -> None:
    async def scenario() -> None:
        async with three() as world:
            await world.one.until_live(world.two, FIRST_S + NEEDED_S)
            await world.relay.mesh.close()
            await world.one.until_lost(2)
            assert not world.one.demux.tunnels and not world.one.sees(world.two)

    run_virtually(scenario())


def test_nobody_else_can_name_a_relayed_address() -> None:
    async def scenario() -> None:
        async with two_members() as (_, one, two):
            address = relay_address(one.mesh.identity.id, two.mesh.identity.id)
            assert address.relayed
            now = 1.0
            for source in Source:
                accepted = one.mesh.seeker.book.add(address, now, source=source)
                assert accepted is (source is Source.RELAY)

    run_virtually(scenario())


@pytest.mark.parametrize(
    ("local", "remote", "kind"),
    [
        ("192.168.1.2", "192.168.1.3", Kind.LAN),
        ("10.93.1.1", "10.93.200.1", Kind.LAN),
        ("192.168.1.2", "10.93.1.1", Kind.DIRECT),
        ("192.168.1.2", "203.0.113.9", Kind.DIRECT),
        ("", "192.168.1.3", Kind.DIRECT),
        ("fd93::1", "fd93::2", Kind.LAN),
        ("2001:db8::1", "2600::1", Kind.DIRECT),
        ("10.0.0.1", "100::1:2:3:4", Kind.RELAY),
    ],
)
def test_paths_have_kinds(local: str, remote: str, kind: Kind) -> None:
    assert kind_of(Path(local, 0, Address(remote, 1))) is kind
