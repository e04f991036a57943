"""A port on the router's outside for this process's UDP socket: asked for, renewed, and given back at the end.

mapper = PortMapper(port, on_mapping)
mapper.start()
...                                     # on_mapping(external address), on_mapping(None) once it is lost
await mapper.close()
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from proxy_vpn.addresses import Address, Scope
from proxy_vpn.net.gateway import Gateway, Mapping, PortMapError, default_gateway, local_ip_towards
from proxy_vpn.net.upnp import Igd
from proxy_vpn.wire.portmap import NONCE_BYTES

RETRY_S = (60.0, 300.0, 900.0, 1800.0)
# PCP and NAT-PMP answer within milliseconds where they are spoken; UPnP is asked at once when they are refused.
UPNP_AFTER_S = 0.3
RENEW_MIN_S = 30.0
RENEW_MAX_S = 3600.0
CHECK_S = 300.0
SETTLE_S = 2.0
CLOSE_S = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PortMapStatus:
    """What the router gave: `protocol` is "pcp", "nat-pmp", "upnp", or "" without a mapping; `error` says why."""

    protocol: str = ""
    external: Address | None = None
    gateway: Address | None = None
    error: str = ""

    @property
    def nested(self) -> bool:
        """Whether the router is itself behind another NAT: its external address is private or the provider's."""
        return self.external is not None and self.external.scope is not Scope.GLOBAL


class UpnpDevice(Protocol):
    """What is asked of UPnP; an Igd, or a twin in memory."""

    async def map(self) -> Mapping: ...

    async def unmap(self) -> None: ...


