"""What is said to a home router for a port of its own: PCP (RFC 6887), NAT-PMP (RFC 6886) and UPnP's search (SSDP).

UDP ports only. A router's answers, of both protocols and asked for or not, are told apart by `parse_answer`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal
from urllib.parse import urlsplit

from proxy_vpn.addresses import Address
from proxy_vpn.errors import WireError

GATEWAY_PORT = 5351
ANNOUNCE_GROUP = Address("224.0.0.1", 5350)
SEARCH_GROUP = Address("239.255.255.250", 1900)
NONCE_BYTES = 12
PCP_LIMIT_BYTES = 1100
SEARCH_LIMIT_BYTES = 4096
LOCATION_LIMIT_BYTES = 512
OK = 0
UNSUPPORTED_VERSION = 1

_PCP = 2
_NAT_PMP = 0
_UDP = 17
_ANSWER = 0x80
_OP_ANNOUNCE = _OP_ADDRESS = 0
_OP_MAP = 1
_PCP_REQUEST = struct.Struct("!BBxxL16s")
_PCP_ANSWER = struct.Struct("!BBxBLL12x")
_PCP_MAP = struct.Struct(f"!{NONCE_BYTES}sB3xH18s")
_PMP_ANSWER = struct.Struct("!BBHL")
_PMP_MAP_REQUEST = struct.Struct("!BBxxHHL")
_PMP_MAP_ANSWER = struct.Struct("!HHL")
_UNSPECIFIED = Address("0.0.0.0", 0)

_PCP_RESULTS = (
    "done", "unsupported version", "not authorized", "malformed request", "unsupported opcode", "unsupported option",
    "malformed option", "network failure", "no resources", "unsupported protocol", "user's quota exceeded",
    "can't provide that external address", "address mismatch", "too many remote peers",
)  # fmt: skip
_PMP_RESULTS = ("done", "unsupported version", "not authorized", "network failure", "no resources", "unknown request")


@dataclass(frozen=True, slots=True)
class PcpMapRequest:
    """Map a UDP port of ours for `lifetime_s`, 0 to end it; `external` is what we would like (RFC 6887 11.1).

    `client_ip` is the address this datagram leaves from. Only who knows the 12-byte `nonce` may change the mapping.
    """

    nonce: bytes
    client_ip: str
    internal_port: int
    lifetime_s: int
    external: Address = _UNSPECIFIED

    def encode(self) -> bytes:
        """60 bytes."""
        header = _PCP_REQUEST.pack(_PCP, _OP_MAP, self.lifetime_s, _mapped(self.client_ip))
        external = _mapped(self.external.ip), self.external.port
        return header + _pack_pcp_map(self.nonce, self.internal_port, *external)

    @classmethod
    def decode(cls, datagram: bytes) -> PcpMapRequest:
        """The inverse, options ignored; raises WireError."""
        lifetime_s, client_ip = _pcp_request(datagram, _OP_MAP, _PCP_REQUEST.size + _PCP_MAP.size)
        nonce, internal_port, external = _unpack_pcp_map(datagram)
        return cls(nonce, client_ip, internal_port, lifetime_s, external)


@dataclass(frozen=True, slots=True)
class PcpMapAnswer:
    """The router's word on a PcpMapRequest; `lifetime_s` is the mapping's, or how long a refusal will stand."""

    result: int
    nonce: bytes
    internal_port: int
    external: Address
    lifetime_s: int
    epoch_s: int

    def encode(self) -> bytes:
        """60 bytes."""
        header = _PCP_ANSWER.pack(_PCP, _ANSWER | _OP_MAP, self.result, self.lifetime_s, self.epoch_s)
        return header + _pack_pcp_map(self.nonce, self.internal_port, _mapped(self.external.ip), self.external.port)


@dataclass(frozen=True, slots=True)
class PcpAnnounceRequest:
    """Are you there, and since when (RFC 6887 14.1)?"""

    client_ip: str

    def encode(self) -> bytes:
        """24 bytes."""
        return _PCP_REQUEST.pack(_PCP, _OP_ANNOUNCE, 0, _mapped(self.client_ip))

    @classmethod
    def decode(cls, datagram: bytes) -> PcpAnnounceRequest:
        """The inverse; raises WireError."""
        return cls(_pcp_request(datagram, _OP_ANNOUNCE, _PCP_REQUEST.size)[1])


@dataclass(frozen=True, slots=True)
class PcpAnnounceAnswer:
    """The router's epoch: an answer, or sent to everybody after it lost its mappings."""

    result: int
    epoch_s: int

    def encode(self) -> bytes:
        """24 bytes."""
        return _PCP_ANSWER.pack(_PCP, _ANSWER | _OP_ANNOUNCE, self.result, 0, self.epoch_s)


