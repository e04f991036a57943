"""The default gateway, and a UDP port of its own from it by PCP (RFC 6887) or NAT-PMP (RFC 6886).

gateway = await Gateway.open(Address("192.168.1.1", 5351), port, nonce, on_restart)
mapping = await gateway.map()           # PCP, else NAT-PMP; again to renew; raises PortMapError
await gateway.unmap()
gateway.close()
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from proxy_vpn.addresses import Address
from proxy_vpn.errors import PvpnError, WireError
from proxy_vpn.wire.portmap import (
    ANNOUNCE_GROUP,
    GATEWAY_PORT,
    OK,
    UNSUPPORTED_VERSION,
    Answer,
    PcpAnnounceRequest,
    PcpMapAnswer,
    PcpMapRequest,
    PmpAddressAnswer,
    PmpAddressRequest,
    PmpMapAnswer,
    PmpMapRequest,
    Refusal,
    Request,
    parse_answer,
    result_text,
)

LIFETIME_S = 7200
# RFC 6886 begins at 250 ms and doubles nine times; a router in the same house has answered long before, and one that
# speaks neither must not keep UPnP and the user waiting.
SEND_AT_S = (0.0, 0.25, 0.65)
PCP_PATIENCE_S = 1.0
PMP_PATIENCE_S = 1.5
UNMAP_S = 0.8
ROUTES_LIMIT_BYTES = 1 << 20
_ROUTES = Path("/proc/net/route")
_RTF_UP_GATEWAY = 0x3
_Wanted = TypeVar("_Wanted", bound=PcpMapAnswer | PmpAddressAnswer | PmpMapAnswer)
_log = logging.getLogger(__name__)


class PortMapError(PvpnError):
    """The router gave no port; nothing the user must act on, since peers mostly meet without."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """What a router granted: UDP to `external` comes to our port for `lifetime_s` seconds, 0 for ever."""

    protocol: str
    external: Address
    lifetime_s: float


def default_gateway() -> Address | None:
    """Where the IPv4 default gateway answers PCP and NAT-PMP; None without one, or where the kernel doesn't say."""
    try:
        with _ROUTES.open(encoding="ascii", errors="replace") as routes:
            ip = parse_routes(routes.read(ROUTES_LIMIT_BYTES))
    except OSError:
        return None
    return Address(ip, GATEWAY_PORT) if ip else None


def parse_routes(text: str) -> str | None:
    """The gateway of the default route with the lowest metric, from the text of /proc/net/route."""
    found: list[tuple[int, str]] = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        with suppress(ValueError, IndexError):
            if int(fields[1], 16) == int(fields[7], 16) == 0 and int(fields[3], 16) & 0x3 == _RTF_UP_GATEWAY:
                gateway = IPv4Address(int(fields[2], 16).to_bytes(4, sys.byteorder))
                found.append((int(fields[6]), str(gateway)))
    return min(found)[1] if found else None


