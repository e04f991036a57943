"""Splices: bytes, room, clean ends and breaks cross them; nothing is lost that was complete."""

from __future__ import annotations

import asyncio
import socket

import pytest

from proxy_vpn.doors.pump import splice
from proxy_vpn.doors.tcp import READ_BYTES, WINDOW_BYTES, TcpDuplex
from tests.support.duplex_pair import RecordingSink, duplex_pair
from tests.support.loopback import break_off, receive, receive_all, send, tcp_pair

BULK = bytes(range(256)) * (16 * 1024)


def test_sockets_joined_both_ways_with_half_close() -> None:
    async def main() -> None:
        a, ours_a = tcp_pair()
        b, ours_b = tcp_pair()
        with a, b:
            joined = splice(TcpDuplex(ours_a), TcpDuplex(ours_b))
            sending = asyncio.ensure_future(send(a, BULK))
            assert await receive(b, len(BULK)) == BULK
            await sending
            a.shutdown(socket.SHUT_WR)
            assert await receive_all(b) == b""
            assert not joined.done.done()
            await send(b, b"the answer after the end")
            b.shutdown(socket.SHUT_WR)
            assert await receive_all(a) == b"the answer after the end"
            await joined.wait()
            assert joined.error is None
            assert (joined.a_to_b_bytes, joined.b_to_a_bytes) == (len(BULK), 24)

    asyncio.run(main())


def test_a_stalled_reader_holds_few_bytes() -> None:
    async def main() -> None:
        a, ours_a = tcp_pair()
        near, far = duplex_pair(window_bytes=100_000)
        with a:
            joined = splice(TcpDuplex(ours_a), near)
            sink = RecordingSink(far, eager=False)
            sending = asyncio.ensure_future(send(a, BULK * 4))
            await sink.until(lambda s: len(s.data) >= 100_000)
            for _turn in range(50):
                await asyncio.sleep(0)
            assert near.most_queued_bytes <= WINDOW_BYTES + READ_BYTES
            assert not sending.done()
            sink.eager = True
            far.consumed(len(sink.data))
            await sink.until(lambda s: len(s.data) == len(BULK) * 4)
            await sending
            joined.cancel()

    asyncio.run(main())


def test_a_lost_peer_is_an_rst_at_the_program() -> None:
    async def main() -> None:
        a, ours_a = tcp_pair()
        near, far = duplex_pair()
        with a:
            joined = splice(TcpDuplex(ours_a), near)
            RecordingSink(far)
            far.write(b"some")
            assert await receive(a, 4) == b"some"
            near.lose()
            with pytest.raises(ConnectionResetError):
                await receive_all(a)
            await joined.wait()
            assert "lost" in str(joined.error)

    asyncio.run(main())


def test_a_broken_program_resets_the_peer() -> None:
    async def main() -> None:
        a, ours_a = tcp_pair()
        near, far = duplex_pair()
        joined = splice(TcpDuplex(ours_a), near)
        sink = RecordingSink(far)
        break_off(a)
        await joined.wait()
        assert near.was_reset
        await sink.until(lambda s: s.events == ["lost"])

    asyncio.run(main())


def test_a_clean_end_stays_clean_when_the_peer_is_lost_after_it() -> None:
    async def main() -> None:
        a, ours_a = tcp_pair(buffer_bytes=65536)
        near, far = duplex_pair()
        with a:
            client = TcpDuplex(ours_a)
            joined = splice(client, near)
            RecordingSink(far)
            far.write(BULK)
            far.write_eof()
            near.lose()
            await joined.wait()
            assert await receive_all(a) == BULK
            await client.wait_closed()

    asyncio.run(main())


def test_a_reset_after_delivery_never_takes_the_end_back() -> None:
    """Data and FIN have reached the program's kernel when the RST for its own direction comes: it still reads all."""

    async def main() -> None:
        a, ours_a = tcp_pair()
        near, far = duplex_pair()
        with a:
            client = TcpDuplex(ours_a)
            joined = splice(client, near)
            RecordingSink(far)
            far.write(b"x" * 100_000)
            far.write_eof()
            await send(a, b"still talking")
            near.lose()
            await joined.wait()
            await client.wait_closed()
            assert await receive_all(a) == b"x" * 100_000
            with pytest.raises(ConnectionError):
                a.send(b"x")

    asyncio.run(main())


def test_what_came_before_start_crosses_in_order() -> None:
    async def main() -> None:
        a, ours_a = tcp_pair()
        near, far = duplex_pair()
        with a:
            far.write(b"one ")
            far.write(b"two")
            far.write_eof()
            joined = splice(near, TcpDuplex(ours_a, early=b"early"))
            assert await receive_all(a) == b"one two"
            sink = RecordingSink(far)
            await sink.until(lambda s: s.data == b"early")
            a.shutdown(socket.SHUT_WR)
            await joined.wait()

    asyncio.run(main())


def test_cancelling_the_wait_resets_both() -> None:
    async def main() -> None:
        one, one_far = duplex_pair()
        two, two_far = duplex_pair()
        joined = splice(one, two)
        waiting = asyncio.ensure_future(joined.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert one.was_reset and two.was_reset and joined.done.done()
        joined.cancel()
        del one_far, two_far

    asyncio.run(main())
