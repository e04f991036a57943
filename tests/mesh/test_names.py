"""Names: which host is a peer, which goes direct, which does not exist, and how long one waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from proxy_vpn.addresses import Target
from proxy_vpn.errors import FlowError, Status
from proxy_vpn.keys import NetworkKey
from proxy_vpn.mesh.flow import Flow
from proxy_vpn.mesh.names import START_S, START_WAIT_S, Router
from proxy_vpn.mesh.udp_flow import UdpFlow
from proxy_vpn.mesh.virtual import VirtualNetwork
from tests.support.mesh_world import KEY, Member, StreamSink, Wire, identity, pause, two_members
from tests.support.virtual_loop import run_virtually

WORK = NetworkKey("work", b"w" * 16, b"w" * 32)


def route(scene: Callable[[Router, Member, Member], Coroutine[Any, Any, None]], *, settled: bool = True) -> None:
    """A router over two networks, home and work; `two` is a peer in the first, `ana` was one in the second."""

    async def main() -> None:
        async with two_members() as (wire, one, two):
            work = Member(wire, identity(9), "one", "10.1.0.1", key=WORK)
            work.mesh.roster.load(b"a" * 32, "ana", [], 1.0)
            router = Router([one.mesh, work.mesh])
            one.peer_live = _also(one.peer_live, router)  # type: ignore[method-assign]
            if settled:
                await pause(START_S + 1)
            try:
                await scene(router, one, two)
            finally:
                await work.close()

    run_virtually(main())


def _also(inner: Callable[..., None], router: Router) -> Callable[..., None]:
    def live(*arguments: Any) -> None:
        inner(*arguments)
        router.peer_arrived()

    return live


@pytest.mark.parametrize(
    ("host", "network", "peer"),
    [
        ("two", "home", "two"),
        ("TWO", "home", "two"),
        ("two.", "home", "two"),
        ("two.pvpn", "home", "two"),
        ("Two.PVPN.", "home", "two"),
        ("two.home.pvpn", "home", "two"),
        ("ana", "work", "ana"),
        ("ana.pvpn", "work", "ana"),
        ("ana.work.pvpn", "work", "ana"),
    ],
)
def test_names_of_peers(host: str, network: str, peer: str) -> None:
    async def scene(router: Router, one: Member, two: Member) -> None:
        found = await router.resolve(host)
        assert found is not None
        mesh, who = found
        assert (mesh.key.name, who.name) == (network, peer)

    route(scene)


@pytest.mark.parametrize(
    "host",
    [
        "example.com",
        "three",
        "localhost",
        "LOCALHOST",
        "wpad",
        "127.0.0.1",
        "192.0.2.1",
        "::1",
        "2001:db8::1",
        "two.example.com",
        "two.pvpn.example",
        "pvpn",
        "",
        ".",
        "a" * 64,
        "two_",
        "2130706433",
        "böse",
    ],
)
def test_everything_else_goes_direct_at_once(host: str) -> None:
    async def scene(router: Router, one: Member, two: Member) -> None:
        began = asyncio.get_running_loop().time()
        assert await router.resolve(host) is None
        assert await router.open_tcp(Target(host, 80)) is None
        assert await router.open_udp(Target(host, 80)) is None
        assert asyncio.get_running_loop().time() == began

    route(scene)


@pytest.mark.parametrize(
    "host",
    ["three.pvpn", "two.work.pvpn", "ana.home.pvpn", "two.nowhere.pvpn", ".pvpn", "a.b.c.pvpn", "localhost.pvpn"],
)
def test_an_unknown_pvpn_name_never_goes_direct(host: str) -> None:
    async def scene(router: Router, one: Member, two: Member) -> None:
        for attempt in (router.resolve(host), router.open_tcp(Target(host, 80)), router.open_udp(Target(host, 80))):
            with pytest.raises(FlowError) as caught:
                await attempt
            assert caught.value.status is Status.NO_SUCH_NAME and "\n" not in str(caught.value)

    route(scene)


def test_ones_own_name_is_said_to_be_so() -> None:
    async def scene(router: Router, one: Member, two: Member) -> None:
        for host in ("one", "one.pvpn", "ONE.home.pvpn"):
            with pytest.raises(FlowError) as caught:
                await router.resolve(host)
            assert caught.value.status is Status.POLICY and "this machine" in str(caught.value)

    route(scene)


@pytest.mark.parametrize("host", ["example.com", "localhost", "192.0.2.1", "::1", "wpad"])
def test_what_can_be_no_peer_does_not_wait_at_the_start(host: str) -> None:
    async def scene(router: Router, one: Member, two: Member) -> None:
        began = asyncio.get_running_loop().time()
        assert await router.resolve(host) is None
        assert asyncio.get_running_loop().time() == began

    route(scene, settled=False)


THREE_AT = VirtualNetwork(KEY, bytes(32)).of(identity(3).id)


@pytest.mark.parametrize("host", ["three", "three.pvpn", "three.home.pvpn", str(THREE_AT.v4), str(THREE_AT.v6)])
def test_at_the_start_a_name_waits_for_its_peer(host: str) -> None:
    async def scene(router: Router, one: Member, two: Member) -> None:
        resolving = asyncio.ensure_future(router.resolve(host))
        await pause(2.0)
        assert not resolving.done()
        three = Member(one.demux._wire, identity(3), "three", "10.0.0.3")
        three.knows(one)
        found = await resolving
        assert found is not None and found[1].name == "three"
        await three.close()

    route(scene, settled=False)


def test_at_the_start_an_unknown_name_goes_direct_after_five_seconds_and_what_is_ours_fails() -> None:
    async def scene(router: Router, one: Member, two: Member) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert await router.resolve("three") is None
        assert loop.time() - began == pytest.approx(START_WAIT_S, abs=0.1)
        with pytest.raises(FlowError) as caught:
            await router.resolve("three.pvpn")
        assert caught.value.status is Status.NO_SUCH_NAME
        assert loop.time() - began == pytest.approx(2 * START_WAIT_S, abs=0.2)
        with pytest.raises(FlowError, match="no peer has the address"):
            await router.open_tcp(Target(str(THREE_AT.v4), 80))
        assert loop.time() - began == pytest.approx(3 * START_WAIT_S, abs=0.3)

    route(scene, settled=False)


def test_flows_open_by_name() -> None:
    async def scene(router: Router, one: Member, two: Member) -> None:
        flow = await router.open_tcp(Target("Two.pvpn", 8000))
        assert isinstance(flow, Flow)
        sink = StreamSink(flow)
        (await two.until_sink()).echo = True
        flow.write(b"hello")
        await sink.until(lambda sink: sink.data == b"hello")
        udp = await router.open_udp(Target("two", 53))
        assert isinstance(udp, UdpFlow)
        assert [offer.port for offer in two.offers] == [8000, 53]

    route(scene)


def test_a_known_peer_that_is_offline_is_unreachable_after_five_seconds_and_never_direct() -> None:
    async def scene(router: Router, one: Member, two: Member) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(FlowError) as caught:
            await router.open_tcp(Target("ana", 22))
        assert caught.value.status is Status.UNREACHABLE and "ana" in str(caught.value)
        assert loop.time() - began == pytest.approx(5.0, abs=0.5)

    route(scene)


def test_the_same_name_in_two_networks_is_told_apart_by_the_network() -> None:
    async def scene(router: Router, one: Member, two: Member) -> None:
        router._meshes[1].roster.load(b"t" * 32, "two", [], 1.0)
        plain, qualified = await router.resolve("two"), await router.resolve("two.work.pvpn")
        assert plain is not None and plain[0].key.name == KEY.name
        assert qualified is not None and qualified[0].key.name == "work"

    route(scene)


def test_a_name_that_only_an_offline_peer_bears_in_one_network_is_found_live_in_the_other() -> None:
    """Whoever is there answers: a stale entry in the first network must not hide it."""

    async def main() -> None:
        wire = Wire()
        first = Member(wire, identity(9), "one", "10.1.0.1", key=WORK)
        first.mesh.roster.load(b"t" * 32, "two", [], 1.0)
        async with two_members() as (_, one, _two):
            found = Router([first.mesh, one.mesh]).find("two")
            assert found is not None and found[0] is one.mesh
        await first.close()

    run_virtually(main())
