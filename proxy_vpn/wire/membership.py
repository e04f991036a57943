"""AUTH: how two ends of a QUIC connection prove who they are and that they hold the network's key.

    cb = BLAKE2b-256("pvpn1 cb", CLIENT_TS0 | SERVER_TS0)          the TLS session both ends share
    M1 I>R {version, features, lane, wanted id}                     T1 = H(network | generation | cb | M1)
    M2 R>I {version, features, boot, id, certificate} + signature   over "pvpn1 R" | T1 | M2; T2 = H(T1 | M2 | sig)
    M3 I>R {boot, id, certificate} + signature + MAC(K_auth)        over "pvpn1 I" | T2 | M3; T3 = H(T2 | M3 | sig)
    M4 R>I MAC(K_auth), verdict

Each message crosses stream 0 as a 2-byte length and msgpack. Initiator and Responder are pure state machines:

    Initiator: start() -> M1 | receive(M2) -> M3 | receive(M4) -> Member
    Responder: receive(M1) -> M2 | receive(M3) -> M4, Member
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from proxy_vpn.errors import WireError
from proxy_vpn.keys import Identity, NetworkKey, verify

VERSION = 1
AUTH_LIMIT_BYTES = 16 * 1024
LANES = 64
_ID_BYTES = 32
_BOOT_BYTES = 8
_Message = TypeVar("_Message")


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """M1: what the initiator speaks, which lane this is and whom it wants (empty: whoever answers)."""

    version: int
    features: int
    lane: int
    wanted: bytes


class Credentials(msgspec.Struct, frozen=True, array_like=True):
    """The signed part of M2 and M3."""

    version: int
    features: int
    boot: bytes
    identity: bytes
    certificate: bytes


class Proof(msgspec.Struct, frozen=True, array_like=True):
    """M2 and M3 as sent: encoded Credentials, their signature and (M3 only) the MAC."""

    credentials: bytes
    signature: bytes
    mac: bytes


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    """M4: the responder's MAC and whether the initiator is welcome."""

    mac: bytes
    accepted: bool


@dataclass(frozen=True, slots=True)
class Member:
    """The proven other end: identity, boot nonce, version and feature bits, and the connection's lane."""

    identity: bytes
    boot: bytes
    version: int
    features: int
    lane: int


class Refused(WireError):
    """The other end did not prove what it must, or did not accept us."""


def channel_binding(client_secret: bytes, server_secret: bytes) -> bytes:
    """32 bytes that only the two ends of one TLS session share."""
    return hashlib.blake2b(client_secret + server_secret, digest_size=32, person=b"pvpn1 cb").digest()


