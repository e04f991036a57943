"""TcpDuplex over real sockets: bytes, half-close, breaks, windows, lingering."""

from __future__ import annotations

import asyncio
import socket

import pytest

from proxy_vpn.doors.tcp import READ_BYTES, SHORT_READ_BYTES, WINDOW_BYTES, TcpDuplex
from proxy_vpn.net.turns import Turns
from tests.support.duplex_pair import RecordingSink
from tests.support.loopback import break_off, receive, receive_all, send, tcp_pair

BULK = bytes(range(256)) * (16 * 1024)  # 4 MiB


def pair(kind: str) -> tuple[socket.socket, socket.socket]:
    return tcp_pair() if kind == "tcp" else socket.socketpair()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_bytes_both_ways_then_both_ends(kind: str) -> None:
    async def main() -> None:
        ours, theirs = pair(kind)
        theirs.setblocking(False)
        with theirs:
            duplex = TcpDuplex(ours, early=b"early ")
            sink = RecordingSink(duplex)
            await send(theirs, b"and late")
            await sink.until(lambda s: s.data == b"early and late")
            duplex.write(b"hello ")
            duplex.write(memoryview(b"there"))
            duplex.write_eof()
            assert await receive_all(theirs) == b"hello there"
            assert sink.events == []
            await send(theirs, b"!")
            theirs.shutdown(socket.SHUT_WR)
            await sink.until(lambda s: s.events == ["eof", "finished"])
            assert sink.data == b"early and late!" and sink.written_bytes == 11
            await duplex.wait_closed()
            duplex.write(b"ignored")
            duplex.reset()
            duplex.abort()

    asyncio.run(main())


def test_bulk_is_queued_and_reported_once_gone() -> None:
    async def main() -> None:
        ours, theirs = tcp_pair(buffer_bytes=65536)
        with theirs:
            duplex = TcpDuplex(ours)
            sink = RecordingSink(duplex)
            for at in range(0, len(BULK), 65536):
                duplex.write(BULK[at : at + 65536])
            duplex.write_eof()
            assert sink.written_bytes < len(BULK)
            assert await receive_all(theirs) == BULK
            await sink.until(lambda s: s.written_bytes == len(BULK))
            duplex.abort()

    asyncio.run(main())


def test_what_was_written_before_start_is_nobodys_business() -> None:
    async def main() -> None:
        ours, theirs = tcp_pair(buffer_bytes=65536)
        with theirs:
            duplex = TcpDuplex(ours)
            duplex.write(BULK)
            sink = RecordingSink(duplex)
            duplex.write(b"counted")
            assert await receive(theirs, len(BULK) + 7) == BULK + b"counted"
            await sink.until(lambda s: s.written_bytes == 7)
            duplex.abort()

    asyncio.run(main())


def test_a_sink_that_does_not_consume_is_not_flooded() -> None:
    async def main() -> None:
        ours, theirs = tcp_pair()
        with theirs:
            duplex = TcpDuplex(ours)
            sink = RecordingSink(duplex, eager=False)
            sending = asyncio.ensure_future(send(theirs, BULK * 8))
            await sink.until(lambda s: len(s.data) >= WINDOW_BYTES)
            for _turn in range(20):
                await asyncio.sleep(0)
            held = len(sink.data)
            assert WINDOW_BYTES <= held < WINDOW_BYTES + READ_BYTES
            assert not sending.done()
            sink.eager = True
            duplex.consumed(held)
            await sink.until(lambda s: len(s.data) == len(BULK) * 8)
            await sending
            assert sink.data == BULK * 8
            duplex.abort()

    asyncio.run(main())


