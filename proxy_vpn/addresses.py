"""Where things are: Address (a UDP endpoint), Target (a name and a port), ForwardSpec, and how users write them."""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from os import PathLike
from typing import NamedTuple

from proxy_vpn.errors import UsageError, WireError

NAME_PATTERN = re.compile(r"[a-z0-9-]{1,32}")
RESERVED_NAMES = frozenset({"localhost", "wpad", "isatap", "pvpn"})
TOP_LABEL = "pvpn"
NETWORK_SUFFIX = f".{TOP_LABEL}"
_PORT_DIGITS = 5
_HOST_PATTERN = re.compile(r"[!-~]{1,255}")
_FORWARD_PATTERN = re.compile(
    r"(?:unix:(?P<path>.+)|(?:(?P<host>\[[^]]+\]|[^:\[\]]*):)?(?P<port>\d+)):(?P<peer>\[[^]]+\]|[^:\[\]]+):(?P<peer_port>\d+)",
    re.DOTALL,
)


RELAY_PREFIX = "100::"
"""The discard-only prefix 100::/64 (RFC 6666): no host has such an address, so ours stand for ways through a relay."""


class Scope(IntEnum):
    """How far an IP address reaches; a larger value reaches further."""

    LOOPBACK = 0
    LINK = 1
    PRIVATE = 2
    GLOBAL = 3


class Address(NamedTuple):
    """A UDP endpoint: numeric IP text (IPv6 without brackets or zone) and a port."""

    ip: str
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.ip else socket.AF_INET

    @property
    def scope(self) -> Scope:
        ip = ip_address(self.ip)
        if ip.is_loopback:
            return Scope.LOOPBACK
        if ip.is_link_local:
            return Scope.LINK
        return Scope.GLOBAL if ip.is_global else Scope.PRIVATE

    @property
    def relayed(self) -> bool:
        """Whether this stands for a way through another member, not for a place on the network."""
        return self.ip.startswith(RELAY_PREFIX)

    @property
    def is_unicast(self) -> bool:
        """Whether a datagram may be sent there at all: a unicast IP and a port."""
        ip = ip_address(self.ip)
        broadcast = isinstance(ip, IPv4Address) and ip == IPv4Address("255.255.255.255")
        return bool(self.port) and not (ip.is_multicast or ip.is_unspecified or broadcast)

    def packed(self) -> bytes:
        """4 or 16 bytes of IP, then 2 of port: the compact form of BEP 5 and BEP 32."""
        return socket.inet_pton(self.family, self.ip) + self.port.to_bytes(2, "big")

    @classmethod
    def from_packed(cls, data: bytes) -> Address:
        """The inverse of `packed`; raises WireError for any length but 6 and 18."""
        if len(data) not in (6, 18):
            raise WireError(f"a compact address has 6 or 18 bytes, not {len(data)}")
        ip: IPv4Address | IPv6Address = IPv4Address(data[:4]) if len(data) == 6 else IPv6Address(data[:16])
        if isinstance(ip, IPv6Address) and ip.ipv4_mapped:
            ip = ip.ipv4_mapped
        return cls(str(ip), int.from_bytes(data[-2:], "big"))

    @classmethod
    def parse(cls, text: str) -> Address:
        """From `192.0.2.1:6881` or `[2001:db8::1]:6881`; raises UsageError."""
        host, port = split_host_port(text, example="192.0.2.1:41641")
        try:
            ip = ip_address(host)
            if "%" in host:
                raise ValueError("a zone means something on one machine only")
            mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
            return cls(str(mapped or ip), port)
        except ValueError:
            raise UsageError(
                f"{text!r} is not an IP address and port", "write 192.0.2.1:41641 or [::1]:41641"
            ) from None


