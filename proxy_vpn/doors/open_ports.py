"""The services of this host that peers can reach now: what listens, by the rule that the serve door dials by."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple

from proxy_vpn.addresses import Address
from proxy_vpn.doors.host_addresses import host_addresses
from proxy_vpn.doors.own import OwnListeners
from proxy_vpn.doors.serve import Policy

# /proc/net/tcp: TCP_LISTEN. /proc/net/udp: TCP_CLOSE, an unconnected socket.
_LISTENING = {"tcp": "0A", "udp": "07"}
_LOOPBACKS = frozenset({"127.0.0.1", "::1"})


class OpenPort(NamedTuple):
    """A TCP or UDP port and the address it listens on, 0.0.0.0 and :: being every one."""

    port: int
    udp: bool
    ip: str

    def __str__(self) -> str:
        return f"{self.port}/{'udp' if self.udp else 'tcp'}"


def open_ports(own: OwnListeners, policy: Policy) -> list[OpenPort] | None:
    """What `policy` lets peers reach, in order, without this process's own ports; None where there is no /proc/net."""
    hosts, found = host_addresses(), set()
    readable = False
    for protocol in _LISTENING:
        for suffix in ("", "6"):
            try:
                text = Path(f"/proc/net/{protocol}{suffix}").read_text(encoding="ascii", errors="replace")
            except OSError:  # no IPv6, or no Linux
                continue
            readable = True
            for address in listeners(text.splitlines(), protocol):
                udp = protocol == "udp"
                if is_open(address, udp, policy, hosts) and not own.forbids(address, udp):
                    found.add(OpenPort(address.port, udp, address.ip))
    return sorted(found) if readable else None


def is_open(address: Address, udp: bool, policy: Policy, hosts: Collection[str]) -> bool:
    """Whether a service at `address` is reached when flows are led to `hosts`, and to loopback where it is exposed."""
    if not policy.allows(address.port, udp, ""):
        return False
    if ip_address(address.ip).is_unspecified or address.ip in hosts:
        return True
    return address.ip in _LOOPBACKS and policy.loopback(address.port, udp)


def listeners(lines: Iterable[str], protocol: str) -> Iterator[Address]:
    """What listens, by the lines of /proc/net/{tcp,udp}{,6}; `protocol` is "tcp" or "udp"."""
    for line in lines:
        field = line.split()
        if len(field) >= 4 and field[3] == _LISTENING[protocol]:
            ip, _colon, port = field[1].partition(":")
            if int(port, 16):
                yield Address(_ip(ip), int(port, 16))


def _ip(digits: str) -> str:
    """The kernel prints each 32-bit word as a number of its own byte order."""
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    data = struct.pack(f"={len(words)}I", *words)
    ip = IPv4Address(data) if len(data) == 4 else IPv6Address(data)
    return str(getattr(ip, "ipv4_mapped", None) or ip)