class PortMapper:
    """Keeps a mapping of UDP `port`. `on_mapping` gets its external address whenever it changes, None when it is lost.

    The address may be private (`status.nested`): of no use to the internet, but to peers behind the same outer NAT.
    With the same `nonce` (12 secret bytes, RFC 6887 11.2) the successor of a process that died takes over its mapping.
    """

    def __init__(
        self,
        port: int,
        on_mapping: Callable[[Address | None], None],
        *,
        nonce: bytes | None = None,
        find_gateway: Callable[[], Address | None] = default_gateway,
        upnp: Callable[[str | None, int], UpnpDevice] = Igd,
    ) -> None:
        self._port = port
        self._on_mapping = on_mapping
        self._nonce = nonce or secrets.token_bytes(NONCE_BYTES)
        self._find_gateway = find_gateway
        self._new_upnp = upnp
        self._status = PortMapStatus()
        self._mapping: Mapping | None = None
        self._attempted_at = self._renewed_at = 0.0
        self._failures = 0
        self._gateway: Gateway | None = None
        self._upnp: UpnpDevice | None = None
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def status(self) -> PortMapStatus:
        """How it stands now."""
        return self._status

    def start(self) -> None:
        """Begin; needs a running loop."""
        if self._task is None and not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def network_changed(self) -> None:
        """Ask at once, and anew if the gateway is another; for a new address, link or external address."""
        self._failures = 0
        self._wake.set()

    async def close(self) -> None:
        """Give the mapping back, within CLOSE_S; `on_mapping` is not called any more. Idempotent."""
        self._closed = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            (ended,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(ended, Exception):
                _log.error("port mapping had failed", exc_info=ended)
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._leave()
        self._status = PortMapStatus(gateway=self._status.gateway)

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            self._attempted_at = self._now()
            try:
                await self._attempt()
            except PortMapError as error:
                self._fail(error)
            await self._rest(self._pause_s())

    async def _attempt(self) -> None:
        """One go: at the gateway there is now, what worked last or else a race; raises PortMapError."""
        address = self._find_gateway()
        self._status = replace(self._status, gateway=address)
        if self._upnp is None or (self._gateway and self._gateway.address) != address or not self._same_road():
            await self._leave()
            self._set(None)
            self._upnp = self._new_upnp(address.ip if address else None, self._port)
            self._gateway = await self._open(address) if address else None
        mapping = await self._renew() or await self._race(self._upnp)
        self._failures = 0
        self._renewed_at = self._now()
        self._status = PortMapStatus(mapping.protocol, mapping.external, address)
        self._set(mapping)

    def _same_road(self) -> bool:
        return self._gateway is None or self._gateway.local_ip == local_ip_towards(self._gateway.address)

    async def _open(self, address: Address) -> Gateway | None:
        try:
            return await Gateway.open(address, self._port, self._nonce, self._wake.set)
        except OSError as error:
            raise PortMapError(f"the gateway {address.ip} can't be reached: {error.strerror}") from None

    async def _renew(self) -> Mapping | None:
        """What is held, held for longer; None when nothing was or the router doesn't want to."""
        if self._mapping is None or self._upnp is None:
            return None
        try:
            if self._mapping.protocol == "upnp":
                return await self._upnp.map()
            return await self._gateway.map() if self._gateway is not None else None
        except PortMapError as error:
            _log.debug("the mapping is not renewed: %s", error)
            return None

    async def _race(self, upnp: UpnpDevice) -> Mapping:
        """The first mapping there is, UPnP starting a little later than PCP and NAT-PMP; raises PortMapError."""
        loop, tasks = asyncio.get_running_loop(), list[asyncio.Task[Mapping]]()
        try:
            if self._gateway is not None:
                tasks.append(loop.create_task(self._gateway.map()))
                await asyncio.wait(tasks, timeout=UPNP_AFTER_S)
            if not any(_succeeded(task) for task in tasks):
                tasks.append(loop.create_task(upnp.map()))
            while not (winners := [task for task in tasks if _succeeded(task)]):
                pending = [task for task in tasks if not task.done()]
                if not pending:
                    errors = [str(task.exception()) for task in tasks]
                    raise PortMapError("; ".join(dict.fromkeys(errors)))
                await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            return winners[0].result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _fail(self, error: PortMapError) -> None:
        _log.info("the router maps no port: %s", error)
        if self._mapping is None or self._left_s() <= 0:
            self._failures += 1
            self._status = PortMapStatus(gateway=self._status.gateway, error=error.what)
            self._set(None)
        else:
            self._status = replace(self._status, error=error.what)

    def _set(self, mapping: Mapping | None) -> None:
        before = self._mapping.external if self._mapping is not None else None
        external = mapping.external if mapping is not None else None
        self._mapping = mapping
        if external == before:
            return
        if mapping is not None:
            _log.info("the router maps %s to port %d (%s)", external, self._port, mapping.protocol)
        else:
            _log.info("the router maps no port to ours any more")
        self._on_mapping(external)

    async def _rest(self, pause_s: float) -> None:
        """Until the next attempt is due or `_wake` calls for it; a gateway is asked now and then if it has rebooted."""
        until = self._now() + pause_s
        while (left_s := until - self._now()) > 0 and not self._wake.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, CHECK_S)):
                    await self._wake.wait()
            if self._gateway is not None and not self._wake.is_set():
                self._gateway.check()
        await asyncio.sleep(self._attempted_at + SETTLE_S - self._now())

    def _pause_s(self) -> float:
        if self._mapping is None:
            return RETRY_S[min(max(self._failures, 1), len(RETRY_S)) - 1]
        return min(max(self._left_s() / 2, RENEW_MIN_S), RENEW_MAX_S)

    def _left_s(self) -> float:
        if self._mapping is None:
            return 0.0
        return self._renewed_at + self._mapping.lifetime_s - self._now() if self._mapping.lifetime_s else math.inf

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    async def _leave(self) -> None:
        gateway, upnp = self._gateway, self._upnp
        self._gateway = self._upnp = None
        try:
            await asyncio.gather(*(one.unmap() for one in (gateway, upnp) if one is not None))
        finally:
            if gateway is not None:
                gateway.close()


def _succeeded(task: asyncio.Task[Mapping]) -> bool:
    """Whether it brought a mapping; a fault that is no PortMapError is ours, and raised."""
    if not task.done():
        return False
    error = task.exception()
    if error is not None and not isinstance(error, PortMapError):
        raise error
    return error is None
