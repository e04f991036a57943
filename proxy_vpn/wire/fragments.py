"""Reassembly of fragmented IP payloads: bounded, and without mercy for fragments that overlap (RFC 5722)."""

from __future__ import annotations

from typing import Final

from proxy_vpn.wire.packet import Packet

MAX_WAITING: Final = 32  # payloads of which some fragments are here
MAX_PAYLOAD_BYTES: Final = 65535
MAX_FRAGMENTS: Final = 256
WAIT_S: Final = 15.0

_Key = tuple[int, int, bytes, bytes]


class Reassembly:
    """Collects fragments until a payload is whole."""

    def __init__(self) -> None:
        self._waiting: dict[_Key, _Parts] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, packet: Packet, now: float) -> Packet | None:
        """A fragment comes in; the whole packet once nothing is missing."""
        fragment = packet.fragment
        assert fragment is not None
        self._forget_old(now)
        key = (fragment.number, packet.protocol, packet.source, packet.target)
        parts = self._waiting.get(key)
        if parts is None:
            if len(self._waiting) >= MAX_WAITING:
                del self._waiting[next(iter(self._waiting))]
            parts = self._waiting[key] = _Parts(now)
        if not parts.add(fragment.offset, packet.payload, fragment.more):
            del self._waiting[key]
            return None
        payload = parts.whole()
        if payload is None:
            return None
        del self._waiting[key]
        return packet._replace(payload=payload, fragment=None)

    def _forget_old(self, now: float) -> None:
        while self._waiting:
            key, oldest = next(iter(self._waiting.items()))
            if oldest.since > now - WAIT_S:
                return
            del self._waiting[key]


class _Parts:
    """Those of one payload."""

    def __init__(self, since: float) -> None:
        self.since = since
        self._parts: dict[int, bytes] = {}
        self._size: int | None = None

    def add(self, offset: int, data: bytes, more: bool) -> bool:
        """False when the fragments make no sense together."""
        end = offset + len(data)
        if not data or end > MAX_PAYLOAD_BYTES or (more and len(data) % 8) or len(self._parts) >= MAX_FRAGMENTS:
            return False
        if any(offset < at + len(part) and at < end for at, part in self._parts.items()):
            return False
        if not more:
            if self._size is not None:
                return False
            self._size = end
        self._parts[offset] = data
        return self._size is None or all(at + len(part) <= self._size for at, part in self._parts.items())

    def whole(self) -> bytes | None:
        if self._size is None or sum(map(len, self._parts.values())) < self._size:
            return None
        return b"".join(self._parts[offset] for offset in sorted(self._parts))
