"""Discovery: where a process's networks find their peers and let themselves be found.

The DHT, the LAN, the router's port mapping, and the places that the user named (`--peer`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address

from proxy_vpn.addresses import Address, Scope, Target
from proxy_vpn.config import Settings
from proxy_vpn.daemon.ahead import look_up
from proxy_vpn.daemon.state import StateDirectory
from proxy_vpn.errors import StateError
from proxy_vpn.mesh.candidates import Source
from proxy_vpn.mesh.mesh import Mesh
from proxy_vpn.net.demux import Demultiplexer
from proxy_vpn.net.dht import Dht, RendezvousHandle, Urgency
from proxy_vpn.net.interfaces import reachable_addresses
from proxy_vpn.net.lan import Lan
from proxy_vpn.net.portmap import PortMapper
from proxy_vpn.net.udp import Path

LOCAL_KEPT_S = 10.0
_NONCE_CONTEXT = b"pvpn1 port mapping"
_log = logging.getLogger(__name__)


class Discovery:
    """All of it, from `start` to `close`; what the settings forbid stays None."""

    def __init__(self, settings: Settings, state: StateDirectory, demux: Demultiplexer) -> None:
        self.dht: Dht | None = None
        self.lan: Lan | None = None
        self.mapper: PortMapper | None = None
        self._settings = settings
        self._state = state
        self._demux = demux
        self._meshes: Sequence[Mesh] = ()
        self._rendezvous: list[RendezvousHandle] = []
        self._ahead: Mapping[str, list[str]] = {}
        self._local: list[Address] = []
        self._local_until = 0.0

    async def look_ahead(self) -> None:
        """Look up now whatever is needed to find peers: soon the host's name servers may be behind one of them."""
        wanted = [*self._settings.peers, *(self._settings.dht_bootstrap if self._settings.dht else ())]
        self._ahead = await look_up(target.host for target in wanted)

    def start(self, meshes: Sequence[Mesh]) -> None:
        """Begin to look, for all networks."""
        self._meshes, self._local_until = meshes, 0.0
        if self._settings.dht:
            self._start_dht()
        if self._settings.lan:
            self._start_lan()
        if self._settings.port_mapping:
            self._start_port_mapping()

    async def close(self) -> None:
        """Take back what routers and the LAN know of us, and keep what the DHT taught."""
        if self.mapper is not None:
            await self.mapper.close()
        if self.lan is not None:
            await self.lan.close()
        if self.dht is not None:
            with suppress(StateError):  # on the way out nobody can mend the disk
                self._state.save_dht(self.dht.export_state())
            await self.dht.close()

    async def save(self) -> None:
        """Write what the DHT taught, in a thread because it waits for the disk; raises StateError."""
        if self.dht is not None:
            await asyncio.to_thread(self._state.save_dht, self.dht.export_state())

    def poke(self) -> None:
        """A peer went or our address moved: ask the DHT soon."""
        for handle in self._rendezvous:
            handle.poke()

    def network_changed(self) -> None:
        """Addresses, links or routes are others now, or the host woke up."""
        self._local_until = 0.0
        self.poke()
        if self.lan is not None:
            self.lan.network_changed()
        if self.mapper is not None:
            self.mapper.network_changed()

    def own_addresses(self) -> list[Address]:
        """Where others may reach this process, the outside first."""
        status = self.dht.status() if self.dht else None
        mapped = self.mapper.status.external if self.mapper else None
        external = [mapped, *([status.external4, status.external6] if status else [])]
        return [*(address for address in external if address), *self.local_addresses()]

    def local_addresses(self) -> list[Address]:
        """Where other hosts may reach this one; through our own TUN device nobody does."""
        now = asyncio.get_running_loop().time()
        if now >= self._local_until:  # asked every second by each network; a change is told
            self._local_until = now + LOCAL_KEPT_S
            found = reachable_addresses(self._demux.addresses)
            self._local = [each for each in found if not any(mesh.is_virtual(each) for mesh in self._meshes)]
        return self._local

    async def look_for_user_peers(self) -> None:
        """What `--peer` names: resolved again and again, because names move."""
        for target in self._settings.peers:
            ahead = [Address(ip, target.port) for ip in self._ahead.get(target.host, ())]
            found = await _resolve(target) or ahead
            if not found:
                _log.info("%a has no address now", target.host)
            for address in found:
                for mesh in self._meshes:
                    mesh.seeker.found(address, Source.USER)

    def _start_dht(self) -> None:
        settings, demux = self._settings, self._demux
        ahead = [(ip, target.port) for target in settings.dht_bootstrap for ip in self._ahead.get(target.host, ())]
        dht = self.dht = Dht(
            send=lambda datagram, address: demux.send([datagram], Path("", 0, address)),
            entropy=os.urandom,
            bootstrap=[*ahead, *((target.host, target.port) for target in settings.dht_bootstrap)],
            serve=settings.dht_serve,
            families=[address.family for address in demux.addresses],
            state=self._state.load_dht(),
        )
        demux.on_krpc = dht.receive
        dht.start()
        for mesh in self._meshes:
            self._rendezvous.append(self._meet(dht, mesh))

    def _meet(self, dht: Dht, mesh: Mesh) -> RendezvousHandle:
        def urgency() -> Urgency:
            live = sum(1 for _ in mesh.live_peers())
            known = sum(1 for _ in mesh.roster)
            return Urgency.NONE_LIVE if not live else Urgency.ALL_KNOWN if live >= known else Urgency.SOME_LIVE

        def on_peer(address: Address, source: Address) -> None:
            mesh.seeker.found(address, Source.DHT, scope=source.scope)

        return dht.rendezvous(mesh.key.dht_topics, self._external_port, on_peer, urgency)

    def _external_port(self) -> int | None:
        mapped = self.mapper.status.external if self.mapper else None
        external = mapped or (self.dht.status().external4 if self.dht else None)
        return external.port if external else self._demux.addresses[0].port

    def _start_lan(self) -> None:
        lan = self.lan = Lan(self.local_addresses, os.urandom)
        for mesh in self._meshes:
            _announce(lan, mesh)
        lan.start()

    def _start_port_mapping(self) -> None:
        """Ask the router for a port of its own, unless only this host can reach ours."""
        bound = [each for each in self._demux.addresses if ":" not in each.ip and each.scope is not Scope.LOOPBACK]
        if not bound:
            return
        # Secret, and the same at every start: a router lets nobody else change the mapping (RFC 6887, section 11.3).
        nonce = self._meshes[0].identity.sign(_NONCE_CONTEXT)[:12]
        mapper = self.mapper = PortMapper(bound[0].port, self._port_mapped, nonce=nonce)
        mapper.start()

    def _port_mapped(self, address: Address | None) -> None:
        _log.info("the router leads %s to us", address) if address else _log.info("the router leads no port to us")
        self.poke()


def _announce(lan: Lan, mesh: Mesh) -> None:
    def on_peer(address: Address) -> None:
        mesh.seeker.found(address, Source.LAN, scope=Scope.LINK)

    lan.add(lambda: mesh.key.lan_tags(time.time()), on_peer)


async def _resolve(target: Target) -> list[Address]:
    with suppress(ValueError):
        return [Address(str(ip_address(target.host)), target.port)]
    loop = asyncio.get_running_loop()
    try:
        infos = await loop.getaddrinfo(target.host, target.port)
    except (OSError, UnicodeError):
        return []
    return [Address(str(info[4][0]), target.port) for info in infos]