def local_ip_towards(address: Address) -> str | None:
    """The address of ours that datagrams to this one leave from, None without a route; nothing is sent."""
    with socket.socket(address.family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(address)
        except OSError:
            return None
        return str(probe.getsockname()[0])


def state_lost(server_passed_s: float, client_passed_s: float) -> bool:
    """Whether a router's epoch, set against our clock since its last, shows that it forgot its mappings (RFC 6887 8.5).

    NAT-PMP's rule (RFC 6886 3.6) is the same with a tolerance of 1/8 in place of 1/16, so this is the stricter one: a
    router whose clock runs that wrong is asked to map once more than it had to be.
    """
    if server_passed_s < -1:
        return True
    slow = client_passed_s + 2 < server_passed_s - server_passed_s / 16
    return slow or server_passed_s + 2 < client_passed_s - client_passed_s / 16


class Gateway(asyncio.DatagramProtocol):
    """One gateway, asked from one connected socket, so that the kernel drops what others send.

    `on_restart` is called when the gateway shows that it lost its mappings or changed its external address.
    """

    def __init__(self, address: Address, port: int, nonce: bytes, on_restart: Callable[[], None]) -> None:
        self.address = address
        self.local_ip = ""
        self._port = port
        self._nonce = nonce
        self._on_restart = on_restart
        self._loop = asyncio.get_running_loop()
        self._transports: list[asyncio.DatagramTransport] = []
        self._waiting: _Waiting[Any] | None = None
        self._epoch: tuple[int, float] | None = None
        self._asked: dict[str, Request] = {}
        self._mapping: Mapping | None = None

    @classmethod
    async def open(cls, address: Address, port: int, nonce: bytes, on_restart: Callable[[], None]) -> Self:
        """Bind the sockets; nothing is sent. Raises OSError when the gateway has no route."""
        gateway = cls(address, port, nonce, on_restart)
        transport, _ = await gateway._loop.create_datagram_endpoint(lambda: gateway, remote_addr=address)
        gateway._transports.append(transport)
        gateway.local_ip = str(transport.get_extra_info("sockname")[0])
        await gateway._listen_for_announcements()
        return gateway

    async def map(self) -> Mapping:
        """Ask for the port, or renew it: PCP, then NAT-PMP, beginning with what worked; raises PortMapError."""
        ways = [self._map_by_pcp, self._map_by_pmp]
        if self._mapping is not None and self._mapping.protocol == "nat-pmp":
            ways.reverse()
        errors: list[str] = []
        for way in ways:
            try:
                self._mapping = await way()
            except PortMapError as error:
                errors.append(error.what)
            else:
                return self._mapping
        raise PortMapError("; ".join(dict.fromkeys(errors)))

    async def unmap(self) -> None:
        """Give back what was granted and await the word on it, UNMAP_S at most; never raises."""
        mapping, self._mapping = self._mapping, None
        ends = self._ending_requests()
        if mapping is None or mapping.protocol not in ends:
            return
        request = ends.pop(mapping.protocol)
        self._asked.pop(mapping.protocol)
        with suppress(PortMapError):
            if isinstance(request, PcpMapRequest):
                await self._ask(request, PcpMapAnswer, lambda it: self._is_ours(it) and not it.lifetime_s, UNMAP_S)
            else:
                await self._ask(request, PmpMapAnswer, lambda it: self._is_ours(it) and not it.lifetime_s, UNMAP_S)

    def check(self) -> None:
        """Ask for the gateway's epoch without waiting: if it lost our mapping, `on_restart` will be called."""
        if self._mapping is not None:
            pcp = self._mapping.protocol == "pcp"
            self._send(PcpAnnounceRequest(self.local_ip) if pcp else PmpAddressRequest())

    def close(self) -> None:
        """Close the sockets; what was asked for but not yet granted is given back with one datagram each."""
        for request in self._ending_requests().values():
            self._send(request)
        self._asked.clear()
        for transport in self._transports:
            transport.close()
        self._transports.clear()

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        """Beat one, feed: an answer, or an announcement to everybody (RFC 6886 3.2.1, RFC 6887 14.1)."""
        if addr[0] != self.address.ip:
            return
        try:
            answer = parse_answer(data)
        except WireError as error:
            _log.debug("the gateway's answer is dropped: %a", error.what)
            return
        restarted = self._lost_state(answer.epoch_s)
        if self._waiting is not None and self._waiting.take(answer):
            return
        mapping = self._mapping
        moved = (
            isinstance(answer, PmpAddressAnswer)
            and answer.result == OK
            and mapping is not None
            and answer.external_ip != mapping.external.ip
        )
        if mapping is not None and (restarted or moved):
            self._on_restart()

    def error_received(self, exc: Exception) -> None:
        """ICMP, about the connected socket only: nothing listens there."""
        if self._waiting is not None:
            self._waiting.fail("the gateway answers neither PCP nor NAT-PMP")

    async def _map_by_pcp(self) -> Mapping:
        old = self._mapping.external if self._mapping else Address("0.0.0.0", self._port)
        request = PcpMapRequest(self._nonce, self.local_ip, self._port, LIFETIME_S, old)
        self._asked["pcp"] = request
        answer = await self._ask(request, PcpMapAnswer, self._is_ours, PCP_PATIENCE_S)
        return _granted("pcp", answer.external, answer.lifetime_s)

    async def _map_by_pmp(self) -> Mapping:
        address = await self._ask(PmpAddressRequest(), PmpAddressAnswer, lambda _: True, PMP_PATIENCE_S)
        old_port = self._mapping.external.port if self._mapping else self._port
        request = PmpMapRequest(self._port, old_port, LIFETIME_S)
        self._asked["nat-pmp"] = request
        answer = await self._ask(request, PmpMapAnswer, self._is_ours, PMP_PATIENCE_S)
        return _granted("nat-pmp", Address(address.external_ip, answer.external_port), answer.lifetime_s)

    def _is_ours(self, answer: PcpMapAnswer | PmpMapAnswer) -> bool:
        if isinstance(answer, PcpMapAnswer) and answer.nonce != self._nonce:
            return False
        return answer.internal_port == self._port

    async def _ask(
        self, request: Request, kind: type[_Wanted], ours: Callable[[_Wanted], bool], patience_s: float
    ) -> _Wanted:
        """The answer of this kind that is ours, having sent at SEND_AT_S; PortMapError for silence and refusals."""
        waiting = _Waiting(isinstance(request, PcpMapRequest), kind, ours, self._loop.create_future())
        self._waiting = waiting
        again = [self._loop.call_later(after_s, self._send, request) for after_s in SEND_AT_S if after_s < patience_s]
        try:
            async with asyncio.timeout(patience_s):
                answer: _Wanted = await waiting.answer
                return answer
        except TimeoutError:
            raise PortMapError("the gateway does not answer PCP or NAT-PMP") from None
        finally:
            self._waiting = None
            for timer in again:
                timer.cancel()

    def _send(self, request: Request) -> None:
        if self._transports:
            self._transports[0].sendto(request.encode())

    def _ending_requests(self) -> dict[str, Request]:
        """What undoes each request to map that was sent."""
        ends: dict[str, Request] = {}
        if "pcp" in self._asked:
            ends["pcp"] = PcpMapRequest(self._nonce, self.local_ip, self._port, 0)
        if "nat-pmp" in self._asked:
            ends["nat-pmp"] = PmpMapRequest(self._port, 0, 0)
        return ends

    def _lost_state(self, epoch_s: int) -> bool:
        now = self._loop.time()
        before, self._epoch = self._epoch, (epoch_s, now)
        return before is not None and state_lost(epoch_s - before[0], now - before[1])

    async def _listen_for_announcements(self) -> None:
        """Bound to the group's own address, the socket hears nothing but what is sent to every host of the link."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(ANNOUNCE_GROUP)
            ears = _Ears(self)
            transport, _ = await self._loop.create_datagram_endpoint(lambda: ears, sock=listener)
        except OSError as error:
            listener.close()
            _log.debug("no announcements of the gateway will be heard: %s", error)
        else:
            self._transports.append(transport)


class _Ears(asyncio.DatagramProtocol):
    """The socket for announcements."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._gateway.datagram_received(data, addr)


class _Waiting(Generic[_Wanted]):
    """One question in flight, and which answers are meant for it."""

    def __init__(
        self, pcp: bool, kind: type[_Wanted], ours: Callable[[_Wanted], bool], answer: asyncio.Future[_Wanted]
    ) -> None:
        self._pcp = pcp
        self._kind = kind
        self._ours = ours
        self.answer = answer

    def take(self, answer: Answer) -> bool:
        """Whether this was the answer, good or bad."""
        if isinstance(answer, self._kind) and self._ours(answer):
            if answer.result != OK:
                self.fail(f"the gateway refuses {'PCP' if self._pcp else 'NAT-PMP'}: {result_text(answer)}")
            elif not self.answer.done():
                self.answer.set_result(answer)
            return True
        # A router that speaks NAT-PMP answers each PCP request it gets with a refusal of the version, and those to
        # repeated requests may come when NAT-PMP has been asked already: they say nothing about it.
        if isinstance(answer, Refusal) and (
            self._pcp or (answer.protocol == "pcp") == (answer.result == UNSUPPORTED_VERSION)
        ):
            self.fail(f"the gateway refuses {'PCP' if self._pcp else 'NAT-PMP'}: {result_text(answer)}")
            return True
        return False

    def fail(self, what: str) -> None:
        """End the wait without an answer."""
        if not self.answer.done():
            self.answer.set_exception(PortMapError(what))


def _granted(protocol: str, external: Address, lifetime_s: int) -> Mapping:
    if external.family is not socket.AF_INET or not external.is_unicast or not lifetime_s:
        raise PortMapError(f"the gateway has no external address to give: {external}")
    return Mapping(protocol, external, lifetime_s)
