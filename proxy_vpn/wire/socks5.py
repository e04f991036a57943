"""SOCKS 4, 4a and 5 as the proxy speaks them: one handshake state machine, its replies, and the UDP header.

         SOCKS5                                SOCKS4, 4a
GREETING --------> [AUTH] -> REQUEST -> DONE   GREETING ------> DONE
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from proxy_vpn.addresses import Address, Target
from proxy_vpn.errors import Status, WireError
from proxy_vpn.wire.hosts import MAX_HOST_BYTES, parse_host

MAX_USER_ID_BYTES = 255

# RFC 1928 section 6, and the field "CD" of SOCKS4.
SOCKS5_REPLIES = {
    Status.OK: 0,
    Status.POLICY: 2,
    Status.REFUSED: 5,
    Status.TIMEOUT: 6,
    Status.UNREACHABLE: 4,
    Status.NO_SUCH_NAME: 4,
    Status.LIMIT: 1,
    Status.INTERNAL: 1,
}
_COMMAND_NOT_SUPPORTED = 7
_ADDRESS_TYPE_NOT_SUPPORTED = 8
_GENERAL_FAILURE = 1
_SOCKS4_GRANTED = 0x5A
_SOCKS4_REJECTED = 0x5B
_NO_METHOD = 0xFF
_NO_AUTH = 0
_PASSWORD = 2
_IPV4, _NAME, _IPV6 = 1, 3, 4


class Command(IntEnum):
    """What a client may ask for; BIND (2) is not offered."""

    CONNECT = 1
    UDP_ASSOCIATE = 3


@dataclass(frozen=True, slots=True)
class SocksRequest:
    """A complete request; for UDP_ASSOCIATE `target` is where the client says it will send from (mostly 0.0.0.0:0)."""

    version: int
    command: Command
    target: Target

    def reply(self, status: Status, bound: Address | None = None) -> bytes:
        """The answer: for SOCKS5 with `bound` as BND.ADDR, all zeros when it is not told."""
        if self.version == 4:
            return _reply4(_SOCKS4_GRANTED if status is Status.OK else _SOCKS4_REJECTED)
        return _reply5(SOCKS5_REPLIES[status], bound)


class _State(Enum):
    GREETING = auto()
    AUTH = auto()
    REQUEST = auto()
    DONE = auto()


class SocksHandshake:
    """The server's side of one handshake, fed bytes as they come; it never reads past the request.

    `credentials` (user, password) make RFC 1929 mandatory and refuse SOCKS4; without them any password is taken.
    """

    def __init__(self, credentials: tuple[str, str] | None = None) -> None:
        self._credentials = credentials
        self._state = _State.GREETING
        self._buffer = bytearray()
        self._out = bytearray()
        self._steps: dict[_State, Callable[[_Reader], SocksRequest | None]] = {
            _State.GREETING: self._greeting,
            _State.AUTH: self._auth,
            _State.REQUEST: self._request5,
        }

    def receive(self, data: bytes) -> SocksRequest | None:
        """Take `data`; the request once it is complete. After a WireError send `data_to_send` and close."""
        self._buffer += data
        while self._state is not _State.DONE:
            reader = _Reader(self._buffer)
            try:
                request = self._steps[self._state](reader)
            except _Incomplete:
                return None
            except WireError:
                self._state = _State.DONE
                raise
            del self._buffer[: reader.offset]
            if request is not None:
                self._state = _State.DONE
                return request
        return None

    def data_to_send(self) -> bytes:
        """What the client must be sent now; each byte is given out once."""
        out = bytes(self._out)
        self._out.clear()
        return out

    @property
    def leftover(self) -> bytes:
        """Bytes that came after the request: the first of the program's own."""
        return bytes(self._buffer)

    def _greeting(self, reader: _Reader) -> SocksRequest | None:
        version = reader.byte()
        if version == 4:
            return self._request4(reader)
        if version != 5:
            raise WireError(f"SOCKS version {version}", "SOCKS 4, 4a and 5 are spoken here")
        methods = reader.take(reader.byte())
        wanted = (_PASSWORD,) if self._credentials else (_NO_AUTH, _PASSWORD)
        method = next((method for method in wanted if method in methods), _NO_METHOD)
        self._out += bytes((5, method))
        if method == _NO_METHOD:
            raise WireError("the SOCKS client offers no way to log in that is accepted here", "send user and password")
        self._state = _State.AUTH if method == _PASSWORD else _State.REQUEST
        return None

    def _auth(self, reader: _Reader) -> None:
        if reader.byte() != 1:
            self._out += b"\x01\x01"
            raise WireError("a broken SOCKS password message")
        user, password = reader.take(reader.byte()), reader.take(reader.byte())
        if self._credentials is not None:
            good_user, good_password = (text.encode() for text in self._credentials)
            # `&`: both are compared whatever the first says, so time tells nothing.
            if not hmac.compare_digest(user, good_user) & hmac.compare_digest(password, good_password):
                self._out += b"\x01\x01"
                raise WireError("wrong SOCKS user or password")
        self._out += b"\x01\x00"
        self._state = _State.REQUEST

    def _request5(self, reader: _Reader) -> SocksRequest:
        failure = _GENERAL_FAILURE
        try:
            version, code, _reserved = reader.byte(), reader.byte(), reader.byte()
            if version != 5:
                raise WireError("a broken SOCKS5 request")
            kind = reader.byte()
            if kind not in (_IPV4, _NAME, _IPV6):
                failure = _ADDRESS_TYPE_NOT_SUPPORTED
                raise WireError(f"SOCKS5 address type {kind}")
            target = reader.target(kind)
            if code not in (Command.CONNECT, Command.UDP_ASSOCIATE):
                failure = _COMMAND_NOT_SUPPORTED
                raise WireError(f"SOCKS5 command {code}", "CONNECT and UDP ASSOCIATE are spoken here")
            if code == Command.CONNECT and not target.port:
                raise WireError("a SOCKS5 CONNECT to port 0")
            return SocksRequest(5, Command(code), target)
        except WireError:
            self._out += _reply5(failure, None)
            raise

    def _request4(self, reader: _Reader) -> SocksRequest:
        try:
            code, port, ip = reader.byte(), reader.port(), reader.take(4)
            reader.until_zero(MAX_USER_ID_BYTES)
            is_name = ip[:3] == bytes(3) and ip[3] != 0
            host = parse_host(reader.until_zero(MAX_HOST_BYTES)) if is_name else str(IPv4Address(ip))
            if self._credentials is not None:
                raise WireError("SOCKS4 has no password", "use SOCKS5")
            if code != Command.CONNECT or not port:
                raise WireError(f"SOCKS4 command {code} to port {port}", "CONNECT is spoken here")
            return SocksRequest(4, Command.CONNECT, Target(host, port))
        except WireError:
            self._out += _reply4(_SOCKS4_REJECTED)
            raise


