"""Routes: hosts beyond a peer, reached through it - a LAN it offers, or the internet through an exit.

Both sides opt in: one offers, the other accepts. What a peer offered when it was last here stays its own while it is
away: a flow that was to go through it fails then, and never takes another way out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_network
from typing import TYPE_CHECKING

from proxy_vpn.errors import FlowError, Status
from proxy_vpn.mesh.roster import Peer
from proxy_vpn.ranges import IP, Network, is_near, is_part, is_private, is_public, may_be_led_to, parse_ip, within
from proxy_vpn.wire.messages import Routes

if TYPE_CHECKING:
    from proxy_vpn.mesh.mesh import Mesh

_log = logging.getLogger(__name__)
_OWN_HOST = frozenset({"localhost"})


@dataclass(frozen=True, slots=True)
class Offer:
    """What this host leads its peers to: networks, and the internet if it is an `exit`."""

    networks: tuple[Network, ...] = ()
    exit: bool = False

    def messages(self) -> tuple[Routes, ...]:
        """How peers are told; nothing where nothing is offered."""
        return (Routes([str(network) for network in self.networks], self.exit),) if self else ()

    def __bool__(self) -> bool:
        return self.exit or bool(self.networks)

    def allows(self, ip: IP) -> bool:
        """Whether a peer may be led there."""
        return within(ip, self.networks) or (self.exit and is_public(ip))


def offered(message: Routes) -> tuple[Network, ...]:
    """The networks a peer may lead to, of those it says it does."""
    found = []
    for text in message.networks:
        with suppress(ValueError):
            network = ip_network(text)
            if may_be_led_to(network):
                found.append(network)
    return tuple(dict.fromkeys(found))


class Ways:
    """Through whom a host that is no peer is reached: by an accepted route, else through the exit named `exit`.

    An address in one of `attached`, this host's own networks, is not looked for at peers: homes often have the same
    range. A route to a part of one is not accepted: a member could take the place of a LAN's gateway. Nor is one to
    public addresses: whoever offers it would take the internet from the exit.
    """

    def __init__(self, meshes: Sequence[Mesh], accept_routes: bool = False, exit_name: str = "") -> None:
        self.attached: Sequence[Network] = ()
        self._ignored: set[bytes] = set()
        self._meshes = meshes
        self._accept_routes = accept_routes
        self.exit_name = exit_name

    def through(self, host: str) -> tuple[Mesh, Peer] | None:
        """The peer on the way to `host`; None: it goes direct. Raises FlowError while the exit is not known."""
        ip = parse_ip(host)
        if ip is not None and self._accept_routes and (way := self._by_route(ip)) is not None:
            return way
        if not self.exit_name or not _is_for_exits(host, ip):
            return None
        found = list(self._exits())
        if not found:
            what = f"the exit {self.exit_name} is not here, and nothing goes around it"
            raise FlowError(Status.UNREACHABLE, what, "see 'pvpn peers'")
        return next(((mesh, peer) for mesh, peer in found if mesh.live_session(peer.identity)), found[0])

    def accepted(self) -> Iterable[tuple[Network, Mesh, Peer]]:
        """Every route in force, the most specific first; those of the same network in the order of identities."""
        if not self._accept_routes:
            return []
        told = [(network, mesh, peer) for mesh in self._meshes for peer in mesh.roster for network in peer.routes]
        for network, _, peer in told:
            if not is_private(network):
                self._tell_ignored(network, peer)
        private = (way for way in told if is_private(way[0]))
        ways = [way for way in private if not any(is_part(way[0], own) for own in self.attached)]
        return sorted(ways, key=lambda way: (-way[0].prefixlen, way[2].identity))

    def _tell_ignored(self, network: Network, peer: Peer) -> None:
        """Once a peer."""
        if peer.identity not in self._ignored:
            self._ignored.add(peer.identity)
            _log.warning("%s leads to %s, which is no private network: that is not accepted", peer.name, network)

    def _by_route(self, ip: IP) -> tuple[Mesh, Peer] | None:
        if any(ip.version == own.version and ip in own for own in self.attached):
            return None  # as the kernel does, whose routes to a host's own networks go first
        fitting = [way for way in self.accepted() if ip.version == way[0].version and ip in way[0]]
        if not fitting:
            return None
        # Of several with the longest prefix, one that is here; the more general ones never stand in for it.
        best = [way for way in fitting if way[0].prefixlen == fitting[0][0].prefixlen]
        _, mesh, peer = next((way for way in best if way[1].live_session(way[2].identity)), best[0])
        return mesh, peer

    def _exits(self) -> Iterable[tuple[Mesh, Peer]]:
        label, _, network = self.exit_name.partition(".")
        for mesh in self._meshes:
            if network in ("", mesh.key.name) and (peer := mesh.roster.find(label)) is not None:
                yield mesh, peer


def _is_for_exits(host: str, ip: IP | None) -> bool:
    if ip is not None:
        return not is_near(ip)  # all else is the exit's to refuse: Teredo, say, may lead somewhere from here
    name = host.lower().rstrip(".")
    # What has a zone is an address of this host's own link.
    return "%" not in name and name.rpartition(".")[2] not in _OWN_HOST
