"""Queries handed on to this host's own name servers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from proxy_vpn.doors.dns_elsewhere import HostResolver

QUERY = b"\x12\x34\x01\x00" + bytes(8) + b"rest"


class Server(asyncio.DatagramProtocol):
    """Answers each query with what `reply` makes of it."""

    def __init__(self, reply: Callable[[bytes], list[bytes]]) -> None:
        self._reply = reply

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.DatagramTransport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        for answer in self._reply(data):
            self.transport.sendto(answer, addr)


def ask(
    path: Path, lines: str, reply: Callable[[bytes], list[bytes]], ours: str = "", stream: bytes | None = None
) -> bytes | None:
    """Ask over TCP if there is a `stream`, which is what the server says there."""
    path.write_text(lines)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(2 + len(QUERY)) == framed(QUERY)
        writer.write(stream or b"")
        writer.close()

    async def main() -> bytes | None:
        loop = asyncio.get_running_loop()
        # TCP's port first: of those that are free for UDP, some are taken by connections of others.
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            transport, _ = await loop.create_datagram_endpoint(lambda: Server(reply), ("127.0.0.1", port))
            try:
                return await HostResolver(lambda ip: ip == ours, path, port).ask(QUERY, over_tcp=stream is not None)
            finally:
                transport.close()

    return asyncio.run(main())


def framed(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def cut(data: bytes) -> bytes:
    return data[:2] + b"\x83\x80" + data[4:12]


def answer(data: bytes) -> bytes:
    return data[:2] + b"\x81\x80" + data[4:]


def test_the_first_server_answers_and_noise_does_not(tmp_path: Path) -> None:
    said = ask(
        tmp_path / "resolv.conf",
        "# nameserver 192.0.2.1\nsearch x\nnameserver 127.0.0.1\n",
        lambda data: [b"", b"\0" * 20, data, b"\x99\x99" + answer(data)[2:], answer(data)],
    )
    assert said == answer(QUERY)


def test_a_server_that_is_not_there_is_passed_over(tmp_path: Path) -> None:
    lines = "nameserver 127.0.0.2\nnameserver nonsense\nnameserver 127.0.0.1\n"
    assert ask(tmp_path / "resolv.conf", lines, lambda data: [answer(data)]) == answer(QUERY)


def test_never_itself(tmp_path: Path) -> None:
    lines = "nameserver 127.0.0.1\n"
    assert ask(tmp_path / "resolv.conf", lines, lambda data: [answer(data)], ours="127.0.0.1") is None
    assert ask(tmp_path / "resolv.conf", "", lambda data: [answer(data)]) is None


def test_what_does_not_fit_is_asked_for_over_tcp_by_who_asks_so(tmp_path: Path) -> None:
    path, lines = tmp_path / "resolv.conf", "nameserver 127.0.0.1\n"
    long = answer(QUERY) + bytes(5000)
    assert ask(path, lines, lambda data: [cut(data)]) == cut(QUERY)
    assert ask(path, lines, lambda data: [cut(data)], stream=framed(long)) == long
    assert ask(path, lines, lambda data: [answer(data)], stream=framed(long)) == answer(QUERY)
    for broken in (b"", framed(long)[:-1], framed(b"\x99\x99" + long[2:]), framed(b"")):
        assert ask(path, lines, lambda data: [cut(data)], stream=broken) == cut(QUERY)
