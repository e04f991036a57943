"""A Node is one running process: the only place that builds everything, and the Python API.

    async with Node(settings) as node:
        reader, writer = await node.open("peer-b", 22)

From the bottom up: UDP sockets and the demultiplexer, one Mesh a network, where their peers are found, the doors,
the control API.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from functools import partial
from types import TracebackType
from typing import Any

from proxy_vpn.addresses import Address, ForwardSpec, Target
from proxy_vpn.config import Settings
from proxy_vpn.daemon import doctor, memory, report, search, sockets, tunnel
from proxy_vpn.daemon.allocator import keep_buffers
from proxy_vpn.daemon.capture import Captures
from proxy_vpn.daemon.console import Console
from proxy_vpn.daemon.control import ControlServer
from proxy_vpn.daemon.discovery import Discovery
from proxy_vpn.daemon.findings import DoctorReply
from proxy_vpn.daemon.messages import ForgetReply, PingReply
from proxy_vpn.daemon.served import ServedFlows, raise_descriptor_limit
from proxy_vpn.daemon.state import NetworkState, StateDirectory
from proxy_vpn.daemon.status import DaemonStatus, ExposeStatus, ForwardStatus, open_door
from proxy_vpn.daemon.warnings import Warnings
from proxy_vpn.doors.beyond import Beyond
from proxy_vpn.doors.direct import Direct
from proxy_vpn.doors.forward import ForwardDoor
from proxy_vpn.doors.namespace import Inside, NamespaceDoor
from proxy_vpn.doors.namespace_wire import Wish
from proxy_vpn.doors.outgoing import Outgoing
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.doors.proxy import ProxyDoor
from proxy_vpn.doors.serve import ServeDoor
from proxy_vpn.doors.streams import open_streams
from proxy_vpn.doors.tun import TunDoor
from proxy_vpn.doors.tun_setup import TunPlan
from proxy_vpn.errors import FlowError, PvpnError, StateError, Status, UsageError
from proxy_vpn.keys import NetworkKey
from proxy_vpn.mesh.credit import PROCESS_GROWTH_LIMIT_BYTES, Budget
from proxy_vpn.mesh.keyring import Keyring
from proxy_vpn.mesh.mesh import Mesh, World
from proxy_vpn.mesh.names import Router
from proxy_vpn.mesh.openings import Incoming, IncomingTcp, IncomingUdp
from proxy_vpn.mesh.policy import Policy
from proxy_vpn.mesh.roster import Peer
from proxy_vpn.mesh.routes import Offer, Ways
from proxy_vpn.mesh.session import Session
from proxy_vpn.mesh.virtual import SHARED_SPACE, Addresses
from proxy_vpn.net.busy_poll import BusyPollSelector
from proxy_vpn.net.bypass import Bypass
from proxy_vpn.net.changes import NetworkWatch
from proxy_vpn.net.demux import Demultiplexer
from proxy_vpn.net.engines import engine_factory
from proxy_vpn.net.interfaces import attached_networks, networks_in_use
from proxy_vpn.net.overflow import overflows
from proxy_vpn.net.udp import UdpSocket
from proxy_vpn.ranges import parse_ip
from proxy_vpn.wire.messages import Reach

SAVE_EVERY_S = 60.0
SAVE_SOON_S = 0.1
_log = logging.getLogger(__name__)


class Node:
    """One process: several networks, their doors, and what control asks; `async with` starts and stops it."""

    def __init__(self, settings: Settings, console: Console | None = None) -> None:
        self.settings = settings
        self.started = time.time()
        self.overflows_before = overflows()
        self.own = OwnListeners()
        self.policy = Policy(settings.expose)
        self._offer = Offer(settings.routes, settings.offer_exit)
        self.meshes: list[Mesh] = []
        self.proxies: list[str] = []
        self.warnings = Warnings(console.warn if console else _log.warning)
        self.demux: Demultiplexer
        self.discovery: Discovery
        self.router: Router
        self.state: StateDirectory
        self.tun: TunDoor | None = None
        self.resolved_asks = False
        self._bypass: Bypass | None = None
        self._colliding: set[Mesh] = set()
        self._console = console
        self._stack = AsyncExitStack()
        self._states: dict[Mesh, NetworkState] = {}
        self._forwards: dict[ForwardSpec, tuple[ForwardDoor, bool]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._dirty = asyncio.Event()

    # --- life -------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Node:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        settings = self.settings
        factory = engine_factory(settings.engine or "auto")
        self.state = self._stack.enter_context(StateDirectory.open(settings.state))
        self.demux = Demultiplexer(self._bind())
        self._stack.callback(self.demux.close)
        self.discovery = Discovery(settings, self.state, self.demux)
        keyring = Keyring()
        self.demux.on_sealed = keyring.receive
        self.engine_name = factory.name
        budget = Budget(PROCESS_GROWTH_LIMIT_BYTES)
        world = World(self.demux, keyring, factory, budget, os.urandom, time.time, self.discovery.own_addresses)
        world.networks_in_use.extend(networks_in_use())
        self._stack.push_async_callback(self._cancel_tasks)
        for key in settings.keys:
            self._add_mesh(key, world)
        self._captures = Captures(world.tap, self._virtual_addresses, self._watched)
        self._ways = Ways(self.meshes, settings.accept_routes, settings.exit)
        self._ways.attached = attached_networks()
        self.router = Router(self.meshes, self._ways)
        self._serve = ServeDoor(self.policy, self.own, Beyond(self._offer, self.own))
        if settings.tun:
            await self._open_tun()
        self._served = ServedFlows(raise_descriptor_limit())
        self._stack.push_async_callback(self.discovery.close)
        self.discovery.start(self.meshes)
        await self._open_doors()
        # The last pushed is the first to run: flows get their two seconds while the doors still stand.
        self._stack.push_async_callback(self._stop_meshes)
        watch = NetworkWatch(self._network_changed)
        self._stack.callback(watch.close)
        self.state.count_start()
        self._spawn(self._housekeeping())
        self._spawn(search.watch(self))
        self._spawn(search.watch_unreached(self))

    def _bind(self) -> list[UdpSocket]:
        if self.settings.listen:
            sockets = [UdpSocket(address) for address in self.settings.listen]
        else:
            sockets = self._bind_everywhere()
        for bound in sockets:
            self.own.add(bound.address, udp=True)
            if not self.settings.dht_serve:
                bound.ignore_dht_queries()
        return sockets

    def _bind_everywhere(self) -> list[UdpSocket]:
        """Every address at the remembered port; another port if somebody has taken that."""
        try:
            first = UdpSocket(Address("0.0.0.0", self.state.udp_port))
        except StateError:
            first = UdpSocket(Address("0.0.0.0", 0))
            self.warnings.add(
                f"UDP port {self.state.udp_port} is taken, using {first.address.port} - peers will follow"
            )
        if first.address.port != self.state.udp_port:
            self.state.save_udp_port(first.address.port)
        with suppress(StateError):  # no IPv6 on this host
            return [first, UdpSocket(Address("::", first.address.port))]
        return [first]

    def _add_mesh(self, key: NetworkKey, world: World) -> None:
        state = self.state.network(key.network_id)
        mesh = Mesh(key, state.identity(), self.settings.name, world, self)
        mesh.relay.enabled = self.settings.relay
        mesh.leads_to = self._offer.messages()
        self.meshes.append(mesh)
        self._states[mesh] = state
        self._stack.push_async_callback(self._stop_mesh, mesh)
        memory.recall(mesh, state.load())
        if mesh.virtual.is_crowded:
            what = (
                f"this host uses all of {SHARED_SPACE}: what {key.name} has of it, {mesh.virtual.v4}, may be another's"
            )
            self.warnings.add(f"{what} - use peers' names or IPv6")

    async def _stop_meshes(self) -> None:
        async with asyncio.TaskGroup() as group:
            for mesh in self.meshes:
                group.create_task(mesh.close())

    async def _stop_mesh(self, mesh: Mesh) -> None:
        await mesh.close()
        with suppress(StateError):  # on the way out nobody can mend the disk
            self._states[mesh].save(memory.snapshot(mesh))

    async def _open_doors(self) -> None:
        direct = Direct(self.own) if self.settings.direct else None
        for target in self.settings.proxies:
            where = await self._open_proxy(ProxyDoor(self.router, (target.host, target.port), direct, self.own))
            self.proxies.append(str(where))
            if isinstance(where, Address) and (warning := open_door(where, "proxy")):
                self.warnings.add(warning)
        if sys.platform == "linux":
            sockets.prepare(self.state.exec_socket)
            namespaces = NamespaceDoor(str(self.state.exec_socket), self._plan_inside, self._door_inside, self.own)
            await namespaces.start()
            self._stack.push_async_callback(namespaces.close)
        sockets.prepare(self.state.proxy_socket)
        await self._open_proxy(ProxyDoor(self.router, str(self.state.proxy_socket), None, self.own))
        for spec in self.settings.forwards:
            await self.add_forward(spec, held=False)
        self._stack.push_async_callback(self._close_forwards)
        control = ControlServer(self, self.state.control_socket, self._captures)
        await control.start()
        self._stack.push_async_callback(control.close)

    async def _open_tun(self) -> None:
        settings = self.settings
        if settings.exit:
            await self.discovery.look_ahead()
        plan = tunnel.plan(self.meshes, to_exit=bool(settings.exit))
        made = await tunnel.make(plan)
        self.resolved_asks = made.resolved_asks
        device, listeners = made.interface.device, made.interface.listeners
        for warning in made.shortcomings:
            self.warnings.add(warning)
        tunnel.drop_privileges(self.state.path, routes_change=settings.accept_routes)
        if settings.exit or settings.accept_routes:
            self._bypass = Bypass(device.name)
            self.demux.choose_interfaces(self._bypass.interface)
        zone = tunnel.PeerZone(self.router, self.meshes, to_exit=bool(settings.exit))
        outgoing = Outgoing(self.router, None)
        self.tun = TunDoor(device, listeners, plan, outgoing, partial(tunnel.echo, self.router), zone, self.own)
        door = tunnel.ServingDoor(self.tun, self._serve)
        self._stack.push_async_callback(door.close)
        await door.start()
        if settings.accept_routes:
            self._spawn(tunnel.keep_routes(device.name, self._ways))

    def _plan_inside(self, wish: Wish) -> TunPlan:
        return tunnel.enclosed_plan(self._meshes(wish.net), wish.only_peers)

    def _door_inside(self, inside: Inside) -> tunnel.ServingDoor:
        """For a command of `pvpn exec`."""
        direct = Direct(self.own) if self.settings.direct and not inside.wish.only_peers else None
        zone = tunnel.PeerZone(self.router, self.meshes, inside.wish.only_peers, bool(self.settings.exit))
        ping = partial(tunnel.echo, self.router)
        outgoing = Outgoing(self.router, direct)
        make_socket = inside.sockets.make
        door = TunDoor(inside.device, inside.listeners, inside.plan, outgoing, ping, zone, self.own, make_socket)
        return tunnel.ServingDoor(door, self._serve)

    async def _open_proxy(self, door: ProxyDoor) -> Address | str:
        where = await door.start()
        self._stack.push_async_callback(door.close)
        return where

    async def _close_forwards(self) -> None:
        for door, _ in self._forwards.values():
            await door.close()
        self._forwards.clear()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a task failed", exc_info=task.exception())

    async def _cancel_tasks(self) -> None:
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _housekeeping(self) -> None:
        while True:
            await self.discovery.look_for_user_peers()
            with suppress(TimeoutError):
                async with asyncio.timeout(SAVE_EVERY_S):
                    await self._dirty.wait()
            await asyncio.sleep(SAVE_SOON_S)
            self._dirty.clear()
            await self._save()

    async def _save(self) -> None:
        """Write what is known, in a thread because it waits for the disk; what fails is tried again next time."""
        try:
            for mesh, state in self._states.items():
                await asyncio.to_thread(state.save, memory.snapshot(mesh))
            await self.discovery.save()
        except StateError as error:
            self.warnings.add(f"what is known of peers can't be saved: {error.what} - {error.hint}")

    def _network_changed(self) -> None:
        """Addresses, links or routes are others now, or the host woke up."""
        if self._bypass is not None:
            self._bypass.forget()
        for mesh in self.meshes:
            mesh.network_changed()
        self._ways.attached = attached_networks()
        self._serve.network_changed()
        self.discovery.network_changed()
        self._look_for_collisions()

    def _look_for_collisions(self) -> None:
        """A network that came up while this runs may have the range of peers' addresses, which stays what it is."""
        used = [network for network in networks_in_use() if network.version == 4]
        for mesh in self.meshes:
            range4 = mesh.virtual.v4
            # The interface of --tun has the whole range itself.
            if mesh.virtual.is_crowded:
                continue  # there is nowhere to move to, and that was said at the start
            if any(network.overlaps(range4) for network in used if self.tun is None or network != range4):
                self._colliding.add(mesh)
                text = f"this host has a network within {range4} now, where the addresses of {mesh.key.name} are"
                if self.tun is not None and self.tun.guarded:
                    text += ", and takes nothing from it"
                self.warnings.add(f"{text} - restart pvpn to move them", partial(self._is_settled, mesh))
            else:
                self._colliding.discard(mesh)

    def _is_settled(self, mesh: Mesh) -> bool:
        return mesh not in self._colliding

    # --- MeshObserver -----------------------------------------------------------------------------------------------

    def peer_live(self, peer: Peer, session: Session, took_s: float) -> None:
        """A peer came."""
        self._dirty.set()
        self.router.peer_arrived()
        if self._console:
            mesh = next(mesh for mesh in self.meshes if mesh.key.name == peer.network)
            path = mesh.describe(session.link.path) if session.link.path else ""
            self._console.peer_came(peer.network, peer.name, path, took_s)

    def peer_lost(self, peer: Peer, reason: str) -> None:
        """A peer went."""
        self._dirty.set()
        self.discovery.poke()
        if self._console:
            self._console.peer_went(peer.network, peer.name, reason)

    def warning(self, text: str, settled: Callable[[], bool] = lambda: False) -> None:
        """Something the user should know, until it is settled."""
        self.warnings.add(text, settled)

    def reach(self) -> Reach:
        """How this host is connected, for peers to know."""
        return doctor.reach(self)

    def flow_offered(self, peer: Peer, offer: Incoming) -> None:
        """A peer wants a service of this host."""
        if not self._served.admits(peer.identity):
            offer.refuse(Status.LIMIT)
        elif isinstance(offer, IncomingTcp):
            self._spawn(self._served.counting(peer.identity, self._serve.serve_tcp(offer, self._source_ips(peer))))
        elif isinstance(offer, IncomingUdp):
            self._spawn(self._served.counting(peer.identity, self._serve.serve_udp(offer, self._source_ips(peer))))

    def _source_ips(self, peer: Peer) -> tuple[str, ...]:
        """As whom services see a peer, where there is a TUN device or a command's own network."""
        if not self._serve.insides:
            return ()
        addresses = self._meshes(peer.network)[0].virtual.of(peer.identity)
        return str(addresses.v4), str(addresses.v6)

    # --- the Python API ---------------------------------------------------------------------------------------------

    async def open(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A TCP connection to a peer's port as asyncio streams; raises FlowError (never goes direct)."""
        flow = await self.router.open_tcp(Target(host, port))
        if flow is None:
            raise FlowError(Status.NO_SUCH_NAME, f"no peer is called {host!a}", "see 'pvpn peers' for the names")
        return await open_streams(flow)

    # --- control.Daemon ---------------------------------------------------------------------------------------------

    def status(self) -> DaemonStatus:
        return report.status(self)

    def doctor(self) -> DoctorReply:
        return doctor.examine(self)

    def unready(self) -> str:
        return "" if search.any_peer_live(self) else "no peer is connected"

    async def ping(self, name: str, net: str) -> PingReply:
        mesh, peer = self._find(name, net)
        rtt_s, path = await mesh.ping(peer)
        return PingReply(peer=peer.name, network=mesh.key.name, rtt_ms=rtt_s * 1e3, path=mesh.describe(path))

    async def add_forward(self, spec: ForwardSpec, *, held: bool) -> ForwardSpec:
        network = spec.target.host.removesuffix(".pvpn").partition(".")[2]
        if network and parse_ip(spec.target.host) is None:
            self._meshes(network)  # raises for one that is not here
        door = ForwardDoor(self.router, spec, None, self.own)
        bound = await door.start()
        self._forwards[bound] = (door, held)
        if warning := open_door(bound, "forward"):
            self.warnings.add(warning, lambda: bound not in self._forwards)
        return bound

    def remove_forward(self, spec: ForwardSpec) -> None:
        found = self._forwards.pop(spec, None)
        if found is None:
            raise UsageError(f"there is no forward {spec}", "see 'pvpn forward --list'")
        self._spawn(found[0].close())

    def forwards(self) -> tuple[ForwardStatus, ...]:
        return tuple(
            ForwardStatus(spec=str(spec), held=held, flows=door.clients)
            for spec, (door, held) in self._forwards.items()
        )

    async def expose(self, spec: str) -> ExposeStatus:
        self.policy.extend(spec)
        return report.expose(self)

    async def forget(self, name: str, net: str) -> ForgetReply:
        name, _, network = name.lower().removesuffix(".pvpn").partition(".")
        for mesh in self._meshes(network or net):
            if name in mesh.roster.pins or mesh.roster.find(name):
                peer = mesh.forget(name)
                self.warnings.settle(name)
                self._dirty.set()
                return ForgetReply(peer=name, network=mesh.key.name, id=peer.identity.hex())
        raise UsageError(f"no peer is called {name!a}", "see 'pvpn peers' for the names")

    def _virtual_addresses(self, network: str, identity: bytes) -> tuple[Addresses, Addresses]:
        """This machine's and a peer's."""
        virtual = self._meshes(network)[0].virtual
        return virtual.own, virtual.of(identity)

    def _watched(self, peer: str, net: str) -> tuple[str, bytes]:
        """Whom a capture watches: (network, identity), either empty for all."""
        if not peer:
            return (self._meshes(net)[0].key.name if net else ""), b""
        mesh, found = self._find(peer, net)
        return mesh.key.name, found.identity

    def _find(self, name: str, net: str) -> tuple[Mesh, Peer]:
        meshes = self._meshes(net)
        found = self.router.find(f"{name.removesuffix('.pvpn')}.{net}.pvpn" if net and "." not in name else name)
        if found is None or found[0] not in meshes:
            raise FlowError(Status.NO_SUCH_NAME, f"no peer is called {name!a}", "see 'pvpn peers' for the names")
        return found

    def _meshes(self, net: str) -> list[Mesh]:
        meshes = [mesh for mesh in self.meshes if net in ("", mesh.key.name)]
        if not meshes:
            raise UsageError(f"no network is called {net!a} here", "see 'pvpn status' for the networks")
        return meshes


async def _run(settings: Settings, console: Console) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with Node(settings, console) as node:
        for line in report.greeting(node):
            console.say(line)
        await stop.wait()
        console.say("stopping")


def run(settings: Settings) -> int:
    """Run a node in the foreground until Ctrl-C or SIGTERM; the exit code. Raises PvpnError."""
    keep_buffers()
    console = Console()
    console.take_logs(settings.verbosity)
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(BusyPollSelector())) as runner:
        runner.run(_run(settings, console))
    return 0


__all__ = ["Node", "PvpnError", "run"]
