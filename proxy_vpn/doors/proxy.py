"""ProxyDoor: SOCKS 4, 4a, 5 and HTTP on one TCP port or Unix socket; the first byte says which."""

from __future__ import annotations

import asyncio
import socket

from proxy_vpn.addresses import Address
from proxy_vpn.doors.acceptor import Acceptor
from proxy_vpn.doors.direct import Direct
from proxy_vpn.doors.listen import listen_tcp, listen_unix
from proxy_vpn.doors.outgoing import Outgoing, Router
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.doors.proxy_client import ProxyClient
from proxy_vpn.doors.proxy_http import serve_http
from proxy_vpn.doors.proxy_socks import serve_socks

MAX_CLIENTS = 512
HANDSHAKE_TIMEOUT_S = 10.0
_SOCKS_VERSIONS = (4, 5)


class ProxyDoor:
    """Lets programs reach peers through `router`, and other hosts through `direct` (None: they are refused).

    `listen` is (host, port) or the path of a Unix socket; `credentials` (user, password) are then asked of everyone.
    """

    def __init__(
        self,
        router: Router,
        listen: tuple[str, int] | str,
        direct: Direct | None,
        own: OwnListeners,
        credentials: tuple[str, str] | None = None,
    ) -> None:
        self._outgoing = Outgoing(router, direct)
        self._listen = listen
        self._own = own
        self._credentials = credentials
        self._acceptor: Acceptor | None = None

    @property
    def clients(self) -> int:
        """How many programs are connected now."""
        return self._acceptor.clients if self._acceptor is not None else 0

    async def start(self) -> Address | str:
        """Listen; the address with its real port, or the path. Raises StateError."""
        if isinstance(self._listen, str):
            listener = listen_unix(self._listen, self._own)
        else:
            listener = await listen_tcp(*self._listen, self._own)
        self._acceptor = Acceptor(listener, self._serve, MAX_CLIENTS)
        return listener.where

    async def close(self) -> None:
        """Stop listening and break every client's connection; idempotent."""
        if self._acceptor is not None:
            await self._acceptor.close()

    async def _serve(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        client = ProxyClient(
            sock, self._outgoing, self._own, self._credentials, deadline=loop.time() + HANDSHAKE_TIMEOUT_S
        )
        first = await client.receive()
        if not first:
            sock.close()
        elif first[0] in _SOCKS_VERSIONS:
            await serve_socks(client, first)
        else:
            await serve_http(client, first)