@dataclass(frozen=True, slots=True)
class PmpAddressRequest:
    """What is your external address (RFC 6886 3.2)?"""

    def encode(self) -> bytes:
        """2 bytes."""
        return bytes((_NAT_PMP, _OP_ADDRESS))

    @classmethod
    def decode(cls, datagram: bytes) -> PmpAddressRequest:
        """The inverse; raises WireError."""
        if len(datagram) != 2 or datagram != cls().encode():
            raise WireError("not a NAT-PMP request for the external address")
        return cls()


@dataclass(frozen=True, slots=True)
class PmpAddressAnswer:
    """The router's external address: an answer, or sent to everybody after it changed."""

    result: int
    external_ip: str
    epoch_s: int

    def encode(self) -> bytes:
        """12 bytes."""
        header = _PMP_ANSWER.pack(_NAT_PMP, _ANSWER | _OP_ADDRESS, self.result, self.epoch_s)
        return header + IPv4Address(self.external_ip).packed


@dataclass(frozen=True, slots=True)
class PmpMapRequest:
    """Map a UDP port of ours for `lifetime_s`, 0 (and external port 0) to end it (RFC 6886 3.3 and 3.4)."""

    internal_port: int
    external_port: int
    lifetime_s: int

    def encode(self) -> bytes:
        """12 bytes."""
        return _PMP_MAP_REQUEST.pack(_NAT_PMP, _OP_MAP, self.internal_port, self.external_port, self.lifetime_s)

    @classmethod
    def decode(cls, datagram: bytes) -> PmpMapRequest:
        """The inverse; raises WireError."""
        if len(datagram) != _PMP_MAP_REQUEST.size or datagram[:2] != bytes((_NAT_PMP, _OP_MAP)):
            raise WireError("not a NAT-PMP request for a UDP port")
        return cls(*_PMP_MAP_REQUEST.unpack(datagram)[2:])


@dataclass(frozen=True, slots=True)
class PmpMapAnswer:
    """The router's word on a PmpMapRequest; a granted external port need not be the one that was asked for."""

    result: int
    internal_port: int
    external_port: int
    lifetime_s: int
    epoch_s: int

    def encode(self) -> bytes:
        """16 bytes."""
        header = _PMP_ANSWER.pack(_NAT_PMP, _ANSWER | _OP_MAP, self.result, self.epoch_s)
        return header + _PMP_MAP_ANSWER.pack(self.internal_port, self.external_port, self.lifetime_s)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error that names no mapping: it holds for whatever was asked, or for the whole protocol.

    A router that speaks NAT-PMP only answers PCP so (RFC 6886 3.5), and one that speaks PCP only answers NAT-PMP so.
    """

    protocol: Literal["pcp", "nat-pmp"]
    result: int
    epoch_s: int

    def encode(self) -> bytes:
        """The header alone, as an answer to a request to map."""
        if self.protocol == "pcp":
            return _PCP_ANSWER.pack(_PCP, _ANSWER | _OP_MAP, self.result, 0, self.epoch_s)
        return _PMP_ANSWER.pack(_NAT_PMP, _ANSWER | _OP_MAP, self.result, self.epoch_s)


Answer = PcpMapAnswer | PcpAnnounceAnswer | PmpAddressAnswer | PmpMapAnswer | Refusal
Request = PcpMapRequest | PcpAnnounceRequest | PmpAddressRequest | PmpMapRequest


def parse_answer(datagram: bytes) -> Answer:
    """What a router sent, of either protocol; raises WireError. PCP options and reserved bytes are ignored."""
    if len(datagram) < _PMP_ANSWER.size or not datagram[1] & _ANSWER:
        raise WireError("not a router's answer")
    if datagram[0] == _NAT_PMP:
        return _parse_pmp(datagram)
    if datagram[0] == _PCP:
        return _parse_pcp(datagram)
    raise WireError(f"an answer of version {datagram[0]}")


def result_text(answer: Answer) -> str:
    """An answer's result in words."""
    pcp = isinstance(answer, PcpMapAnswer | PcpAnnounceAnswer) or (
        isinstance(answer, Refusal) and answer.protocol == "pcp"
    )
    names = _PCP_RESULTS if pcp else _PMP_RESULTS
    return names[answer.result] if answer.result < len(names) else f"error {answer.result}"


def search_request(kind: str, host: Address = SEARCH_GROUP) -> bytes:
    """An SSDP search for devices of this `kind`, answered within a second (UPnP Device Architecture 1.1, 1.3.2)."""
    lines = ("M-SEARCH * HTTP/1.1", f"HOST: {host}", 'MAN: "ssdp:discover"', "MX: 1", f"ST: {kind}", "", "")
    return "\r\n".join(lines).encode("ascii")


