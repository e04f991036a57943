"""The IPv4 networks that this host has routes to, in all of its tables (rtnetlink(7)).

/proc/net/route shows the main table alone, and other VPNs keep their peers in tables of their own. No library: it would
take a third of what an idle process takes.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Network
from typing import Final

ANSWER_S: Final = 1.0
RECEIVE_BYTES: Final = 1 << 16
_HEADER = struct.Struct("=IHHII")  # length, kind, flags, sequence, port
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, length of the prefix, ..., type (the eighth), flags
_ATTRIBUTE = struct.Struct("=HH")
_GET_ROUTE, _NEW_ROUTE, _DONE, _ERROR = 26, 24, 3, 2
_REQUEST_ALL = 0x301
_UNICAST, _TARGET = 1, 1


def routed_networks() -> list[IPv4Network]:
    """All but default routes; nothing where the system tells none. Blocking, for as long as the kernel takes."""
    if sys.platform != "linux":
        return []
    found: list[IPv4Network] = []
    with suppress(OSError), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(ANSWER_S)
        size = _HEADER.size + _ROUTE.size
        wish = _HEADER.pack(size, _GET_ROUTE, _REQUEST_ALL, 1, 0) + _ROUTE.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)
        sock.sendto(wish, (0, 0))
        is_done = False
        while not is_done:
            for kind, body in _messages(sock.recv(RECEIVE_BYTES)):
                is_done = is_done or kind in (_DONE, _ERROR)
                if kind == _NEW_ROUTE and (network := _target(body)) is not None:
                    found.append(network)
    return found


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        size, kind, *_ = _HEADER.unpack_from(data, at)
        yield kind, data[at + _HEADER.size : at + size]
        at += max(size + 3 & ~3, _HEADER.size)


def _target(body: bytes) -> IPv4Network | None:
    """Where a route leads, if it is one to other hosts and to some of them."""
    _, prefix, _, _, _, _, _, kind, _ = _ROUTE.unpack_from(body)
    at = _ROUTE.size
    while kind == _UNICAST and prefix and at + _ATTRIBUTE.size <= len(body):
        size, what = _ATTRIBUTE.unpack_from(body, at)
        if what == _TARGET:
            return IPv4Network((body[at + _ATTRIBUTE.size : at + size], prefix), strict=False)
        at += max(size + 3 & ~3, _ATTRIBUTE.size)
    return None
