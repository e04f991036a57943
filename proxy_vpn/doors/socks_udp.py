"""Association: one SOCKS5 UDP ASSOCIATE (RFC 1928 section 7), for as long as its TCP connection lives."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import Any

from proxy_vpn.addresses import Address
from proxy_vpn.doors.join import say_and_close
from proxy_vpn.doors.listen import Listener
from proxy_vpn.doors.proxy_client import ProxyClient
from proxy_vpn.doors.udp import DATAGRAMS_A_TURN, MAX_DATAGRAM_BYTES, DatagramFlow
from proxy_vpn.doors.udp_sessions import UdpSessions
from proxy_vpn.errors import Status, WireError
from proxy_vpn.wire.socks5 import SocksRequest, UdpHeader

MAX_FLOWS = 64
_log = logging.getLogger(__name__)


class Association:
    """A UDP socket on the address the client came in by, for that client's IP and one port of it.

    The port is the one it declared in its request, or without that where its first datagram with a header came from.
    """

    def __init__(self, client: ProxyClient, request: SocksRequest) -> None:
        self._client = client
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._sock = client.sock  # the UDP socket, once there is one
        self._client_ip = ""
        self._peer: Any = None  # the client's UDP address, as recvfrom gave it
        self._sessions: UdpSessions[UdpHeader] = UdpSessions(self._open_flow, self._deliver, MAX_FLOWS)

    async def run(self) -> None:
        """Answer the request and relay datagrams until the TCP connection ends."""
        control = self._client.sock
        if control.family not in (socket.AF_INET, socket.AF_INET6):
            # A Unix socket says who may use the proxy; a UDP port next to it would not.
            await say_and_close(control, self._request.reply(Status.POLICY))
            return
        # A client that vanished without a word would keep its place for ever.
        control.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        local = control.getsockname()
        self._client_ip = control.getpeername()[0]
        listener = Listener(_bound_beside(control.family, local), self._client.own)
        self._sock = listener.sock
        try:
            self._loop.add_reader(self._sock, self._on_readable)
            bound = Address(local[0].removeprefix("::ffff:").partition("%")[0], self._sock.getsockname()[1])
            await self._client.send(self._request.reply(Status.OK, bound))
            while await self._loop.sock_recv(control, 4096):
                pass
            control.close()
        finally:
            self._loop.remove_reader(self._sock)
            listener.close()
            await self._sessions.close()

    def _on_readable(self) -> None:
        for _turn in range(DATAGRAMS_A_TURN):
            try:
                datagram, source = self._sock.recvfrom(MAX_DATAGRAM_BYTES)
            except OSError:
                return
            if not self._may_be_client(source):
                continue
            try:
                header, payload = UdpHeader.parse(datagram)
            except WireError as error:
                _log.debug("a datagram was dropped: %s", error)
                continue
            self._peer = source
            self._sessions.send(header, payload)

    def _may_be_client(self, source: Any) -> bool:
        if self._peer is not None:
            return bool(source == self._peer)
        return source[0] == self._client_ip and self._request.target.port in (0, source[1])

    async def _open_flow(self, header: UdpHeader) -> DatagramFlow:
        return await self._client.outgoing.open_udp(header.target)

    def _deliver(self, header: UdpHeader, payload: bytes) -> None:
        with suppress(OSError):
            self._sock.sendto(header.raw + payload, self._peer)


def _bound_beside(family: int, local: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.bind((local[0], 0, *local[2:]))
    except OSError:
        sock.close()
        raise
    return sock