def parse_search_answer(datagram: bytes) -> tuple[str, str]:
    """(the IP its URL names, the URL of the device's description) from an SSDP answer; raises WireError."""
    if len(datagram) > SEARCH_LIMIT_BYTES:
        raise WireError("an answer to a search is too long")
    first, *headers = datagram.split(b"\r\n")
    if not first.startswith(b"HTTP/1.") or first.split(b" ")[1:2] != [b"200"]:
        raise WireError("not an answer to a search")
    for header in headers:
        name, _, value = header.partition(b":")
        if name.strip().lower() == b"location":
            return _device_url(value.strip())
    raise WireError("an answer to a search names no location")


def _device_url(value: bytes) -> tuple[str, str]:
    if len(value) > LOCATION_LIMIT_BYTES or not all(0x21 <= byte <= 0x7E for byte in value):
        raise WireError("a device's location is not a URL")
    url = value.decode("ascii")
    try:
        parts = urlsplit(url)
        ip, port = ip_address(parts.hostname or ""), parts.port
    except ValueError:
        raise WireError("a device's location names no IP address") from None
    if parts.scheme != "http" or parts.username is not None or port == 0 or not isinstance(ip, IPv4Address):
        raise WireError("a device's location is not plain HTTP on IPv4")
    return str(ip), url


def _parse_pmp(datagram: bytes) -> Answer:
    _, opcode, result, epoch_s = _PMP_ANSWER.unpack_from(datagram)
    body = datagram[_PMP_ANSWER.size :]
    if result == UNSUPPORTED_VERSION:
        return Refusal("nat-pmp", result, epoch_s)
    if opcode == _ANSWER | _OP_ADDRESS and len(body) == 4:
        return PmpAddressAnswer(result, str(IPv4Address(body)), epoch_s)
    if opcode == _ANSWER | _OP_MAP and len(body) == _PMP_MAP_ANSWER.size:
        internal_port, external_port, lifetime_s = _PMP_MAP_ANSWER.unpack(body)
        return PmpMapAnswer(result, internal_port, external_port, lifetime_s, epoch_s)
    if result != OK:
        return Refusal("nat-pmp", result, epoch_s)
    raise WireError("a NAT-PMP answer is malformed")


def _parse_pcp(datagram: bytes) -> Answer:
    if not _PCP_ANSWER.size <= len(datagram) <= PCP_LIMIT_BYTES or len(datagram) % 4:
        raise WireError(f"a PCP answer of {len(datagram)} bytes")
    _, opcode, result, lifetime_s, epoch_s = _PCP_ANSWER.unpack_from(datagram)
    if result == UNSUPPORTED_VERSION:
        return Refusal("pcp", result, epoch_s)
    if opcode == _ANSWER | _OP_ANNOUNCE:
        return PcpAnnounceAnswer(result, epoch_s)
    if opcode == _ANSWER | _OP_MAP and len(datagram) >= _PCP_ANSWER.size + _PCP_MAP.size:
        nonce, internal_port, external = _unpack_pcp_map(datagram)
        return PcpMapAnswer(result, nonce, internal_port, external, lifetime_s, epoch_s)
    if result != OK:
        return Refusal("pcp", result, epoch_s)
    raise WireError("a PCP answer is malformed")


def _pcp_request(datagram: bytes, opcode: int, size: int) -> tuple[int, str]:
    if not size <= len(datagram) <= PCP_LIMIT_BYTES or len(datagram) % 4 or datagram[:2] != bytes((_PCP, opcode)):
        raise WireError("not such a PCP request")
    _, _, lifetime_s, client = _PCP_REQUEST.unpack_from(datagram)
    return lifetime_s, _plain(client)


def _pack_pcp_map(nonce: bytes, internal_port: int, external_ip: bytes, external_port: int) -> bytes:
    return _PCP_MAP.pack(nonce, _UDP, internal_port, external_port.to_bytes(2, "big") + external_ip)


def _unpack_pcp_map(datagram: bytes) -> tuple[bytes, int, Address]:
    """What follows the 24 bytes of header in requests and answers alike: nonce, internal port, external address."""
    nonce, protocol, internal_port, external = _PCP_MAP.unpack_from(datagram, _PCP_ANSWER.size)
    if protocol != _UDP:
        raise WireError("a PCP mapping of another protocol than UDP")
    return nonce, internal_port, Address(_plain(external[2:]), int.from_bytes(external[:2], "big"))


def _mapped(ip: str) -> bytes:
    """16 bytes, IPv4 as IPv4-mapped IPv6 (RFC 6887 5)."""
    address = ip_address(ip)
    return address.packed if isinstance(address, IPv6Address) else b"\0" * 10 + b"\xff\xff" + address.packed


def _plain(packed: bytes) -> str:
    address = IPv6Address(packed)
    return str(address.ipv4_mapped or address)
