"""Ranges: which IP addresses one machine may lead another to, and which never, whatever form they come in."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from proxy_vpn.errors import UsageError

IP = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

SHORTEST_PREFIX = {4: 8, 6: 16}
# Azure's machines find their platform's agent here, as others find their metadata at a link-local address.
_METADATA = ip_network("168.63.129.16/32")
_NEVER = (
    _METADATA,
    # IETF protocol assignments (RFC 6890), among them a cloud's metadata; and the anycast of 6to4 (RFC 7526).
    *map(ip_network, ("192.0.0.0/24", "192.88.99.0/24")),
    *map(ip_network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/127", "fe80::/10", "ff00::/8")),
)
# Each site may have its own of these: RFC 1918, 6598, 4193.
_PRIVATE = tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")))
_NEAR = (*_PRIVATE, *map(ip_network, ("0.0.0.0/32", "127.0.0.0/8", "169.254.0.0/16", "::/127", "fe80::/10")))
# Addresses that hold an IPv4 address which a translator or tunnel on the way would take out (RFC 6052, 8215, 4291), and
# the second half's beginning in ISATAP's (RFC 5214), one bit of which says whether the address is the only one.
_NAT64 = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))
_COMPATIBLE = IPv6Network("::/96")
_ISATAP, _ISATAP_BITS = 0x00005EFE, 0xFDFFFFFF
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_6TO4 = IPv6Network("2002::/16")  # RFC 3056; some versions of Python take it for global, and some do not


@lru_cache(maxsize=256)
def parse_ip(host: str) -> IP | None:
    """The address that `host` is, an IPv4-mapped one as what it stands for; None for a name or one with a zone."""
    try:
        ip = ip_address(host)
    except ValueError:
        return None
    if isinstance(ip, IPv6Address):
        if ip.scope_id is not None:
            return None
        return ip.ipv4_mapped or ip
    return ip


def parse_route(text: str) -> Network:
    """A network that may be led to, such as `192.168.7.0/24`; raises UsageError."""
    try:
        network = ip_network(text)
    except ValueError:
        raise UsageError(f"{text!a} is not a network", "write 192.168.7.0/24 or fd00:7::/64") from None
    if not may_be_led_to(network):
        hint = "give the network of a LAN; for the whole internet use --offer-exit"
        raise UsageError(f"{text} can't be offered", hint)
    return network


def may_be_led_to(network: Network) -> bool:
    """Whether a machine may offer this network: none of its own (loopback, link-local), no multicast, not too much."""
    if network.prefixlen < SHORTEST_PREFIX[network.version]:
        return False
    return not any(never.version == network.version and never.overlaps(network) for never in _NEVER)


def is_private(network: Network) -> bool:
    """Whether none of its addresses is the internet's."""
    return any(network == private or is_part(network, private) for private in _PRIVATE)


def is_part(network: Network, of: Network) -> bool:
    """Whether it lies within the other and is smaller."""
    return network.version == of.version and network.prefixlen > of.prefixlen and network.overlaps(of)


def is_public(ip: IP) -> bool:
    """Whether this is a unicast address of the internet, and so is each address hidden in it."""
    if isinstance(ip, IPv6Address) and (ip in _6TO4 or not (ip in _GLOBAL_UNICAST or ip in _NAT64[0])):
        return False
    if any(ip.version == never.version and ip in never for never in _NEVER):
        return False
    return ip.is_global and not ip.is_multicast and all(is_public(inner) for inner in _hidden(ip))


def is_near(ip: IP) -> bool:
    """Whether it means something else on each network: a private, link-local or loopback address."""
    return any(ip.version == network.version and ip in network for network in _NEAR)


def within(ip: IP, networks: tuple[Network, ...]) -> bool:
    """Whether one of the networks holds `ip`, and no address hidden in it leads out of them again."""
    held = any(ip.version == network.version and ip in network for network in networks)
    return held and all(is_public(inner) or within(inner, networks) for inner in _hidden(ip))


def _hidden(ip: IP) -> Iterator[IPv4Address]:
    if isinstance(ip, IPv4Address):
        return
    if ip.ipv4_mapped:
        yield ip.ipv4_mapped
    if ip.sixtofour:
        yield ip.sixtofour
    if ip.teredo:
        yield from ip.teredo
    isatap = int(ip) >> 32 & _ISATAP_BITS == _ISATAP
    if isatap or any(ip in network for network in (*_NAT64, _COMPATIBLE)):
        yield IPv4Address(int(ip) & 0xFFFFFFFF)
