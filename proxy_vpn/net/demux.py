"""One UDP socket per address family carries everything; the Demultiplexer tells what each datagram is.

    00......  sealed datagram                               -> on_sealed
    1.......  bare long header: dropped
    01......  bytes 1..8 are a connection ID we issued      -> that Link
              else: looks like KRPC (BEP 5)                 -> on_krpc
              else: dropped

Nothing that was not understood and authenticated is ever answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from proxy_vpn.addresses import Address
from proxy_vpn.net.turns import TURNS
from proxy_vpn.net.udp import RECEIVE_BUFFER_BYTES, Path, UdpSocket
from proxy_vpn.wire.seal import is_sealed
from proxy_vpn.wire.segments import Segments, alone
from proxy_vpn.wire.train import SHORT_FIRST, cut

BATCHES_PER_TURN, SHORT_TURN_BATCHES = 32, 8
ALONE_BYTES, LOOK_EVERY, BULK_BYTES, MANY_S = 1000, 8, 8192, 0.02
_FIXED_BIT, _LONG_BIT = 0x40, 0x80


class LinkReceiver(Protocol):
    """What the demultiplexer needs of a connection."""

    def receive(self, segments: Segments, path: Path) -> None:
        """Take datagrams that bear one of the connection's IDs."""

    def settle(self) -> None:
        """All of this turn's datagrams have been received: deliver, send, set timers."""


