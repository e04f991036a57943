"""Igd against a device in memory that answers as miniupnpc does; a real one is met in the lab."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

from proxy_vpn.addresses import Address
from proxy_vpn.net import upnp
from proxy_vpn.net.gateway import Mapping, PortMapError
from proxy_vpn.net.upnp import LEASE_S, Igd

PORT = 41641
GLOBAL = "1.2.3.4"


class Soap:
    """What miniupnpc's device answers."""

    def __init__(self, ip: str = GLOBAL, permanent_only: bool = False, taken: int = 0) -> None:
        self.lanaddr = "192.168.1.2"
        self.ip = ip
        self.permanent_only = permanent_only
        self.taken = taken
        self.ports: dict[int, int] = {}

    def externalipaddress(self) -> str:
        return self.ip

    def addportmapping(
        self, port: int, proto: str, host: str, inner: int, text: str, remote: str, lease_s: int
    ) -> bool:
        if self.taken:
            self.taken -= 1
            raise Exception("ConflictInMappingEntry")
        if self.permanent_only and lease_s:
            raise Exception("OnlyPermanentLeasesSupported")
        self.ports[port] = lease_s
        return True

    def deleteportmapping(self, port: int, proto: str, remote: str) -> bool:
        if port not in self.ports:
            raise Exception("NoSuchEntryInArray")
        del self.ports[port]
        return True


def opened(soap: Soap) -> Igd:
    igd = Igd("192.168.1.1", PORT)
    igd._device = soap
    return igd


def test_upnp_maps_renews_and_deletes() -> None:
    async def main() -> None:
        soap = Soap()
        igd = opened(soap)
        assert await igd.map() == Mapping("upnp", Address(GLOBAL, PORT), LEASE_S)
        assert await igd.map() == Mapping("upnp", Address(GLOBAL, PORT), LEASE_S)
        await igd.unmap()
        await igd.unmap()
        assert not soap.ports

    asyncio.run(main())


def test_upnp_takes_a_permanent_lease_where_there_is_no_other() -> None:
    async def main() -> None:
        soap = Soap(permanent_only=True)
        assert (await opened(soap).map()).lifetime_s == 0
        assert soap.ports == {PORT: 0}

    asyncio.run(main())


def test_upnp_takes_another_port_when_ours_is_taken() -> None:
    async def main() -> None:
        mapping = await opened(Soap(taken=1)).map()
        assert mapping.external.port != PORT
        with pytest.raises(PortMapError, match="every port is taken"):
            await opened(Soap(taken=100)).map()

    asyncio.run(main())


@pytest.mark.parametrize("ip", ["", "0.0.0.0", "fd00::1", "\x1b[31m", "1.2.3.4.5"])
def test_upnp_without_an_address_is_no_mapping(ip: str) -> None:
    async def main() -> None:
        with pytest.raises(PortMapError, match="no external address"):
            await opened(Soap(ip)).map()

    asyncio.run(main())


def test_what_a_device_says_is_escaped() -> None:
    async def main() -> None:
        soap = Soap()
        soap.externalipaddress = _raising("\x1b[31mevil\n" * 100)  # type: ignore[method-assign]
        with pytest.raises(PortMapError) as caught:
            await opened(soap).map()
        assert caught.value.what.isprintable() and len(caught.value.what) < 200

    asyncio.run(main())


def test_a_device_that_hangs_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upnp, "WORK_S", 0.05)
    release = threading.Event()

    async def main() -> None:
        soap = Soap()
        soap.externalipaddress = _waiting(release)  # type: ignore[method-assign]
        igd = opened(soap)
        with pytest.raises(PortMapError, match="does not answer"):
            async with asyncio.timeout(5):
                await igd._work(upnp._Adding(soap, PORT, PORT), 0.05)
        with pytest.raises(PortMapError, match="busy"):
            await igd._work(upnp._Adding(soap, PORT, PORT), 0.05)
        release.set()
        async with asyncio.timeout(5):
            while True:
                with suppress(PortMapError):
                    await igd._work(lambda _: None)
                    break
                await asyncio.sleep(0)
        assert not soap.ports, "what is given after we left is given back"

    asyncio.run(main())


def _raising(text: str) -> Callable[[], str]:
    def fail() -> str:
        raise Exception(text)

    return fail


def _waiting(release: threading.Event) -> Callable[[], str]:
    def wait() -> str:
        release.wait(5)
        return GLOBAL

    return wait


@pytest.mark.parametrize(
    ("source", "gateway", "location", "found"),
    [
        ("192.168.1.1", "192.168.1.1", "http://192.168.1.1:5000/x", True),
        ("192.168.1.9", "192.168.1.1", "http://192.168.1.1:5000/x", False),
        ("192.168.1.1", "192.168.1.1", "http://192.168.1.9:5000/x", False),
        ("192.168.1.1", None, "http://192.168.1.1:5000/x", True),
        ("192.168.1.9", None, "http://192.168.1.1:5000/x", False),
        ("1.2.3.4", None, "http://1.2.3.4:5000/x", False),
        ("192.168.1.1", "192.168.1.1", "ftp://192.168.1.1/x", False),
    ],
)
def test_only_the_gateway_may_answer_a_search(source: str, gateway: str | None, location: str, found: bool) -> None:
    async def main() -> None:
        search = upnp._Search(gateway, asyncio.get_running_loop().create_future())
        answer = f"HTTP/1.1 200 OK\r\nLOCATION: {location}\r\n\r\n".encode()
        for _ in range(2):
            search.datagram_received(answer, (source, 1900))
        assert search.found.done() is found

    asyncio.run(main())
