"""Many datagrams in one call of the kernel, recvmmsg(2): for interfaces whose driver joins none (UDP GRO).

Python has no such call. Heads and bodies (wire.segments) have a buffer each, where their places lie end to end; bodies
of the length that is expected leave no gaps. What is longer goes on in a third buffer.
"""

from __future__ import annotations

import ctypes
import mmap
import socket
import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

from proxy_vpn.wire.segments import HEAD_BYTES, Scattered, Segments, alone

DATAGRAMS_LIMIT = 66  # six trains of eleven (wire.train)
DATAGRAM_BYTES = 65535
ANCILLARY_BYTES = 64
_ADDRESS_BYTES = 28
_MSG_DONTWAIT, _UDP_GRO = 0x40, 104
_CMSG = struct.Struct("@Nii")
_ALIGNMENT = struct.calcsize("@N")
_SOCKADDR = struct.Struct("=HH")
_PARTS = 3  # of a datagram: head, body, and what is longer


class _Part(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("parts", ctypes.c_void_p),
        ("parts_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Header(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (("message", _Message), ("length", ctypes.c_uint32))


_WORD = ctypes.sizeof(ctypes.c_uint32)
_LENGTH_WORD = ctypes.sizeof(_Message) // _WORD


class Received(NamedTuple):
    """Datagrams of one source and with the same ancillary data."""

    segments: Segments
    name: bytes
    control: bytes


class ManyReceiver:
    """The buffers of one socket, for datagrams that are expected to have `size` bytes, more than HEAD_BYTES."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._body_bytes = size - HEAD_BYTES
        count = DATAGRAMS_LIMIT
        self._call = ctypes.CDLL(None, use_errno=True).recvmmsg
        self._heads = bytearray(count * HEAD_BYTES)
        self._bodies = bytearray(count * self._body_bytes)
        self._view = memoryview(self._bodies)
        # Pages that nothing is written to take no memory. The heap would give, and clear, what was used before.
        self._longer = mmap.mmap(-1, count * DATAGRAM_BYTES)
        self._names = bytearray(count * _ADDRESS_BYTES)
        self._control = bytearray(count * ANCILLARY_BYTES)
        self._parts = (_Part * (_PARTS * count))()
        self._headers = (_Header * count)()
        places = [
            (_address(self._heads), HEAD_BYTES, HEAD_BYTES),
            (_address(self._bodies), self._body_bytes, self._body_bytes),
            (_address(self._longer), DATAGRAM_BYTES, DATAGRAM_BYTES - size),
        ]
        names, control = _address(self._names), _address(self._control)
        for index, header in enumerate(self._headers):
            first = _PARTS * index
            for at, (base, step, length) in enumerate(places, first):
                self._parts[at].base, self._parts[at].length = base + index * step, length
            message = header.message
            message.name, message.name_length = names + index * _ADDRESS_BYTES, _ADDRESS_BYTES
            message.parts, message.parts_count = ctypes.addressof(self._parts[first]), _PARTS
            message.control, message.control_length = control + index * ANCILLARY_BYTES, ANCILLARY_BYTES
        self._fresh = bytes(self._headers)
        # ctypes would take as long to give the lengths one by one as the rest of a call takes.
        self._lengths = memoryview(self._headers).cast("B").cast("I")[_LENGTH_WORD :: ctypes.sizeof(_Header) // _WORD]
        self._no_control = bytes(len(self._control))

    def receive(self, fd: int) -> list[Received]:
        """What is there now, in order; raises BlockingIOError when nothing is, and OSError."""
        ctypes.memmove(self._headers, self._fresh, len(self._fresh))
        self._control[:] = self._no_control
        count = self._call(fd, self._headers, DATAGRAMS_LIMIT, _MSG_DONTWAIT, None)
        if count < 0:
            error = ctypes.get_errno()
            raise OSError(error, "recvmmsg")  # of the subclass that belongs to the number
        lengths = self._lengths.tolist()[:count]
        name, control = bytes(self._names[:_ADDRESS_BYTES]), bytes(self._control[:ANCILLARY_BYTES])
        control_bytes = self._headers[0].message.control_length
        if (
            self._names.startswith(name * count)
            and self._control.startswith(control * count)
            and not any(control[control_bytes:])
            and not any(kind == _UDP_GRO for level, kind, _ in ancillary(control) if level == socket.SOL_UDP)
        ):
            return [Received(run, name, control[:control_bytes]) for run in self._runs(lengths)]
        return [self._single(index, length) for index, length in enumerate(lengths)]

    def _runs(self, lengths: list[int]) -> Iterator[Segments]:
        """A run ends with a datagram that is shorter, and before one that is longer or has no whole head."""
        start = 0
        for index, length in enumerate(lengths):
            if length == self.size:
                continue
            fits = HEAD_BYTES <= length < self.size
            if index + fits > start:
                yield self._run(start, index + fits, length if fits else self.size)
            if not fits and length:
                yield alone(self._datagram(index, length))
            start = index + 1
        if start < len(lengths):
            yield self._run(start, len(lengths), self.size)

    def _run(self, start: int, end: int, last_bytes: int) -> Scattered:
        heads = bytes(self._heads[start * HEAD_BYTES : end * HEAD_BYTES])
        shorter = self.size - last_bytes
        return Scattered(heads, self._view[start * self._body_bytes : end * self._body_bytes - shorter], self.size)

    def _single(self, index: int, length: int) -> Received:
        name = bytes(self._names[index * _ADDRESS_BYTES : (index + 1) * _ADDRESS_BYTES])
        control_at = index * ANCILLARY_BYTES
        control = bytes(self._control[control_at : control_at + self._headers[index].message.control_length])
        return Received(alone(self._datagram(index, length)), name, control)

    def _datagram(self, index: int, length: int) -> bytes:
        head, body, rest = index * HEAD_BYTES, index * self._body_bytes, index * DATAGRAM_BYTES
        data = self._heads[head : head + min(length, HEAD_BYTES)]
        data += self._view[body : body + min(max(length - HEAD_BYTES, 0), self._body_bytes)]
        data += self._longer[rest : rest + max(length - self.size, 0)]
        return bytes(data)


def ancillary(control: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Level, type and value of each control message (struct cmsghdr), as socket.recvmsg gives them."""
    at = 0
    while at + _CMSG.size <= len(control):
        length, level, kind = _CMSG.unpack_from(control, at)
        if length < _CMSG.size:
            return
        yield level, kind, control[at + _CMSG.size : at + length]
        at += -(-length // _ALIGNMENT) * _ALIGNMENT


def socket_address(name: bytes) -> tuple[object, ...]:
    """What socket.recvmsg gives for a struct sockaddr_in or sockaddr_in6."""
    family, port = _SOCKADDR.unpack_from(name)
    port = socket.ntohs(port)
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, name[4:8]), port
    flow, scope = int.from_bytes(name[4:8], "big"), int.from_bytes(name[24:28], sys.byteorder)
    return socket.inet_ntop(socket.AF_INET6, name[8:24]), port, flow, scope


def available() -> bool:
    """Whether this system has the call."""
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "recvmmsg")


def _address(buffer: bytearray | mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
