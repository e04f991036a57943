"""TunDevice: an open TUN descriptor (Linux); its packets have virtio headers and may be 64 KB of TCP at once."""

from __future__ import annotations

import errno
import os
import socket
import struct
from contextlib import suppress
from typing import Final

from proxy_vpn.errors import StateError
from proxy_vpn.wire.packet import MAX_PACKET_BYTES, VNET_BYTES

TUN_FILE: Final = "/dev/net/tun"
BUFFER_BYTES: Final = VNET_BYTES + MAX_PACKET_BYTES
# linux/if_tun.h
_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_OFFLOADS: Final = 0x01 | 0x02 | 0x04  # checksums, and TCP in segments of IPv4 and IPv6
_IFREQ: Final = struct.Struct("16sH22x")


class TunDevice:
    """The descriptor `fd`, owned from now on, of the interface `name`; with it everything about the interface goes.

    So does `guard`, a socket that whoever sets it gives away.
    """

    def __init__(self, fd: int, name: str) -> None:
        self.name = name
        self.guard: socket.socket | None = None
        self._fd = fd
        os.set_blocking(fd, False)

    @classmethod
    def create(cls, name: str) -> TunDevice:
        """A new interface in this process's network namespace; `%d` in `name` becomes a number. Raises StateError."""
        import fcntl  # no Windows has it

        fd = -1
        try:
            fd = os.open(TUN_FILE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            request = _IFREQ.pack(name.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR)
            given = _IFREQ.unpack(fcntl.ioctl(fd, _TUNSETIFF, request))[0]
            fcntl.ioctl(fd, _TUNSETOFFLOAD, _OFFLOADS)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            raise _no_device(error) from None
        return cls(fd, given.rstrip(b"\0").decode())

    def fileno(self) -> int:
        """The descriptor; -1 once it is closed."""
        return self._fd

    def read_into(self, buffer: bytearray) -> int:
        """A packet with its virtio header; its size. Raises OSError, and BlockingIOError when there is none."""
        return os.readv(self._fd, [buffer])

    def write(self, packet: bytes | memoryview) -> None:
        """Hand a packet with its virtio header to the kernel, which drops what it doesn't like."""
        with suppress(OSError):
            os.write(self._fd, packet)

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        if self.guard is not None:  # only now: nothing comes in unguarded
            self.guard.close()


def _no_device(error: OSError) -> StateError:
    if error.errno in (errno.EPERM, errno.EACCES):
        return StateError("making a TUN device needs root", "run it with sudo; without root there is 'pvpn exec'")
    if error.errno in (errno.ENOENT, errno.ENODEV):
        hint = "as root run: modprobe tun (in a container: start it with that device)"
        return StateError(f"there is no {TUN_FILE}", hint)
    return StateError(f"no TUN device can be made: {error.strerror}", f"see who may use {TUN_FILE}")
