"""Names looked up while the way out is still the host's own: once all traffic goes to an exit, the exit must be found.

Asked of the host's name servers directly, not through the C library: its lookups need threads, which would keep the
privileges that this process is about to give up.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from ipaddress import ip_address
from typing import Final

from proxy_vpn.doors.dns_elsewhere import HostResolver
from proxy_vpn.errors import WireError

WITHIN_S: Final = 3.0
MAX_ADDRESSES: Final = 8
_A, _AAAA = 1, 28


async def look_up(names: Iterable[str], resolver: HostResolver | None = None) -> Mapping[str, list[str]]:
    """The IP addresses of those names that have any, within 3 s; numbers are no names. Imports scapy."""
    asked = [name for name in dict.fromkeys(names) if not _is_ip(name)]
    resolver = resolver or HostResolver(lambda ip: False)
    found: dict[str, list[str]] = {name: [] for name in asked}

    async def ask(name: str, kind: int) -> None:
        with suppress(WireError):
            said = await resolver.ask(_query(name, kind))
            found[name] += _answers(said, kind) if said is not None else []

    with suppress(TimeoutError):
        async with asyncio.timeout(WITHIN_S):
            await asyncio.gather(*(ask(name, kind) for name in asked for kind in (_A, _AAAA)))
    return {name: ips[:MAX_ADDRESSES] for name, ips in found.items() if ips}


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _query(name: str, kind: int) -> bytes:
    from scapy.layers.dns import DNS, DNSQR

    try:
        return bytes(DNS(id=int.from_bytes(os.urandom(2), "big"), rd=1, qd=[DNSQR(qname=name, qtype=kind)]))
    except Exception:
        # scapy's fields raise what they like over a name that is none.
        raise WireError(f"{name!r} is no name") from None


def _answers(message: bytes, kind: int) -> list[str]:
    from scapy.layers.dns import DNS

    try:
        return [str(ip_address(record.rdata)) for record in DNS(message).an or [] if record.type == kind]
    except Exception:
        # The edge: scapy raises whatever its fields raise over bytes that are no DNS.
        raise WireError("no DNS answer") from None
