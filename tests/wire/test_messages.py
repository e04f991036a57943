"""Control messages, heads and DATAGRAM frames: cut anywhere they stay whole, and noise is a WireError at most."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_vpn.errors import WireError
from proxy_vpn.wire import messages
from proxy_vpn.wire.messages import (
    MESSAGE_LIMIT_BYTES,
    OPEN_LIMIT_BYTES,
    Bye,
    ControlReader,
    Credit,
    Message,
    Open,
    Peers,
    Reassembler,
    Record,
    SignedRecord,
    Welcome,
    datagram_frames,
    decode,
    encode,
    encode_control,
    encode_open,
    split_datagram,
    split_open,
)

numbers = st.integers(0, 2**63 - 1)
controls: st.SearchStrategy[Message] = st.one_of(
    st.builds(Welcome, st.text(max_size=40), st.text(max_size=10), st.just("qh3"), st.binary(), st.binary()),
    st.builds(Credit, st.lists(st.tuples(numbers, numbers), max_size=20)),
    st.builds(Peers, st.lists(st.binary(max_size=300), max_size=10)),
    st.builds(Bye, st.text(max_size=40)),
)


def unknown(body: object) -> bytes:
    encoded = msgspec.msgpack.encode(body)
    return len(encoded).to_bytes(4, "big") + encoded


# --- the control stream ---------------------------------------------------------------------------------------


@given(st.lists(controls, max_size=5), st.lists(st.integers(1, 50), max_size=40))
@settings(max_examples=60)
def test_control_messages_arrive_whole_however_they_are_cut(sent: list[Message], cuts: list[int]) -> None:
    stream = b"".join(map(encode_control, sent))
    reader, received, at = ControlReader(), [], 0
    for cut in [*cuts, len(stream) + 1]:
        received += reader.feed(stream[at : at + cut])
        at += cut
    assert received == sent


def test_control_messages_arrive_byte_by_byte_and_a_tail_waits() -> None:
    stream = encode_control(Bye("1")) + encode_control(Bye("x")) + encode_control(Bye("2"))[:-1]
    reader = ControlReader()
    received = [message for at in range(len(stream)) for message in reader.feed(stream[at : at + 1])]
    assert received == [Bye("1"), Bye("x")]
    assert reader.feed(encode_control(Bye("2"))[-1:]) == [Bye("2")]


def test_unknown_tags_are_skipped_and_unknown_fields_too() -> None:
    reader = ControlReader()
    stream = unknown({"t": "future", "deep": {"a": [1, None]}}) + unknown({"t": "bye", "reason": "3", "more": b"x"})
    assert reader.feed(stream + encode_control(Bye("4"))) == [Bye("3"), Bye("4")]


@pytest.mark.parametrize(
    "body",
    [{"t": "bye"}, {"t": "bye", "reason": 1}, {"t": "credit", "limits": [[1]]}, {}, {"t": 5}, [], None, 7, "bye"],
)
def test_malformed_messages_are_wire_errors(body: object) -> None:
    with pytest.raises(WireError):
        ControlReader().feed(unknown(body))


def test_an_empty_message_is_malformed() -> None:
    with pytest.raises(WireError):
        ControlReader().feed(bytes(4))


def test_a_message_of_64_kib_passes_and_a_longer_one_is_refused_by_its_length_alone() -> None:
    overhead = len(encode_control(Peers([bytes(MESSAGE_LIMIT_BYTES - 100)]))) - 4 - (MESSAGE_LIMIT_BYTES - 100)
    largest = Peers([bytes(MESSAGE_LIMIT_BYTES - overhead)])
    assert ControlReader().feed(encode_control(largest)) == [largest]
    with pytest.raises(WireError):
        ControlReader().feed((MESSAGE_LIMIT_BYTES + 1).to_bytes(4, "big"))


def test_deep_nesting_is_a_wire_error() -> None:
    body = b"\x91" * 60000 + b"\xc0"
    with pytest.raises(WireError):
        ControlReader().feed(len(body).to_bytes(4, "big") + body)


@given(st.binary(max_size=300))
@settings(max_examples=100)
def test_noise_on_the_control_stream_is_a_wire_error_at_most(noise: bytes) -> None:
    with suppress(WireError):
        ControlReader().feed(noise)
    with suppress(WireError):
        ControlReader().feed(len(noise).to_bytes(4, "big") + noise)


# --- heads ----------------------------------------------------------------------------------------------------


@given(st.sampled_from(["tcp", "udp"]), st.integers(1, 65535), st.binary(max_size=20))
def test_a_head_is_split_from_what_follows_it(kind: str, port: int, rest: bytes) -> None:
    head = encode_open(Open(kind, 0, port))
    for size in range(len(head)):
        assert split_open(head[:size]) is None
    assert split_open(head + rest) == (Open(kind, 0, port), len(head))
    assert split_open(bytearray(head + rest)) == (Open(kind, 0, port), len(head))


@pytest.mark.parametrize(
    "head",
    [
        Open("sctp", 0, 1),
        Open("tcp", 1, 1),
        Open("tcp", 2, 1, "a.example"),
        Open("tcp", 1, 1, "a" * 254),
        Open("tcp", 1, 1, "bücher.example"),
        Open("tcp", 1, 1, "a\n"),
        Open("tcp", 0, 0),
        Open("udp", 0, 65536),
        Open("tcp", 0, -1),
    ],
)
def test_a_head_that_asks_for_something_unknown_is_refused(head: Open) -> None:
    with pytest.raises(WireError):
        split_open(encode_open(head))


def test_a_long_head_is_refused_by_its_length_alone() -> None:
    assert split_open(OPEN_LIMIT_BYTES.to_bytes(2, "big")) is None
    with pytest.raises(WireError):
        split_open((OPEN_LIMIT_BYTES + 1).to_bytes(2, "big"))


@given(st.binary(max_size=100))
@settings(max_examples=100)
def test_noise_as_a_head_is_a_wire_error_at_most(noise: bytes) -> None:
    with suppress(WireError):
        split_open(noise)
    with suppress(WireError):
        split_open(len(noise).to_bytes(2, "big") + noise)


@given(st.binary(max_size=100))
def test_noise_as_a_record_is_a_wire_error_at_most(noise: bytes) -> None:
    for kind in (Record, SignedRecord, Open):
        with suppress(WireError):
            decode(noise, kind)


def test_records_keep_what_they_say() -> None:
    record = Record(bytes(32), "peer-b", [bytes(6)], 1.5, 2.5)
    signed = SignedRecord(encode(record), bytes(64))
    assert decode(encode(signed), SignedRecord) == signed and decode(signed.record, Record) == record
    with pytest.raises(WireError):
        decode(encode(signed) + b"\0", SignedRecord)


# --- DATAGRAM frames ------------------------------------------------------------------------------------------


@given(st.integers(0, 2**62 - 1), st.integers(0, 2**20), st.binary(max_size=4000), st.integers(100, 1400))
@settings(max_examples=60)
def test_a_payload_is_split_and_joined_whatever_the_limit_and_the_order(
    stream_id: int, number: int, payload: bytes, limit: int
) -> None:
    frames = datagram_frames(stream_id, number, payload, limit)
    assert all(len(frame) <= limit for frame in frames)
    parts = Reassembler()
    joined = []
    for frame in reversed(frames):
        found, message, index, count, part = split_datagram(frame)
        assert found == stream_id and count == len(frames)
        joined.append(parts.feed(message, index, count, part, 0.0))
    assert joined == [None] * (len(frames) - 1) + [payload]


def test_a_payload_beyond_64_fragments_is_refused() -> None:
    room = 1000 - 13
    assert len(datagram_frames(4, 1, bytes(64 * room), 1000)) == 64
    for payload, limit in ((bytes(64 * room + 1), 1000), (bytes(100), 13), (bytes(100), 0), (bytes(100), -5)):
        with pytest.raises(WireError):
            datagram_frames(4, 1, payload, limit)


@given(st.binary(max_size=60))
@settings(max_examples=100)
def test_noise_as_a_frame_is_a_wire_error_at_most(noise: bytes) -> None:
    with suppress(WireError):
        _, _, index, count, _ = split_datagram(noise)
        assert 0 <= index < count <= messages.FRAGMENTS_LIMIT


def test_prefixes_of_a_fragment_are_refused() -> None:
    first = datagram_frames(4, 1, bytes(2000), 1000)[0]
    for size in range(13):
        with pytest.raises(WireError):
            split_datagram(first[:size])


def test_the_parts_of_a_message_wait_a_second_and_sixteen_messages_at_most() -> None:
    parts = Reassembler()
    assert parts.feed(1, 0, 2, b"a", 0.0) is None
    assert parts.feed(1, 1, 2, b"b", 1.1) is None, "the first part was forgotten"
    for number in range(2, 2 + 16):
        assert parts.feed(number, 0, 2, b"a", 2.0) is None
    assert parts.feed(1, 0, 2, b"a", 2.0) is None, "pushed out by sixteen others"
    assert parts.feed(17, 1, 2, b"b", 2.0) == b"ab"


def test_a_repeated_part_does_not_complete_a_message() -> None:
    parts = Reassembler()
    assert parts.feed(1, 0, 2, b"a", 0.0) is None
    assert parts.feed(1, 0, 2, b"a", 0.0) is None
    assert parts.feed(1, 1, 2, b"b", 0.0) == b"ab"
    assert parts.feed(1, 1, 2, b"b", 0.0) is None, "a late copy begins anew"
