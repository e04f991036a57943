"""This host's own addresses, as other machines could reach them."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network

import ifaddr

from proxy_vpn.addresses import Address
from proxy_vpn.net.route_tables import routed_networks
from proxy_vpn.ranges import Network


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


def attached_networks() -> list[Network]:
    """The networks of this host's interfaces."""
    found: list[Network] = []
    for adapter in ifaddr.get_adapters():
        for entry in adapter.ips:
            text = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
            found.append(ip_network(f"{text.partition('%')[0]}/{entry.network_prefix}", strict=False))
    return found


def networks_in_use() -> list[Network]:
    """The networks of this host's interfaces and routes (routes: IPv4, Linux), default routes left out."""
    return [*attached_networks(), *routed_networks()]


def _host_ips() -> list[str]:
    ips = []
    for adapter in ifaddr.get_adapters():
        for entry in adapter.ips:
            text = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
            ip = ip_address(text)
            if not (ip.is_loopback or ip.is_link_local or ip.is_multicast):
                ips.append(str(ip))
    return ips
