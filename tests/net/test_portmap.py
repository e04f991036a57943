"""PortMapper against a router that is silent, forgets, refuses or lies."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_vpn.addresses import Address
from proxy_vpn.net import portmap
from proxy_vpn.net.portmap import PortMapper
from proxy_vpn.wire.portmap import (
    Answer,
    PcpMapAnswer,
    PcpMapRequest,
    PmpMapRequest,
)
from tests.net.router import GLOBAL, PORT, Device, Router, now, scene
from tests.support.virtual_loop import run_virtually


@pytest.mark.parametrize("protocol", ["pcp", "nat-pmp"])
def test_a_mapping_is_made_and_given_back(protocol: str) -> None:
    async def main() -> None:
        router = Router(protocol)
        async with scene(router) as it:
            began = now()
            assert await it.next(3) == Address(GLOBAL, PORT)
            assert now() - began < 0.1
            status = it.mapper.status
            assert (status.protocol, status.external, status.error) == (protocol, Address(GLOBAL, PORT), "")
            assert status.gateway == router.address and not status.nested
            assert router.mapped
            await it.mapper.close()
            await it.mapper.close()
            assert not router.mapped and it.mapper.status.protocol == ""
        assert it.told == [Address(GLOBAL, PORT)]

    run_virtually(main())


def test_upnp_is_asked_when_the_gateway_is_silent() -> None:
    async def main() -> None:
        device = Device(Address(GLOBAL, 7000), takes_s=0.5)
        async with scene(Router(), device) as it:
            began = now()
            assert await it.next(3) == Address(GLOBAL, 7000)
            assert now() - began == pytest.approx(0.8, abs=0.05)
            assert it.mapper.status.protocol == "upnp"
            await it.mapper.close()
            assert not device.mapped

    run_virtually(main())


def test_upnp_is_asked_at_once_when_nothing_listens() -> None:
    async def main() -> None:
        device = Device(Address(GLOBAL, 7000))
        router = Router()
        async with scene(router, device) as it:
            router.transport.close()
            began = now()
            assert await it.next(3)
            assert now() - began < portmap.UPNP_AFTER_S / 2

    run_virtually(main())


def test_upnp_is_not_asked_when_pcp_answers() -> None:
    async def main() -> None:
        device = Device(Address(GLOBAL, 7000))
        async with scene(Router("pcp"), device) as it:
            await it.next(3)
            await asyncio.sleep(10)
            assert not device.asked_at

    run_virtually(main())


def test_only_upnp_is_asked_without_a_gateway() -> None:
    async def main() -> None:
        router, device = Router("pcp"), Device(Address("192.168.1.2", 7000))
        async with scene(router, device) as it:
            it.gateway = None
            assert await it.next(3) == Address("192.168.1.2", 7000)
            assert it.mapper.status.nested and it.mapper.status.gateway is None
            assert not router.requests

    run_virtually(main())


def test_silence_is_retried_ever_more_rarely() -> None:
    async def main() -> None:
        device = Device()
        async with scene(Router(), device) as it:
            await asyncio.sleep(3 * 3600)
            assert it.told == []
            assert "no UPnP device answers" in it.mapper.status.error
            assert "does not answer PCP" in it.mapper.status.error
        pauses = [later - sooner for sooner, later in zip(device.asked_at, device.asked_at[1:], strict=False)]
        expected = [60, 300, 900, 1800, 1800, 1800, 1800]
        assert pauses[:7] == [pytest.approx(pause_s, abs=5) for pause_s in expected]

    run_virtually(main())


def test_a_changed_network_is_asked_at_once() -> None:
    async def main() -> None:
        router = Router("pcp")
        router.drops = 1000
        async with scene(router) as it:
            await asyncio.sleep(2000)
            router.drops = 0
            it.mapper.network_changed()
            assert await it.next(0.5)

    run_virtually(main())


def test_storms_of_changes_are_calmed() -> None:
    async def main() -> None:
        router = Router("pcp")
        async with scene(router) as it:
            await it.next(3)
            for _ in range(1000):
                it.mapper.network_changed()
                await asyncio.sleep(0.01)
            assert len(router.requests) <= 2 + 10 / portmap.SETTLE_S

    run_virtually(main())


@pytest.mark.parametrize("protocol", ["pcp", "nat-pmp"])
def test_mappings_are_renewed_at_half_of_their_lifetime(protocol: str) -> None:
    async def main() -> None:
        router = Router(protocol)
        router.lifetime_s = 600
        async with scene(router) as it:
            await it.next(3)
            await asyncio.sleep(1000)
            times = router.times(PcpMapRequest if protocol == "pcp" else PmpMapRequest)
            assert [round(at - times[0], -1) for at in times] == [0, 300, 600, 900]
            assert it.told == [Address(GLOBAL, PORT)]

    run_virtually(main())


def test_a_renewal_that_fails_is_tried_until_the_mapping_ends() -> None:
    async def main() -> None:
        router = Router("pcp")
        async with scene(router) as it:
            await it.next(3)
            router.drops = 10**6
            began = now()
            assert await it.next(10000) is None
            assert 7200 <= now() - began < 7300
            assert it.mapper.status.external is None and it.mapper.status.error
            router.drops = 0
            assert await it.next(100) == Address(GLOBAL, PORT)

    run_virtually(main())


@pytest.mark.parametrize("lifetime_s", [1, 2**32 - 1])
def test_absurd_lifetimes_are_bounded(lifetime_s: int) -> None:
    async def main() -> None:
        router = Router("pcp")
        router.lifetime_s = lifetime_s
        original = router.answer
        router.answer = lambda request: _granting(original(request), lifetime_s)  # type: ignore[method-assign]
        async with scene(router) as it:
            await it.next(3)
            await asyncio.sleep(5 * 3600)
            pauses = 5 * 3600 / (len(router.times(PcpMapRequest)) - 1)
            assert portmap.RENEW_MIN_S <= pauses <= portmap.RENEW_MAX_S * 1.3

    run_virtually(main())


def _granting(answer: Answer | None, lifetime_s: int) -> Answer | None:
    if isinstance(answer, PcpMapAnswer) and answer.lifetime_s:
        return PcpMapAnswer(0, answer.nonce, answer.internal_port, answer.external, lifetime_s, answer.epoch_s)
    return answer


def test_another_gateway_is_asked_anew() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        other = Router("nat-pmp")
        other.external = Address("5.6.7.8", 1)
        other.transport, _ = await loop.create_datagram_endpoint(lambda: other, local_addr=("127.0.0.1", 0))
        async with scene(Router("pcp")) as it:
            await it.next(3)
            it.gateway = other.address
            it.mapper.network_changed()
            await asyncio.sleep(5)
            assert it.told == [Address(GLOBAL, PORT), None, Address("5.6.7.8", 1)]
            assert not it.router.mapped
        other.transport.close()

    run_virtually(main())


def test_a_private_external_address_is_passed_on_and_noted() -> None:
    async def main() -> None:
        router = Router("pcp")
        router.external = Address("100.64.1.2", PORT)
        async with scene(router) as it:
            assert await it.next(3) == Address("100.64.1.2", PORT)
            assert it.mapper.status.nested

    run_virtually(main())


@pytest.mark.parametrize("external", [Address("0.0.0.0", 1), Address(GLOBAL, 0), Address("224.0.0.1", 1)])
def test_no_address_is_no_mapping(external: Address) -> None:
    async def main() -> None:
        router = Router("pcp", "nat-pmp")
        router.external = external
        async with scene(router) as it:
            await asyncio.sleep(10)
            assert it.told == [] and "no external address" in it.mapper.status.error

    run_virtually(main())


def test_refusals_are_told_in_words() -> None:
    async def main() -> None:
        router = Router("pcp", "nat-pmp")
        router.refuses = 2
        async with scene(router) as it:
            await asyncio.sleep(10)
            assert it.mapper.status.error.startswith("the gateway refuses PCP: not authorized; ")

    run_virtually(main())


def test_a_gateway_that_never_answers_the_end_does_not_hold_it_up() -> None:
    async def main() -> None:
        router = Router("pcp")
        async with scene(router) as it:
            await it.next(3)
            router.drops = 100
            began = now()
            await it.mapper.close()
            assert now() - began <= portmap.CLOSE_S

    run_virtually(main())


def test_what_was_asked_but_not_granted_is_given_back_too() -> None:
    async def main() -> None:
        router = Router("pcp")
        router.drops = 1
        async with scene(router) as it:
            await router.seen.wait()
            await it.mapper.close()
            await asyncio.sleep(0.01)
            assert [request.lifetime_s for _, request in router.requests if isinstance(request, PcpMapRequest)] == [
                7200,
                0,
            ]

    run_virtually(main())


def test_a_mapper_that_never_started_closes() -> None:
    async def main() -> None:
        mapper = PortMapper(PORT, lambda _: None)
        await mapper.close()
        mapper.start()

    run_virtually(main())


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.binary(max_size=100), max_size=20), st.sampled_from([b"", b"\0\x80", b"\0\x81", b"\2\x80", b"\2\x81"])
)
def test_hostile_gateways_change_nothing(noise: list[bytes], start: bytes) -> None:
    async def main() -> None:
        router = Router("pcp")
        router.noise = [start + tail for tail in noise]
        async with scene(router) as it:
            await asyncio.sleep(30)
            assert len(router.requests) < 100
            assert it.mapper.status is not None

    run_virtually(main())
