"""A UDP socket that moves many datagrams a call (UDP GRO in, UDP GSO out) and knows its own address for each.

A wildcard socket answers from the wrong address on a host with several, so IP_PKTINFO and IPV6_PKTINFO
(RFC 3542) travel both ways: a Path is (local address, interface, remote address). Datagrams are never
fragmented by the kernel: paths prove their size. Where GSO or GRO are missing (other systems, some devices at
run time), the same calls move one datagram at a time.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

from proxy_vpn.addresses import Address
from proxy_vpn.errors import StateError
from proxy_vpn.net.filter import drop_dht_queries
from proxy_vpn.net.recvmmsg import ManyReceiver, ancillary, available, socket_address
from proxy_vpn.wire.segments import Laid, Segments
from proxy_vpn.wire.train import DATAGRAM_LIMIT_BYTES, cut

RECEIVE_BYTES = 65535
GSO_SEGMENTS_LIMIT = 64
GSO_BYTES_LIMIT = 65000
RECEIVE_BUFFER_BYTES = 4 << 20
QUEUED_BYTES_LIMIT = 1 << 20  # more than one connection sends in a turn
MANY_LEAST_BYTES, MANY_AFTER, MISFITS_LIMIT = 1000, 8, 16
_PATHS_CACHED = 1024
_CALL_BYTES = 512  # what one takes besides its datagrams
_LINUX = sys.platform == "linux"
_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104
_IP_PKTINFO, _IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE = 8, 10, 23, 3
_IPV6_RECVPKTINFO, _IPV6_PKTINFO = 49, 50
_SO_RCVBUFFORCE = 33
_ANCILLARY_BYTES = 128
_U16, _INT = struct.Struct("=H"), struct.Struct("=i")
_PKTINFO4, _PKTINFO6 = struct.Struct("=I4s4s"), struct.Struct("=16sI")

_Ancillary = tuple[tuple[int, int, bytes], ...]


class Path(NamedTuple):
    """One way to a peer: our address ("" lets the kernel choose), the interface (0: any) and the peer's address."""

    local: str
    interface: int
    remote: Address

    def __str__(self) -> str:
        return str(self.remote)


class Batch(NamedTuple):
    """Datagrams of one path, good until the socket is read again."""

    segments: Segments
    path: Path


class _Call(NamedTuple):
    """What one call of the kernel sends: one datagram, or with `segment_bytes` what is to be cut; `control` ends so."""

    datagrams: Sequence[bytes]
    segment_bytes: int
    control: _Ancillary
    remote: Address


