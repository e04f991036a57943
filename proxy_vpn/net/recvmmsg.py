"""Many datagrams in one call of the kernel, recvmmsg(2): for interfaces whose driver joins none (UDP GRO).

Python has no such call. The datagrams' places lie end to end, each of the length that is expected, so that a run of
them is what UDP GRO would have given: one buffer and one length. What is longer goes on in a buffer of its own.
"""

from __future__ import annotations

import ctypes
import mmap
import socket
import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

DATAGRAMS_LIMIT = 66  # six trains of eleven (wire.train)
DATAGRAM_BYTES = 65535
ANCILLARY_BYTES = 64
_ADDRESS_BYTES = 28
_MSG_DONTWAIT, _UDP_GRO = 0x40, 104
_CMSG = struct.Struct("@Nii")
_ALIGNMENT = struct.calcsize("@N")
_SOCKADDR = struct.Struct("=HH")


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


class Received(NamedTuple):
    """Datagrams of one source and with the same ancillary data, end to end; all but the last have `segment_bytes`."""

    data: bytes
    segment_bytes: int
    name: bytes
    control: bytes


class ManyReceiver:
    """The buffers of one socket, for datagrams that are expected to have `size` bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        count = DATAGRAMS_LIMIT
        self._call = ctypes.CDLL(None, use_errno=True).recvmmsg
        self._data = bytearray(count * size)
        self._view = memoryview(self._data)  # a slice of the array itself would be one more copy
        # Pages that nothing is written to take no memory. The heap would give, and clear, what was used before.
        self._longer = mmap.mmap(-1, count * DATAGRAM_BYTES)
        self._names = bytearray(count * _ADDRESS_BYTES)
        self._control = bytearray(count * ANCILLARY_BYTES)
        self._parts = (_Part * (2 * count))()
        self._headers = (_Header * count)()
        data, longer = _address(self._data), _address(self._longer)
        names, control = _address(self._names), _address(self._control)
        for index, header in enumerate(self._headers):
            own, rest = self._parts[2 * index], self._parts[2 * index + 1]
            own.base, own.length = data + index * size, size
            rest.base, rest.length = longer + index * DATAGRAM_BYTES, DATAGRAM_BYTES - size
            message = header.message
            message.name, message.name_length = names + index * _ADDRESS_BYTES, _ADDRESS_BYTES
            message.parts, message.parts_count = ctypes.addressof(own), 2
            message.control, message.control_length = control + index * ANCILLARY_BYTES, ANCILLARY_BYTES
        self._fresh = bytes(self._headers)
        self._no_control = bytes(len(self._control))

    def receive(self, fd: int) -> list[Received]:
        """What is there now, in order; raises BlockingIOError when nothing is, and OSError."""
        ctypes.memmove(self._headers, self._fresh, len(self._fresh))
        self._control[:] = self._no_control
        count = self._call(fd, self._headers, DATAGRAMS_LIMIT, _MSG_DONTWAIT, None)
        if count < 0:
            error = ctypes.get_errno()
            raise OSError(error, "recvmmsg")  # of the subclass that belongs to the number
        headers = self._headers
        lengths = [headers[index].length for index in range(count)]
        name, control = bytes(self._names[:_ADDRESS_BYTES]), bytes(self._control[:ANCILLARY_BYTES])
        if (
            self._names.startswith(name * count)
            and self._control.startswith(control * count)
            and not any(control[headers[0].message.control_length :])
            and not any(kind == _UDP_GRO for level, kind, _ in ancillary(control) if level == socket.SOL_UDP)
        ):
            return list(self._runs(lengths, name, control[: headers[0].message.control_length]))
        return [self._single(index, length) for index, length in enumerate(lengths)]

    def _runs(self, lengths: list[int], name: bytes, control: bytes) -> Iterator[Received]:
        """A run ends with a datagram that is shorter, and before one that is longer."""
        size, start, others = self.size, 0, [index for index, length in enumerate(lengths) if length != self.size]
        for index in others:
            end = index * size + (lengths[index] if lengths[index] < size else 0)
            if end > start * size:
                yield Received(bytes(self._view[start * size : end]), size, name, control)
            if lengths[index] > size:
                yield self._single(index, lengths[index])
            start = index + 1
        if start < len(lengths):
            yield Received(bytes(self._view[start * size : len(lengths) * size]), size, name, control)

    def _single(self, index: int, length: int) -> Received:
        own, rest = index * self.size, index * DATAGRAM_BYTES
        data = bytes(self._view[own : own + min(length, self.size)])
        if length > self.size:
            data += self._longer[rest : rest + length - self.size]
        name = bytes(self._names[index * _ADDRESS_BYTES : (index + 1) * _ADDRESS_BYTES])
        control_at = index * ANCILLARY_BYTES
        control = bytes(self._control[control_at : control_at + self._headers[index].message.control_length])
        return Received(data, length, name, control)


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
