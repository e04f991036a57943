"""TunTcp: the TCP of a TUN device, which the kernel does at both ends; only addresses and ports are changed here.

A SYN waits until the flow it asks for is open, and is refused like it: so programs see the far end's own answer.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from proxy_vpn.addresses import Target
from proxy_vpn.doors.acceptor import Acceptor
from proxy_vpn.doors.dns_stream import TcpOpener
from proxy_vpn.doors.join import join
from proxy_vpn.doors.listen import Listener
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.doors.tcp import TcpDuplex, close_socket
from proxy_vpn.doors.tun_device import TunDevice
from proxy_vpn.doors.tun_table import MAX_CONNECTIONS, RESET, Connection, TunTable, split
from proxy_vpn.errors import FlowError, Status
from proxy_vpn.wire.packet import (
    ACK,
    FIN,
    NEEDS_CHECKSUM,
    RST,
    SYN,
    VNET_BYTES,
    Packet,
    adjusted,
    parse,
    tcp_reset,
)

MAX_OPENING: Final = 1024
SWEEP_S: Final = 1.0
PORT_TRIES: Final = 8
_log = logging.getLogger(__name__)
# Where addresses and ports stand in a packet with its virtio header; the ports are TCP's first four bytes.
_REGION4: Final = (VNET_BYTES + 12, VNET_BYTES + 24)
_REGION6: Final = (VNET_BYTES + 8, VNET_BYTES + 44)
_FLAGS_AT: Final = 9  # from the region's end
_CHECKSUM_AT: Final = 12
_TCP_BYTES_AFTER: Final = 16
_PLAIN_IPV4: Final = 0x45
MakeSocket = Callable[[int], Awaitable[socket.socket]]


async def socket_here(family: int) -> socket.socket:
    """A TCP socket in this process's own network."""
    return socket.socket(family, socket.SOCK_STREAM)


