"""Who may begin a handshake: cookies that cost us no state, and limits on what is half open.

A cookie proves that its bearer receives what is sent to the source address, and which datagram size the path
carries: the responder recomputes it from the source alone (RFC 9000, section 8.1 has the same purpose).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator

from proxy_vpn.addresses import Address
from proxy_vpn.wire.probe import COOKIE_BYTES, PROBE_SIZES_BYTES

COOKIE_LIFE_S = 120.0
HALF_OPEN_LIMIT = 64
SOURCE_RATE_PER_S, SOURCE_BURST = 1.0, 4.0
IP_RATE_PER_S, IP_BURST = 20.0, 20.0
IDENTITY_RATE_PER_S, IDENTITY_BURST = 10.0, 10.0
TRACKED_LIMIT = 4096


class CookieJar:
    """Makes and recomputes cookies: MAC(two-minute key, source address, size)."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def cookie(self, source: Address, size: int, now: float) -> bytes:
        """The 16-byte cookie for a source whose path carried a datagram of `size` bytes."""
        return self._cookie(source, size, int(now // COOKIE_LIFE_S))

    def candidates(self, source: Address, now: float) -> Iterator[tuple[int, bytes]]:
        """(size, cookie) for all cookies that this source may hold now, the likeliest first."""
        epoch = int(now // COOKIE_LIFE_S)
        for period in (epoch, epoch - 1):
            for size in reversed(PROBE_SIZES_BYTES):
                yield size, self._cookie(source, size, period)

    def _cookie(self, source: Address, size: int, period: int) -> bytes:
        message = period.to_bytes(8, "big", signed=True) + size.to_bytes(2, "big") + source.packed()
        return hashlib.blake2b(message, key=self._secret, digest_size=COOKIE_BYTES, person=b"pvpn1 cookie").digest()


class RateLimit:
    """Token buckets by key, at most 4,096 of them: the one unused longest is forgotten."""

    def __init__(self, rate_per_s: float, burst: float) -> None:
        self._rate = rate_per_s
        self._burst = burst
        self._buckets: OrderedDict[object, tuple[float, float]] = OrderedDict()

    def allow(self, key: object, now: float) -> bool:
        """Whether one more event of this key is within its rate; it is then counted."""
        level, at = self._buckets.pop(key, (self._burst, now))
        level = min(self._burst, level + max(0.0, now - at) * self._rate)
        allowed = level >= 1.0
        self._buckets[key] = (level - 1.0 if allowed else level, now)
        if len(self._buckets) > TRACKED_LIMIT:
            self._buckets.popitem(last=False)
        return allowed


class Admission:
    """The limits on new handshakes: by source, by IP and in all."""

    def __init__(self) -> None:
        self._sources = RateLimit(SOURCE_RATE_PER_S, SOURCE_BURST)
        self._ips = RateLimit(IP_RATE_PER_S, IP_BURST)
        self.identities = RateLimit(IDENTITY_RATE_PER_S, IDENTITY_BURST)

    def admits(self, source: Address, half_open: int, now: float) -> bool:
        """Whether a new handshake from `source` may begin."""
        return half_open < HALF_OPEN_LIMIT and self._sources.allow(source, now) and self._ips.allow(source.ip, now)
