"""Reassembly: any order, nothing twice, nothing overlapping, and never more than its bounds."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from proxy_vpn.wire.fragments import MAX_FRAGMENTS, MAX_WAITING, WAIT_S, Reassembly
from proxy_vpn.wire.packet import UDP, Fragment, Packet

A, B = b"\x0a\0\0\1", b"\x0a\0\0\2"


def part(offset: int, data: bytes, more: bool, number: int = 1) -> Packet:
    return Packet(UDP, A, B, data, Fragment(number, offset, more))


@given(st.binary(min_size=9, max_size=3000), st.integers(1, 60), st.randoms(use_true_random=False))
def test_a_payload_in_any_order(payload: bytes, eights: int, dice: random.Random) -> None:
    size = eights * 8
    offsets = range(0, len(payload), size)
    parts = [part(at, payload[at : at + size], at + size < len(payload)) for at in offsets]
    dice.shuffle(parts)
    reassembly = Reassembly()
    answers = [reassembly.add(each, 0.0) for each in parts]
    assert answers[:-1] == [None] * (len(parts) - 1)
    assert answers[-1] == Packet(UDP, A, B, payload)
    assert not len(reassembly)


def test_overlaps_drop_the_whole() -> None:
    for second in (part(8, b"y" * 16, True), part(0, b"y" * 8, True), part(16, b"y", False), part(8, b"", True)):
        reassembly = Reassembly()
        reassembly.add(part(0, b"x" * 24, True), 0.0)
        assert reassembly.add(second, 0.0) is None and not len(reassembly)


def test_what_makes_no_sense_is_dropped() -> None:
    for wrong in (part(0, b"x" * 9, True), part(65528, b"x" * 16, False)):
        reassembly = Reassembly()
        assert reassembly.add(wrong, 0.0) is None and not len(reassembly)


def test_it_is_bounded() -> None:
    reassembly = Reassembly()
    for number in range(MAX_WAITING * 3):
        reassembly.add(part(0, b"x" * 8, True, number), 0.0)
    assert len(reassembly) == MAX_WAITING
    for at in range(MAX_FRAGMENTS + 1):
        reassembly.add(part(at * 8, b"x" * 8, True, 999), 0.0)
    assert len(reassembly) == MAX_WAITING - 1
    reassembly.add(part(0, b"x" * 8, True, 1000), WAIT_S + 1)
    assert len(reassembly) == 1
