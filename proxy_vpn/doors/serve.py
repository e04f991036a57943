"""ServeDoor: where peers' flows leave for this host's services."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from itertools import product
from typing import Protocol

from proxy_vpn.addresses import Address, Target
from proxy_vpn.doors.beyond import Beyond
from proxy_vpn.doors.dial import CONNECT_TIMEOUT_S, dial, dial_error
from proxy_vpn.doors.dns_elsewhere import NAME_SERVER, HostResolver
from proxy_vpn.doors.dns_exit import answer_queries, answering_stream
from proxy_vpn.doors.host_addresses import host_addresses
from proxy_vpn.doors.join import join
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.doors.pump import splice
from proxy_vpn.doors.serve_udp import Asked, ServedUdp, Service
from proxy_vpn.doors.tcp import TcpDuplex
from proxy_vpn.errors import FlowError, FlowLost, Status
from proxy_vpn.mesh.duplex import Duplex
from proxy_vpn.net.interfaces import reachable_addresses

ADDRESSES_KEPT_S = 5.0
GONE_AFTER_S = 2.0
# Without a default route: reaches what listens on every address, never what is bound to 127.0.0.1 (Linux).
_LOOPBACK_ALIAS = "127.0.0.2"
_ANYWHERE = (Address("0.0.0.0", 1), Address("::", 1))
_LOOPBACKS = ("127.0.0.1", "::1")
_log = logging.getLogger(__name__)


_Connect = Callable[[], Awaitable[socket.socket]]


class Policy(Protocol):
    """What the door asks of mesh.policy."""

    def allows(self, port: int, udp: bool, peer_name: str) -> bool:
        """Whether that peer may reach that port."""

    def loopback(self, port: int, udp: bool) -> bool:
        """Whether the port is explicitly exposed, so that a service on loopback may be dialled too."""


class Incoming(Protocol):
    """A peer's request for a flow; exactly one of accept and refuse is to be called."""

    @property
    def host(self) -> str:
        """A host beyond this one; empty: a service of this host."""

    @property
    def port(self) -> int:
        """The service wanted."""

    @property
    def peer_name(self) -> str:
        """Who wants it."""

    def refuse(self, status: Status) -> None:
        """Say no."""


class IncomingTcp(Incoming, Protocol):
    """A request for a stream."""

    def accept(self) -> Duplex:
        """Say yes: the flow, not started; raises FlowLost when the peer has given up."""


class IncomingUdp(Incoming, Protocol):
    """A request for datagrams."""

    def accept(self) -> Asked:
        """Say yes: the flow; raises FlowLost when the peer has given up."""


class Inside(Protocol):
    """A way to this host's services by which they see a peer's own address: doors.tun.TunDoor."""

    def own_ip(self, source_ip: str) -> str:
        """Where the services are met; raises OSError."""

    async def dial(self, source_ip: str, port: int) -> socket.socket:
        """A connection; raises OSError."""

    def datagrams_from(self, source_ip: str, port: int) -> Service:
        """Datagrams; raises OSError."""


