"""Members that lie: what one that holds the key, and no other's identity, can do to others, and what it can not."""

from __future__ import annotations

import random

from proxy_vpn.addresses import Address
from proxy_vpn.keys import Identity
from proxy_vpn.mesh import pex
from proxy_vpn.mesh.prober import probe_key
from proxy_vpn.mesh.relay import TUNNELS_PER_MEMBER
from proxy_vpn.mesh.roster import PEERS_LIMIT
from proxy_vpn.wire.messages import RelayOpen
from proxy_vpn.wire.probe import SMALL_PROBE_BYTES, Probe
from tests.support.mesh_world import KEY, UNIX_TIME_S, Member, Wire, identity, ordered, pause, two_members
from tests.support.virtual_loop import run_virtually

DICE = random.Random(11)


def test_a_probe_in_anothers_name_ends_none_of_its_connections() -> None:
    async def main() -> None:
        async with two_members() as (wire, one, two):
            flow = await one.open_tcp(two)
            path = one.session(two).link.path
            assert path is not None
            one.mesh.seeker.dial_lane(two.mesh.identity.id, path, 0.02, 1)
            await pause(3)
            assert len(one.peer(two).sessions) == 2
            probe = Probe(
                DICE.randbytes(16), two.mesh.identity.id, b"invented", one.mesh._world.unix_time(), SMALL_PROBE_BYTES
            )
            sealed = probe_key(KEY, one.mesh.identity.id).seal(DICE.randbytes(12), probe.encode())
            wire.arrive(sealed, Address("10.0.0.66", 4444), one.address)
            await pause(3)
            assert len(one.peer(two).sessions) == 2 and flow.events == []
            assert one.warnings == two.warnings == []

    run_virtually(main())


def test_a_full_roster_still_lets_a_newcomer_in() -> None:
    async def main() -> None:
        low, high = ordered(1, 2)
        wire = Wire()
        one, two = Member(wire, low, "one", "10.0.0.1"), Member(wire, high, "two", "10.0.0.2")
        for number in range(PEERS_LIMIT):
            one.mesh.roster.load(DICE.randbytes(32), f"old-{number}", [], UNIX_TIME_S + number)
        one.knows(two)
        await one.until_live(two)
        await two.until_live(one)
        await two.open_tcp(one)
        assert len(one.mesh.roster) == PEERS_LIMIT and one.mesh.roster.find("two") is not None
        await one.close()
        await two.close()

    run_virtually(main())


def test_invented_devices_are_forgotten_everywhere() -> None:
    async def main() -> None:
        async with two_members() as (_wire, one, two):
            now = one.mesh._world.unix_time()
            for _ in range(PEERS_LIMIT // pex.RECORDS_PER_MESSAGE + 20):
                devices = [Identity(DICE.randbytes(32)) for _ in range(pex.RECORDS_PER_MESSAGE)]
                records = [pex.make_record(KEY, device, "x", [], now) for device in devices]
                one.mesh.peers_received(one.session(two), records)
                one.mesh.detours.tick([])
            assert len(one.mesh.roster) == PEERS_LIMIT
            assert len(one.mesh.detours._searches) <= PEERS_LIMIT

    run_virtually(main())


def test_tunnels_opened_towards_a_member_leave_it_its_own() -> None:
    async def main() -> None:
        wire = Wire()
        relay, alice, bob, carol = members = [
            Member(wire, identity(n), name, f"10.0.{n}.1") for n, name in enumerate(("relay", "alice", "bob", "carol"))
        ]
        wire.drops = lambda source, target, _datagram: relay.address not in (source, target)
        for member in (alice, bob):
            member.knows(relay)
            await member.until_live(relay)
        for number in range(TUNNELS_PER_MEMBER):
            alice.session(relay).send_control(RelayOpen(2 * number + 1000, bob.mesh.identity.id))
        await pause(1)
        carol.knows(relay)
        await carol.until_live(relay)
        await pause(20)
        assert bob.sees(carol) and carol.sees(bob)
        carols = bob.mesh.detours.reasons(carol.mesh.identity.id)
        assert carols == {}
        for member in members:
            await member.close()

    run_virtually(main())


def test_a_ping_survives_lost_probes() -> None:
    async def main() -> None:
        async with two_members() as (wire, one, two):
            wire.loss = 0.2
            for _ in range(30):
                rtt_s, _path = await one.mesh.ping(one.peer(two))
                assert 0.0 < rtt_s < 1.0

    run_virtually(main())
