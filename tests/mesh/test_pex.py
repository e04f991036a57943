"""Peer records: signed by whom they describe, for a while, and of a bounded size."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_vpn.addresses import Address
from proxy_vpn.errors import WireError
from proxy_vpn.keys import Identity, NetworkKey
from proxy_vpn.mesh.pex import (
    ADDRESSES_PER_RECORD,
    RECORD_LIFE_S,
    RECORD_LIMIT_BYTES,
    RECORDS_PER_MESSAGE,
    make_record,
    newer,
    read_record,
)
from proxy_vpn.wire.messages import (
    MESSAGE_LIMIT_BYTES,
    ControlReader,
    Peers,
    Record,
    SignedRecord,
    decode,
    encode,
    encode_control,
)

KEY, OTHER_KEY = NetworkKey("home", b"n" * 16, b"s" * 32), NetworkKey("work", b"m" * 16, b"s" * 32)
ALICE, BOB = Identity(b"\x01" * 32), Identity(b"\x02" * 32)
NOW = 1_800_000_000.0
WHERE = [Address("198.41.0.4", 5000), Address("2001:db8::1", 5001)]
GOOD = make_record(KEY, ALICE, "laptop", WHERE, NOW)


def signed(record: Record, by: Identity = ALICE, key: NetworkKey = KEY) -> bytes:
    body = encode(record)
    return encode(SignedRecord(body, by.sign(b"pvpn1 record" + key.network_id + body)))


def test_a_record_says_who_and_where() -> None:
    record, addresses = read_record(KEY, GOOD, NOW)
    assert (record.identity, record.name, addresses) == (ALICE.id, "laptop", WHERE)


@pytest.mark.parametrize("later_s", [-RECORD_LIFE_S + 1, 0.0, RECORD_LIFE_S - 1])
def test_a_record_holds_for_an_hour(later_s: float) -> None:
    read_record(KEY, GOOD, NOW + later_s)


@pytest.mark.parametrize("later_s", [-RECORD_LIFE_S - 1, RECORD_LIFE_S + 1, 1e9])
def test_and_no_longer(later_s: float) -> None:
    with pytest.raises(WireError):
        read_record(KEY, GOOD, NOW + later_s)


@pytest.mark.parametrize(
    ("issued", "expires"),
    [
        (NOW, 1e18),
        (NOW, float("inf")),
        (float("nan"), NOW + 1),
        (NOW, float("nan")),
        (float("-inf"), 1e18),
        (1e18, 1e19),
    ],
)
def test_times_out_of_this_world_hold_for_an_hour_at_most(issued: float, expires: float) -> None:
    record = signed(Record(ALICE.id, "x", [], issued, expires))
    with pytest.raises(WireError):
        read_record(KEY, record, NOW + RECORD_LIFE_S + 1)


def test_nobody_speaks_for_another_or_in_another_network() -> None:
    for data in (
        signed(Record(ALICE.id, "x", [], NOW, NOW + 1), by=BOB),
        make_record(OTHER_KEY, ALICE, "laptop", WHERE, NOW),
        signed(Record(b"short", "x", [], NOW, NOW + 1)),
    ):
        with pytest.raises(WireError):
            read_record(KEY, data, NOW)


def test_a_record_is_bounded_in_size_and_addresses() -> None:
    many = [Address(f"2001:db8::{number}", 5000) for number in range(1, 100)]
    record, addresses = read_record(KEY, make_record(KEY, ALICE, "x" * 32, many, NOW), NOW)
    assert len(addresses) == ADDRESSES_PER_RECORD and record.name == "x" * 32
    packed = [address.packed() for address in many]
    for data in (
        signed(Record(ALICE.id, "x", packed[: ADDRESSES_PER_RECORD + 1], NOW, NOW + 1)),
        signed(Record(ALICE.id, "x" * RECORD_LIMIT_BYTES, [], NOW, NOW + 1)),
        signed(Record(ALICE.id, "x", [b"12345"], NOW, NOW + 1)),
    ):
        with pytest.raises(WireError):
            read_record(KEY, data, NOW)


def test_a_full_message_of_the_largest_records_is_a_message_one_may_send() -> None:
    body = signed(Record(ALICE.id, "x" * 800, [], NOW, NOW + 1))
    record = signed(Record(ALICE.id, "x" * (800 + RECORD_LIMIT_BYTES - len(body)), [], NOW, NOW + 1))
    assert RECORD_LIMIT_BYTES - 4 <= len(record) <= RECORD_LIMIT_BYTES
    read_record(KEY, record, NOW)
    message = encode_control(Peers([record] * RECORDS_PER_MESSAGE))
    assert len(message) <= MESSAGE_LIMIT_BYTES + 4
    assert ControlReader().feed(message)


def test_newer_is_what_was_issued_ten_seconds_later() -> None:
    later = make_record(KEY, ALICE, "laptop", [], NOW + 10)
    assert not newer(make_record(KEY, ALICE, "laptop", [], NOW + 9), GOOD)
    assert newer(GOOD, b"") and newer(later, GOOD)
    assert not newer(GOOD, later) and not newer(GOOD, GOOD)
    assert not newer(b"noise", GOOD)


def test_every_flipped_bit_of_a_record_is_refused() -> None:
    for at in range(len(GOOD) * 8):
        mutated = bytearray(GOOD)
        mutated[at // 8] ^= 1 << at % 8
        with pytest.raises(WireError):
            read_record(KEY, bytes(mutated), NOW)


@given(st.binary(max_size=300))
@settings(max_examples=100)
def test_noise_is_a_wire_error_at_most(noise: bytes) -> None:
    with suppress(WireError):
        read_record(KEY, noise, NOW)
    with suppress(WireError):
        read_record(KEY, encode(SignedRecord(noise, bytes(64))), NOW)
    newer(noise, GOOD)
    newer(GOOD, noise)


def test_decoding_a_record_within_keeps_its_bytes() -> None:
    assert decode(decode(GOOD, SignedRecord).record, Record).identity == ALICE.id
