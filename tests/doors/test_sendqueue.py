"""SendQueue: order and bytes whatever the pieces, and what many tiny ones cost."""

from __future__ import annotations

import socket
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from proxy_vpn.doors.sendqueue import SendQueue


@given(st.lists(st.binary(min_size=1, max_size=9000), max_size=40), st.integers(1, 30000))
def test_bytes_come_out_in_order(pieces: list[bytes], read_bytes: int) -> None:
    near, far = socket.socketpair()
    with near, far:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        near.setblocking(False)
        queue, got, sent = SendQueue(), bytearray(), 0
        for piece in pieces:
            queue.append(memoryview(piece))
        while queue:
            try:
                sent += queue.send(near)
            except BlockingIOError:
                got += far.recv(read_bytes)
        near.shutdown(socket.SHUT_WR)
        while data := far.recv(65536):
            got += data
        assert bytes(got) == b"".join(pieces) and sent == len(got)


def test_a_kept_piece_is_not_changed_by_the_next() -> None:
    queue, first = SendQueue(), bytes(5000)
    queue.append(memoryview(first))
    queue.append(memoryview(b"x"))
    assert first == bytes(5000)


def test_single_bytes_cost_little_more_than_they_are() -> None:
    data = [bytes([n & 255]) for n in range(1 << 16)]
    queue = SendQueue()
    tracemalloc.start()
    try:
        for byte in data:
            queue.append(memoryview(byte))
        held, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 4 * len(data)
