"""Datagrams as they lie after one read."""

from __future__ import annotations

from proxy_vpn.wire.segments import HEAD_BYTES, Laid, Scattered


def laid(datagrams: list[bytes]) -> Laid:
    """End to end, as the kernel joins them."""
    return Laid(b"".join(datagrams), len(datagrams[0]))


def scattered(datagrams: list[bytes]) -> Scattered:
    """Heads and bodies apart, in a buffer that has more in it; none is shorter than a head."""
    bodies = b"".join([datagram[HEAD_BYTES:] for datagram in datagrams])
    buffer = memoryview(bytearray(bodies + b"older"))[: len(bodies)]
    return Scattered(b"".join([datagram[:HEAD_BYTES] for datagram in datagrams]), buffer, len(datagrams[0]))
