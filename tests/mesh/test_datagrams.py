"""DATAGRAM frames of a session: rated going out, patient coming in."""

from __future__ import annotations

from proxy_vpn.mesh.datagrams import BURST_BYTES, EARLY_LIMIT, EARLY_S, RATE_BYTES_S, DatagramSender
from proxy_vpn.wire.messages import split_datagram


def test_a_payload_becomes_frames_within_the_limit() -> None:
    frames = DatagramSender().frames(4, bytes(3000), 1000, 1.0)
    assert len(frames) == 4 and all(len(frame) <= 1000 and split_datagram(frame)[0] == 4 for frame in frames)


def test_fragmented_messages_have_numbers_of_their_own() -> None:
    sender = DatagramSender()
    numbers = {split_datagram(sender.frames(4, bytes(3000), 1000, 1.0)[0])[1] for _ in range(5)}
    assert len(numbers) == 5


def test_what_fits_no_fragments_is_dropped() -> None:
    assert DatagramSender().frames(4, bytes(65_507), 800, 1.0) == []


def test_a_burst_passes_and_then_the_rate_holds() -> None:
    sender, sent = DatagramSender(), 0
    while sender.frames(4, bytes(1000), 1200, 1.0):
        sent += 1000
    assert BURST_BYTES - 1000 <= sent <= BURST_BYTES
    sent, steps = 0, 1000
    for step in range(1, steps + 1):
        while sender.frames(4, bytes(1000), 1200, 1.0 + step * 0.001):
            sent += 1000
    assert sent <= RATE_BYTES_S * steps * 0.001 + 1000


def test_frames_of_an_unknown_stream_wait_a_moment() -> None:
    sender = DatagramSender()
    sender.keep(4, b"one", 1.0)
    sender.keep(8, b"other", 1.0)
    sender.keep(4, b"two", 1.05)
    assert sender.kept(4) == [b"one", b"two"] and sender.kept(4) == [] and sender.kept(8) == [b"other"]


def test_only_the_last_few_wait_and_none_too_long() -> None:
    sender = DatagramSender()
    for number in range(20):
        sender.keep(4, bytes([number]), 1.0)
    assert sender.kept(4) == [bytes([number]) for number in range(20 - EARLY_LIMIT, 20)]
    sender.keep(4, b"old", 1.0)
    sender.keep(4, b"new", 1.0 + 2 * EARLY_S)
    assert sender.kept(4) == [b"new"]
