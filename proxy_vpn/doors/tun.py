"""TunDoor: a TUN device as a door, for programs that know nothing of proxies.

TCP is translated into local sockets, UDP becomes datagram flows, pings become the peer's real round trip, and a name
server answers inside. The other way round, peers' flows are handed to this host's services with the peer's address.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from ipaddress import ip_address
from typing import Any, Final

from proxy_vpn.doors import tun_icmp
from proxy_vpn.doors.dns_server import Zone, answer
from proxy_vpn.doors.dns_stream import DNS_PORT, NamesFirst
from proxy_vpn.doors.outgoing import Outgoing
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.doors.tun_device import BUFFER_BYTES, TunDevice
from proxy_vpn.doors.tun_setup import TunPlan
from proxy_vpn.doors.tun_table import MAX_CONNECTIONS
from proxy_vpn.doors.tun_tcp import MakeSocket, TunTcp, socket_here
from proxy_vpn.doors.tun_udp import ServedDatagrams, TunUdp, Way, way_of
from proxy_vpn.errors import FlowError
from proxy_vpn.net.turns import TURNS
from proxy_vpn.wire.fragments import Reassembly
from proxy_vpn.wire.packet import ICMP, ICMPV6, TCP, UDP, VNET_BYTES, Packet, parse

PACKETS_A_TURN, SHORT_TURN_PACKETS = 64, 16  # before others on the event loop have their turn
MAX_ASKING: Final = 256  # echoes and name queries in flight
FINISH_S: Final = 30.0
FINISH_EVERY_S: Final = 0.05
REFUSALS_A_S: Final = 100  # ICMP errors told; beyond, programs wait for their own timeouts
_log = logging.getLogger(__name__)


class TunDoor:
    """Serves `device` and the `listeners` that came with it; both are closed with the door.

    `echo`: a peer's round trip in seconds, for an address; raises FlowError. `zone`: the names that are known.
    `make_socket`: a TCP socket in the device's network, which may be another than this process's.
    """

    def __init__(
        self,
        device: TunDevice,
        listeners: list[socket.socket],
        plan: TunPlan,
        outgoing: Outgoing,
        echo: Callable[[str], Awaitable[float]],
        zone: Zone,
        own: OwnListeners,
        make_socket: MakeSocket = socket_here,
    ) -> None:
        self._device = device
        self._plan = plan
        self._echo = echo
        self._zone = zone
        name_servers = (*plan.dns, *plan.other_dns)
        self._dns = {ip_address(ip).packed for ip in name_servers}
        self._broadcasts = {own.network.broadcast_address.packed for own in plan.addresses if own.version == 4}
        opener = NamesFirst(outgoing, name_servers, partial(self._respond, over_tcp=True))
        self._tcp = TunTcp(device, listeners, opener, own, self._tell_why, make_socket)
        self._udp = TunUdp(device, outgoing, self._tell_why_udp)
        self._fragments = Reassembly()
        self._buffer = bytearray(BUFFER_BYTES)
        self._asking: set[asyncio.Task[None]] = set()
        self._loading: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._refusals = 0
        self._refusals_since = 0.0

    @property
    def name(self) -> str:
        """The interface's."""
        return self._device.name

    @property
    def guarded(self) -> bool:
        """Whether nothing comes from its networks through other interfaces."""
        return self._device.guard is not None

    @property
    def flows(self) -> int:
        """TCP connections and UDP flows that are open, or opening."""
        return len(self._tcp.table) + self._tcp.opening + len(self._udp)

    async def start(self) -> None:
        """Read from now on."""
        self._loop.add_reader(self._device.fileno(), self._on_readable)

    async def finish(self) -> None:
        """Wait, for FINISH_S at most, until what programs wrote before they ended is delivered."""
        for _look in range(int(FINISH_S / FINISH_EVERY_S)):  # nothing tells that no more packets come
            if not self._tcp.is_unfinished():
                return
            await asyncio.sleep(FINISH_EVERY_S)

    async def close(self) -> None:
        """Break what is open and give the device back: interface, addresses and routes go with it. Idempotent."""
        await self._tcp.close()
        if self._device.fileno() >= 0:
            for _turn in range(MAX_CONNECTIONS // SHORT_TURN_PACKETS):
                self._on_readable()  # resets, which programs would wait for otherwise
            self._loop.remove_reader(self._device.fileno())
        tasks = [*self._asking, *([self._loading] if self._loading else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._udp.close()
        self._device.close()

    async def dial(self, source_ip: str, port: int) -> socket.socket:
        """A connection to this host's service at `port`, which sees it come from `source_ip`; raises OSError."""
        source = ip_address(source_ip).packed
        return await self._tcp.dial(self._own_for(source_ip), source, port)

    def datagrams_from(self, source_ip: str, port: int) -> ServedDatagrams:
        """The same for UDP."""
        return self._udp.datagrams_from(self._own_for(source_ip), ip_address(source_ip).packed, port)

    def own_ip(self, source_ip: str) -> str:
        """This machine's address in the network of another; raises OSError."""
        return str(ip_address(self._own_for(source_ip)))

    def _own_for(self, source_ip: str) -> bytes:
        ip = ip_address(source_ip)
        own = next((own for own in self._plan.addresses if ip.version == own.version and ip in own.network), None)
        if own is None or own.ip.packed not in self._tcp.own:
            raise OSError(f"{source_ip} is in no network of {self.name}")
        return own.ip.packed

    def _on_readable(self) -> None:
        now = self._loop.time()
        for _turn in range(SHORT_TURN_PACKETS if TURNS.are_short(now) else PACKETS_A_TURN):
            try:
                size = self._device.read_into(self._buffer)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                _log.error("the interface %s is gone: %s", self.name, error)
                self._loop.remove_reader(self._device.fileno())
                return
            self._take(size, now)

    def _take(self, size: int, now: float) -> None:
        buffer = self._buffer
        version = buffer[VNET_BYTES] >> 4
        if (version == 4 and buffer[VNET_BYTES + 9] == TCP) or (version == 6 and buffer[VNET_BYTES + 6] == TCP):
            self._tcp.take(buffer, size, now)
            return
        packet = parse(bytes(memoryview(buffer)[VNET_BYTES:size]))
        if packet is not None and packet.fragment is not None:
            packet = self._fragments.add(packet, now)
        # Groups and broadcasts are not for peers; what others forward through this host has no address of ours.
        if packet is None or packet.source not in self._tcp.own or not self._is_far(packet.target):
            return
        if packet.protocol == UDP:
            self._take_datagram(packet)
        elif packet.protocol in (ICMP, ICMPV6):
            self._ask(self._answer_icmp(packet))

    def _is_far(self, target: bytes) -> bool:
        ip = ip_address(target)
        return not (target in self._tcp.own or target in self._broadcasts or ip.is_multicast or ip.is_unspecified)

    def _take_datagram(self, packet: Packet) -> None:
        found = way_of(packet)
        if found is None:
            return
        way, payload = found
        if way.far in self._dns and way.far_port == DNS_PORT:
            self._ask(self._answer_query(way, payload))
        else:
            self._udp.take(way, payload)

    async def _answer_icmp(self, packet: Packet) -> None:
        await self._load()
        echo = tun_icmp.read_echo(packet)
        if echo is not None:
            await self._answer_echo(packet, echo)
        elif (refused := tun_icmp.read_refused(packet)) is not None:
            # About a packet of ours: what it came from is the peer, and the service was ours.
            self._udp.refused(Way(refused.target, refused.target_port, refused.source, refused.source_port))

    async def _load(self) -> None:
        """scapy, for the first packet that wants it: most interfaces see TCP and UDP alone."""
        if self._loading is None:
            self._loading = self._loop.create_task(asyncio.to_thread(tun_icmp.load))
        await asyncio.shield(self._loading)

    def _ask(self, work: Coroutine[Any, Any, None]) -> None:
        if len(self._asking) >= MAX_ASKING:
            work.close()
            return
        task = self._loop.create_task(work)
        self._asking.add(task)
        task.add_done_callback(self._asked)

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a question went wrong", exc_info=task.exception())

    async def _respond(self, query: bytes, over_tcp: bool) -> bytes | None:
        await self._load()
        return await answer(query, self._zone, over_tcp)

    async def _answer_query(self, way: Way, query: bytes) -> None:
        response = await self._respond(query, over_tcp=False)
        if response is not None:
            self._udp.deliver(way, response)

    async def _answer_echo(self, packet: Packet, echo: tun_icmp.Echo) -> None:
        if packet.target not in self._dns:
            try:
                await self._echo(str(ip_address(packet.target)))
            except FlowError as error:
                self._tell_why(packet, error)
                return
        self._device.write(tun_icmp.echo_reply(packet, echo))

    def _tell_why(self, packet: Packet, error: FlowError) -> None:
        if self._may_tell():
            self._ask(self._write(partial(tun_icmp.unreachable, packet, error.status)))

    def _tell_why_udp(self, way: Way, error: FlowError) -> None:
        if self._may_tell():
            self._ask(self._write(partial(tun_icmp.udp_unreachable, *way, error.status)))

    async def _write(self, packet: Callable[[], bytes]) -> None:
        await self._load()
        self._device.write(packet())

    def _may_tell(self) -> bool:
        now = self._loop.time()
        if now - self._refusals_since >= 1:
            self._refusals, self._refusals_since = 0, now
        self._refusals += 1
        return self._refusals <= REFUSALS_A_S
