"""A SOCKS client of the proxy: its handshake, then CONNECT or UDP ASSOCIATE."""

from __future__ import annotations

from proxy_vpn.doors.join import join, say_and_close
from proxy_vpn.doors.proxy_client import ProxyClient
from proxy_vpn.doors.socks_udp import Association
from proxy_vpn.doors.tcp import TcpDuplex
from proxy_vpn.errors import FlowError, Status, WireError
from proxy_vpn.wire.socks5 import Command, SocksHandshake, SocksRequest


async def serve_socks(client: ProxyClient, first: bytes) -> None:
    """Serve one client whose first bytes are `first` until it has ended; raises OSError when it leaves midway."""
    handshake = SocksHandshake(client.credentials)
    try:
        request = await _read_request(client, handshake, first)
    except WireError:
        await say_and_close(client.sock, handshake.data_to_send())
        return
    if request is None:
        client.sock.close()
    elif request.command is Command.UDP_ASSOCIATE:
        await Association(client, request).run()
    else:
        await _connect(client, request, handshake.leftover)


async def _read_request(client: ProxyClient, handshake: SocksHandshake, data: bytes) -> SocksRequest | None:
    while data:
        request = handshake.receive(data)
        await client.send(handshake.data_to_send())
        if request is not None:
            return request
        data = await client.receive()
    return None


async def _connect(client: ProxyClient, request: SocksRequest, early: bytes) -> None:
    try:
        far = await client.open_tcp(request.target)
    except FlowError as error:
        await say_and_close(client.sock, request.reply(error.status))
        return
    near = TcpDuplex(client.sock, early)
    near.write(request.reply(Status.OK))
    await join(near, far)