@dataclass(frozen=True, slots=True)
class UdpHeader:
    """The header of a SOCKS5 datagram (RFC 1928 section 7): its target, and its bytes as the client wrote them.

    An answer from the target carries the same bytes, so a client that named a host hears from that name.
    """

    target: Target
    raw: bytes

    @classmethod
    def parse(cls, datagram: bytes) -> tuple[UdpHeader, bytes]:
        """Header and payload; raises WireError, also for a fragment (they are optional, and refused)."""
        reader = _Reader(datagram)
        try:
            reader.take(2)
            if reader.byte():
                raise WireError("a fragmented SOCKS5 datagram")
            target = reader.target(reader.byte())
        except _Incomplete:
            raise WireError("a SOCKS5 datagram that is too short") from None
        if not target.port:
            raise WireError("a SOCKS5 datagram to port 0")
        return cls(target, bytes(datagram[: reader.offset])), bytes(datagram[reader.offset :])

    @classmethod
    def build(cls, target: Target) -> UdpHeader:
        """The header a client writes for `target`."""
        return cls(target, bytes(3) + _packed(target.host) + target.port.to_bytes(2, "big"))


class _Incomplete(Exception):
    """More bytes are needed."""


class _Reader:
    """Takes fields off the front of a buffer; raises _Incomplete at its end."""

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = data
        self.offset = 0

    def take(self, size: int) -> bytes:
        end = self.offset + size
        if end > len(self._data):
            raise _Incomplete
        field = bytes(self._data[self.offset : end])
        self.offset = end
        return field

    def byte(self) -> int:
        return self.take(1)[0]

    def port(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def until_zero(self, limit: int) -> bytes:
        end = self._data.find(0, self.offset, self.offset + limit + 1)
        if end >= 0:
            return self.take(end + 1 - self.offset)[:-1]
        if len(self._data) - self.offset > limit:
            raise WireError(f"a SOCKS4 field of more than {limit} bytes")
        raise _Incomplete

    def target(self, kind: int) -> Target:
        if kind == _NAME:
            return Target(parse_host(self.take(self.byte())), self.port())
        if kind == _IPV4:
            return Target(str(IPv4Address(self.take(4))), self.port())
        if kind == _IPV6:
            ip = IPv6Address(self.take(16))
            return Target(str(ip.ipv4_mapped or ip), self.port())
        raise WireError(f"SOCKS5 address type {kind}")


@lru_cache(maxsize=16)  # mostly it is 0.0.0.0
def _packed(host: str) -> bytes:
    try:
        ip = ip_address(host)
    except ValueError:
        name = host.encode("ascii")
        return bytes((_NAME, len(name))) + name
    return bytes((_IPV4 if ip.version == 4 else _IPV6,)) + ip.packed


def _reply5(code: int, bound: Address | None) -> bytes:
    bound = bound or Address("0.0.0.0", 0)
    return bytes((5, code, 0)) + _packed(bound.ip) + bound.port.to_bytes(2, "big")


def _reply4(code: int) -> bytes:
    return bytes((0, code)) + bytes(6)
