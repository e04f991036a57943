"""Taking a pcap stream apart, however it was cut on its way."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_vpn.daemon.pcap import SNAP_LIMIT_BYTES, Records
from proxy_vpn.errors import ControlError

HEADER = struct.pack("=IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, SNAP_LIMIT_BYTES, 101)


def record(size: int, fill: int = 0) -> bytes:
    """One packet of `size` bytes."""
    return struct.pack("=IIII", 1, 2, size, size) + bytes([fill]) * size


@given(sizes=st.lists(st.integers(0, 300), max_size=8), cuts=st.lists(st.integers(0, 2000), max_size=8))
def test_records_come_whole_however_the_stream_is_cut(sizes: list[int], cuts: list[int]) -> None:
    whole = [record(size, number) for number, size in enumerate(sizes)]
    stream = HEADER + b"".join(whole)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for pieces in (
        [stream],
        [stream[at : at + 1] for at in range(len(stream))],
        [stream[start:end] for start, end in pairwise(edges)],
    ):
        records = Records()
        assert [found for piece in pieces for found in records.feed(piece)] == whole
        assert records.header == HEADER


def test_a_stream_that_is_no_pcap_is_refused() -> None:
    with pytest.raises(ControlError):
        Records().feed(HEADER + b"\xff" * 16)
