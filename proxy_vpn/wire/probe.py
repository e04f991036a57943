"""PROBE and PONG, the plaintexts of sealed datagrams that find peers, measure paths and hand out cookies.

A PONG is padded to its PROBE's size and never longer, so a prober learns that the path carries that size both
ways and nobody can use us to amplify. Sizes are plaintext sizes; the sealed datagram is 32 bytes longer.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from proxy_vpn.addresses import Address
from proxy_vpn.errors import WireError
from proxy_vpn.wire.seal import OVERHEAD_BYTES

TX_BYTES = 16
BOOT_BYTES = 8
COOKIE_BYTES = 16
SMALL_PROBE_BYTES = 128
PROBE_SIZES_BYTES = (1232, 1312, 1452)
_PROBE = struct.Struct(f"!{TX_BYTES}s32s{BOOT_BYTES}sd")
_PONG = struct.Struct(f"!32s{BOOT_BYTES}s{COOKIE_BYTES}sB18s")


@dataclass(frozen=True, slots=True)
class Probe:
    """Is a peer there, and does the path carry `size_bytes`? `time` is the sender's Unix time in seconds."""

    tx: bytes
    sender: bytes
    boot: bytes
    time: float
    size_bytes: int

    def encode(self) -> bytes:
        """The plaintext, padded with zeros so that the sealed datagram has `size_bytes`."""
        body = _PROBE.pack(self.tx, self.sender, self.boot, self.time)
        return body.ljust(self.size_bytes - OVERHEAD_BYTES, b"\0")

    @classmethod
    def decode(cls, plaintext: bytes) -> Probe:
        """The inverse; raises WireError."""
        if len(plaintext) + OVERHEAD_BYTES < SMALL_PROBE_BYTES:
            raise WireError("a probe is too short to be answered in full")
        tx, sender, boot, time = _PROBE.unpack_from(plaintext)
        return cls(tx, sender, boot, time, len(plaintext) + OVERHEAD_BYTES)


@dataclass(frozen=True, slots=True)
class Pong:
    """A peer's answer: who it is, as whom it sees us, and the cookie that lets us begin a handshake."""

    responder: bytes
    boot: bytes
    cookie: bytes
    observed: Address
    size_bytes: int

    def encode(self) -> bytes:
        """The plaintext, padded so that the sealed datagram has `size_bytes`."""
        packed = self.observed.packed()
        body = _PONG.pack(self.responder, self.boot, self.cookie, len(packed), packed.ljust(18, b"\0"))
        return body.ljust(self.size_bytes - OVERHEAD_BYTES, b"\0")

    @classmethod
    def decode(cls, plaintext: bytes) -> Pong:
        """The inverse; raises WireError."""
        if len(plaintext) < _PONG.size:
            raise WireError("a pong is too short")
        responder, boot, cookie, length, packed = _PONG.unpack_from(plaintext)
        return cls(responder, boot, cookie, Address.from_packed(packed[:length]), len(plaintext) + OVERHEAD_BYTES)


@dataclass(frozen=True, slots=True)
class PathProbe:
    """A probe on the path of a live connection, sealed under the keys its ends exchanged; `reply` marks the answer.

    The first 8 bytes of `tx` count the sender's probes, so that a replay is known as one.
    """

    tx: bytes
    reply: bool
    observed: Address | None
    size_bytes: int

    def encode(self) -> bytes:
        """The plaintext, padded so that the sealed datagram has `size_bytes`."""
        packed = self.observed.packed() if self.observed else b""
        body = self.tx + bytes((self.reply, len(packed))) + packed.ljust(18, b"\0")
        return body.ljust(self.size_bytes - OVERHEAD_BYTES, b"\0")

    @classmethod
    def decode(cls, plaintext: bytes) -> PathProbe:
        """The inverse; raises WireError."""
        if len(plaintext) < TX_BYTES + 20 or plaintext[TX_BYTES] > 1:
            raise WireError("a path probe is malformed")
        length = plaintext[TX_BYTES + 1]
        packed = plaintext[TX_BYTES + 2 : TX_BYTES + 20][:length]
        observed = Address.from_packed(packed) if length else None
        return cls(plaintext[:TX_BYTES], bool(plaintext[TX_BYTES]), observed, len(plaintext) + OVERHEAD_BYTES)
