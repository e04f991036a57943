"""TunUdp: the UDP of a TUN device; programs' datagrams are flows, and peers' flows are datagrams to services here."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable
from typing import Final, NamedTuple

from proxy_vpn.addresses import Target
from proxy_vpn.doors.outgoing import Outgoing
from proxy_vpn.doors.tun_device import TunDevice
from proxy_vpn.doors.udp import DatagramFlow
from proxy_vpn.doors.udp_sessions import UdpSessions
from proxy_vpn.errors import FlowError
from proxy_vpn.wire.packet import Packet, udp

MAX_FLOWS: Final = 1024
MAX_PAYLOAD_BYTES: Final = 65507
PORT_TRIES: Final = 64
_EPHEMERAL: Final = (32768, 60999)


class Way(NamedTuple):
    """A datagram's: from this machine's `own`:`own_port` to `far`:`far_port`; packed addresses."""

    own: bytes
    own_port: int
    far: bytes
    far_port: int


class TunUdp:
    """`failed` hears of programs' datagrams that can't be sent on."""

    def __init__(self, device: TunDevice, outgoing: Outgoing, failed: Callable[[Way, FlowError], None]) -> None:
        self._device = device
        self._outgoing = outgoing
        self._served: dict[Way, ServedDatagrams] = {}
        self._sessions: UdpSessions[Way] = UdpSessions(self._open, self.deliver, MAX_FLOWS, failed=failed)

    def __len__(self) -> int:
        return len(self._sessions) + len(self._served)

    async def close(self) -> None:
        """Close every flow; idempotent."""
        for flow in list(self._served.values()):
            flow.close()
        await self._sessions.close()

    def take(self, way: Way, payload: bytes) -> None:
        """A datagram that came out of the device."""
        served = self._served.get(way)
        if served is None:
            self._sessions.send(way, payload)
        elif served.on_datagram is not None:
            served.on_datagram(payload)

    def refused(self, way: Way) -> None:
        """The host says that nobody listens at `way.own_port`."""
        served = self._served.get(way)
        if served is not None and served.on_refused is not None:
            served.on_refused()

    def datagrams_from(self, own: bytes, source: bytes, port: int) -> ServedDatagrams:
        """Datagrams to and from our service at `port`, which sees them come from `source`; raises OSError."""
        for _try in range(PORT_TRIES):
            way = Way(own, port, source, random.randint(*_EPHEMERAL))
            if way not in self._served:
                flow = self._served[way] = ServedDatagrams(way, self.deliver, self._forget)
                return flow
        raise OSError("no port is free")

    def _forget(self, way: Way) -> None:
        self._served.pop(way, None)

    async def _open(self, way: Way) -> DatagramFlow:
        return await self._outgoing.open_udp(Target(str(ipaddress.ip_address(way.far)), way.far_port))

    def deliver(self, way: Way, payload: bytes) -> None:
        """Hand the host a datagram from `way.far` to `way.own`; one that fits no packet is dropped."""
        if len(payload) <= MAX_PAYLOAD_BYTES:
            self._device.write(udp(way.far, way.far_port, way.own, way.own_port, payload))


class ServedDatagrams:
    """A DatagramFlow to a service of this host, as doors.udp.UdpSocket is; it occupies no socket."""

    bound = None

    def __init__(self, way: Way, deliver: Callable[[Way, bytes], None], forget: Callable[[Way], None]) -> None:
        self.on_datagram: Callable[[bytes], None] | None = None
        self.on_closed: Callable[[], None] | None = None
        self.on_refused: Callable[[], None] | None = None
        self._way = way
        self._deliver = deliver
        self._forget = forget
        self.closed = False

    def send(self, payload: bytes) -> None:
        """To the service."""
        self._deliver(self._way, payload)

    def close(self) -> None:
        """Idempotent."""
        self.closed = True
        self._forget(self._way)


def way_of(packet: Packet) -> tuple[Way, bytes] | None:
    """A UDP packet's way and payload; None if its length is wrong (RFC 768)."""
    ports = packet.ports
    size = int.from_bytes(packet.payload[4:6], "big")
    if ports is None or not 8 <= size <= len(packet.payload):
        return None
    return Way(packet.source, ports[0], packet.target, ports[1]), packet.payload[8:size]
