"""The name server inside a TUN: peers' names and addresses from a Zone, by scapy's DNS; RFC 1035, RFC 6761.

Names under .pvpn, addresses of names of one label and the addresses of our networks are answered here and nowhere else;
they never leave this process. Nor does a name under .pvpn to which a resolver has put one of the host's search domains.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final, Protocol

from proxy_vpn.addresses import TOP_LABEL

TTL_S: Final = 5
MAX_QUERY_BYTES: Final = 1232
MAX_LABELS: Final = 40  # an address in ip6.arpa has 34
_A, _PTR, _AAAA, _SVCB, _HTTPS, _ANY, _IN = 1, 12, 28, 64, 65, 255, 1
# What programs ask about hosts; about a name of one label the rest (NS, DS) is about the world's top domains.
_OF_HOSTS: Final = frozenset({_A, _AAAA, _SVCB, _HTTPS, _ANY})
_NO_ERROR, _FORMAT_ERROR, _NO_SUCH_NAME, _NOT_IMPLEMENTED, _REFUSED = 0, 1, 3, 4, 5
_QUERY: Final = 0
_REVERSE4: Final = ".in-addr.arpa"
_REVERSE6: Final = ".ip6.arpa"
# Asked of a server, it means the asker's own machine (RFC 6761, section 6.3).
_LOCALHOST: Final = "localhost"
_LOOPBACKS: Final = ("127.0.0.1", "::1")


class Zone(Protocol):
    """What the server knows, and whom it asks."""

    @property
    def networks(self) -> Collection[str]:
        """The names of our networks."""

    def addresses(self, name: str) -> tuple[str, ...] | None:
        """A peer's addresses (this machine's too) by its name, with or without .pvpn; None: nobody is called so."""

    def name_at(self, ip: str) -> str | None:
        """The full name of who has an address of our networks."""

    def covers(self, ip: str) -> bool:
        """Whether an address is one of our networks'."""

    async def elsewhere(self, query: bytes, over_tcp: bool) -> bytes | None:
        """The answer to a query about the rest of the world, as it came; None: there is none to be had."""


async def answer(query: bytes, zone: Zone, over_tcp: bool = False) -> bytes | None:
    """The response to a query; None for what is no query. The first call imports scapy."""
    from scapy.layers.dns import DNS, DNSQR

    if not 12 <= len(query) <= MAX_QUERY_BYTES:
        return None
    try:
        message = DNS(query)
        asked = list(message.qd or [])
        fault = message.qr or (not asked and message.opcode == _QUERY)
    except Exception:
        # The edge: scapy raises whatever its fields raise over bytes that are no DNS.
        return None
    if fault:
        return None
    if message.opcode != _QUERY:
        return _response(message, [], _NOT_IMPLEMENTED)
    if len(asked) != 1 or not isinstance(asked[0], DNSQR):
        return _response(message, [], _FORMAT_ERROR)
    name = asked[0].qname.decode("ascii", "replace").rstrip(".").lower()
    if name.count(".") >= MAX_LABELS:
        return _response(message, asked, _FORMAT_ERROR)
    found = _look_up(name, asked[0].qtype, zone)
    if found is None:
        return await zone.elsewhere(query, over_tcp) or _response(message, asked, _REFUSED)
    code, records = found
    return _response(message, asked, code, records if asked[0].qclass in (_IN, _ANY) else [])


def _look_up(name: str, kind: int, zone: Zone) -> tuple[int, list[tuple[int, str]]] | None:
    """The response code and the records (kind and value); None: the name is not ours to answer."""
    if name.endswith((_REVERSE4, _REVERSE6)):
        ip = reverse_address(name)
        if ip is None or not zone.covers(ip):
            return None
        owner = zone.name_at(ip)
        if owner is None:
            return _NO_SUCH_NAME, []
        return _NO_ERROR, [(_PTR, owner + ".")] if kind in (_PTR, _ANY) else []
    is_here = name.rpartition(".")[2] == _LOCALHOST
    addresses = _LOOPBACKS if is_here else zone.addresses(name)
    if addresses is None:
        return _look_up_nobody(name, kind, zone)
    records = [(_AAAA if ":" in ip else _A, ip) for ip in addresses]
    return _NO_ERROR, [record for record in records if kind in (record[0], _ANY)]


def _look_up_nobody(name: str, kind: int, zone: Zone) -> tuple[int, list[tuple[int, str]]] | None:
    labels = name.split(".")
    if name == TOP_LABEL or (labels[1:] == [TOP_LABEL] and labels[0] in zone.networks):
        return _NO_ERROR, []  # there are names below: no such name would deny those too (RFC 8020)
    if TOP_LABEL in labels[1:] or (len(labels) == 1 and name and kind in _OF_HOSTS):
        return _NO_SUCH_NAME, []
    return None


def reverse_address(name: str) -> str | None:
    """The address that a name in in-addr.arpa or ip6.arpa stands for; None if it is none. RFC 3596."""
    try:
        if name.endswith(_REVERSE4):
            return str(IPv4Address(".".join(reversed(name.removesuffix(_REVERSE4).split(".")))))
        digits = name.removesuffix(_REVERSE6).split(".")
        if len(digits) != 32 or any(len(digit) != 1 for digit in digits):
            return None
        return str(IPv6Address(int("".join(reversed(digits)), 16)))
    except ValueError:
        return None


def _response(query: Any, asked: list[Any], code: int, records: list[tuple[int, str]] | None = None) -> bytes:
    from scapy.layers.dns import DNS, DNSRR

    name = asked[0].qname if asked else b""
    answers = [DNSRR(rrname=name, type=kind, rclass=_IN, ttl=TTL_S, rdata=value) for kind, value in records or []]
    response = DNS(
        id=query.id, qr=1, opcode=query.opcode, aa=1, rd=query.rd, ra=1, rcode=code, qd=asked, an=answers, ns=[], ar=[]
    )
    return bytes(response)
