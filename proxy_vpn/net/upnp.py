"""A UDP port of its own from a UPnP Internet Gateway Device.

The device is searched here, so that only the gateway's answer counts and the first one is enough; the SOAP that follows
is the package miniupnpc's, which blocks and therefore works in a thread that ends with each request.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlsplit

from proxy_vpn.addresses import Address
from proxy_vpn.errors import WireError
from proxy_vpn.net.gateway import Mapping, PortMapError
from proxy_vpn.wire.portmap import SEARCH_GROUP, parse_search_answer, search_request

LEASE_S = 3600
SEARCH_S = 2.4
SEARCH_AT_S = (0.0, 0.6, 1.4)
SEARCH_TTL_HOPS = 2
WORK_S = 6.0
UNMAP_S = 0.9
PORT_TRIES = 4
ERROR_LIMIT_CHARS = 80
FIRST_FREE_PORT = 1024
DESCRIPTION = "pvpn"
# A version 2 device answers for version 1 too, but some only when the service is searched.
KINDS = (
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
)
# miniupnpc raises plain exceptions: only its words for the UPnP errors 725 and 718 tell them apart.
_PERMANENT_ONLY = "OnlyPermanentLeasesSupported"
_CONFLICT = "ConflictInMappingEntry"
_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


class Igd:
    """The gateway's UPnP device, searched anew after a failure; `gateway_ip` None: any device at a private address."""

    def __init__(self, gateway_ip: str | None, port: int) -> None:
        self._gateway_ip = gateway_ip
        self._port = port
        self._device: Any = None
        self._external_port = port
        self._mapped = False
        self._busy = False

    async def map(self) -> Mapping:
        """Ask for the port, or renew it; raises PortMapError. Cancelled, it gives back what it is given later."""
        if self._device is None:
            self._device = await self._work(_Opening(*await self._search()))
        try:
            mapping = await self._work(_Adding(self._device, self._port, self._external_port))
        except PortMapError:
            self._device = None
            raise
        self._external_port, self._mapped = mapping.external.port, True
        return mapping

    async def unmap(self) -> None:
        """Give back what was granted, waiting UNMAP_S at most; never raises."""
        if self._mapped and self._device is not None:
            self._mapped = False
            with suppress(PortMapError):
                await self._work(_Deleting(self._device, self._external_port), UNMAP_S)

    async def _search(self) -> tuple[str, str]:
        """(IP, description's URL) of the first device that answers."""
        loop = asyncio.get_running_loop()
        search = _Search(self._gateway_ip, loop.create_future())
        try:
            transport, _ = await loop.create_datagram_endpoint(lambda: search, local_addr=("0.0.0.0", 0))
        except OSError as error:
            raise PortMapError(f"no UPnP device can be searched: {error}") from None
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, SEARCH_TTL_HOPS)
        targets = [SEARCH_GROUP]
        if self._gateway_ip is not None:
            targets.append(Address(self._gateway_ip, SEARCH_GROUP.port))

        def send() -> None:
            for target in targets:
                for kind in KINDS:
                    transport.sendto(search_request(kind), target)

        timers = [loop.call_later(after_s, send) for after_s in SEARCH_AT_S]
        try:
            async with asyncio.timeout(SEARCH_S):
                return await search.found
        except TimeoutError:
            raise PortMapError("no UPnP device answers") from None
        finally:
            for timer in timers:
                timer.cancel()
            transport.close()

    async def _work(self, work: Callable[[threading.Event], _Result], patience_s: float = WORK_S) -> _Result:
        """What `work` returns in a thread of its own; one whose answer never comes is never joined by a second."""
        if self._busy:
            raise PortMapError("the UPnP device is still busy with the last request")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_Result] = loop.create_future()
        abandoned = threading.Event()

        def settle(outcome: Callable[[], None]) -> None:
            self._busy = False
            if not done.done():
                outcome()

        def run() -> None:
            try:
                outcome = partial(done.set_result, work(abandoned))
            except PortMapError as refusal:
                outcome = partial(done.set_exception, refusal)
            # miniupnpc raises Exception itself, and others for text that is no UTF-8: all of them are the device's.
            except Exception as fault:
                text = ascii(str(fault))[1:-1][:ERROR_LIMIT_CHARS]
                outcome = partial(done.set_exception, PortMapError(f"the UPnP device fails: {text}"))
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, outcome)

        self._busy = True
        threading.Thread(target=run, name="upnp", daemon=True).start()
        try:
            async with asyncio.timeout(patience_s):
                return await done
        except TimeoutError:
            raise PortMapError("the UPnP device does not answer") from None
        finally:
            abandoned.set()


