"""ForwardDoor: a local TCP port, Unix socket or UDP port that leads to one target, each connection by a fresh flow."""

from __future__ import annotations

import logging
import socket
from dataclasses import replace

from proxy_vpn.addresses import Address, ForwardSpec
from proxy_vpn.doors.acceptor import Acceptor
from proxy_vpn.doors.direct import Direct
from proxy_vpn.doors.forward_udp import ForwardUdp
from proxy_vpn.doors.join import join
from proxy_vpn.doors.listen import Listener, bind_udp, listen_tcp, listen_unix
from proxy_vpn.doors.outgoing import Outgoing, Router
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.doors.tcp import TcpDuplex, close_socket
from proxy_vpn.errors import FlowError

MAX_CLIENTS = 512
_log = logging.getLogger(__name__)


class ForwardDoor:
    """Serves `spec` through `router`; a target that is no peer is reached by `direct`, or refused without it."""

    def __init__(self, router: Router, spec: ForwardSpec, direct: Direct | None, own: OwnListeners) -> None:
        self.spec = spec
        self._outgoing = Outgoing(router, direct)
        self._own = own
        self._worker: Acceptor | ForwardUdp | None = None

    @property
    def clients(self) -> int:
        """How many programs use it now."""
        return self._worker.clients if self._worker is not None else 0

    async def start(self) -> ForwardSpec:
        """Listen; the spec with its real port. Raises StateError."""
        listener = await self._listen()
        if self.spec.udp:
            self._worker = ForwardUdp(listener, self.spec.target, self._outgoing)
        else:
            self._worker = Acceptor(listener, self._serve, MAX_CLIENTS)
        if isinstance(listener.where, Address):
            self.spec = replace(self.spec, port=listener.where.port)
        return self.spec

    async def close(self) -> None:
        """Stop listening and break what is open; idempotent."""
        if self._worker is not None:
            await self._worker.close()

    async def _listen(self) -> Listener:
        if self.spec.path:
            return listen_unix(self.spec.path, self._own)
        if self.spec.udp:
            return await bind_udp(self.spec.host, self.spec.port, self._own)
        return await listen_tcp(self.spec.host, self.spec.port, self._own)

    async def _serve(self, sock: socket.socket) -> None:
        try:
            far = await self._outgoing.open_tcp(self.spec.target)
        except FlowError as error:
            _log.warning("forward %s: %s", self.spec, error)
            close_socket(sock, reset=True)
            return
        await join(TcpDuplex(sock), far)