def frame(message: msgspec.Struct) -> bytes:
    """A message with its 2-byte length."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(2, "big") + body


class Frames:
    """Cuts length-prefixed AUTH messages out of a byte stream, 16 KiB in all; raises Refused beyond that."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._total = 0

    def next_message(self, data: bytes) -> bytes | None:
        """Feed `data` and cut one message, leaving what follows it to `rest`."""
        self._buffer += data
        if self._total + len(self._buffer) > AUTH_LIMIT_BYTES:
            raise Refused("authentication is longer than 16 KiB")
        return self._next()

    def rest(self) -> bytes:
        """What follows the messages cut so far: the control stream's first bytes."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def _next(self) -> bytes | None:
        if len(self._buffer) < 2:
            return None
        size = int.from_bytes(self._buffer[:2], "big")
        if len(self._buffer) < 2 + size:
            return None
        body = bytes(self._buffer[2 : 2 + size])
        del self._buffer[: 2 + size]
        self._total += 2 + size
        return body


class _Side:
    """What both roles share: the transcript, our credentials and the checks of theirs."""

    def __init__(self, key: NetworkKey, identity: Identity, boot: bytes, binding: bytes, features: int) -> None:
        self._key = key
        self._identity = identity
        self._ours = msgspec.msgpack.encode(Credentials(VERSION, features, boot, identity.id, b""))
        self._transcript = _hash(key.network_id, key.generation.to_bytes(8, "big"), binding)

    def _absorb(self, *parts: bytes) -> None:
        self._transcript = _hash(self._transcript, *parts)

    def _sign(self, role: bytes) -> bytes:
        return self._identity.sign(b"pvpn1 " + role + self._transcript + self._ours)

    def _mac(self, role: bytes) -> bytes:
        return hashlib.blake2b(role + self._transcript, key=self._key.auth_key, digest_size=32).digest()

    def _check(self, role: bytes, proof: Proof) -> Credentials:
        theirs = _decode(proof.credentials, Credentials)
        if len(theirs.identity) != _ID_BYTES or len(theirs.boot) != _BOOT_BYTES:
            raise Refused("credentials are malformed")
        signed = b"pvpn1 " + role + self._transcript + proof.credentials
        if not verify(theirs.identity, proof.signature, signed):
            raise Refused("a signature does not hold")
        return theirs


class Initiator(_Side):
    """The dialling side; `wanted` is the identity it must meet (empty: any member)."""

    def __init__(
        self,
        key: NetworkKey,
        identity: Identity,
        boot: bytes,
        binding: bytes,
        *,
        wanted: bytes,
        lane: int = 0,
        features: int = 0,
    ) -> None:
        super().__init__(key, identity, boot, binding, features)
        self._wanted = wanted
        self._lane = lane
        self._hello = msgspec.msgpack.encode(Hello(VERSION, features, lane, wanted))
        self._theirs: Credentials | None = None

    def start(self) -> bytes:
        """M1, framed."""
        self._absorb(self._hello)
        return len(self._hello).to_bytes(2, "big") + self._hello

    def receive(self, message: bytes) -> tuple[bytes, Member | None]:
        """Bytes to send and, after M4, the proven responder; raises Refused."""
        return self._second(message) if self._theirs is None else self._fourth(message, self._theirs)

    def _second(self, message: bytes) -> tuple[bytes, None]:
        proof = _decode(message, Proof)
        theirs = self._check(b"R", proof)
        if self._wanted and theirs.identity != self._wanted:
            raise Refused("another device answered")
        if theirs.identity == self._identity.id:
            raise Refused("that is this device itself")
        self._theirs = theirs
        self._absorb(proof.credentials, proof.signature)
        signature = self._sign(b"I")
        self._absorb(self._ours, signature)
        return frame(Proof(self._ours, signature, self._mac(b"I"))), None

    def _fourth(self, message: bytes, theirs: Credentials) -> tuple[bytes, Member]:
        verdict = _decode(message, Verdict)
        if not hmac.compare_digest(verdict.mac, self._mac(b"R")):
            raise Refused("the responder does not hold this network's key")
        if not verdict.accepted:
            raise Refused("the peer refused this device")
        return b"", Member(theirs.identity, theirs.boot, theirs.version, theirs.features, self._lane)


class Responder(_Side):
    """The answering side; `admit` has the last word on a proven identity and boot nonce."""

    def __init__(
        self,
        key: NetworkKey,
        identity: Identity,
        boot: bytes,
        binding: bytes,
        *,
        admit: Callable[[bytes, bytes], bool],
        features: int = 0,
    ) -> None:
        super().__init__(key, identity, boot, binding, features)
        self._admit = admit
        self._hello: Hello | None = None
        self.refused = False

    def receive(self, message: bytes) -> tuple[bytes, Member | None]:
        """Bytes to send and, after M3, the proven initiator (None and `refused` if not admitted); raises Refused."""
        return self._first(message) if self._hello is None else self._third(message, self._hello)

    def _first(self, message: bytes) -> tuple[bytes, None]:
        hello = _decode(message, Hello)
        if hello.version < 1 or not 0 <= hello.lane < LANES:
            raise Refused("an unknown version or lane")
        if hello.wanted not in (b"", self._identity.id):
            raise Refused("another device is wanted")
        self._hello = hello
        self._absorb(message)
        signature = self._sign(b"R")
        self._absorb(self._ours, signature)
        return frame(Proof(self._ours, signature, b"")), None

    def _third(self, message: bytes, hello: Hello) -> tuple[bytes, Member | None]:
        proof = _decode(message, Proof)
        theirs = self._check(b"I", proof)
        self._absorb(proof.credentials, proof.signature)
        if not hmac.compare_digest(proof.mac, self._mac(b"I")):
            raise Refused("the initiator does not hold this network's key")
        self.refused = theirs.identity == self._identity.id or not self._admit(theirs.identity, theirs.boot)
        verdict = frame(Verdict(self._mac(b"R"), not self.refused))
        if self.refused:
            return verdict, None
        return verdict, Member(theirs.identity, theirs.boot, theirs.version, theirs.features, hello.lane)


def _hash(*parts: bytes) -> bytes:
    state = hashlib.blake2b(digest_size=32, person=b"pvpn1 auth")
    for part in parts:
        state.update(len(part).to_bytes(4, "big"))
        state.update(part)
    return state.digest()


def _decode(data: bytes, kind: type[_Message]) -> _Message:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        raise Refused("an authentication message is malformed") from None
