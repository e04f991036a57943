"""The interface that leads to an address when one of our own is left out: what carries the tunnel must not enter it.

Read from the kernel's tables (proc(5)) instead of marking sockets and adding routing rules: this needs no privilege,
and a process that is killed leaves no rule behind. Linux; routing rules of the host's own are not followed.
"""

from __future__ import annotations

import socket
import sys
import time
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Final

from proxy_vpn.net import proc
from proxy_vpn.ranges import Network

FRESH_S: Final = 5.0
ANSWERS_LIMIT: Final = 1024
_ROUTES4, _ROUTES6 = Path("/proc/net/route"), Path("/proc/net/ipv6_route")
_UP, _REJECT = 0x1, 0x200
_Route = tuple[Network, int, str]


class Bypass:
    """Routes without those of interface `left_out`."""

    def __init__(self, left_out: str) -> None:
        self._left_out = left_out
        self._routes: list[_Route] = []
        self._read_at = float("-inf")
        self._answers: dict[str, int | None] = {}

    def interface(self, ip: str) -> int | None:
        """The index of the interface towards `ip`: 0 where the kernel may choose, None where no way leads there."""
        now = time.monotonic()
        if now - self._read_at >= FRESH_S or len(self._answers) >= ANSWERS_LIMIT:
            self._read_at = now
            self._routes = [*_routes4(proc.lines(_ROUTES4)), *_routes6(proc.lines(_ROUTES6))]
            self._answers = {}
        if ip not in self._answers:
            self._answers[ip] = self._look_up(ip)
        return self._answers[ip]

    def forget(self) -> None:
        """The routes have changed."""
        self._read_at = float("-inf")

    def _look_up(self, ip: str) -> int | None:
        address = ip_address(ip)
        if address.is_loopback or address.is_link_local:
            return 0
        fitting = [
            (-network.prefixlen, metric, name)
            for network, metric, name in self._routes
            if name != self._left_out and network.version == address.version and address in network
        ]
        if not fitting:
            return None
        try:
            return socket.if_nametoindex(min(fitting)[2])
        except OSError:
            return None  # it has just gone


def _routes4(lines: list[str]) -> list[_Route]:
    """Columns: interface, destination, gateway, flags, -, -, metric, mask; addresses in the host's byte order."""
    routes: list[_Route] = []
    for words in map(str.split, lines[1:]):
        if len(words) >= 8 and int(words[3], 16) & (_UP | _REJECT) == _UP:
            target, mask = (socket.inet_ntoa(int(words[at], 16).to_bytes(4, sys.byteorder)) for at in (1, 7))
            routes.append((IPv4Network(f"{target}/{mask}"), int(words[6]), words[0]))
    return routes


def _routes6(lines: list[str]) -> list[_Route]:
    """Columns: destination, prefix length, source, -, next hop, metric, -, -, flags, interface; all hexadecimal."""
    routes: list[_Route] = []
    for words in map(str.split, lines):
        if len(words) >= 10 and int(words[8], 16) & (_UP | _REJECT) == _UP:
            network = IPv6Network((bytes.fromhex(words[0]), int(words[1], 16)))
            routes.append((network, int(words[5], 16), words[9]))
    return routes
