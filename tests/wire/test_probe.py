"""PROBE, PONG and path probes: they keep what they say, have the size they claim, and noise is a WireError at most."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_vpn.addresses import Address
from proxy_vpn.errors import WireError
from proxy_vpn.wire.probe import (
    BOOT_BYTES,
    COOKIE_BYTES,
    PROBE_SIZES_BYTES,
    SMALL_PROBE_BYTES,
    TX_BYTES,
    PathProbe,
    Pong,
    Probe,
)
from proxy_vpn.wire.seal import OVERHEAD_BYTES

sizes = st.sampled_from([SMALL_PROBE_BYTES, *PROBE_SIZES_BYTES])
ports = st.integers(0, 65535)
addresses = st.one_of(
    st.builds(lambda ip, port: Address(str(IPv4Address(ip)), port), st.integers(0, 2**32 - 1), ports),
    st.builds(lambda ip, port: Address(str(IPv6Address(ip)), port), st.integers(2**64, 2**128 - 1), ports),
)


def exactly(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


probes = st.builds(Probe, exactly(TX_BYTES), exactly(32), exactly(BOOT_BYTES), st.floats(allow_nan=False), sizes)
pongs = st.builds(Pong, exactly(32), exactly(BOOT_BYTES), exactly(COOKIE_BYTES), addresses, sizes)
path_probes = st.builds(PathProbe, exactly(TX_BYTES), st.booleans(), st.none() | addresses, sizes)


@given(probes)
@settings(max_examples=50)
def test_a_probe_keeps_what_it_says_and_has_its_size(probe: Probe) -> None:
    assert len(probe.encode()) + OVERHEAD_BYTES == probe.size_bytes
    assert Probe.decode(probe.encode()) == probe


@given(pongs)
@settings(max_examples=50)
def test_a_pong_keeps_what_it_says_and_has_its_size(pong: Pong) -> None:
    assert len(pong.encode()) + OVERHEAD_BYTES == pong.size_bytes
    assert Pong.decode(pong.encode()) == pong


@given(path_probes)
@settings(max_examples=50)
def test_a_path_probe_keeps_what_it_says_and_has_its_size(probe: PathProbe) -> None:
    assert len(probe.encode()) + OVERHEAD_BYTES == probe.size_bytes
    assert PathProbe.decode(probe.encode()) == probe


def test_a_pong_to_the_smallest_probe_fits_its_size_with_either_family() -> None:
    for ip in ("192.0.2.1", "2001:db8::1"):
        pong = Pong(bytes(32), bytes(8), bytes(16), Address(ip, 1), SMALL_PROBE_BYTES)
        assert len(pong.encode()) + OVERHEAD_BYTES == SMALL_PROBE_BYTES


def test_a_probe_too_short_for_a_full_answer_is_refused() -> None:
    whole = Probe(bytes(16), bytes(32), bytes(8), 1.0, SMALL_PROBE_BYTES).encode()
    for size in range(len(whole)):
        with pytest.raises(WireError):
            Probe.decode(whole[:size])


def test_prefixes_of_pongs_and_path_probes_are_refused_or_whole() -> None:
    for whole, kind in (
        (Pong(bytes(32), bytes(8), bytes(16), Address("192.0.2.1", 1), SMALL_PROBE_BYTES).encode(), Pong),
        (PathProbe(bytes(16), True, Address("192.0.2.1", 1), SMALL_PROBE_BYTES).encode(), PathProbe),
    ):
        refused = 0
        for size in range(len(whole)):
            try:
                assert kind.decode(whole[:size]).size_bytes == size + OVERHEAD_BYTES
            except WireError:
                refused += 1
        assert refused > 30


@given(st.binary(max_size=200))
@settings(max_examples=100)
def test_noise_is_a_wire_error_at_most(noise: bytes) -> None:
    for kind in (Probe, Pong, PathProbe):
        with suppress(WireError):
            kind.decode(noise)


@given(pongs, st.integers(0, 74), st.integers(1, 255))
@settings(max_examples=100)
def test_a_mutated_pong_is_a_wire_error_at_most(pong: Pong, at: int, mask: int) -> None:
    mutated = bytearray(pong.encode())
    mutated[at] ^= mask
    with suppress(WireError):
        Pong.decode(bytes(mutated))
