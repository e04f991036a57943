"""This host's own addresses, as other machines could reach them."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

import ifaddr

from proxy_vpn.addresses import Address


def reachable_addresses(bound: Iterable[Address]) -> list[Address]:
    """Where sockets bound to `bound` are reached: a wildcard stands for every unicast address of its family."""
    found: list[Address] = []
    for address in bound:
        if not ip_address(address.ip).is_unspecified:
            found.append(address)
            continue
        ipv6 = ":" in address.ip
        found += [Address(ip, address.port) for ip in _host_ips() if (":" in ip) is ipv6]
    return found


def _host_ips() -> list[str]:
    ips = []
    for adapter in ifaddr.get_adapters():
        for entry in adapter.ips:
            text = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
            ip = ip_address(text)
            if not (ip.is_loopback or ip.is_link_local or ip.is_multicast):
                ips.append(str(ip))
    return ips
