"""Direct: connections to hosts that are no peers, made from here as if there were no proxy."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import aiohappyeyeballs

from proxy_vpn.addresses import Address, Target
from proxy_vpn.doors.dial import CONNECT_TIMEOUT_S, dial, dial_error, refuse_self_connection
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.doors.tcp import TcpDuplex
from proxy_vpn.doors.udp import UdpSocket
from proxy_vpn.errors import FlowError, Status

_NEXT_ADDRESS_S = 0.25  # RFC 8305 section 5, Connection Attempt Delay

_Info = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]]


class Direct:
    """Dials hosts that are no peers, by any of their addresses that this process does not itself listen on."""

    def __init__(self, own: OwnListeners) -> None:
        self._own = own

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
            raise dial_error(target, error) from None

    async def open_udp(self, target: Target) -> UdpSocket:
        """A UDP socket connected to the first address of `target`; raises FlowError."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                infos = await self._resolve(target, socket.SOCK_DGRAM)
            return UdpSocket(Address(*infos[0][4][:2]))
        except OSError as error:
            raise dial_error(target, error) from None

    async def _resolve(self, target: Target, kind: socket.SocketKind) -> Sequence[_Info]:
        infos = [_numeric(target, kind)] if _is_ip(target.host) else await _look_up(target, kind)
        allowed = [i for i in infos if not self._own.forbids(Address(*i[4][:2]), udp=kind is socket.SOCK_DGRAM)]
        if not allowed:
            raise FlowError(Status.POLICY, f"{target} is this pvpn itself", "the far program was asked to loop back")
        return allowed


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _numeric(target: Target, kind: socket.SocketKind) -> _Info:
    address = Address(target.host, target.port)
    return (address.family, kind, 0, "", tuple(address))


async def _look_up(target: Target, kind: socket.SocketKind) -> Sequence[_Info]:
    try:
        return await asyncio.get_running_loop().getaddrinfo(target.host, target.port, type=kind)
    except (socket.gaierror, UnicodeError) as error:
        if getattr(error, "errno", None) == socket.EAI_AGAIN:
            raise FlowError(Status.UNREACHABLE, f"no name server answers for {target.host}") from None
        raise FlowError(
            Status.NO_SUCH_NAME, f"no host is called {target.host}", "peers' names are in `pvpn status`"
        ) from None