class ServeDoor:
    """Dials the service each flow asks for; a coroutine per flow lives as long as the flow, and its caller owns it.

    Services are first dialled in `insides`, in turn, as the peer's addresses (`source_ips`).
    """

    def __init__(self, policy: Policy, own: OwnListeners, beyond: Beyond) -> None:
        self._policy = policy
        self._beyond = beyond
        self._own = own
        self._addresses: list[str] = []
        self._addresses_until = 0.0
        self._services: dict[TcpDuplex, Inside | None] = {}
        self.insides: list[Inside] = []
        self._resolver = HostResolver(lambda ip: False)  # one for all peers: what waits for answers is bounded

    def network_changed(self) -> None:
        """Break what was dialled at an address that is gone: it would wait for an answer for a quarter of an hour."""
        self._addresses_until = 0.0
        asyncio.get_running_loop().call_later(GONE_AFTER_S, self._break_off_gone)

    def _break_off_gone(self) -> None:
        here = {address.ip for address in reachable_addresses(_ANYWHERE)}
        for service, inside in tuple(self._services.items()):
            try:
                ip = service.local_ip
            except OSError:
                continue  # closed, and its flow has still to end
            if inside is None and ip not in here and not ip_address(ip).is_loopback:
                service.lose(OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL)))

    def leave(self, inside: Inside) -> None:
        """Dial there no more, and break what was dialled there; idempotent."""
        if inside in self.insides:
            self.insides.remove(inside)
        for service, where in tuple(self._services.items()):
            if where is inside:
                service.lose(OSError(errno.ENETDOWN, os.strerror(errno.ENETDOWN)))

    async def serve_tcp(self, incoming: IncomingTcp, source_ips: Sequence[str] = ()) -> None:
        """Refuse the flow, or splice it with the service until both have ended; cancelled, it resets both."""
        if self._is_for_names(incoming):
            with suppress(FlowLost):
                await splice(answering_stream(self._resolver), incoming.accept()).wait()
            return
        try:
            service, inside = await self._dial(incoming, source_ips)
        except FlowError as error:
            _log.info("refused %s: %s", incoming.peer_name, error)
            incoming.refuse(error.status)
            return
        try:
            flow = incoming.accept()
        except FlowLost:
            service.abort()
            return
        self._services[service] = inside
        try:
            await join(service, flow)
        finally:
            del self._services[service]

    async def serve_udp(self, incoming: IncomingUdp, source_ips: Sequence[str] = ()) -> None:
        """The same for datagrams, until the flow ends or is idle for 60 s."""
        if self._is_for_names(incoming):
            with suppress(FlowLost):
                await answer_queries(incoming.accept(), self._resolver)
            return
        try:
            candidates = await self._candidates(incoming, udp=True)
        except FlowError as error:
            _log.info("refused %s: %s", incoming.peer_name, error)
            incoming.refuse(error.status)
            return
        first, beyond = self._inner_udp(incoming, source_ips), bool(incoming.host)
        with suppress(FlowLost):
            await ServedUdp(incoming.accept(), candidates, self._own, first=first, beyond=beyond).run()

    def _is_for_names(self, incoming: Incoming) -> bool:
        return self._beyond.is_exit and Target(incoming.host, incoming.port) == NAME_SERVER

    async def _dial(self, incoming: Incoming, source_ips: Sequence[str]) -> tuple[TcpDuplex, Inside | None]:
        """A service, and inside which network it is."""
        errors: list[FlowError] = []
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                outer = [(None, address, _dialling(address)) for address in await self._candidates(incoming, udp=False)]
                for inside, address, connect in [*self._inner_tcp(incoming, source_ips), *outer]:
                    try:
                        return TcpDuplex(await connect()), inside
                    except OSError as error:
                        errors.append(dial_error(address, error))
        except TimeoutError as error:
            what = Target(incoming.host, incoming.port) if incoming.host else f"port {incoming.port}"
            raise dial_error(what, error) from None
        # A refusal says more than a missing route.
        raise next((error for error in errors if error.status is Status.REFUSED), errors[-1])

    async def _candidates(self, incoming: Incoming, udp: bool) -> list[Address]:
        """Where the service may be, in the order to try; raises FlowError."""
        port = incoming.port
        if incoming.host:
            return await self._beyond.addresses(Target(incoming.host, port), udp)
        if not self._policy.allows(port, udp, incoming.peer_name):
            raise FlowError(
                Status.POLICY, f"port {port} is closed to {incoming.peer_name}", f"pvpn run --expose {port}"
            )
        ips = self._host_addresses() or [_LOOPBACK_ALIAS]
        if self._policy.loopback(port, udp):
            ips = [*ips, *_LOOPBACKS]
        allowed = [address for address in (Address(ip, port) for ip in ips) if not self._own.forbids(address, udp)]
        if not allowed:
            raise FlowError(Status.POLICY, f"port {port} is pvpn's own")
        return allowed

    def _inner_tcp(self, incoming: Incoming, source_ips: Sequence[str]) -> list[tuple[Inside, Address, _Connect]]:
        places = self._inner_places(incoming, source_ips, udp=False)
        return [(inside, address, partial(inside.dial, ip, incoming.port)) for inside, address, ip in places]

    def _inner_udp(self, incoming: Incoming, source_ips: Sequence[str]) -> list[Callable[[], Service]]:
        places = self._inner_places(incoming, source_ips, udp=True)
        return [partial(inside.datagrams_from, ip, incoming.port) for inside, _, ip in places]

    def _inner_places(
        self, incoming: Incoming, source_ips: Sequence[str], udp: bool
    ) -> list[tuple[Inside, Address, str]]:
        """Where a service of this host is met inside, and as whose address."""
        found: list[tuple[Inside, Address, str]] = []
        for inside, ip in product(self.insides, source_ips if not incoming.host else ()):
            with suppress(OSError):
                address = Address(inside.own_ip(ip), incoming.port)
                if not self._own.forbids(address, udp):
                    found.append((inside, address, ip))
        return found

    def _host_addresses(self) -> list[str]:
        now = asyncio.get_running_loop().time()
        if now >= self._addresses_until:
            self._addresses = host_addresses()
            self._addresses_until = now + ADDRESSES_KEPT_S
        return self._addresses


def _dialling(address: Address) -> _Connect:
    return partial(dial, address, _LOOPBACK_ALIAS if address.ip == _LOOPBACK_ALIAS else "")
