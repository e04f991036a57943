"""The interfaces of this host that lead to a LAN, as zeroconf wants them named."""

from __future__ import annotations

import socket
import struct
import sys
from ipaddress import ip_address

import ifaddr

MAX_INTERFACES = 16
_UP, _LOOPBACK, _POINT_TO_POINT, _MULTICAST = 0x1, 0x8, 0x10, 0x1000
_SIOCGIFFLAGS = 0x8913
_REQUEST = struct.Struct("16sH22x")


def multicast_interfaces() -> list[str | int]:
    """One IPv4 address and, for IPv6, the index of each interface that takes multicast and has an address of use.

    Tunnels are left out (our own among them), and the many ends of container links that have a link-local address only.
    """
    found: list[str | int] = []
    for adapter in ifaddr.get_adapters():
        ips = [ip_address(entry.ip if isinstance(entry.ip, str) else entry.ip[0]) for entry in adapter.ips]
        ipv4 = [str(ip) for ip in ips if ip.version == 4 and not ip.is_loopback]
        ipv6 = any(ip.version == 6 and not (ip.is_loopback or ip.is_link_local) for ip in ips)
        if not (ipv4 or ipv6) or not _takes_multicast(adapter.name):
            continue
        found += ipv4[:1]
        if adapter.index and any(ip.version == 6 for ip in ips):
            found.append(adapter.index)
    return found[:MAX_INTERFACES]


def _takes_multicast(name: str) -> bool:
    """What the interface's flags say; where they can't be read, hope for the best."""
    if sys.platform != "linux":
        return True
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _REQUEST.pack(name.encode()[:15], 0))
        except OSError:
            return True
    flags = _REQUEST.unpack(answer)[1]
    return flags & (_UP | _MULTICAST) == _UP | _MULTICAST and not flags & (_LOOPBACK | _POINT_TO_POINT)
