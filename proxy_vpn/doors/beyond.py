"""Beyond: hosts behind this one that peers are led to, as `--route` and `--offer-exit` allow.

A name is resolved once, here; what it stands for is checked, and only what was checked is connected to: a name that
leads to a private address, in whatever form, is no way in.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from typing import Protocol

from proxy_vpn.addresses import Address, Target, is_under_pvpn
from proxy_vpn.doors.dial import CONNECT_TIMEOUT_S
from proxy_vpn.doors.lookups import Lookups
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.errors import FlowError, Status
from proxy_vpn.net.interfaces import reachable_addresses
from proxy_vpn.ranges import IP, parse_ip

MAX_ADDRESSES = 8
_ANYWHERE = (Address("0.0.0.0", 1), Address("::", 1))


class Offer(Protocol):
    """What the door asks of mesh.routes.Offer."""

    def allows(self, ip: IP) -> bool:
        """Whether a peer may be led there."""

    @property
    def exit(self) -> bool:
        """Whether peers are led to the internet."""

    def __bool__(self) -> bool:
        """Whether anything is offered."""


class Beyond:
    """The addresses of a host beyond this one that a peer may reach; `here` says which are this host's own."""

    def __init__(self, offer: Offer, own: OwnListeners, here: Callable[[], Iterable[str]] | None = None) -> None:
        self._offer = offer
        self._own = own
        self._here = here or _own_ips
        self._lookups = Lookups()

    @property
    def is_exit(self) -> bool:
        """Whether peers are led to the internet."""
        return self._offer.exit

    async def addresses(self, target: Target, udp: bool) -> list[Address]:
        """Where to connect, in the order to try; raises FlowError."""
        ips = [parse_ip(target.host)] if parse_ip(target.host) else []
        if not ips and self._offer:
            ips = await self._look_up(target, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
        # This host's own services keep to its own rules, whichever of its addresses is asked for.
        here = {parse_ip(ip) for ip in self._here()} if ips else set()
        allowed = [Address(str(ip), target.port) for ip in ips if ip and ip not in here and self._offer.allows(ip)]
        allowed = [address for address in allowed if not self._own.forbids(address, udp)]
        if not allowed:
            raise FlowError(Status.POLICY, f"peers are not led to {target}", "see --route and --offer-exit")
        return allowed[:MAX_ADDRESSES]

    async def _look_up(self, target: Target, kind: socket.SocketKind) -> list[IP | None]:
        if is_under_pvpn(target.host):
            raise FlowError(Status.NO_SUCH_NAME, f"{target.host} would be a peer, and those are not led to")
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                infos = await self._lookups.look_up(target.host, target.port, kind)
        except TimeoutError:
            raise FlowError(Status.TIMEOUT, f"no name server answers for {target.host}") from None
        except (OSError, UnicodeError):
            raise FlowError(Status.NO_SUCH_NAME, f"no host is called {target.host}") from None
        return list(dict.fromkeys(parse_ip(str(info[4][0])) for info in infos))


def _own_ips() -> list[str]:
    return [address.ip for address in reachable_addresses(_ANYWHERE)]
