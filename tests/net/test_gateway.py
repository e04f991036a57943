"""Gateway, driven by a PortMapper: what it asks, whom it believes, and how it notices that the router forgot."""

from __future__ import annotations

import asyncio
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_vpn.addresses import Address
from proxy_vpn.net import portmap
from proxy_vpn.net.gateway import default_gateway, parse_routes, state_lost
from proxy_vpn.wire.portmap import (
    NONCE_BYTES,
    PcpAnnounceAnswer,
    PcpMapAnswer,
    PcpMapRequest,
    PmpAddressAnswer,
    PmpMapAnswer,
)
from tests.net.router import GLOBAL, NONCE, PORT, Router, now, scene
from tests.support.virtual_loop import run_virtually


def test_pcp_is_asked_as_it_wants_to_be() -> None:
    async def main() -> None:
        async with scene(Router("pcp")) as it:
            await it.next(3)
            (_, request), *_ = it.router.requests
            assert request == PcpMapRequest(NONCE, "127.0.0.1", PORT, 7200, Address("0.0.0.0", PORT))

    run_virtually(main())


def test_lost_datagrams_are_sent_again() -> None:
    async def main() -> None:
        router = Router("pcp")
        router.drops = 2
        async with scene(router) as it:
            began = now()
            assert await it.next(3)
            assert [round(at - began, 2) for at in router.times(PcpMapRequest)] == [0, 0.25, 0.65]

    run_virtually(main())


def test_a_router_deaf_to_pcp_is_asked_by_nat_pmp() -> None:
    async def main() -> None:
        router = Router("nat-pmp")
        router.drops = 3
        async with scene(router) as it:
            assert await it.next(3)
            assert it.mapper.status.protocol == "nat-pmp"

    run_virtually(main())


@pytest.mark.parametrize("protocol", ["pcp", "nat-pmp"])
def test_a_reboot_that_is_announced_is_answered_by_mapping_anew(protocol: str) -> None:
    async def main() -> None:
        router = Router(protocol)
        async with scene(router) as it:
            await it.next(3)
            await asyncio.sleep(60)
            router.external, router.booted_at = Address(GLOBAL, 9000), now()
            router.say(PcpAnnounceAnswer(0, 0) if protocol == "pcp" else PmpAddressAnswer(0, GLOBAL, 0))
            assert await it.next(1) == Address(GLOBAL, 9000)

    run_virtually(main())


@pytest.mark.parametrize("protocol", ["pcp", "nat-pmp"])
def test_a_reboot_in_silence_is_noticed_within_minutes(protocol: str) -> None:
    async def main() -> None:
        router = Router(protocol)
        async with scene(router) as it:
            await it.next(3)
            await asyncio.sleep(1000)
            router.external, router.booted_at = Address(GLOBAL, 9000), now()
            assert await it.next(portmap.CHECK_S + 5) == Address(GLOBAL, 9000)

    run_virtually(main())


def test_a_new_external_address_is_told() -> None:
    async def main() -> None:
        router = Router("nat-pmp")
        async with scene(router) as it:
            await it.next(3)
            router.external = Address("5.6.7.8", PORT)
            router.say(PmpAddressAnswer(0, "5.6.7.8", router.epoch_s))
            assert await it.next(5) == Address("5.6.7.8", PORT)
            assert it.told == [Address(GLOBAL, PORT), Address("5.6.7.8", PORT)]

    run_virtually(main())


def test_answers_meant_for_others_are_passed_over() -> None:
    async def main() -> None:
        router = Router("pcp")
        stranger = PcpMapAnswer(0, bytes(NONCE_BYTES), PORT, Address("6.6.6.6", 1), 7200, 1000)
        router.noise = [b"", b"\0\x80", stranger.encode(), PmpMapAnswer(0, PORT, 1, 7200, 1000).encode()]
        async with scene(router) as it:
            assert await it.next(3) == Address(GLOBAL, PORT)

    run_virtually(main())


@pytest.mark.parametrize(
    ("server_s", "client_s", "lost"),
    [
        (100, 100, False),
        (-1, 0, False),
        (-2, 0, True),
        (0, 100, True),
        (100, 0, True),
        (95, 100, False),
        (104, 100, False),
        (10000, 9500, False),
        (10000, 9300, True),
        (0, 2, False),
    ],
)
def test_epochs_that_do_not_fit_the_clock_show_a_reboot(server_s: float, client_s: float, lost: bool) -> None:
    assert state_lost(server_s, client_s) is lost


def test_the_default_route_with_the_lowest_metric_names_the_gateway() -> None:
    def hexed(ip: str) -> str:
        return f"{int.from_bytes(bytes(map(int, ip.split('.'))), sys.byteorder):08X}"

    header = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
    lan = f"eth0 {hexed('192.168.1.0')} 00000000 0001 0 0 0 {hexed('255.255.255.0')} 0 0 0\n"
    slow = f"wlan0 00000000 {hexed('192.168.2.1')} 0003 0 0 600 00000000 0 0 0\n"
    fast = f"eth0 00000000 {hexed('192.168.1.1')} 0003 0 0 100 00000000 0 0 0\n"
    tunnel = "tun0 00000000 00000000 0001 0 0 0 00000000 0 0 0\n"
    assert parse_routes(header + lan + slow + fast + tunnel) == "192.168.1.1"
    assert parse_routes(header + lan + tunnel) is None
    assert parse_routes("") is None


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=200))
def test_any_route_table_is_read(text: str) -> None:
    parse_routes("header\n" + text)


def test_this_machine_has_a_gateway_or_none() -> None:
    gateway = default_gateway()
    assert gateway is None or gateway.port == 5351