class _Search(asyncio.DatagramProtocol):
    """Hears the answers to a search."""

    def __init__(self, gateway_ip: str | None, found: asyncio.Future[tuple[str, str]]) -> None:
        self._gateway_ip = gateway_ip
        self.found = found

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        source = str(addr[0])
        if self.found.done() or source != (self._gateway_ip or source):
            return
        try:
            ip, url = parse_search_answer(data)
        except WireError as error:
            _log.debug("an answer to the UPnP search is dropped: %a", error.what)
            return
        # Who answers may only speak of itself: otherwise anyone on the link could send us to any web server.
        if ip == source and not ip_address(ip).is_global:
            self.found.set_result((ip, url))


class _Opening:
    """Reads the device's description; the device, ready for requests."""

    def __init__(self, ip: str, url: str) -> None:
        self._ip = ip
        self._url = url

    def __call__(self, abandoned: threading.Event) -> Any:
        try:
            # Not installed where it has no wheel; nothing else needs it.
            device = importlib.import_module("miniupnpc").UPnP()
        except ImportError:
            raise PortMapError("the package miniupnpc, which speaks UPnP, is not installed") from None
        control_url = str(device.selectigd(self._url))
        if urlsplit(control_url).hostname != self._ip:
            raise PortMapError("the UPnP device points to another host")
        return device


class _Adding:
    """Adds or renews the mapping, on another external port when the wanted one is somebody else's."""

    def __init__(self, device: Any, port: int, external_port: int) -> None:
        self._device = device
        self._port = port
        self._external_port = external_port

    def __call__(self, abandoned: threading.Event) -> Mapping:
        ip = str(self._device.externalipaddress())
        try:
            external_ip = str(ip_address(ip))
        except ValueError:
            raise PortMapError("the UPnP device has no external address") from None
        others = [FIRST_FREE_PORT + secrets.randbelow(65536 - FIRST_FREE_PORT) for _ in range(PORT_TRIES)]
        for external_port in [self._external_port, *others]:
            external = Address(external_ip, external_port)
            if external.family is not socket.AF_INET or not external.is_unicast:
                raise PortMapError("the UPnP device has no external address")
            try:
                lease_s = self._add(external_port)
            except _Taken:
                continue
            if abandoned.is_set():
                _delete(self._device, external_port)
            return Mapping("upnp", external, lease_s)
        raise PortMapError("the UPnP device says that every port is taken")

    def _add(self, external_port: int) -> int:
        """The lease it got, 0 for ever."""
        ask = (external_port, "UDP", self._device.lanaddr, self._port, DESCRIPTION, "")
        try:
            try:
                self._device.addportmapping(*ask, LEASE_S)
                return LEASE_S
            # Its class says nothing; see _PERMANENT_ONLY.
            except Exception as error:
                if str(error) != _PERMANENT_ONLY:
                    raise
            self._device.addportmapping(*ask, 0)
            return 0
        # As above; what is not a conflict goes on to whom it concerns.
        except Exception as error:
            if str(error) == _CONFLICT:
                raise _Taken from None
            raise


class _Deleting:
    """Ends the mapping."""

    def __init__(self, device: Any, external_port: int) -> None:
        self._device = device
        self._external_port = external_port

    def __call__(self, abandoned: threading.Event) -> None:
        _delete(self._device, self._external_port)


class _Taken(Exception):
    """The external port belongs to another host."""


def _delete(device: Any, external_port: int) -> None:
    # A plain Exception is all it raises, and a mapping that is gone already is as good as deleted.
    with suppress(Exception):
        device.deleteportmapping(external_port, "UDP", "")