class UdpSocket:
    """A bound, non-blocking UDP socket of one family."""

    def __init__(self, address: Address) -> None:
        """Bind; raises StateError when the address is taken or not ours."""
        self.family = address.family
        self._socket = socket.socket(self.family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._configure()
            self._socket.bind((address.ip, address.port))
        except OSError as error:
            self._socket.close()
            hint = "choose another with --listen ADDR:PORT, or stop what uses it"
            raise StateError(f"UDP {address} can't be used: {error.strerror}", hint) from None
        self.address = Address(*self._socket.getsockname()[:2])
        self._segmentation = _LINUX
        self._has_many = available()
        self._many: ManyReceiver | None = None
        self._alone = self._misfits = 0
        self._paths: dict[tuple[bytes, tuple[object, ...]], Path] = {}
        self._queue: deque[_Call] = deque()
        self._queued_bytes = 0
        self._on_writable: Callable[[], None] | None = None
        self.interface_to: Callable[[str], int | None] = lambda ip: 0

    def _configure(self) -> None:
        # The sending side keeps what the system gives, some 200 KB: what is more than a slow interface's own queue
        # takes is lost there, while a full buffer holds us back in time (see `congested`).
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        if _LINUX:
            with suppress(OSError):  # past the system's limit, for those who may
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        options = [(_SOL_UDP, _UDP_GRO, 1)]
        if self.family == socket.AF_INET6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            options += [
                (socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1),
                (socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE),
            ]
        else:
            options += [
                (socket.IPPROTO_IP, _IP_PKTINFO, 1),
                (socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE),
            ]
        for level, option, value in options if _LINUX else []:
            try:
                self._socket.setsockopt(level, option, value)
            except OSError:
                continue  # an older kernel: single datagrams, the kernel's own choice of address

    def ignore_dht_queries(self) -> bool:
        """Let the kernel drop them; for as long as the socket lives."""
        return drop_dht_queries(self._socket)

    @property
    def receive_buffer_bytes(self) -> int:
        """What the system gave of the RECEIVE_BUFFER_BYTES we ask for; Linux tells twice that, for its overhead."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // (2 if _LINUX else 1)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """Send what waits, goodbyes among it, as far as a larger buffer takes it."""
        if self._queue:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, QUEUED_BYTES_LIMIT)
            self.flush()
            self._queue.clear()
        self._socket.close()

    def receive(self) -> list[Batch]:
        """What one call of the kernel has for us; nothing when there is nothing."""
        if self._many is not None:
            return self._receive_many(self._many)
        try:
            data, ancillary, _, source = self._socket.recvmsg(RECEIVE_BYTES, _ANCILLARY_BYTES)
        except (BlockingIOError, InterruptedError, ConnectionError):
            return []
        segment_bytes, info = _read(ancillary)
        path = self._path(info, source)
        if not segment_bytes and MANY_LEAST_BYTES <= len(data) <= DATAGRAM_LIMIT_BYTES and self._has_many:
            self._alone += 1
            if self._alone >= MANY_AFTER:
                self._many = ManyReceiver(len(data))
        elif segment_bytes:
            self._alone = 0
        return [Batch(Laid(data, segment_bytes or len(data) or 1), path)]

    def _receive_many(self, many: ManyReceiver) -> list[Batch]:
        """As long as datagrams come alone though large, many in one call."""
        try:
            several = many.receive(self.fileno())
        except (BlockingIOError, InterruptedError, ConnectionError):
            return []
        except OSError:  # a system that has the call and refuses it: never again
            self._many, self._has_many = None, False
            return []
        batches, fits = [], False
        for segments, name, control in several:
            segment_bytes, info, source = _origin(name, control)
            fits = segments.count > 1 and not segment_bytes
            if segment_bytes:
                segments = Laid(segments.data, segment_bytes)
            batches.append(Batch(segments, self._path(info, source)))
        self._misfits = 0 if fits else self._misfits + 1
        if self._misfits >= MISFITS_LIMIT:
            self._many, self._alone, self._misfits = None, 0, 0
        return batches

    def _path(self, info: bytes, source: tuple[object, ...]) -> Path:
        return self._paths.get((info, source)) or self._learn_path(info, source)

    def _learn_path(self, info: bytes, source: tuple[object, ...]) -> Path:
        remote = Address(str(source[0]).partition("%")[0], int(str(source[1])))
        local, interface = "", 0
        if len(info) >= _PKTINFO6.size:
            packed, interface = _PKTINFO6.unpack_from(info)
            local = socket.inet_ntop(socket.AF_INET6, packed)
        elif len(info) >= _PKTINFO4.size:
            interface, packed, _ = _PKTINFO4.unpack_from(info)
            local = socket.inet_ntop(socket.AF_INET, packed)
        if not remote.ip.startswith("fe80:"):
            interface = 0  # the route decides, also after it changed; only link-local addresses need the interface
        if len(self._paths) >= _PATHS_CACHED:
            self._paths.clear()
        path = self._paths[info, source] = Path(local, interface, remote)
        return path

    def send(self, datagrams: Sequence[bytes], path: Path, segment_bytes: int = 0) -> None:
        """Send in order; what the kernel can't take now is queued (bounded, see `congested`) or dropped.

        With `segment_bytes`, each of `datagrams` may be several laid end to end, all but its last of that length.
        """
        if len(datagrams) == 1 and not segment_bytes:
            self._send_group(datagrams, len(datagrams[0]), path)
            return
        group: list[bytes] = []
        segment = room = 0
        for data in datagrams:
            size = len(data)
            if group and (size > room or (size > segment and not segment_bytes)):
                self._send_group(group, segment, path)
                group = []
            if not group:
                segment = segment_bytes or size
                room = min(GSO_SEGMENTS_LIMIT * segment, GSO_BYTES_LIMIT)
            group.append(data)
            room = room - size if size % segment == 0 else 0  # one that is shorter is the last that one call can take
        if group:
            self._send_group(group, segment, path)

    def _send_group(self, group: Sequence[bytes], segment_bytes: int, path: Path) -> None:
        if not path.interface and (interface := self.interface_to(path.remote.ip)) != 0:
            if interface is None:
                return  # no way leads there
            path = path._replace(interface=interface)
        control = _source_ancillary(path)
        if len(group) == 1 and len(group[0]) <= segment_bytes:
            self._send_call(_Call(group, 0, control, path.remote))
        elif self._segmentation:
            control = (*control, (_SOL_UDP, _UDP_SEGMENT, _U16.pack(segment_bytes)))
            self._send_call(_Call(group, segment_bytes, control, path.remote))
        else:
            for datagram in cut(b"".join(group), segment_bytes):
                self._send_call(_Call([datagram], 0, control, path.remote))

    def _send_call(self, call: _Call) -> None:
        if self._queue or not self._try(call):
            self._enqueue(call)

    def _enqueue(self, call: _Call) -> None:
        size = _size(call)
        if self._queued_bytes + size <= QUEUED_BYTES_LIMIT:
            self._queue.append(call)
            self._queued_bytes += size
            if len(self._queue) == 1 and self._on_writable:
                self._on_writable()

    def _try(self, call: _Call) -> bool:
        """Whether the kernel took it, or won't ever."""
        try:
            self._socket.sendmsg(call.datagrams, call.control, 0, call.remote)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if call.segment_bytes and error.errno in (errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.ENOPROTOOPT):
                self._send_singly(call, error)
            # Anything else (no route, refused by a firewall, too large) is a lost datagram: probes notice.
        return True

    def _send_singly(self, call: _Call, cause: OSError) -> None:
        sent, too_large = 0, False
        for datagram in cut(b"".join(call.datagrams), call.segment_bytes):
            single = _Call([datagram], 0, call.control[:-1], call.remote)
            try:
                self._socket.sendmsg(single.datagrams, single.control, 0, single.remote)
                sent += 1
            except (BlockingIOError, InterruptedError):
                self._enqueue(single)
            except OSError as error:
                too_large = too_large or error.errno == errno.EMSGSIZE
        if sent and not too_large and cause.errno != errno.EMSGSIZE:
            self._segmentation = False

    @property
    def congested(self) -> bool:
        """Whether datagrams wait for the kernel; senders should hold back until `flush` empties the queue."""
        return bool(self._queue)

    def watch_writable(self, callback: Callable[[], None]) -> None:
        """Call back when the queue becomes non-empty: then wait for writability and call `flush`."""
        self._on_writable = callback

    def flush(self) -> bool:
        """Send what waits; True once nothing does."""
        while self._queue:
            if not self._try(self._queue[0]):
                return False
            self._queued_bytes -= _size(self._queue.popleft())
        return True


def _size(call: _Call) -> int:
    return sum(map(len, call.datagrams), _CALL_BYTES)


@lru_cache(maxsize=_PATHS_CACHED)
def _origin(name: bytes, control: bytes) -> tuple[int, bytes, tuple[object, ...]]:
    """The same as `_read` gives, and the address, as the kernel wrote them."""
    return *_read(ancillary(control)), socket_address(name)


def _read(messages: Iterable[tuple[int, int, bytes]]) -> tuple[int, bytes]:
    """Of ancillary data: the length of joined segments, 0 if there are none, and the PKTINFO."""
    segment_bytes, info = 0, b""
    for level, kind, value in messages:
        if level == _SOL_UDP and kind == _UDP_GRO:
            segment_bytes = _INT.unpack_from(value)[0]
        elif kind in (_IP_PKTINFO, _IPV6_PKTINFO) and level != _SOL_UDP:
            info = value
    return segment_bytes, info


@lru_cache(maxsize=_PATHS_CACHED)
def _source_ancillary(path: Path) -> _Ancillary:
    if not _LINUX or not (path.local or path.interface):
        return ()
    if path.remote.family == socket.AF_INET6:
        packed = socket.inet_pton(socket.AF_INET6, path.local or "::")
        return ((socket.IPPROTO_IPV6, _IPV6_PKTINFO, _PKTINFO6.pack(packed, path.interface)),)
    packed = socket.inet_pton(socket.AF_INET, path.local or "0.0.0.0")
    return ((socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO4.pack(path.interface, packed, b"\0\0\0\0")),)
