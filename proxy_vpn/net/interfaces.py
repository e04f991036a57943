"""This host's own addresses, as other machines could reach them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path

import ifaddr

from proxy_vpn.addresses import Address
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
    """The networks of this host's interfaces and routes (routes: Linux), default routes left out."""
    found = attached_networks()
    with suppress(OSError):
        lines = Path("/proc/net/route").read_text(encoding="ascii", errors="replace").splitlines()
        found += routed_networks(lines)
    return found


def routed_networks(lines: Iterable[str]) -> list[Network]:
    """The IPv4 networks in the lines of /proc/net/route."""
    found: list[Network] = []
    for line in lines:
        fields = line.split()
        if len(fields) >= 8 and fields[1] != "00000000":
            with suppress(ValueError):
                address, mask = (IPv4Address(bytes.fromhex(fields[index])[::-1]) for index in (1, 7))
                found.append(ip_network(f"{address}/{mask}", strict=False))
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