@dataclass(frozen=True, slots=True)
class Target:
    """What a program asks for: a host as it was written (name or IP) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str, example: str = "peer-b:22") -> Target:
        """From `peer-b:22` or `[::1]:22`; raises UsageError, whose hint shows the `example`."""
        return cls(*split_host_port(text, example=example))


@dataclass(frozen=True, slots=True)
class ForwardSpec:
    """A local door to one target: TCP or UDP on `host:port`, or a Unix socket at `path`."""

    host: str
    port: int
    target: Target
    path: str = ""
    udp: bool = False

    def __str__(self) -> str:
        listen = f"unix:{self.path}" if self.path else str(Target(self.host, self.port))
        return f"{listen}:{self.target}{'/udp' if self.udp else ''}"

    @classmethod
    def parse(cls, text: str) -> ForwardSpec:
        """From `2222:peer-b:22`, `127.0.0.1:0:peer-b:22`, `5353:peer-b:53/udp` or `unix:/path:peer-b:22`."""
        hint = "write 2222:peer-b:22, 127.0.0.1:0:peer-b:22, 5353:peer-b:53/udp or unix:/path:peer-b:22"
        bad = UsageError(f"{text!r} is not a forward", hint)
        udp = text.endswith("/udp")
        match = _FORWARD_PATTERN.fullmatch(text.removesuffix("/udp" if udp else "/tcp"))
        if match is None or (match["path"] and udp):
            raise bad
        try:
            port = parse_port(match["port"] or "0", lowest=0)
            peer_port = parse_port(match["peer_port"])
        except UsageError:
            raise bad from None
        target = Target(_peer_host(match["peer"]), peer_port)
        if match["path"]:
            return cls("", 0, target, path=match["path"])
        return cls(listen_ip((match["host"] or "127.0.0.1").strip("[]")), port, target, udp=udp)


def _peer_host(host: str) -> str:
    """`peer-b`, `peer-b.pvpn` or `peer-b.home.pvpn` in lower case, or an address: a forward leads to peers alone."""
    name = host.lower().removesuffix(".").strip("[]")
    with suppress(ValueError):
        return str(ip_address(name))
    qualified = name.endswith(NETWORK_SUFFIX)
    labels = name.removesuffix(NETWORK_SUFFIX).split(".")
    if len(labels) > 1 + qualified or not all(valid_name(label) for label in labels):
        hint = "a forward leads to a peer: 2222:peer-b:22 or 2222:peer-b.home.pvpn:22"
        raise UsageError(f"{host!a} can't be a peer's name", hint)
    return name


def listen_ip(text: str) -> str:
    """The IP to listen at, numeric or `localhost`; raises UsageError: no name server is ever asked."""
    if text.lower() == "localhost":
        return "127.0.0.1"
    try:
        if "%" in text:
            raise ValueError("a zone, which an Address has no room for")
        return str(ip_address(text))
    except ValueError:
        hint = "write 127.0.0.1, or 0.0.0.0 for every address"
        raise UsageError(f"{text!a} is not an address to listen at", hint) from None


def parse_port(text: str, lowest: int = 1) -> int:
    """A port number from text; raises UsageError."""
    if not (len(text) <= _PORT_DIGITS and text.isascii() and text.isdigit() and lowest <= int(text) <= 65535):
        raise UsageError(f"{text!r} is not a port", f"ports go from {lowest} to 65535")
    return int(text)


def split_host_port(text: str, lowest_port: int = 1, example: str = "peer-b:22") -> tuple[str, int]:
    """`host:port` or `[v6]:port` to its parts; raises UsageError, whose hint shows the `example`."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or _HOST_PATTERN.fullmatch(host) is None or (":" in host and not bracketed):
        hint = f"write {example} or [::1]:{example.rpartition(':')[2]}"
        raise UsageError(f"{text!r} is not HOST:PORT", hint)
    return (host[1:-1] if bracketed else host), parse_port(port, lowest_port)


def is_under_pvpn(host: str) -> bool:
    """Whether a name is `pvpn` or ends in it: no name server is asked about those."""
    return f".{host.lower().rstrip('.')}".endswith(NETWORK_SUFFIX)


def valid_name(name: str) -> bool:
    """Whether a peer or network may bear this name: `[a-z0-9-]{1,32}` and not a reserved word."""
    return NAME_PATTERN.fullmatch(name) is not None and name not in RESERVED_NAMES


def shown(path: str | PathLike[str]) -> str:
    """A local path as it may be printed: itself if every character can be, else escaped."""
    text = str(path)
    return text if text.isprintable() else ascii(text)[1:-1]
