"""The mark of a clean end, between two ends of a Unix socket."""

from __future__ import annotations

import asyncio
import os
import socket

from proxy_vpn.doors.end_mark import receive, send_mark
from proxy_vpn.doors.tcp import TcpDuplex
from tests.support.duplex_pair import RecordingSink

BULK = bytes(1 << 20)


def test_it_comes_behind_all_data() -> None:
    one, two = socket.socketpair()
    with one, two:
        before = len(os.listdir("/proc/self/fd"))
        one.sendall(b"data\0")
        send_mark(one)
        one.close()
        assert receive(two, 3) == (b"dat", False)
        assert receive(two, 100) == (b"a\0", True)
        assert receive(two, 100) == (b"", False)
        assert len(os.listdir("/proc/self/fd")) == before - 1


def test_a_full_socket_gets_it_in_the_end() -> None:
    async def main() -> None:
        one, two = socket.socketpair()
        with two:
            duplex = TcpDuplex(one, marks_end=True)
            sink = RecordingSink(duplex)
            duplex.write(BULK)
            duplex.write_eof()
            two.setblocking(False)
            size, marked = 0, False
            async with asyncio.timeout(10):
                while not marked:
                    try:
                        data, marked = receive(two, 65536)
                        size += len(data)
                        assert data or marked
                    except BlockingIOError:
                        await asyncio.sleep(0)
            assert size == len(BULK) and two.recv(1) == b""
            two.close()
            await sink.until(lambda s: s.events == ["eof", "finished"])
            assert sink.written_bytes == len(BULK)

    asyncio.run(main())