class TunTcp:
    """Translates; `listeners` are on this machine's own addresses. `unreachable` tells a program why not.

    `make_socket`: a TCP socket of a family, in the device's network.
    """

    def __init__(
        self,
        device: TunDevice,
        listeners: Sequence[socket.socket],
        outgoing: TcpOpener,
        own: OwnListeners,
        unreachable: Callable[[Packet, FlowError], None],
        make_socket: MakeSocket,
    ) -> None:
        self.table = TunTable()
        self._device = device
        self._outgoing = outgoing
        self._unreachable = unreachable
        self._make_socket = make_socket
        self._opening: dict[bytes, asyncio.Task[None]] = {}
        self._dialled: dict[Connection, socket.socket] = {}
        self._ports = {_packed(sock.getsockname()[0]): sock.getsockname()[1] for sock in listeners}
        self._loop = asyncio.get_running_loop()
        self._acceptors = [Acceptor(Listener(sock, own), self._serve, MAX_CONNECTIONS) for sock in listeners]
        self._timer: asyncio.Handle | None = None
        self._closed = self._told_full = False

    @property
    def own(self) -> Mapping[bytes, int]:
        """This machine's addresses, and the listeners' ports there."""
        return self._ports

    @property
    def opening(self) -> int:
        """How many connections wait for their flow."""
        return len(self._opening)

    async def close(self) -> None:
        """Break what is open; idempotent. The resets of it are still to be read from the device."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        tasks = list(self._opening.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for acceptor in self._acceptors:
            await acceptor.close()

    def take(self, buffer: bytearray, size: int, now: float) -> None:
        """A TCP packet of the device, `size` bytes with its virtio header; it is changed in place."""
        start, end = _REGION4 if buffer[VNET_BYTES] >> 4 == 4 else _REGION6
        if size < end + _TCP_BYTES_AFTER or (start == _REGION4[0] and not _is_plain(buffer)):
            return
        key = bytes(buffer[start:end])
        flags = buffer[end + _FLAGS_AT]
        rule = self.table.rules.get(key)
        if rule is None or (flags & (SYN | ACK) == SYN and rule.connection.ended):
            self._unknown(bytes(memoryview(buffer)[:size]), key, flags)
            return
        buffer[start:end] = rule.region
        if rule.delta and not buffer[0] & NEEDS_CHECKSUM:
            at = end + _CHECKSUM_AT
            checksum = adjusted(buffer[at] << 8 | buffer[at + 1], rule.delta)
            buffer[at], buffer[at + 1] = checksum >> 8, checksum & 0xFF
        connection = rule.connection
        connection.used = now
        if flags & (FIN | RST):
            self.table.end(connection, RESET if flags & RST else rule.fin)
        self._device.write(memoryview(buffer)[:size])

    def is_unfinished(self) -> bool:
        """Whether what a program that has ended wrote may still be on its way."""
        self._look_at_dialled()
        return self.table.is_unfinished(self._loop.time())

    async def dial(self, own: bytes, source: bytes, port: int) -> socket.socket:
        """A connection to `port` of our address `own` that its service sees come from `source`; raises OSError."""
        family = socket.AF_INET6 if len(own) == 16 else socket.AF_INET
        for _try in range(PORT_TRIES):
            sock = await self._make_socket(family)
            try:
                sock.setblocking(False)
                sock.bind((_text(own), 0))
                ports = sock.getsockname()[1].to_bytes(2, "big") + port.to_bytes(2, "big")
                if not self._make_room():
                    raise OSError(errno.ENOBUFS, "too many connections")
                connection = self.table.lead_to_service(own + source + ports, self._loop.time())
                if connection is None:  # those ports are a connection's already
                    sock.close()
                    continue
                self._sweep_later()
                try:
                    await self._loop.sock_connect(sock, (_text(source), port))
                except BaseException:
                    self.table.remove(connection)
                    raise
                self._dialled[connection] = sock
                return sock
            except BaseException:
                sock.close()
                raise
        raise OSError(errno.EADDRNOTAVAIL, "no port is free")

    def _unknown(self, data: bytes, key: bytes, flags: int) -> None:
        """A connection's first packet, or one of a connection that is gone."""
        packet = parse(data[VNET_BYTES:])
        own, far, _, target_port = split(key)
        if packet is None or self._closed or own not in self._ports or far in self._ports or _is_group(far):
            return
        task = self._opening.get(key)
        if flags & RST:
            if task is not None:
                del self._opening[key]  # a task that is cancelled before its first step does not do it
                task.cancel()
            return
        if not flags & SYN or flags & ACK:
            self._refuse(packet)
            return
        if task is not None:
            return
        rule = self.table.rules.get(key)
        if rule is not None:  # the same ports anew, before the old connection was forgotten
            self.table.remove(rule.connection)
        if not self._make_room() or len(self._opening) >= MAX_OPENING:
            self._refuse(packet)
            return
        target = Target(_text(far), int.from_bytes(target_port, "big"))
        self._opening[key] = self._loop.create_task(self._open(key, target, packet, data))

    async def _open(self, key: bytes, target: Target, packet: Packet, data: bytes) -> None:
        try:
            flow = await self._outgoing.open_tcp(target)
        except FlowError as error:
            if error.status is Status.REFUSED:
                self._refuse(packet)
            else:
                self._unreachable(packet, error)
            return
        finally:
            if self._opening.get(key) is asyncio.current_task():
                del self._opening[key]
        now = self._loop.time()
        connection = self.table.lead_to_listener(key, self._ports[packet.source], now)
        if connection is None:
            flow.reset()
            self._refuse(packet)
            return
        connection.flow = flow
        self._sweep_later()
        self.take(bytearray(data), len(data), now)  # the SYN that was held, as if it came just now

    async def _serve(self, sock: socket.socket) -> None:
        own, far = sock.getsockname(), sock.getpeername()
        connection = self.table.connection(_packed(own[0]), _packed(far[0]), own[1], far[1])
        if connection is None or connection.flow is None or connection.accepted:
            close_socket(sock, reset=True)  # somebody who found the port, not a translated connection
            return
        connection.accepted = True
        try:
            await join(TcpDuplex(sock), connection.flow)
        finally:
            connection.done = True

    def _make_room(self) -> bool:
        """Whether there is place for one more; who ended first is forgotten for it, even if a little early."""
        while self.table.is_full and (ended := self.table.oldest_ended()) is not None:
            self.table.remove(ended)
            self._forgotten(ended)
        if self.table.is_full and not self._told_full:
            self._told_full = True
            _log.warning("%d connections are open through the interface: new ones are refused", MAX_CONNECTIONS)
        return not self.table.is_full

    def _forgotten(self, connection: Connection) -> None:
        self._dialled.pop(connection, None)
        if connection.flow is not None and not connection.accepted:
            connection.flow.reset()

    def _refuse(self, packet: Packet) -> None:
        answer = tcp_reset(packet)
        if answer is not None:
            self._device.write(answer)

    def _look_at_dialled(self) -> None:
        """A socket was given away by `dial`, and tells nobody but the kernel when it is closed."""
        for connection, sock in tuple(self._dialled.items()):
            if sock.fileno() < 0:
                connection.done = True
                del self._dialled[connection]

    def _sweep_later(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        self._look_at_dialled()
        for connection in self.table.remove_ended(self._loop.time()):
            self._forgotten(connection)
        if len(self.table):
            self._sweep_later()


def _is_plain(buffer: bytearray) -> bool:
    """No options and no fragment."""
    return buffer[VNET_BYTES] == _PLAIN_IPV4 and not (buffer[VNET_BYTES + 6] & 0x3F or buffer[VNET_BYTES + 7])


def _is_group(ip: bytes) -> bool:
    return ipaddress.ip_address(ip).is_multicast


def _packed(ip: str) -> bytes:
    return ipaddress.ip_address(ip).packed


def _text(ip: bytes) -> str:
    return str(ipaddress.ip_address(ip))
