"""Routes: what a peer leads to, who accepts it, which way is taken, and that none is taken around a lost one."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from ipaddress import ip_network
from typing import Any

import pytest

from proxy_vpn.addresses import Target
from proxy_vpn.errors import FlowError, Status
from proxy_vpn.mesh import routes
from proxy_vpn.mesh.names import START_S, Router
from proxy_vpn.mesh.openings import Incoming
from proxy_vpn.mesh.routes import Offer, Ways, offered
from proxy_vpn.ranges import parse_route
from proxy_vpn.wire.messages import Routes
from tests.support.mesh_world import Member, StreamSink, identity, pause, two_members
from tests.support.virtual_loop import run_virtually

LAN, WIDER = "192.168.7.0/24", "192.168.0.0/16"
IS_THE_EXIT_S_TO_REFUSE = ("2001:0:101:101::1", "2001:4:112::1", "5f00::1", "192.0.2.1", "240.0.0.1", "64:ff9b::a00:1")


def lead(scene: Callable[[Member, Member], Coroutine[Any, Any, None]], *networks: str, is_exit: bool = False) -> None:
    """Two members that are connected; the second leads to `networks`, and to the internet if it `is_exit`."""

    async def main() -> None:
        async with two_members() as (_wire, one, two):
            two.mesh.leads_to = Offer(tuple(map(parse_route, networks)), is_exit).messages()
            await pause(START_S + 1)
            await scene(one, two)

    run_virtually(main())


def through(one: Member, host: str, *, accept: bool = True, exit_name: str = "") -> str | None:
    way = Ways([one.mesh], accept, exit_name).through(host)
    return None if way is None else way[1].name


def test_both_sides_opt_in() -> None:
    async def scene(one: Member, two: Member) -> None:
        assert through(one, "192.168.7.9") == through(one, "::ffff:192.168.7.9") == "two"
        assert through(one, "192.168.7.9", accept=False) is None
        assert through(two, "192.168.7.9") is None
        for other in ("192.168.8.9", "fd00:7::1", "lan.example", "localhost", "1.1.1.1"):
            assert through(one, other) is None

    lead(scene, LAN)


def test_the_longest_prefix_wins_and_of_equals_one_that_is_there() -> None:
    async def scene(one: Member, two: Member) -> None:
        roster = one.mesh.roster
        wide, away = roster.meet(identity(7).id, "wide"), roster.meet(bytes(32), "away")
        wide.routes, away.routes = offered(Routes([WIDER], False)), offered(Routes([LAN], False))
        assert through(one, "192.168.7.9") == "two"
        assert through(one, "192.168.8.9") == "wide"
        await two.close()
        await one.until_lost()
        assert through(one, "192.168.7.9") in ("two", "away")

    lead(scene, LAN)


def test_no_member_takes_the_place_of_a_lan_s_gateway() -> None:
    async def scene(one: Member, two: Member) -> None:
        ways = Ways([one.mesh], accept_routes=True)
        gateway, beside = "192.168.7.1", "192.168.8.1"
        assert ways.through(gateway) is not None and ways.through(beside) is not None
        ways.attached = [ip_network("fd00::/8"), ip_network(LAN)]
        assert ways.through(gateway) is None and ways.through(beside) is not None
        assert [str(network) for network, _, _ in ways.accepted()] == ["192.168.8.0/24"]
        ways.attached = [ip_network("192.168.7.0/31"), ip_network("192.168.8.0/25")]
        assert ways.through(gateway) is None and ways.through(beside) is None, "the same, or a larger one"
        assert ways.through("192.168.8.129") is not None
        assert len(list(ways.accepted())) == 2, "a LAN's own routes go before them"

    lead(scene, "192.168.7.0/31", "192.168.8.0/24")


def test_a_route_to_public_addresses_is_not_accepted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(one: Member, two: Member) -> None:
        ways = Ways([one.mesh], True, "two")
        one.mesh.roster.meet(bytes(32), "greedy").routes = offered(Routes(["1.0.0.0/8", "2600::/16", WIDER], False))
        for host, name in (("1.1.1.1", "two"), ("2600::1", "two"), ("192.168.8.9", "greedy")):
            way = ways.through(host)
            assert way is not None and way[1].name == name
        ways.exit_name = ""
        assert ways.through("1.1.1.1") is ways.through("2600::1") is None
        assert [record.getMessage() for record in caplog.records if record.name == routes.__name__] == [
            "greedy leads to 1.0.0.0/8, which is no private network: that is not accepted"
        ]

    lead(scene, is_exit=True)


def test_an_exit_takes_the_internet_and_nothing_goes_around_it() -> None:
    async def scene(one: Member, two: Member) -> None:
        for host in ("1.1.1.1", "2606:4700::1111", "www.example", "nas", *IS_THE_EXIT_S_TO_REFUSE):
            assert through(one, host, exit_name="two") == "two"
            assert through(one, host) is None
        for host in (
            "127.0.0.1",
            "192.168.1.1",
            "fd00::1",
            "fe80::1",
            "::1",
            "fe80::1%eth0",
            "localhost",
            "a.localhost.",
        ):
            assert through(one, host, exit_name="two") is None
        with pytest.raises(FlowError, match="nothing goes around it") as caught:
            through(one, "1.1.1.1", exit_name="three")
        assert caught.value.status is Status.UNREACHABLE
        assert through(one, "1.1.1.1", exit_name="two.home") == "two"
        await two.close()
        await one.until_lost()
        router = Router([one.mesh], Ways([one.mesh], exit_name="two"))
        await pause(START_S + 1)
        with pytest.raises(FlowError, match="two is offline"):
            await router.open_tcp(Target("1.1.1.1", 80))

    lead(scene, is_exit=True)


@pytest.mark.parametrize("host", ["192.168.7.9", "fd00:7::9"])
def test_a_flow_says_where_it_goes_and_a_refusal_says_who_refused(host: str) -> None:
    async def scene(one: Member, two: Member) -> None:
        router = Router([one.mesh], Ways([one.mesh], accept_routes=True))
        flow = await router.open_tcp(Target(host, 80))
        assert flow is not None
        sink = StreamSink(flow)
        offer = await two.until_offered()
        assert (offer.host, offer.port) == (host, 80)
        sink.flow.write(b"hello")
        await (await two.until_sink()).until_received(5)
        assert (await router.open_udp(Target(host, 53))) is not None
        assert two.offers[1].host == host

        def refuse(peer: object, offer: Incoming) -> None:
            offer.refuse(Status.POLICY)

        two.flow_offered = refuse  # type: ignore[assignment,method-assign]
        with pytest.raises(FlowError, match=f"two does not lead to {host}"):
            await router.open_tcp(Target(host, 81))

    lead(scene, LAN, "fd00:7::/64")


def test_what_nobody_may_lead_to_is_not_believed() -> None:
    said = ["0.0.0.0/0", "127.0.0.0/8", "169.254.0.0/16", "192.168.7.1/24", "nonsense", "::/0", LAN, LAN, "224.0.0.0/8"]
    assert offered(Routes(said, False)) == (parse_route(LAN),)


def test_an_empty_offer_is_not_told() -> None:
    assert Offer().messages() == () and not Offer()
    assert Offer(exit=True).messages() == (Routes([], True),)
