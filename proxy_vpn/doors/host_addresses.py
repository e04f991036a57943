"""This host's own addresses by which peers' requests reach its services: those of interfaces with a default route."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path

import ifaddr

from proxy_vpn.net import proc

_ROUTES4, _ROUTES6 = Path("/proc/net/route"), Path("/proc/net/ipv6_route")
_ROUTE_UP = 0x1
_ROUTE_REJECT = 0x200


def host_addresses() -> list[str]:
    """IPv4 first, then IPv6 without link-local ones; empty when there is no default route. Linux; else empty."""
    interfaces = default_route_interfaces(proc.lines(_ROUTES4), proc.lines(_ROUTES6))
    found = []
    for adapter in ifaddr.get_adapters():
        for each in adapter.ips if adapter.name in interfaces else ():
            ip = ip_address(each.ip if isinstance(each.ip, str) else each.ip[0])
            if not ip.is_link_local:
                found.append(ip)
    return [str(ip) for ip in sorted(found, key=lambda ip: ip.version)]


def default_route_interfaces(routes4: Iterable[str], routes6: Iterable[str]) -> set[str]:
    """The names of interfaces with a default route, from the lines of /proc/net/route and /proc/net/ipv6_route."""
    names = set()
    for line in routes4:
        field = line.split()
        if len(field) >= 8 and field[1] == field[7] == "00000000" and int(field[3], 16) & _ROUTE_UP:
            names.add(field[0])
    for line in routes6:
        field = line.split()
        if len(field) >= 10 and field[0] == "0" * 32 and field[1] == "00":
            flags = int(field[8], 16)
            if flags & _ROUTE_UP and not flags & _ROUTE_REJECT:
                names.add(field[9])
    return names - {"lo"}
