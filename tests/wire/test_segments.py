"""Datagrams that came in one read: however they lie, they are the same."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_vpn.wire.segments import HEAD_BYTES, Laid, Segments, alone
from tests.support.segments import laid, scattered

Lay = Callable[[list[bytes]], Segments]
NOISE = random.Random(7).randbytes(100 * 60)


@st.composite
def some(draw: st.DrawFn) -> list[bytes]:
    """Datagrams of one length with bodies, the last perhaps without."""
    count, size = draw(st.integers(1, 40)), draw(st.integers(HEAD_BYTES + 1, 60))
    datagrams = [NOISE[index * size : (index + 1) * size] for index in range(count)]
    if count > 1:
        datagrams[-1] = datagrams[-1][: draw(st.integers(HEAD_BYTES, size))]
    return datagrams


@pytest.mark.parametrize("lay", [laid, scattered])
@given(some(), st.data())
def test_however_they_lie_they_are_the_same(lay: Lay, datagrams: list[bytes], data: st.DataObject) -> None:
    segments = lay(datagrams)
    size, count = len(datagrams[0]), len(datagrams)
    assert (segments.segment_bytes, segments.count) == (size, count)
    assert segments.size == len(segments.data)
    assert segments.data == b"".join(datagrams)
    assert [segments.datagram(index) for index in range(count)] == datagrams
    assert [segments.head(index) for index in range(count)] == [each[:HEAD_BYTES] for each in datagrams]
    places = [bytes(each[at] for each in datagrams) for at in range(HEAD_BYTES)]
    assert segments.columns(0, HEAD_BYTES) == places
    start = data.draw(st.integers(0, count - 1))
    end = data.draw(st.integers(start + 1, count))
    part = segments.part(start, end)
    assert part.data == b"".join(datagrams[start:end]) and part.size == len(part.data) and part.count == end - start
    assert segments.bodies(start, end) == b"".join(each[HEAD_BYTES:] for each in datagrams[start:end])
    full = sum(len(each) == size for each in datagrams)
    step = data.draw(st.integers(1, full))
    many = data.draw(st.integers(1, full // step))
    start = data.draw(st.integers(0, full - many * step))
    groups = [datagrams[at : at + step] for at in range(start, start + many * step, step)]
    over = data.draw(st.integers(0, size - HEAD_BYTES - 1))
    bodies = [b"".join(each[HEAD_BYTES:] for each in group) for group in groups]
    end = start + many * step
    assert segments.cut_bodies(start, end, step, over) == b"".join(each[: len(each) - over] for each in bodies)
    assert segments.tails(start, end, step, 1) == [group[-1][-1:] for group in groups]
    assert segments.heads(start, end, step, 2) == [group[0][2:HEAD_BYTES] for group in groups]


def test_what_has_no_whole_head_can_be_laid() -> None:
    segments = Laid(b"abcabcab", 3)
    assert [segments.head(index) for index in range(segments.count)] == [b"abc", b"abc", b"ab"]
    assert segments.columns(2, 3) == [b"cc"] and segments.part(1, 3).data == b"abcab"


def test_an_empty_datagram_is_none() -> None:
    assert alone(b"").count == 0 and alone(b"x").count == 1
