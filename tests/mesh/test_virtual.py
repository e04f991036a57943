"""Virtual addresses: the same everywhere, moved where something local is in the way, and found again by number."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_vpn.errors import FlowError, Status
from proxy_vpn.keys import Identity
from proxy_vpn.mesh import virtual as module
from proxy_vpn.mesh.names import Router
from proxy_vpn.mesh.pex import make_record
from proxy_vpn.mesh.virtual import SHARED_SPACE, VirtualNetwork
from proxy_vpn.wire.messages import Peers
from tests.support.mesh_world import KEY, UNIX_TIME_S, pause, two_members
from tests.support.virtual_loop import START_S, run_virtually

ONE, TWO, THREE = (bytes([n]) * 32 for n in (1, 2, 3))
identities = st.binary(min_size=32, max_size=32)


@given(identities, identities)
def test_every_machine_computes_the_same(here: bytes, there: bytes) -> None:
    ours, theirs = VirtualNetwork(KEY, here), VirtualNetwork(KEY, there)
    assert (ours.v4, ours.v6) == (theirs.v4, theirs.v6) and not ours.moved
    assert theirs.own.v6 == ours.of(there).v6
    assert theirs.own.v4 == ours.of(there).v4 or ours.is_moved(there)
    assert ours.own.v4 in ours.v4 and ours.own.v6 in ours.v6 and ours.dns not in (ours.own, theirs.own)
    assert ours.v4.subnet_of(SHARED_SPACE) and ours.v6.subnet_of(IPv6Network("fd00::/8"))


def test_a_range_in_use_is_left_alone() -> None:
    first = VirtualNetwork(KEY, ONE)
    second = VirtualNetwork(KEY, ONE, [first.v4, ip_network("10.0.0.0/8"), ip_network("fd00::/8")])
    assert second.moved and not second.is_crowded and not second.v4.overlaps(first.v4) and second.own.v6 == first.own.v6
    assert second.place(TWO) == first.place(TWO)
    nowhere_to_go = VirtualNetwork(KEY, ONE, [SHARED_SPACE])
    assert nowhere_to_go.v4 == first.v4 and nowhere_to_go.is_crowded and not nowhere_to_go.moved


def test_of_two_with_one_address_the_second_moves_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VirtualNetwork, "_candidates", lambda self, identity: iter((7, 9, 11)))
    network = VirtualNetwork(KEY, ONE)
    addresses = [network.of(each).v4 for each in (ONE, TWO, THREE, TWO, ONE)]
    assert [int(ip) & 0xFFFF for ip in addresses] == [7, 9, 11, 9, 7]
    assert not network.is_moved(ONE) and network.is_moved(TWO)
    again = VirtualNetwork(KEY, ONE)
    again.remember(THREE, network.place(THREE))
    again.remember(TWO, 7)  # this machine's own
    assert again.of(THREE) == network.of(THREE) and again.place(TWO) == 9


@pytest.mark.parametrize("order", [(TWO, THREE), (THREE, TWO)])
def test_of_those_learnt_at_once_the_lesser_identity_goes_first(
    order: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VirtualNetwork, "_candidates", lambda self, identity: iter((7, 9, 11)))
    network = VirtualNetwork(KEY, ONE)
    network.give(order)
    assert (network.place(TWO), network.place(THREE)) == (9, 11)
    late = VirtualNetwork(KEY, ONE)
    late.give([THREE])
    late.give(order)
    assert (late.place(TWO), late.place(THREE)) == (11, 9)


@pytest.mark.parametrize("turned", [False, True])
def test_the_order_in_an_exchange_does_not_matter(turned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VirtualNetwork, "_candidates", lambda self, identity: iter((7, 9, 11, 13)))
    devices = sorted((Identity(bytes([n]) * 32) for n in (21, 22)), key=lambda each: each.id, reverse=turned)

    async def main() -> None:
        async with two_members() as (_, one, two):
            records = [make_record(KEY, each, f"peer-{each.id[0]}", [], UNIX_TIME_S + START_S) for each in devices]
            one.session(two).send_control(Peers(records))
            await pause(1.0)
            assert len(two.mesh.roster) == 3
            places = [two.mesh.virtual.place(each) for each in sorted(each.id for each in devices)]
            assert (two.mesh.virtual.place(one.mesh.identity.id), places) == (9, [11, 13])

    run_virtually(main())


def test_addresses_lead_back_to_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEVICES_LIMIT", 20)
    network = VirtualNetwork(KEY, ONE)
    addresses = network.of(TWO)
    assert network.device_at(addresses.v4) == network.device_at(addresses.v6) == TWO
    unknown = VirtualNetwork(KEY, TWO).of(THREE)
    assert network.device_at(unknown.v4) is None and network.device_at(unknown.v4, [THREE]) == THREE
    assert network.device_at(ip_address("192.0.2.1")) is None
    for number in range(100):
        network.of(number.to_bytes(32, "big"))
    assert network.device_at(network.own.v4) == ONE and network.device_at(addresses.v4) is None
    assert len(network._devices) == 2 * len(network._hosts) == 40


def test_a_virtual_address_is_as_good_as_a_name() -> None:
    async def main() -> None:
        async with two_members() as (_wire, one, two):
            router = Router([one.mesh])
            theirs = one.mesh.virtual.of(two.mesh.identity.id)
            for ip in (theirs.v4, theirs.v6, f"::ffff:{theirs.v4}"):
                found = router.find(str(ip))
                assert found is not None and found[1].name == "two"
            assert (
                router.find("100.127.255.1" if theirs.v4 not in IPv4Network("100.127.0.0/16") else "100.64.0.9") is None
            )
            assert (
                router.name_at(theirs.v4) == "two.home.pvpn"
                and router.name_at(one.mesh.virtual.own.v6) == "one.home.pvpn"
            )
            assert router.name_at(one.mesh.virtual.dns.v4) is None and router.name_at(ip_address("192.0.2.1")) is None
            for ip, status in (
                (one.mesh.virtual.own.v4, Status.POLICY),
                (one.mesh.virtual.dns.v6, Status.NO_SUCH_NAME),
            ):
                with pytest.raises(FlowError) as caught:
                    router.find(str(ip))
                assert caught.value.status is status

    run_virtually(main())
