"""ProxyClient: one program at the proxy, from its first byte until its flow is open."""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import dataclass

from proxy_vpn.addresses import Target
from proxy_vpn.doors.outgoing import Outgoing
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.errors import FlowError, Status
from proxy_vpn.mesh.duplex import Duplex

_READ_BYTES = 65536
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProxyClient:
    """What serving one client takes; `deadline` is the loop time by which its request must be complete."""

    sock: socket.socket
    outgoing: Outgoing
    own: OwnListeners
    credentials: tuple[str, str] | None
    deadline: float

    async def receive(self) -> bytes:
        """The next bytes of its handshake, b"" at its end; raises TimeoutError after the deadline."""
        try:
            return self.sock.recv(_READ_BYTES)  # mostly they are there, and nobody has to wait
        except (BlockingIOError, InterruptedError):
            async with asyncio.timeout_at(self.deadline):
                return await asyncio.get_running_loop().sock_recv(self.sock, _READ_BYTES)

    async def send(self, data: bytes) -> None:
        """Send it handshake bytes; raises TimeoutError after the deadline."""
        if not data:
            return
        try:
            sent = self.sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent < len(data):
            async with asyncio.timeout_at(self.deadline):
                await asyncio.get_running_loop().sock_sendall(self.sock, data[sent:])

    async def open_tcp(self, target: Target) -> Duplex:
        """A stream to `target`; raises nothing but FlowError."""
        try:
            return await self.outgoing.open_tcp(target)
        except FlowError as error:
            _log.info("%s: %s", ascii(str(target)), error)
            raise
        except Exception as error:
            # The edge to the rest of the process: the program gets an answer whatever went wrong in there.
            _log.exception("opening %s failed", ascii(str(target)))
            raise FlowError(
                Status.INTERNAL, f"pvpn itself failed: {type(error).__name__}", "its log says more"
            ) from None