@pytest.mark.parametrize("hurried", [True, False])
def test_a_full_socket_takes_less_of_a_turn_while_somebody_waits(
    hurried: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = Turns()
    monkeypatch.setattr("proxy_vpn.doors.tcp.TURNS", turns)

    async def main() -> None:
        ours, theirs = tcp_pair(buffer_bytes=2 * READ_BYTES)
        with theirs:
            theirs.setblocking(False)
            while True:
                try:
                    theirs.send(BULK)
                except BlockingIOError:
                    break
            duplex = TcpDuplex(ours)
            if hurried:
                turns.hurry(asyncio.get_running_loop().time())
            sink = RecordingSink(duplex, eager=False)
            await sink.until(lambda s: s.data)
            assert (len(sink.data) <= SHORT_READ_BYTES) is hurried
            duplex.abort()

    asyncio.run(main())


def test_a_broken_connection_is_lost_and_never_ended() -> None:
    async def main() -> None:
        ours, theirs = tcp_pair()
        sink = RecordingSink(TcpDuplex(ours))
        break_off(theirs)
        await sink.until(lambda s: s.events == ["lost"])
        assert "reset by peer" in str(sink.error)

    asyncio.run(main())


def test_a_break_met_while_writing_is_lost_too() -> None:
    async def main() -> None:
        ours, theirs = tcp_pair()
        duplex = TcpDuplex(ours)
        sink = RecordingSink(duplex)
        break_off(theirs)
        for _turn in range(3):
            duplex.write(b"more")
        await sink.until(lambda s: s.events == ["lost"])
        assert sink.data == b""

    asyncio.run(main())


def test_an_answer_before_the_break_is_still_read() -> None:
    """The far end answers, closes with our bytes unread, and so resets: its answer is in our receive queue."""

    async def main() -> None:
        ours, theirs = tcp_pair()
        duplex = TcpDuplex(ours)
        await send(theirs, b"413 too large")
        theirs.shutdown(socket.SHUT_WR)
        theirs.close()
        for _turn in range(3):
            duplex.write(b"body")  # the first one draws the RST
        sink = RecordingSink(duplex)
        await sink.until(lambda s: "lost" in s.events)
        assert sink.data == b"413 too large" and sink.events == ["eof", "lost"]

    asyncio.run(main())


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_an_end_that_came_before_the_break_is_an_end(writes: int) -> None:
    """A service that answers early and closes: what still goes to it draws an RST."""

    async def main() -> None:
        ours, theirs = tcp_pair()
        duplex = TcpDuplex(ours)
        sink = RecordingSink(duplex)
        await send(theirs, b"an early answer")
        theirs.close()
        for _ in range(writes):
            duplex.write(b"more of the request")
        duplex.write_eof()
        await sink.until(lambda s: len(s.events) == 2)
        assert sink.data == b"an early answer" and sink.events == ["eof", "lost" if writes else "finished"]

    asyncio.run(main())


def test_what_could_not_be_written_is_never_a_clean_finish() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        duplex = TcpDuplex(ours)
        sink = RecordingSink(duplex)
        theirs.shutdown(socket.SHUT_WR)
        await sink.until(lambda s: s.events == ["eof"])
        theirs.close()
        duplex.write(b"an answer")
        duplex.write_eof()
        await sink.until(lambda s: len(s.events) == 2)
        assert sink.events == ["eof", "lost"]

    asyncio.run(main())


def test_reset_is_an_rst() -> None:
    async def main() -> None:
        ours, theirs = tcp_pair()
        with theirs:
            duplex = TcpDuplex(ours)
            sink = RecordingSink(duplex)
            duplex.write(b"x")
            duplex.reset()
            with pytest.raises(ConnectionResetError):
                await receive_all(theirs)
                await receive_all(theirs)
            assert sink.events == []
            await duplex.wait_closed()

    asyncio.run(main())


@pytest.mark.parametrize("chatty", [False, True])
def test_reset_after_an_end_delivers_what_was_written(chatty: bool) -> None:
    """A complete direction arrives whole although the connection behind it died, even at a reader that is late."""

    async def main() -> None:
        ours, theirs = tcp_pair(buffer_bytes=65536)
        with theirs:
            duplex = TcpDuplex(ours)
            sink = RecordingSink(duplex)
            duplex.write(BULK)
            duplex.write_eof()
            duplex.reset()
            if chatty:
                theirs.send(b"this has nowhere to go")
            assert sink.written_bytes < len(BULK)
            assert await receive_all(theirs) == BULK
            await duplex.wait_closed()
            assert sink.events == []
            if chatty:
                with pytest.raises(ConnectionError):
                    theirs.send(b"x")
            else:
                theirs.shutdown(socket.SHUT_WR)

    asyncio.run(main())


def test_abort_ends_the_lingering() -> None:
    async def main() -> None:
        ours, theirs = tcp_pair(buffer_bytes=65536)
        with theirs:
            duplex = TcpDuplex(ours)
            duplex.write(BULK)
            duplex.write_eof()
            duplex.reset()
            waiting = asyncio.ensure_future(duplex.wait_closed())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            with pytest.raises(ConnectionResetError):
                await receive_all(theirs)

    asyncio.run(main())


def test_last_words_without_a_sink_arrive() -> None:
    async def main() -> None:
        ours, theirs = tcp_pair()
        with theirs:
            await send(theirs, b"a request nobody reads" * 1000)
            duplex = TcpDuplex(ours)
            duplex.write(b"no")
            duplex.write_eof()
            duplex.reset()
            assert await receive_all(theirs) == b"no"
            theirs.shutdown(socket.SHUT_WR)
            await duplex.wait_closed()

    asyncio.run(main())
