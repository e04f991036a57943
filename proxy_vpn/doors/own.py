"""OwnListeners: where this process itself listens, which is never a flow's target (no transitive access)."""

from __future__ import annotations

import socket
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from proxy_vpn.addresses import Address

_LOOPBACK_OF_UNSPECIFIED = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class OwnListeners:
    """Every socket of this process that others could reach: proxy, forwards, web page, control, QUIC."""

    def __init__(self) -> None:
        self._listeners: list[tuple[Address, bool]] = []

    def add(self, address: Address, udp: bool = False) -> None:
        """This process now listens on `address`, which may be a wildcard."""
        self._listeners.append((_plain(address), udp))

    def discard(self, address: Address, udp: bool = False) -> None:
        """It no longer does; unknown ones are ignored."""
        if (_plain(address), udp) in self._listeners:
            self._listeners.remove((_plain(address), udp))

    def forbids(self, address: Address, udp: bool = False) -> bool:
        """Whether a connection or datagram to `address` would reach this process."""
        plain = _plain(address)
        plain = Address(_LOOPBACK_OF_UNSPECIFIED.get(plain.ip, plain.ip), plain.port)
        for listener, listens_udp in self._listeners:
            if listens_udp is not udp or listener.port != plain.port:
                continue
            if listener.ip == plain.ip or (listener.ip in _LOOPBACK_OF_UNSPECIFIED and _is_this_host(plain.ip)):
                return True
        return False


@lru_cache(maxsize=256)
def _plain(address: Address) -> Address:
    ip = ip_address(address.ip.partition("%")[0])
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return Address(str(ip), address.port)


def _is_this_host(ip: str) -> bool:
    """Only an address of this host's own can be bound."""
    if ip_address(ip).is_loopback:
        return True
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((ip, 0))
        except OSError:
            return False
    return True
