"""Names: which host a program means - a peer of one of our networks, or somebody else's machine.

`peer`, `peer.pvpn`, `peer.home.pvpn` and a virtual address are peers; `.pvpn` never goes to DNS, and neither does the
name of a known peer that is offline. A single label that nobody bears goes direct. In a process's first 15 seconds a
name or virtual address that is nobody's waits up to 5 for a peer to show up under it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from proxy_vpn.addresses import NETWORK_SUFFIX, Target, valid_name
from proxy_vpn.errors import FlowError, Status
from proxy_vpn.mesh.flow import Flow
from proxy_vpn.mesh.mesh import Mesh
from proxy_vpn.mesh.roster import Peer
from proxy_vpn.mesh.routes import Ways
from proxy_vpn.mesh.udp_flow import UdpFlow
from proxy_vpn.mesh.virtual import Addresses
from proxy_vpn.ranges import IP, parse_ip

START_S = 15.0
START_WAIT_S = 5.0
_NEVER_PEERS = frozenset({"localhost"})


class Router:
    """Resolves hosts over all networks of the process and opens flows to peers."""

    def __init__(self, meshes: Sequence[Mesh], ways: Ways | None = None) -> None:
        self._meshes = meshes
        self._ways = ways or Ways(meshes)
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()
        self._arrived = asyncio.Event()

    def peer_arrived(self) -> None:
        """A peer became live: whoever waits for a name looks again."""
        self._arrived.set()
        self._arrived = asyncio.Event()

    def find(self, host: str) -> tuple[Mesh, Peer] | None:
        """The peer that a host name or virtual address means now; None if it is no peer's.

        Raises FlowError for unknown .pvpn names, and for addresses of a network of ours that nobody has.
        """
        if (ip := parse_ip(host)) is not None:
            return self._find_address(ip)
        name = host.lower().rstrip(".")
        if name.endswith(NETWORK_SUFFIX):
            found = self._find_qualified(name.removesuffix(NETWORK_SUFFIX))
            if found is None:
                hint = "see 'pvpn peers' for the names"
                raise FlowError(Status.NO_SUCH_NAME, f"no peer is called {name!a}", hint)
            return found
        return self._find_label(name, self._meshes) if valid_name(name) else None

    def _find_qualified(self, name: str) -> tuple[Mesh, Peer] | None:
        label, _, network = name.partition(".")
        meshes = [mesh for mesh in self._meshes if not network or mesh.key.name == network]
        return self._find_label(label, meshes)

    def _find_address(self, ip: IP) -> tuple[Mesh, Peer] | None:
        mesh = next((mesh for mesh in self._meshes if ip in mesh.virtual), None)
        if mesh is None:
            return None
        if ip in mesh.virtual.own:
            raise FlowError(Status.POLICY, f"{ip} is this machine itself", "use 127.0.0.1 for it")
        device = mesh.virtual.device_at(ip, (peer.identity for peer in mesh.roster))
        peer = None if device is None else mesh.roster.get(device)
        if peer is None:
            raise FlowError(Status.NO_SUCH_NAME, f"no peer has the address {ip}", "see 'pvpn peers --json'")
        return mesh, peer

    def name_at(self, ip: IP) -> str | None:
        """The full name of who has a virtual address, this machine included; None for one that nobody has."""
        for mesh in self._meshes:
            if ip in mesh.virtual.own:
                return f"{mesh.name}.{mesh.key.name}{NETWORK_SUFFIX}"
            device = mesh.virtual.device_at(ip, (peer.identity for peer in mesh.roster)) if ip in mesh.virtual else None
            if device is not None and (peer := mesh.roster.get(device)) is not None:
                return f"{peer.name}.{mesh.key.name}{NETWORK_SUFFIX}"
        return None

    def addresses(self, name: str) -> Addresses | None:
        """The virtual addresses that a name stands for, this machine's own too; None if it is nobody's."""
        with suppress(FlowError):
            found = self.find(name)
            return None if found is None else found[0].virtual.of(found[1].identity)
        label, _, network = name.lower().rstrip(".").removesuffix(NETWORK_SUFFIX).partition(".")
        own = (mesh for mesh in self._meshes if mesh.name == label and network in ("", mesh.key.name))
        return next((mesh.virtual.own for mesh in own), None)

    def _find_label(self, label: str, meshes: Sequence[Mesh]) -> tuple[Mesh, Peer] | None:
        found = [(mesh, peer) for mesh in meshes if (peer := mesh.roster.find(label)) is not None]
        if found:  # who is there answers before who is remembered
            return next(((mesh, peer) for mesh, peer in found if mesh.live_session(peer.identity)), found[0])
        if any(mesh.name == label for mesh in meshes):
            raise FlowError(Status.POLICY, f"{label} is this machine itself", "use 127.0.0.1 for it")
        return None

    async def resolve(self, host: str) -> tuple[Mesh, Peer] | None:
        """Like `find`, but patient while the process has just started."""
        try:
            found = self.find(host)
            if found is not None or not self._may_be_peer(host):
                return found
        except FlowError as error:  # a .pvpn name, or an address of ours: whoever it is, nobody else's
            if error.status is not Status.NO_SUCH_NAME or not self._starting():
                raise
            found = None
        try:
            async with asyncio.timeout(START_WAIT_S):
                while found is None:
                    arrived = self._arrived
                    await arrived.wait()
                    found = self._find_quietly(host)
        except TimeoutError:
            return self.find(host)
        return found

    def _find_quietly(self, host: str) -> tuple[Mesh, Peer] | None:
        try:
            return self.find(host)
        except FlowError:
            return None

    def _starting(self) -> bool:
        return self._loop.time() - self._started_at < START_S

    def _may_be_peer(self, host: str) -> bool:
        name = host.lower().rstrip(".")
        return self._starting() and name not in _NEVER_PEERS and valid_name(name)

    async def open_tcp(self, target: Target) -> Flow | None:
        """A TCP flow to a peer, or through one; None if the host is to be reached directly. Raises FlowError."""
        found = await self.resolve(target.host)
        if found is not None:
            return await found[0].open_tcp(found[1], target.port)
        way = self._ways.through(target.host)
        return None if way is None else await way[0].open_tcp(way[1], target.port, target.host)

    async def open_udp(self, target: Target) -> UdpFlow | None:
        """A UDP flow to a peer, or through one; None if the host is to be reached directly. Raises FlowError."""
        found = await self.resolve(target.host)
        if found is not None:
            return await found[0].open_udp(found[1], target.port)
        way = self._ways.through(target.host)
        return None if way is None else await way[0].open_udp(way[1], target.port, target.host)