class Demultiplexer:
    """The UDP sockets of the process and who gets their datagrams."""

    def __init__(self, sockets: Sequence[UdpSocket]) -> None:
        self._loop = asyncio.get_running_loop()
        self._sockets = list(sockets)
        self._held_back: dict[UdpSocket, dict[LinkReceiver, None]] = {}
        self.links: dict[bytes, LinkReceiver] = {}
        self.on_sealed: Callable[[bytes, Path], LinkReceiver | None] = lambda datagram, path: None
        self.on_krpc: Callable[[bytes, Address], None] = lambda datagram, source: None
        self.tunnels: dict[Address, Callable[[Sequence[bytes]], None]] = {}
        self.received_bytes = 0
        self.sent_bytes = 0
        self._alone = 0
        self._many_until = 0.0
        for socket in sockets:
            self._loop.add_reader(socket.fileno(), self._readable, socket)
            socket.watch_writable(lambda socket=socket: self._await_writable(socket))  # type: ignore[misc]

    def choose_interfaces(self, interface_to: Callable[[str], int | None]) -> None:
        """Send towards an IP address through the interface of this index; 0: the kernel's choice, None: not at all."""
        for socket in self._sockets:
            socket.interface_to = interface_to

    @property
    def addresses(self) -> list[Address]:
        """Where the sockets are bound."""
        return [socket.address for socket in self._sockets]

    @property
    def receive_buffer_bytes(self) -> int:
        """Of the socket that has the least."""
        return min((socket.receive_buffer_bytes for socket in self._sockets), default=RECEIVE_BUFFER_BYTES)

    def close(self) -> None:
        """Close the sockets; idempotent."""
        for socket in self._sockets:
            self._loop.remove_reader(socket.fileno())
            self._loop.remove_writer(socket.fileno())
            socket.close()
        self._sockets.clear()

    def send(self, datagrams: Sequence[bytes], path: Path, segment_bytes: int = 0) -> None:
        """Send on the path's socket or through its tunnel; what goes to a family we don't have is dropped.

        `segment_bytes`: as UdpSocket.send has it.
        """
        if path.remote.relayed:
            tunnel = self.tunnels.get(path.remote)
            if tunnel is not None:
                tunnel([each for data in datagrams for each in cut(data, segment_bytes or len(data))])
            return
        socket = self._socket_of(path)
        if socket is not None:
            size = sum(map(len, datagrams))
            self.sent_bytes += size
            if size >= BULK_BYTES:
                self._many_until = self._loop.time() + MANY_S  # acknowledgements
            socket.send(datagrams, path, segment_bytes)

    def holds_back(self, link: LinkReceiver, path: Path) -> bool:
        """Whether the kernel holds back that path's socket; `link` is settled, in turn, once it does not any more."""
        if not self._held_back or path.remote.relayed:
            return False
        socket = self._socket_of(path)
        if socket not in self._held_back:
            return False
        self._held_back[socket][link] = None
        return True

    def receive_relayed(self, datagram: bytes, path: Path) -> None:
        """A datagram that came through a tunnel: a sealed one or one of a connection's, never the DHT's."""
        if not datagram:
            return
        if datagram[0] & 0xC0 == _FIXED_BIT:
            link = self.links.get(datagram[1:9])
            if link is not None:
                link.receive(alone(datagram), path)
        else:
            link = self._route_single(datagram, path)
        if link is not None:
            link.settle()

    def _socket_of(self, path: Path) -> UdpSocket | None:
        """The socket bound to the path's own address, else the first of its family."""
        chosen, wanted = None, path.remote.family
        for socket in self._sockets:
            if socket.family == wanted:
                if socket.address.ip == path.local:
                    return socket
                chosen = chosen or socket
        return chosen

    def _await_writable(self, socket: UdpSocket) -> None:
        self._held_back.setdefault(socket, {})
        self._loop.add_writer(socket.fileno(), self._writable, socket)

    def _writable(self, socket: UdpSocket) -> None:
        if socket.flush():
            self._loop.remove_writer(socket.fileno())
            waiting = self._held_back.pop(socket)
            while waiting and socket not in self._held_back:
                link = next(iter(waiting))
                del waiting[link]
                link.settle()
            if waiting:  # it is full again: whose turn has not come is before those who have had theirs
                self._held_back[socket] = waiting | self._held_back[socket]

    def _readable(self, socket: UdpSocket) -> None:
        touched: dict[int, LinkReceiver] = {}
        now, calls = self._loop.time(), 0
        for _ in range(SHORT_TURN_BATCHES if TURNS.are_short(now) else BATCHES_PER_TURN):
            batches = socket.receive()
            if not batches:
                break
            calls += 1
            for segments, path in batches:
                self.received_bytes += segments.size
                if not path.remote.relayed:  # nobody has such an address
                    self._route(segments, path, touched)
            if now > self._many_until and len(batches) == 1 and batches[0].segments.size <= ALONE_BYTES:
                self._alone += 1
                if self._alone % LOOK_EVERY:
                    break  # it comes alone, and to look for another costs as much as a turn
        if calls > 1:
            self._many_until = now + MANY_S
        for link in touched.values():
            link.settle()

    def _route(self, segments: Segments, path: Path, touched: dict[int, LinkReceiver]) -> None:
        """Hand runs of datagrams with one connection ID to their link whole, everything else one by one."""
        start, count = 0, segments.count
        while start < count:
            head, end = segments.head(start), start + 1
            link = self.links.get(head[1:9]) if head[0] & 0xC0 == _FIXED_BIT else None
            if link is None:
                link = self._route_single(segments.datagram(start), path)
            else:
                end = _end_of_run(segments, start, count)
                link.receive(segments if end - start == count else segments.part(start, end), path)
            if link is not None:
                touched[id(link)] = link
            start = end

    def _route_single(self, datagram: bytes, path: Path) -> LinkReceiver | None:
        first = datagram[0]
        if first & _LONG_BIT:
            return None
        if not first & _FIXED_BIT:
            return self.on_sealed(datagram, path) if is_sealed(datagram) else None
        if first == 0x64 and len(datagram) >= 20 and datagram[-1] == 0x65:
            self.on_krpc(datagram, path.remote)
        return None


def _end_of_run(segments: Segments, start: int, count: int) -> int:
    """Where the datagrams end that bear the connection ID of the one at `start`; mostly that is all of them."""
    if not start and count > 1:
        firsts, *ids = segments.columns(0, 9)
        if ids == [column[:1] * count for column in ids] and not firsts.translate(None, SHORT_FIRST):
            return count
    first, end = segments.head(start), start + 1
    while end < count and (head := segments.head(end))[1:9] == first[1:9] and head[0] & 0xC0 == _FIXED_BIT:
        end += 1
    return end
