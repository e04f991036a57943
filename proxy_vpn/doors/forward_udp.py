"""ForwardUdp: the UDP kind of a forward, with one flow for each client address."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from proxy_vpn.addresses import Target
from proxy_vpn.doors.listen import Listener
from proxy_vpn.doors.outgoing import Outgoing
from proxy_vpn.doors.udp import DATAGRAMS_A_TURN, MAX_DATAGRAM_BYTES, DatagramFlow
from proxy_vpn.doors.udp_sessions import IDLE_S, UdpSessions

MAX_CLIENTS = 256


class ForwardUdp:
    """Relays datagrams between the clients of `listener` and `target`; a client silent for `idle_s` is forgotten."""

    def __init__(self, listener: Listener, target: Target, outgoing: Outgoing, idle_s: float = IDLE_S) -> None:
        self._listener = listener
        self._sock = listener.sock
        self._target = target
        self._outgoing = outgoing
        self._sessions: UdpSessions[Any] = UdpSessions(self._open_flow, self._deliver, MAX_CLIENTS, idle_s)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._sock, self._on_readable)

    @property
    def clients(self) -> int:
        """How many clients have a flow now."""
        return len(self._sessions)

    async def close(self) -> None:
        """Stop listening and close every flow; idempotent."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
        self._listener.close()
        await self._sessions.close()

    def _on_readable(self) -> None:
        for _turn in range(DATAGRAMS_A_TURN):
            try:
                payload, client = self._sock.recvfrom(MAX_DATAGRAM_BYTES)
            except OSError:
                return
            self._sessions.send(client, payload)

    async def _open_flow(self, _client: Any) -> DatagramFlow:
        return await self._outgoing.open_udp(self._target)

    def _deliver(self, client: Any, payload: bytes) -> None:
        with suppress(OSError):
            self._sock.sendto(payload, client)
