"""The sealed datagram: everything before QUIC's own 1-RTT keys travels in this envelope.

    nonce 12 B (top two bits 0) | hint 4 B | ChaCha20-Poly1305 ciphertext | tag 16 B      (RFC 8439)

The hint tells which key to try, so that junk costs no decryption. A standing key recomputes the hint from the
nonce; keyed state is found by an index that the receiver gave out earlier. No match: dropped unopened.
"""

from __future__ import annotations

import hashlib

from nacl.bindings import (
    crypto_aead_chacha20poly1305_ietf_decrypt,
    crypto_aead_chacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from proxy_vpn.errors import WireError

NONCE_BYTES = 12
HINT_BYTES = 4
TAG_BYTES = 16
OVERHEAD_BYTES = NONCE_BYTES + HINT_BYTES + TAG_BYTES
_HEADER_BYTES = NONCE_BYTES + HINT_BYTES


def is_sealed(datagram: bytes) -> bool:
    """Whether a datagram claims to be sealed: top two bits 0 and room for header and tag."""
    return len(datagram) >= OVERHEAD_BYTES and datagram[0] < 0x40


def hint_of(datagram: bytes) -> bytes:
    """The 4 hint bytes of a datagram that `is_sealed`."""
    return datagram[NONCE_BYTES:_HEADER_BYTES]


class SealKey:
    """One 32-byte key of sealed datagrams; `index` is the fixed hint of keyed state, else hints follow the nonce."""

    __slots__ = ("_hint_key", "_index", "_key")

    def __init__(self, secret: bytes, index: bytes = b"") -> None:
        self._key = hashlib.blake2b(key=secret, person=b"pvpn1 seal", digest_size=32).digest()
        self._hint_key = hashlib.blake2b(key=secret, person=b"pvpn1 hint", digest_size=32).digest()
        self._index = index

    def hint(self, nonce: bytes) -> bytes:
        """The hint that a datagram with this nonce bears under this key."""
        return self._index or hashlib.blake2b(nonce, key=self._hint_key, digest_size=HINT_BYTES).digest()

    def matches(self, datagram: bytes) -> bool:
        """Whether the hint says that this key opens the datagram."""
        return self.hint(datagram[:NONCE_BYTES]) == datagram[NONCE_BYTES:_HEADER_BYTES]

    def seal(self, entropy: bytes, plaintext: bytes, associated: bytes = b"") -> bytes:
        """The sealed datagram; `entropy` is 12 fresh random bytes, of which 94 bits become the nonce."""
        nonce = bytes((entropy[0] & 0x3F,)) + entropy[1:NONCE_BYTES]
        sealed: bytes = crypto_aead_chacha20poly1305_ietf_encrypt(plaintext, associated, nonce, self._key)
        return nonce + self.hint(nonce) + sealed

    def open(self, datagram: bytes, associated: bytes = b"") -> bytes:
        """The plaintext; raises WireError if the datagram was not sealed with this key and associated data."""
        try:
            opened: bytes = crypto_aead_chacha20poly1305_ietf_decrypt(
                datagram[_HEADER_BYTES:], associated, datagram[:NONCE_BYTES], self._key
            )
        except (CryptoError, ValueError, TypeError):
            raise WireError("a sealed datagram does not open") from None
        return opened
