"""An HTTP client of the proxy: CONNECT tunnels, and plain requests."""

from __future__ import annotations

import socket

from proxy_vpn.doors.exchange import ExchangeDuplex
from proxy_vpn.doors.join import join, say_and_close
from proxy_vpn.doors.proxy_client import ProxyClient
from proxy_vpn.doors.tcp import TcpDuplex
from proxy_vpn.errors import FlowError
from proxy_vpn.wire.http import ESTABLISHED, HttpFront, HttpRefused, HttpRequest


async def serve_http(client: ProxyClient, first: bytes) -> None:
    """Serve one client whose first bytes are `first` until it has ended; after a refusal its connection is closed."""
    front = HttpFront(client.credentials)
    try:
        request = await _read_request(client, front, first)
        if request is None:
            client.sock.close()
            return
        far = await client.open_tcp(request.target)
    except HttpRefused as refused:
        await say_and_close(client.sock, front.refusal(refused))
        return
    except FlowError as error:
        await say_and_close(client.sock, front.refusal(error, error.status))
        return
    if request.exchange is None:
        marks_end = request.wants_end_mark and client.sock.family == socket.AF_UNIX
        tunnel = TcpDuplex(client.sock, front.leftover, marks_end)
        tunnel.write(ESTABLISHED)
        await join(tunnel, far)
    else:
        near = TcpDuplex(client.sock)
        await join(near, far, ExchangeDuplex(near, request.exchange))


async def _read_request(client: ProxyClient, front: HttpFront, data: bytes) -> HttpRequest | None:
    while data:
        request = front.receive(data)
        if request is not None:
            return request
        data = await client.receive()
    return None
