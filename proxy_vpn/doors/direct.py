"""Direct: connections to hosts that are no peers, made from here as if there were no proxy."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import ip_address

import aiohappyeyeballs

from proxy_vpn.addresses import Address, Target
from proxy_vpn.doors.dial import CONNECT_TIMEOUT_S, dial, dial_error, refuse_self_connection
from proxy_vpn.doors.lookups import AddressInfo, Lookups
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.doors.tcp import TcpDuplex
from proxy_vpn.doors.udp import UdpSocket
from proxy_vpn.errors import FlowError, Status

_NEXT_ADDRESS_S = 0.25  # RFC 8305 section 5, Connection Attempt Delay


class Direct:
    """Dials hosts that are no peers, by any of their addresses that this process does not itself listen on."""

    def __init__(self, own: OwnListeners) -> None:
        self._own = own
        self._lookups = Lookups()

    async def open_tcp(self, target: Target) -> TcpDuplex:
        """The first address of `target` that answers (RFC 8305, 10 s); raises FlowError."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                infos = await self._resolve(target, socket.SOCK_STREAM)
                if len(infos) == 1:
                    return TcpDuplex(await dial(Address(*infos[0][4][:2])))
                sock = await aiohappyeyeballs.start_connection(infos, happy_eyeballs_delay=_NEXT_ADDRESS_S)
                refuse_self_connection(sock)
                return TcpDuplex(sock)
        except OSError as error:
            raise dial_error(f"{target} (direct)", error) from None

    async def open_udp(self, target: Target) -> UdpSocket:
        """A UDP socket connected to the first address of `target`; raises FlowError."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                infos = await self._resolve(target, socket.SOCK_DGRAM)
            return UdpSocket(Address(*infos[0][4][:2]))
        except OSError as error:
            raise dial_error(f"{target} (direct)", error) from None

    async def _resolve(self, target: Target, kind: socket.SocketKind) -> Sequence[AddressInfo]:
        if _is_unscoped(target.host):
            hint = "use another address of that host, or its name"
            raise FlowError(Status.UNREACHABLE, f"{target} is link-local, and nothing says on which link", hint)
        infos = [_numeric(target, kind)] if _is_ip(target.host) else await self._look_up(target, kind)
        allowed = [i for i in infos if not self._own.forbids(Address(*i[4][:2]), udp=kind is socket.SOCK_DGRAM)]
        if not allowed:
            raise FlowError(Status.POLICY, f"{target} is this pvpn itself", "it can't be its own target")
        return allowed

    async def _look_up(self, target: Target, kind: socket.SocketKind) -> Sequence[AddressInfo]:
        try:
            return await self._lookups.look_up(target.host, target.port, kind)
        except (socket.gaierror, UnicodeError) as error:
            if getattr(error, "errno", None) == socket.EAI_AGAIN:
                maybe_peer = "" if "." in target.host else f", and no peer is called {target.host}"
                what = f"no name server answers for {target.host}{maybe_peer}"
                raise FlowError(Status.UNREACHABLE, what, "see 'pvpn peers' for the names of peers") from None
            raise FlowError(
                Status.NO_SUCH_NAME, f"no host is called {target.host}", "see 'pvpn peers' for the names of peers"
            ) from None


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_unscoped(host: str) -> bool:
    """An IPv6 link-local address without its zone (RFC 4007), which programs drop when they ask a proxy."""
    return _is_ip(host) and ":" in host and "%" not in host and ip_address(host).is_link_local


def _numeric(target: Target, kind: socket.SocketKind) -> AddressInfo:
    address = Address(target.host, target.port)
    return (address.family, kind, 0, "", tuple(address))
