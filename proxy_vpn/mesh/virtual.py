"""Virtual addresses: this machine's own view of where a network's peers are, for programs that want numbers.

Both come from the network's root and the device's identity, so every member computes the same ones by itself: an IPv6
address in a /64 of unique local addresses (RFC 4193), and an IPv4 one in a /16 of 100.64.0.0/10 (RFC 6598). The wire
never carries them. Where the /16 is in use on this host the next one is taken, and of two devices with one IPv4 address
the second that is learnt of has its next, of two learnt at once the one with the greater identity. Both are this
machine's affair alone, and what was given stays given: an address that programs use must not change hands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from proxy_vpn.keys import NetworkKey
from proxy_vpn.ranges import IP, Network

SHARED_SPACE = IPv4Network("100.64.0.0/10")
PREFIX4, PREFIX6 = 16, 64
DNS_HOST = 53
DEVICES_LIMIT = 8192
_HOSTS4 = 1 << (32 - PREFIX4)
_RANGES4 = 1 << (PREFIX4 - SHARED_SPACE.prefixlen)
# The first and the last are the network and its broadcast address; programs take the .0.1 for a gateway.
_RESERVED4 = frozenset({0, 1, DNS_HOST, _HOSTS4 - 1})


@dataclass(frozen=True, slots=True)
class Addresses:
    """One machine's pair."""

    v4: IPv4Address
    v6: IPv6Address

    def __contains__(self, ip: IP) -> bool:
        return ip in (self.v4, self.v6)


class VirtualNetwork:
    """The addresses of one network's devices on this machine; `in_use`: ranges that it must keep away from."""

    def __init__(self, key: NetworkKey, identity: bytes, in_use: Iterable[Network] = ()) -> None:
        self._key = key
        self._hosts: dict[bytes, int] = {}
        self._devices: dict[IP, bytes] = {}
        taken = [network for network in in_use if network.version == 4]
        free = next((each for each in self._ranges() if not any(map(each.overlaps, taken))), None)
        self.is_crowded = free is None  # somebody else's addresses, a carrier's NAT, take up all of the space
        self.v4 = free or next(self._ranges())
        self.v6 = self._range6()
        self.dns = Addresses(self.v4[DNS_HOST], self.v6[DNS_HOST])
        self.own = self.of(identity)

    @property
    def moved(self) -> bool:
        """Whether the IPv4 range is not the one that other machines take by default."""
        return self.v4 != next(self._ranges())

    def of(self, identity: bytes) -> Addresses:
        """The addresses of a device, the same at every call."""
        host = self._hosts.get(identity)
        if host is None:
            host = self._give(identity, next(host for host in self._candidates(identity) if self._is_free(host)))
        return Addresses(self.v4[host], self._v6_of(identity))

    def give(self, identities: Iterable[bytes]) -> None:
        """These devices were learnt of at once: each has its addresses from now on, whatever their order here."""
        for identity in sorted(identities):
            self.of(identity)

    def is_moved(self, identity: bytes) -> bool:
        """Whether a device's IPv4 address is not its own choice, because another has that here."""
        self.of(identity)
        return self._hosts[identity] != next(self._candidates(identity))

    def device_at(self, ip: IP, known: Iterable[bytes] = ()) -> bytes | None:
        """The device with this address, of those asked for before and of `known`."""
        if ip not in self._devices:
            self.give(known)
        return self._devices.get(ip)

    def __contains__(self, ip: IP) -> bool:
        return ip in self.v4 or ip in self.v6

    def remember(self, identity: bytes, host: int) -> None:
        """A device had this place in the /16 in an earlier run; it keeps it if it can."""
        if identity not in self._hosts and 0 <= host < _HOSTS4 and self._is_free(host):
            self._give(identity, host)

    def place(self, identity: bytes) -> int:
        """A device's place in the /16, to be remembered."""
        self.of(identity)
        return self._hosts[identity]

    def _give(self, identity: bytes, host: int) -> int:
        while len(self._hosts) >= DEVICES_LIMIT:  # who was given one longest ago, but never this machine's own
            oldest = list(self._hosts)[1]
            del self._devices[self.v4[self._hosts.pop(oldest)]], self._devices[self._v6_of(oldest)]
        self._hosts[identity] = host
        self._devices[self.v4[host]] = self._devices[self._v6_of(identity)] = identity
        return host

    def _is_free(self, host: int) -> bool:
        return host not in _RESERVED4 and self.v4[host] not in self._devices

    def _candidates(self, identity: bytes) -> Iterator[int]:
        first = int.from_bytes(self._key.derive("pvpn1 host4", identity)[:4], "big") % _HOSTS4
        return (host for host in ((first + step) % _HOSTS4 for step in range(_HOSTS4)) if host not in _RESERVED4)

    def _v6_of(self, identity: bytes) -> IPv6Address:
        host = int.from_bytes(self._key.derive("pvpn1 host6", identity)[:8], "big")
        return self.v6[host if host > DNS_HOST else host + DNS_HOST + 1]

    def _ranges(self) -> Iterator[IPv4Network]:
        first = self._key.derive("pvpn1 range4")[0] % _RANGES4
        base = int(SHARED_SPACE.network_address)
        return (IPv4Network((base + (first + step) % _RANGES4 * _HOSTS4, PREFIX4)) for step in range(_RANGES4))

    def _range6(self) -> IPv6Network:
        """`fd`, 40 random bits and a subnet, all of them the network's own."""
        return IPv6Network((b"\xfd" + self._key.derive("pvpn1 range6")[:7] + bytes(8), PREFIX6))
