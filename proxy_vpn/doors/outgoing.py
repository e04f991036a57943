"""Outgoing: where a program's request goes, to a peer or directly; every door that lets programs in asks it."""

from __future__ import annotations

from typing import Protocol

from proxy_vpn.addresses import Target
from proxy_vpn.doors.direct import Direct
from proxy_vpn.doors.udp import DatagramFlow
from proxy_vpn.errors import FlowError, Status
from proxy_vpn.mesh.duplex import Duplex


class Router(Protocol):
    """What doors need of mesh.names.Router: None says that the target is no peer; raises FlowError."""

    async def open_tcp(self, target: Target) -> Duplex | None:
        """A stream to the peer `target` names."""

    async def open_udp(self, target: Target) -> DatagramFlow | None:
        """Datagrams to and from the peer `target` names."""


class Outgoing:
    """Opens flows through `router`, and for what is no peer through `direct`; without it those are refused."""

    def __init__(self, router: Router, direct: Direct | None) -> None:
        self._router = router
        self._direct = direct

    async def open_tcp(self, target: Target) -> Duplex:
        """A stream to `target`; raises FlowError."""
        flow = await self._router.open_tcp(target)
        return await self._way_out(target).open_tcp(target) if flow is None else flow

    async def open_udp(self, target: Target) -> DatagramFlow:
        """Datagrams to and from `target`; raises FlowError."""
        flow = await self._router.open_udp(target)
        return await self._way_out(target).open_udp(target) if flow is None else flow

    def _way_out(self, target: Target) -> Direct:
        if self._direct is None:
            raise FlowError(Status.POLICY, f"{target.host} is no peer, and only peers are reached", "see 'pvpn peers'")
        return self._direct
