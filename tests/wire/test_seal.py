"""The sealed datagram: only the right key and associated data open it, and its outside tells nothing but a hint."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_vpn.errors import WireError
from proxy_vpn.wire.seal import HINT_BYTES, NONCE_BYTES, OVERHEAD_BYTES, SealKey, hint_of, is_sealed

ONE, OTHER = SealKey(b"\x01" * 32), SealKey(b"\x02" * 32)
nonces = st.binary(min_size=NONCE_BYTES, max_size=NONCE_BYTES)


@given(nonces, st.binary(max_size=1500), st.binary(max_size=40))
@settings(max_examples=50)
def test_what_was_sealed_opens_and_is_32_bytes_longer(entropy: bytes, plaintext: bytes, associated: bytes) -> None:
    datagram = ONE.seal(entropy, plaintext, associated)

    assert len(datagram) == len(plaintext) + 32 == len(plaintext) + OVERHEAD_BYTES
    assert datagram[0] & 0xC0 == 0 and is_sealed(datagram)
    assert ONE.matches(datagram) and ONE.open(datagram, associated) == plaintext


def test_a_handshake_datagram_fills_the_room_of_ipv6_exactly() -> None:
    assert len(ONE.seal(b"\xff" * 12, bytes(1200))) == 1232 == 1280 - 40 - 8


def test_the_nonce_keeps_94_bits_of_the_entropy() -> None:
    first = ONE.seal(b"\xff" * 12, b"")
    assert first[:NONCE_BYTES] == b"\x3f" + b"\xff" * 11


def test_another_key_or_other_associated_data_opens_nothing() -> None:
    datagram = ONE.seal(bytes(range(12)), b"hello", b"hs>")
    for key, associated in ((OTHER, b"hs>"), (ONE, b"hs<"), (ONE, b""), (ONE, b"hs>\0")):
        with pytest.raises(WireError):
            key.open(datagram, associated)


def test_one_flipped_bit_anywhere_but_in_the_hint_opens_nothing() -> None:
    datagram = ONE.seal(bytes(range(12)), b"hello", b"hs>")
    for at in range(len(datagram) * 8):
        mutated = bytearray(datagram)
        mutated[at // 8] ^= 1 << at % 8
        if NONCE_BYTES <= at // 8 < NONCE_BYTES + HINT_BYTES:
            assert not ONE.matches(bytes(mutated))
            continue
        with pytest.raises(WireError):
            ONE.open(bytes(mutated), b"hs>")


def test_the_hint_follows_the_nonce_of_a_standing_key() -> None:
    one, two = ONE.seal(b"\x01" * 12, b""), ONE.seal(b"\x02" * 12, b"")
    assert hint_of(one) != hint_of(two)
    assert ONE.matches(one) and not OTHER.matches(one)


def test_an_index_is_the_hint_of_keyed_state() -> None:
    keyed = SealKey(b"\x03" * 32, b"abcd")
    one, two = keyed.seal(b"\x01" * 12, b"x"), keyed.seal(b"\x02" * 12, b"x")
    assert hint_of(one) == hint_of(two) == b"abcd"
    assert keyed.matches(one) and keyed.open(one) == b"x"
    assert SealKey(b"\x03" * 32).open(one) == b"x", "the index is no part of the key"


@given(st.binary(max_size=100), st.binary(max_size=8))
def test_noise_is_never_opened(noise: bytes, associated: bytes) -> None:
    assert is_sealed(noise) == (len(noise) >= OVERHEAD_BYTES and noise[0] < 0x40)
    hint_of(noise)
    ONE.matches(noise)
    with pytest.raises(WireError):
        ONE.open(noise, associated)


def test_every_prefix_and_every_tail_is_refused() -> None:
    datagram = ONE.seal(bytes(range(12)), b"hello")
    for size in range(len(datagram)):
        with pytest.raises(WireError):
            ONE.open(datagram[:size])
    with pytest.raises(WireError):
        ONE.open(datagram + b"\0")
