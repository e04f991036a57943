"""ICMP and ICMPv6 of a TUN device, made and read by scapy: echoes, and why something can't be reached.

scapy is imported at the first use, which takes most of a second and 30 MB: `load` does it, in a thread.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any, Final, NamedTuple

from proxy_vpn.errors import Status
from proxy_vpn.wire.packet import ICMP, ICMPV6, VNET_BYTES, Packet, udp, whole

_QUOTED_BYTES: Final = 548 - 8  # of the packet in question: RFC 1812, 4.3.2.3
_ADMINISTRATIVELY: Final = {4: 13, 6: 1}
_NO_HOST: Final = {4: 1, 6: 3}
_NO_PORT: Final = {4: 3, 6: 4}
_CODES: Final = {Status.POLICY: _ADMINISTRATIVELY, Status.REFUSED: _NO_PORT}


class Echo(NamedTuple):
    """A question that wants to come back."""

    identifier: int
    sequence: int
    data: bytes


class Refused(NamedTuple):
    """A UDP packet that found nobody: who sent it, and where to."""

    source: bytes
    source_port: int
    target: bytes
    target_port: int


def load() -> None:
    """Import what the others need; takes a while."""
    logging.getLogger("scapy").setLevel(logging.ERROR)  # it warns of what it misses to sniff and send
    import scapy.layers.dns
    import scapy.layers.inet
    import scapy.layers.inet6  # noqa: F401


def read_echo(packet: Packet) -> Echo | None:
    """What a packet asks for, if it is an echo request."""
    from scapy.layers.inet import ICMP as Icmp
    from scapy.layers.inet6 import ICMPv6EchoRequest

    message = _read(packet, Icmp, ICMPv6EchoRequest)
    if message is None or (packet.protocol == ICMP and message.type != 8):
        return None
    data = message.data if packet.protocol == ICMPV6 else bytes(message.payload)
    return Echo(message.id or 0, message.seq or 0, bytes(data))


def echo_reply(packet: Packet, echo: Echo) -> bytes:
    """The packet that answers one, with its virtio header."""
    from scapy.layers.inet import ICMP as Icmp
    from scapy.layers.inet6 import ICMPv6EchoReply

    if packet.protocol == ICMP:
        reply = Icmp(type="echo-reply", id=echo.identifier, seq=echo.sequence) / echo.data
        return _built(packet.target, packet.source, reply)
    reply6 = ICMPv6EchoReply(id=echo.identifier, seq=echo.sequence, data=echo.data)
    return _built(packet.target, packet.source, reply6)


def unreachable(packet: Packet, status: Status) -> bytes:
    """The packet that tells the sender of another why it does not arrive, with its virtio header."""
    from scapy.layers.inet import ICMP as Icmp
    from scapy.layers.inet6 import ICMPv6DestUnreach

    version = 4 if len(packet.source) == 4 else 6
    code = _CODES.get(status, _NO_HOST)[version]
    quoted = whole(packet.protocol, packet.source, packet.target, packet.payload)[VNET_BYTES:][:_QUOTED_BYTES]
    message = Icmp(type="dest-unreach", code=code) if version == 4 else ICMPv6DestUnreach(code=code)
    return _built(packet.target, packet.source, message / quoted)


def udp_unreachable(source: bytes, source_port: int, target: bytes, target_port: int, status: Status) -> bytes:
    """The same about a UDP packet that is not at hand any more."""
    quoted = udp(source, source_port, target, target_port, b"")[VNET_BYTES:]
    return unreachable(Packet(17, source, target, quoted[-8:]), status)


def read_refused(packet: Packet) -> Refused | None:
    """The UDP packet whose target port the host says is closed, if that is what it says."""
    from scapy.layers.inet import ICMP as Icmp
    from scapy.layers.inet import IPerror, UDPerror
    from scapy.layers.inet6 import ICMPv6DestUnreach, IPerror6

    message = _read(packet, Icmp, ICMPv6DestUnreach)
    if message is None or (packet.protocol == ICMP and message.type != 3):
        return None
    inner = message.getlayer(IPerror) or message.getlayer(IPerror6)
    ports = message.getlayer(UDPerror)
    if inner is None or ports is None:
        return None
    import ipaddress

    with suppress(ValueError):
        source, target = (ipaddress.ip_address(ip).packed for ip in (inner.src, inner.dst))
        return Refused(source, ports.sport, target, ports.dport)
    return None


def _read(packet: Packet, icmp4: Any, icmp6: Any) -> Any:
    """The message, if it is of that class; scapy dissects leniently, so what is there may still be nonsense."""
    from scapy.layers.inet import IP
    from scapy.layers.inet6 import IPv6

    outer, kind = (IP, icmp4) if packet.protocol == ICMP else (IPv6, icmp6)
    try:
        raw = whole(packet.protocol, packet.source, packet.target, packet.payload)[VNET_BYTES:]
        return outer(raw).getlayer(kind)
    except Exception:
        # The edge: scapy raises whatever its fields raise over bytes that are no such message.
        return None


def _built(source: bytes, target: bytes, message: Any) -> bytes:
    import ipaddress

    from scapy.layers.inet import IP
    from scapy.layers.inet6 import IPv6

    outer = IP if len(source) == 4 else IPv6
    packet = outer(src=str(ipaddress.ip_address(source)), dst=str(ipaddress.ip_address(target))) / message
    return bytes(VNET_BYTES) + bytes(packet)
