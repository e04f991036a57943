"""How a door's task spends its life once a flow is open: until every byte is delivered and the sockets are closed."""

from __future__ import annotations

import asyncio
import socket

from proxy_vpn.doors.pump import splice
from proxy_vpn.doors.tcp import TcpDuplex
from proxy_vpn.mesh.duplex import Duplex


async def join(client: TcpDuplex, far: Duplex, near: Duplex | None = None) -> None:
    """Splice `client` with `far` until both have ended and are closed; cancelled, it breaks both at once.

    `near` stands for the client where something sits between (an HTTP exchange).
    """
    joined = splice(near or client, far)
    try:
        await joined.wait()
        await client.wait_closed()
        if isinstance(far, TcpDuplex):
            await far.wait_closed()
    except asyncio.CancelledError:
        client.abort()
        if isinstance(far, TcpDuplex):
            far.abort()
        raise


async def say_and_close(sock: socket.socket, last_words: bytes) -> None:
    """Send `last_words` on `sock` and end it so that they arrive, whatever the client is still sending."""
    client = TcpDuplex(sock)
    client.write(last_words)
    client.write_eof()
    client.reset()
    await client.wait_closed()
